import hashlib
from pathlib import Path

import polars
import pytest

from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.distillation.compare import (
    SCORES,
    arm_config,
    as_markdown,
    best_builtin,
    compare,
    default_arms,
    evaluate_teacher,
    hold_out,
    interval,
    summarise,
)
from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.distillation.distill import distill, prepare_data, train, validate
from drone_kd_training.distillation.trainer import DistillTrainer
from tiny_training import SIZE, draw_set

SHORT = {"mosaic": 0.0, "close_mosaic": 0, "optimizer": "AdamW", "lr0": 0.002, "nbs": 6}


def config(data="d.yaml", teacher="t.pt", **changes) -> Config:
    values = {"student": "aerial-student.yaml", "epochs": 1, "imgsz": SIZE, "batch": 6}
    return Config(
        str(data), str(teacher), **{**values, "val": False, "overrides": SHORT, **changes}
    )


def test_arms_change_the_settings_of_one_run():
    base = config()
    assert default_arms(base) == [
        *("plain", "builtin:0.5", "builtin:1", "builtin:2", "builtin:6"),
        *("distilled", "terms=box+assign", "terms=class+assign", "terms=class+box"),
    ]
    assert arm_config("distilled", base) == base
    assert arm_config("plain", base).teacher == NO_TEACHER
    builtin = arm_config("builtin:2", base)
    assert builtin.teacher == NO_TEACHER
    assert builtin.overrides["lr0"] == 0.002
    assert (builtin.overrides["distill_model"], builtin.overrides["dis"]) == ("t.pt", 2.0)
    changed = arm_config("terms=class+feature;balance=0.1;teacher_scale=2", base)
    assert (changed.terms, changed.balance, changed.teacher_scale) == (
        ("class", "feature"),
        0.1,
        2,
    )
    with pytest.raises(ValueError, match="arm 'colour=red': colour is neither"):
        arm_config("colour=red", base)


def row(arm: str, seed: int, score: float, seconds: float = 10.0) -> dict:
    return {"arm": arm, "seed": seed, "map50_95": score, "seconds": seconds}


def test_summary_compares_runs_of_the_same_seed():
    rows = [
        *(row("plain", seed, score) for seed, score in enumerate((0.20, 0.30, 0.40))),
        *(row("builtin:1", seed, score) for seed, score in enumerate((0.20, 0.31, 0.41))),
        *(row("builtin:6", seed, score) for seed, score in enumerate((0.10, 0.20, 0.30))),
        *(row("distilled", seed, score, 15.0) for seed, score in enumerate((0.25, 0.34, 0.46))),
    ]
    plain, builtin, _, own = found = summarise(rows, teacher=0.50)
    assert plain.gain is None
    assert plain.mean == pytest.approx(0.30)
    assert plain.spread == pytest.approx(0.1)
    assert own.gain == pytest.approx(0.05)
    assert own.gap_share == pytest.approx(0.25)
    assert own.time_ratio == pytest.approx(1.5)
    # 0.05 +- t(0.975, 2) * 0.01 / sqrt(3)
    assert own.gain_interval == pytest.approx((0.05 - 0.02484, 0.05 + 0.02484), abs=1e-4)
    assert best_builtin(found) == builtin
    assert summarise(rows, teacher=0.32)[-1].gap_share is None  # a gap of 2 points
    rows += [row("terms=class", seed, score) for seed, score in enumerate((0.24, 0.33, 0.45))]
    printed = as_markdown({"map50_95": 0.5}, summarise(rows, teacher=0.50), rows)
    assert "distilled - builtin:1: +4.3 [" in printed
    assert "builtin:6: " not in printed
    assert "distilled - terms=class: +1.0 [+1.0, +1.0]" in printed
    assert interval([0.1]) is None


def test_hold_out_takes_stretches_of_the_training_frames(tmp_path):
    data = draw_set(tmp_path / "data", train=80)
    split = load_data(hold_out(data, 0.25, tmp_path))
    held_out = [int(p.stem) for p in image_paths(split.val)]
    # The end of each eighth of the list.
    assert held_out == [i for i in range(80) if i % 10 >= 7.5]
    assert [int(p.stem) for p in image_paths(split.train)] == sorted(
        set(range(80)) - set(held_out)
    )
    for share in (0.001, 1.0):
        with pytest.raises(ValueError, match="leaves nothing"):
            hold_out(data, share, tmp_path)


