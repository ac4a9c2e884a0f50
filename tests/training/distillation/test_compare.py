import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest

from drone_kd_training.data.dataset import DataError, image_paths, label_path, load_data
from drone_kd_training.distillation import compare as compare_module
from drone_kd_training.distillation.arm_figures import teacher_rows
from drone_kd_training.distillation.compare import (
    SCORES,
    arm_config,
    compare,
    default_arms,
    evaluate_teacher,
    held_out_flights,
    hold_out,
    training_seconds,
)
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config, write_config
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
        "plain:time",
    ]
    assert arm_config("distilled", base) == base
    assert arm_config("plain", base).teacher == NO_TEACHER
    assert arm_config("plain:time", base) == arm_config("plain", base)
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


def test_hold_out_takes_whole_flights_where_names_tell_them(tmp_path):
    data = draw_set(tmp_path / "data", train=80)
    for path in image_paths(load_data(data).train):
        flight, number = divmod(int(path.stem), 8)
        for part in (path, label_path(path)):
            part.rename(part.with_name(f"f{flight}_{number:03d}{part.suffix}"))
    split = load_data(hold_out(data, 0.2, tmp_path))
    flights = {
        name: {path.stem[:2] for path in image_paths(getattr(split, name))}
        for name in ("train", "val")
    }
    assert not flights["train"] & flights["val"]
    assert len(flights["val"]) == 2 and len(flights["train"]) == 8
    assert len(image_paths(split.val)) == 16


def test_held_out_flights_are_about_a_share_of_the_frames():
    sizes = np.random.default_rng(0).integers(1, 200, 60)
    for share in (0.1, 0.3, 0.5, 0.8):
        found = held_out_flights(sizes, share)
        assert abs(sizes[found].sum() / sizes.sum() - share) < 0.05
        assert max(np.diff(found)) < 4 / share
    # Never none, never all.
    assert held_out_flights(np.array([5, 5, 5]), 0.01) == [1]
    assert held_out_flights(np.array([5, 5, 5]), 0.99) == [0, 1]


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
    rows = teacher_rows({**both, "at_teacher_imgsz": large})
    assert [name for name, _ in rows] == ["teacher", f"teacher at {2 * SIZE} px"]


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