def test_hold_out_keeps_the_tiles_of_a_frame_together(tmp_path):
    data = draw_set(tmp_path / "data", train=24)
    for path in image_paths(load_data(data).train):
        frame, tile = divmod(int(path.stem), 3)
        path.rename(path.with_name(f"f{frame}-0000-{480 * tile:04d}.png"))
    split = load_data(hold_out(data, 0.25, tmp_path))
    held_out = [p.stem.split("-")[0] for p in image_paths(split.val)]
    assert held_out == [*(["f3"] * 3), *(["f7"] * 3)]


@pytest.mark.slow
def test_teacher_is_measured_at_the_size_of_the_student(tiny_data, square_detector, tmp_path):
    at_size = evaluate_teacher(config(tiny_data, square_detector), tiny_data, tmp_path)
    assert at_size["at_teacher_imgsz"] is None
    both = evaluate_teacher(
        config(tiny_data, square_detector, teacher_scale=2), tiny_data, tmp_path
    )
    large = both.pop("at_teacher_imgsz")
    assert both.items() <= at_size.items()
    assert (both["imgsz"], large["imgsz"]) == (SIZE, 2 * SIZE)
    assert large["map50_95"] != both["map50_95"]
    text = as_markdown({**both, "at_teacher_imgsz": large}, [], [])
    assert [line.split(" |")[0] for line in text.splitlines()[2:]] == [
        *("| teacher", f"| teacher at {2 * SIZE} px")
    ]


@pytest.fixture
def batches(monkeypatch) -> dict[str, list[str]]:
    """Digests of the training batches, by name of the run."""
    found: dict[str, list[str]] = {}
    preprocess = DistillTrainer.preprocess_batch

    def record(self, batch: dict) -> dict:
        batch = preprocess(self, batch)
        digest = hashlib.sha256()
        for key in ("img", "cls", "bboxes", "batch_idx"):
            digest.update(batch[key].numpy().tobytes())
        found.setdefault(self.save_dir.name, []).append(digest.hexdigest())
        return batch

    monkeypatch.setattr(DistillTrainer, "preprocess_batch", record)
    return found


def first_seed_only(run: Config, folder: Path, **options) -> dict:
    """Distil with the seed 0, and return fixed figures for every other seed."""
    if run.seed == 0:
        return distill(run, folder, **options)
    scores = dict.fromkeys(SCORES, 0.1)
    return {"student": scores, "seconds": 1.0}


@pytest.mark.slow
def test_experiment_writes_a_row_per_run_and_is_not_repeated(
    tiny_data, tiny_teacher, tmp_path, batches, monkeypatch
):
    monkeypatch.setattr("drone_kd_training.distillation.compare.distill", first_seed_only)
    arms = ["plain", "builtin:1", "distilled"]
    run = config(tiny_data, tiny_teacher, overrides={**SHORT, "mosaic": 1.0})
    teacher, summaries = compare(run, tmp_path, (0, 1), arms)
    assert 0 <= teacher["map50_95"] <= 1
    assert [s.seeds for s in summaries] == [2, 2, 2]
    table = polars.read_csv(tmp_path / "compare.csv")
    assert list(zip(table["arm"], table["seed"], strict=True)) == [
        (arm, seed) for seed in (0, 1) for arm in arms
    ]
    markdown = (tmp_path / "compare.md").read_text()
    assert "| distilled | 2 |" in markdown
    assert "distilled - builtin:1:" in markdown
    page = (tmp_path / "report.html").read_text()
    assert "<th>distilled, seed 0</th>" in page
    assert page.count("data:image/png;base64,") == 3
    assert "Of 12 labelled objects" in page
    assert "http" not in page  # opens offline

    trained = {name: list(digests) for name, digests in batches.items()}
    assert set(trained) == {"plain-seed0", "builtin-1-seed0", "distilled-seed0"}
    assert len(set(trained["plain-seed0"])) == len(trained["plain-seed0"]) == 2
    assert trained["plain-seed0"] == trained["builtin-1-seed0"] == trained["distilled-seed0"]

    compare(run, tmp_path, (0, 1), arms)
    assert batches == trained  # nothing was trained again
    with pytest.raises(ValueError, match="a run with other settings"):
        compare(config(tiny_data, tiny_teacher, batch=4), tmp_path, (0,), arms)


@pytest.mark.slow
def test_the_batches_follow_from_the_seed(tiny_data, tmp_path, batches):
    for seed in (0, 1):
        run = config(tiny_data, NO_TEACHER, seed=seed)
        checked, data = prepare_data(validate(run, tmp_path / f"seed{seed}", resume=False))
        train(checked, data)
    assert not set(batches["seed0"]) & set(batches["seed1"])