def finished(folder: Path, run: Config, score: float, seconds: list[float]) -> dict:
    """Write what a finished run leaves; return its figures."""
    write_config(run, folder)
    (folder / "data.yaml").write_text(Path(run.data).read_text())
    (folder / "results.csv").write_text("epoch,time\n" + "".join(f"1,{s}\n" for s in seconds))
    ap = {"ap50_95": score, "ap50": score}
    per_class = {"car": {**ap, "ap50_95": score + 0.2}, "person": ap}
    student = dict.fromkeys(SCORES, score) | {"parameters": 7, "per_class": per_class}
    metrics = {"student": student, "seconds": 1.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return metrics


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Names of the runs, in the place of training: 10 s per epoch, with a teacher 16 s."""
    made: list[str] = []

    def distill(run, folder, resume, measure_teacher):
        if resume:
            return json.loads((folder / "metrics.json").read_text())
        made.append(folder.name)
        seconds = run.epochs * (16.0 if run.distils else 10.0)
        return finished(folder, run, 0.5 if run.distils else 0.4, [seconds])

    monkeypatch.setattr("drone_kd_training.distillation.compare.distill", distill)
    monkeypatch.setattr("drone_kd_training.distillation.compare._write_report", lambda *_: None)
    monkeypatch.setattr(
        "drone_kd_training.distillation.compare.evaluate_teacher", lambda *_: TEACHER
    )
    return made


TEACHER = {
    "map50_95": 0.9,
    "parameters": 9,
    "imgsz": SIZE,
    "per_class": {"car": {"ap50_95": 0.9}, "person": {"ap50_95": 0.9}},
    "classes_not_in_model": [],
}


def resolved(tiny_data, folder: Path) -> Path:
    """Return the data set with absolute paths."""
    return load_data(tiny_data).write_resolved(folder / "resolved.yaml")


def test_the_time_of_distilled_gives_the_length_of_plain_time(tiny_data, tmp_path, trained):
    base = config(resolved(tiny_data, tmp_path), epochs=10)
    output = tmp_path / "out"
    _, summaries = compare(base, output, (0, 1, 1), ["plain:time", "balance=1"])
    assert trained == [
        *("plain-seed0", "distilled-seed0", "plain-seed1", "distilled-seed1"),
        *("plain-time-seed0", "plain-time-seed1"),
    ]  # balance=1 is the default, so that arm is distilled itself
    assert read_config(output / "runs" / "plain-time-seed0").epochs == 16
    assert {s.arm: s.time_ratio for s in summaries} == pytest.approx(
        {"plain": 1, "distilled": 1.6, "plain:time": 1.6}
    )
    rows = polars.read_csv(output / "compare.csv")
    assert rows.columns == [
        *("arm", "seed", "steps", *SCORES, "seconds", "parameters", "classes", "imgsz")
    ]
    assert rows["steps"].to_list() == [20, 20, 20, 20, 32, 32]  # 12 images, 6 in a batch
    assert set(rows["classes"]) == {"car;person"} and set(rows["imgsz"]) == {SIZE}
    steps = replace(base, steps=50)
    compare(steps, tmp_path / "steps", (0,), ["plain:time"])
    assert read_config(tmp_path / "steps" / "runs" / "plain-time-seed0").steps == 80


def test_the_primary_comparison_is_named_before_the_runs(tiny_data, tmp_path, trained):
    base, output = config(resolved(tiny_data, tmp_path)), tmp_path / "out"
    compare(base, output, (0, 1), ["plain", "distilled", "beta=1"])
    content = json.loads((output / "metrics.json").read_text())
    assert content["primary"]["named"] == {
        "arm": "distilled",
        "other": "plain",
        "runs_before": 0,
        "select": 0,
        "plan": {
            "arms": ["plain", "distilled", "beta=1"],
            "seeds": [0, 1],
            "labels": [],
            "length": "1 epochs",
        },
    }
    assert content["primary"]["difference"]["mean"] == pytest.approx(0.1)
    first = (output / "compare.md").read_text().splitlines()[0]
    assert first == (
        "Primary: distilled - plain = +10.0 points [+10.0, +10.0], n = 2 seeds, "
        f"mAP50-95 on 2 classes (car, person), {SIZE} px"
    )
    compare(base, output, (0, 2), ["plain", "distilled"])
    first = (output / "compare.md").read_text().splitlines()[0]
    assert first.endswith(
        "px; NOT AS PLANNED: seeds planned: 2, ran: 2, seeds missing: 1, seeds added later: 2, "
        "arms missing: beta=1; 4 finished runs not compared here: beta-1-seed0, beta-1-seed1, "
        "distilled-seed1, plain-seed1"
    )
    with pytest.raises(ValueError, match="another select"):
        compare(base, output, (0,), ["plain"], select=0.25)

    (output / "primary.json").unlink()  # as before there was one
    compare(base, output, (0, 1), ["plain", "distilled", "beta=1"])
    assert len(trained) == 8
    first = (output / "compare.md").read_text().splitlines()[0]
    assert first.startswith("No primary comparison (named after 8 runs: confirm")

    compare(base, tmp_path / "variants", (0,), ["plain", "beta=1", "beta=2"])
    first = (tmp_path / "variants" / "compare.md").read_text().splitlines()[0]
    assert first.startswith("No primary comparison (several variants of ours")


def test_students_are_measured_on_the_classes_of_the_teacher(
    tiny_data, tmp_path, trained, monkeypatch
):
    cars = {"per_class": {"car": {"ap50_95": 0.9}}, "classes_not_in_model": ["person"]}
    monkeypatch.setattr(
        "drone_kd_training.distillation.compare.evaluate_teacher", lambda *_: TEACHER | cars
    )
    base, output = config(resolved(tiny_data, tmp_path)), tmp_path / "out"
    compare(base, output, (0,), ["plain", "distilled"])
    rows = polars.read_csv(output / "compare.csv")
    assert rows["map50_95"].to_list() == pytest.approx([0.6, 0.7])
    assert set(rows["classes"]) == {"car"}
    text = (output / "compare.md").read_text()
    assert "n = 1 seed, mAP50-95 on 1 class (car)" in text.splitlines()[0]
    assert "Classes that count for no model: person (not a class of the teacher)." in text


def test_time_counts_over_all_processes_of_a_run(tmp_path):
    for times, expected in (([10, 21, 12, 20], 41), ([10, 20], 20), ([5], 5)):
        text = "epoch,time\n" + "".join(f"1,{time}\n" for time in times)
        (tmp_path / "results.csv").write_text(text)
        assert training_seconds(tmp_path) == expected


def first_seed_only(run: Config, folder: Path, **options) -> dict:
    """Distil with the seed 0, and return fixed figures for every other seed."""
    if run.seed == 0 or folder.is_dir():
        return distill(run, folder, **options)
    return finished(folder, run, 0.1, [10.0])


@pytest.mark.slow
def test_experiment_writes_a_row_per_run_and_is_not_repeated(
    tiny_data, tiny_teacher, tmp_path, batches, monkeypatch
):
    monkeypatch.setattr("drone_kd_training.distillation.compare.distill", first_seed_only)
    arms = ["plain", "builtin:1", "distilled"]
    data = resolved(tiny_data, tmp_path)
    run = config(data, tiny_teacher, overrides={**SHORT, "mosaic": 1.0})
    teacher, summaries = compare(run, tmp_path, (0, 1), arms)
    assert 0 <= teacher["map50_95"] <= 1
    assert [s.units for s in summaries] == [2, 2, 2]
    table = polars.read_csv(tmp_path / "compare.csv")
    assert list(zip(table["arm"], table["seed"], strict=True)) == [
        (arm, seed) for seed in (0, 1) for arm in arms
    ]
    markdown = (tmp_path / "compare.md").read_text()
    assert "| distilled | 2 |" in markdown
    assert "| distilled - builtin:1 |" in markdown
    page = (tmp_path / "report.html").read_text()
    first = markdown.splitlines()[0]
    assert first.startswith("Primary: distilled - plain = ")
    assert page.index(f"<p>{first}</p>") < page.index("<table>")
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
        compare(config(data, tiny_teacher, batch=4), tmp_path, (0,), arms)


@pytest.mark.slow
def test_the_batches_follow_from_the_seed(tiny_data, tmp_path, batches):
    for seed in (0, 1):
        run = config(tiny_data, NO_TEACHER, seed=seed)
        checked, data = prepare_data(validate(run, tmp_path / f"seed{seed}", resume=False))
        train(checked, data)
    assert not set(batches["seed0"]) & set(batches["seed1"])


def test_data_without_an_object_of_the_teacher_are_refused_before_the_first_run(
    square_detector, tmp_path
):
    data = draw_set(tmp_path / "data", train=2)
    for path in image_paths(load_data(data).val):
        label_path(path).write_text("")
    output = tmp_path / "out"
    with pytest.raises(DataError, match=r"expected a labelled object of a class of the") as error:
        compare(config(data, square_detector), output, (0,), ["plain", "distilled"])
    assert "\n" not in str(error.value)
    assert not (output / "runs").exists()
    assert not [*output.glob("teacher-*.json")]  # labels that are added later count


def test_provenance_is_there_before_the_first_run(tiny_data, tmp_path, trained, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    base, output = config(resolved(tiny_data, tmp_path)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("drone_kd_training.distillation.compare.distill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compare(base, output, (0, 1), ["plain", "distilled"])
    found = json.loads((output / "provenance.json").read_text())
    assert (found["seeds"], found["classes"]) == ("0 1", "car person")
    assert found["image_sizes"] == f"student {SIZE}, teacher {SIZE}"
    compare(base, output, (0, 2), ["plain", "distilled"])
    assert json.loads((output / "provenance.json").read_text())["seeds"] == "0 1 2"


def test_run_without_a_score_is_named_and_is_not_zero(tiny_data, tmp_path, trained, monkeypatch):
    row = compare_module._row

    def without_score(arm, run, *rest):
        found = row(arm, run, *rest)
        lost = arm == "distilled" and run.seed == 1
        return found | (dict.fromkeys(SCORES) if lost else {})

    monkeypatch.setattr(compare_module, "_row", without_score)
    base, output = config(resolved(tiny_data, tmp_path)), tmp_path / "out"
    _, arms = compare(base, output, (0, 1, 2), ["plain", "distilled"])
    first = (output / "compare.md").read_text().splitlines()[0]
    assert "= +10.0 points [+10.0, +10.0], n = 2 seeds" in first
    assert "seeds planned: 3, ran: 2, seeds missing: 1" in first
    assert first.endswith("without a score, so not counted: distilled seed 1")
    assert {arm.arm: arm.units for arm in arms} == {"plain": 3, "distilled": 2}
