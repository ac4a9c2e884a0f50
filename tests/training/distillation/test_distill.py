import json
import subprocess
import sys
from pathlib import Path

import polars
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import unwrap_model

from drone_kd_training.data.dataset import load_data
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config
from drone_kd_training.distillation.distill import _thin, _warn_if_weaker, distill
from drone_kd_training.distillation.trainer import DistillTrainer
from drone_kd_training.models.checkpoints import UnusableModelError, resolve_model
from drone_kd_training.teachers.teaching_dataset import read_regions
from tiny_training import NAMES, SIZE, draw_set, interrupt_when_written, save_checkpoint

SHORT = {
    "warmup_epochs": 0.0,
    "mosaic": 0.0,
    "close_mosaic": 0,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "nbs": 6,
}


def config(data: Path, teacher, **changes) -> Config:
    values = {
        "student": "aerial-student.yaml",
        "epochs": 2,
        "imgsz": SIZE,
        "batch": 6,
        "terms": ("class", "box", "assign"),
        "val": False,
        "overrides": SHORT,
    }
    return Config(data=str(data), teacher=str(teacher), **{**values, **changes})


@pytest.fixture(scope="module")
def run(tiny_data, tiny_teacher, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    distill(config(tiny_data, tiny_teacher), output)
    return output


def test_run_leaves_a_plain_student_and_its_figures(run):
    assert {"best.pt", "metrics.json", "results.csv", "config.yaml", "curves.png"} <= {
        p.name for p in run.iterdir()
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["student"]["images"] == 6 and metrics["teacher"]["images"] == 6
    student = YOLO(run / "best.pt")  # plain Ultralytics
    assert student.names == dict(enumerate(NAMES))
    reference = DetectionModel(resolve_model("aerial-student.yaml"), nc=2, verbose=False)
    assert set(student.model.state_dict()) == set(reference.state_dict())
    assert read_config(run).teacher.endswith("teacher.pt")
    # Ultralytics' own 0.1 would shake the biases of a pretrained student to pieces.
    assert yaml.safe_load((run / "args.yaml").read_text())["warmup_bias_lr"] == 0.0


def test_every_loss_term_is_logged_every_epoch_and_none_is_zero(run):
    table = polars.read_csv(run / "results.csv")
    names = [c for c in table.columns if "kd_" in c]
    assert set(names) == {
        f"train/kd_{x}" for x in ("cls_loss", "cls_scale", "dfl_loss", "dfl_scale")
    }
    assert len(table) == 2
    for name in [*names, "train/box_loss", "train/cls_loss", "train/dfl_loss"]:
        assert (table[name] > 0).all(), name


def test_a_used_folder_is_refused_and_a_finished_run_is_not_run_again(
    run, tiny_data, tiny_teacher
):
    with pytest.raises(ValueError, match="not an empty folder"):
        distill(config(tiny_data, tiny_teacher), run)
    before = (run / "best.pt").stat().st_mtime_ns
    assert distill(config(tiny_data, tiny_teacher), run, resume=True)["epochs"] == 2
    assert (run / "best.pt").stat().st_mtime_ns == before


def test_interrupt_then_resume_finishes_the_run(tiny_data, tiny_teacher, tmp_path):
    output = tmp_path / "out"
    command = [
        *(
            sys.executable,
            "-m",
            "training",
            "distill",
            "--data",
            str(tiny_data),
            "--teacher",
            str(tiny_teacher),
        ),
        *(
            "--student",
            "aerial-student.yaml",
            "--output",
            str(output),
            "--epochs",
            "6",
            "--imgsz",
            str(SIZE),
        ),
        *(
            "--batch",
            "6",
            "--no-val",
            "--device",
            "cpu",
            "--set",
            "mosaic=0",
            "--set",
            "close_mosaic=0",
        ),
    ]
    state = output / "weights" / "resume.pt"
    assert "--resume" in interrupt_when_written(command, state, 120)
    assert not (output / "metrics.json").exists()
    before = torch.load(state, weights_only=True)["balance"]["batches"]

    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr[-2000:]
    assert polars.read_csv(output / "results.csv")["epoch"].to_list() == [1, 2, 3, 4, 5, 6]
    assert before < 12 and not state.exists()  # a finished run has nothing to resume


def loss_curve(output: Path) -> list[list[float]]:
    table = polars.read_csv(output / "results.csv")
    return table.select(sorted(c for c in table.columns if c.startswith("train/"))).rows()


class Stop(Exception):
    """An interruption at a known place."""


@pytest.mark.parametrize(
    "changes", [{"optimizer": "AdamW"}, {"optimizer": "SGD"}, {"amp": "bf16"}]
)
def test_a_resumed_run_has_the_loss_curve_of_an_uninterrupted_one(
    changes, tiny_data, tiny_teacher, tmp_path, monkeypatch
):
    """Balance, schedule, adapters and momentum go on where they were."""
    run = config(
        tiny_data,
        tiny_teacher,
        epochs=4,
        terms=("class", "box", "cross", "feature"),
        overrides={**SHORT, **changes},
    )
    distill(run, tmp_path / "whole")

    class StopsAfterTwo(DistillTrainer):
        def _save_state(self) -> None:
            super()._save_state()
            if self.epoch == 1:
                raise Stop

    monkeypatch.setattr("drone_kd_training.distillation.distill.DistillTrainer", StopsAfterTwo)
    with pytest.raises(Stop):
        distill(run, tmp_path / "halves")
    monkeypatch.undo()
    distill(run, tmp_path / "halves", resume=True)
    whole, halves = loss_curve(tmp_path / "whole"), loss_curve(tmp_path / "halves")
    assert len(whole) == len(halves) == 4
    for a, b in zip(whole, halves, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize(
    ("teacher", "overrides", "expected"),
    [
        ("tiny", {"amp": "bf16"}, torch.bfloat16),
        (NO_TEACHER, {"amp": "bf16"}, torch.bfloat16),
        (NO_TEACHER, {"amp": "bf16", "distill_model": "tiny"}, torch.bfloat16),
        (NO_TEACHER, {}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_asked_for(
    teacher, overrides, expected, tiny_data, tiny_teacher, tmp_path, monkeypatch
):
    seen = set()

    class Watched(DistillTrainer):
        def _load_state(self) -> None:
            super()._load_state()
            body = unwrap_model(self.model)
            body = getattr(body, "student_model", body).model
            body[0].register_forward_hook(lambda *call: seen.add(call[2].dtype))

    monkeypatch.setattr("drone_kd_training.distillation.distill.DistillTrainer", Watched)
    names = {"tiny": str(tiny_teacher)}
    overrides = {key: names.get(value, value) for key, value in overrides.items()}
    run = config(
        tiny_data, names.get(teacher, teacher), epochs=1, overrides={**SHORT, **overrides}
    )
    found = distill(run, tmp_path / "out")
    assert seen == {expected}
    assert found["student"]["map50_95"] is not None
    table = polars.read_csv(tmp_path / "out" / "results.csv")
    for name in (c for c in table.columns if c.startswith("train/")):
        assert 0 < table[name][0] < float("inf"), name


def test_the_teacher_may_see_the_frame_at_twice_the_size(tiny_data, tiny_teacher, tmp_path):
    run = config(tiny_data, tiny_teacher, teacher_scale=2, epochs=1)
    metrics = distill(run, tmp_path / "out")
    assert metrics["teacher"]["gflops"] == pytest.approx(4 * metrics["student"]["gflops"])
    table = polars.read_csv(tmp_path / "out" / "results.csv")
    assert table["train/kd_cls_loss"][0] > 0 and table["train/kd_dfl_loss"][0] > 0


def test_a_teacher_between_the_levels_teaches_with_its_boxes(tiny_data, tiny_teacher, tmp_path):
    run = config(tiny_data, tiny_teacher, teacher_scale=1.5, teacher_tiles=True, epochs=1)
    metrics = distill(run, tmp_path / "out")
    table = polars.read_csv(tmp_path / "out" / "results.csv")
    assert table["train/kd_cls_loss"][0] > 0 and "train/kd_box_loss" in table.columns
    cost = metrics["teacher_cost"]
    assert 0 < cost["share"] < 1 and cost["seconds_per_batch"] > 0 and cost["peak_mb"] >= 0
    with pytest.raises(UnusableModelError, match=r"no level in common .* but not feature; use"):
        distill(
            config(tiny_data, tiny_teacher, teacher_scale=1.5, terms=("class", "feature")),
            tmp_path / "b",
        )
    assert not (tmp_path / "b").exists()


def test_the_teacher_is_counted_in_where_the_batch_is_fitted_to_memory(
    tiny_data, tiny_teacher, tmp_path, monkeypatch
):
    """Without a GPU Ultralytics takes its default: what it would have measured is looked at."""
    seen = {}

    def measure(model, imgsz, **_) -> int:
        student, answer = model.train()(torch.rand(1, 3, imgsz, imgsz))
        seen["student"] = [tuple(f.shape[-2:]) for f in student["feats"]]
        seen["teacher"] = [tuple(f.shape[-2:]) for f in answer["feats"]]
        return 6

    monkeypatch.setattr("ultralytics.engine.trainer.check_train_batch_size", measure)
    run = config(tiny_data, tiny_teacher, batch=-1, teacher_scale=2, epochs=1)
    distill(run, tmp_path / "out")
    assert seen["teacher"] == [(2 * h, 2 * w) for h, w in seen["student"]]


def write_predictions(data: Path, folder: Path) -> Path:
    """The labels of the training frames, as a teacher would have found them, with confidences."""
    folder.mkdir()
    for path in (data.parent / "labels" / "train").glob("*.txt"):
        rows = [f"{line} 0.9" for line in path.read_text().splitlines()]
        (folder / path.name).write_text("\n".join(rows) + "\n")
    return folder


def test_a_folder_of_predictions_teaches(tiny_data, tmp_path):
    folder = write_predictions(tiny_data, tmp_path / "predictions")
    run = config(tiny_data, folder, overrides={**SHORT, "mosaic": 1.0, "close_mosaic": 1})
    metrics = distill(run, tmp_path / "out")
    assert metrics["teacher"] is None
    table = polars.read_csv(tmp_path / "out" / "results.csv")
    assert table["train/kd_cls_loss"][0] > 0 and table["train/kd_box_loss"][0] > 0
    with pytest.raises(UnusableModelError, match="but not cross, feature; use --terms"):
        distill(config(tiny_data, folder, terms=("class", "cross", "feature")), tmp_path / "b")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "zebra.txt").write_text("0 0.5 0.5 0.1 0.1 0.5\n")
    with pytest.raises(UnusableModelError, match="no prediction is named like a training frame"):
        distill(config(tiny_data, tmp_path / "others"), tmp_path / "c")


def test_frames_without_labels_are_trained_on(tiny_data, tiny_teacher, tmp_path):
    unlabelled = draw_set(tmp_path / "more", train=6, seed=5).parent / "images" / "train"
    run = config(tiny_data, tiny_teacher, unlabelled=str(unlabelled))
    distill(run, tmp_path / "out")
    listed = (tmp_path / "out" / "train.txt").read_text().splitlines()
    assert len(listed) == 18 and len(set(listed)) == 18
    kinds, kind_of = read_regions(tmp_path / "out" / "frames" / "regions.json")
    assert sum(not any(kinds[kind].labelled) for kind in kind_of.values()) == 6
    assert polars.read_csv(tmp_path / "out" / "results.csv")["train/kd_cls_loss"][1] > 0
    with pytest.raises(ValueError, match="unlabelled frames need a teacher"):
        config(tiny_data, NO_TEACHER, unlabelled=str(unlabelled))


def test_resume_needs_something_to_resume(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        distill(config(tiny_data, NO_TEACHER), tmp_path / "new", resume=True)


def test_a_teacher_that_is_not_finite_is_refused(tiny_data, tmp_path):
    teacher = save_checkpoint(tmp_path / "t.pt")
    checkpoint = torch.load(teacher, weights_only=False)
    checkpoint["model"].model[-1].cv3[0][-1].bias.data.fill_(torch.nan)
    torch.save(checkpoint, teacher)
    with pytest.raises(UnusableModelError, match="the teacher's output is not finite"):
        distill(config(tiny_data, teacher), tmp_path / "out")


def test_a_teacher_weaker_than_its_student_is_named_with_both_figures(monkeypatch):
    said = []
    monkeypatch.setattr("drone_kd_training.distillation.distill.LOGGER.warning", said.append)
    _warn_if_weaker({"student": {"map50_95": 0.31}, "teacher": {"map50_95": 0.25}})
    assert len(said) == 1 and "25.0 against 31.0" in said[0]
    _warn_if_weaker({"student": {"map50_95": 0.31}, "teacher": {"map50_95": 0.45}})
    _warn_if_weaker({"student": {"map50_95": 0.31}, "teacher": None})
    assert len(said) == 1


def test_out_of_memory_says_what_to_lower(tiny_data, tmp_path, monkeypatch):
    def too_much(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(DistillTrainer, "train", too_much)
    with pytest.raises(RuntimeError, match=r"lower --batch \(now 6\) or --imgsz \(now 64\)"):
        distill(config(tiny_data, NO_TEACHER), tmp_path / "out")


def test_a_fraction_is_spread_over_the_training_frames(tiny_data, tmp_path):
    chosen = _thin(load_data(tiny_data).train, 0.25, tmp_path / "train.txt").read_text().split()
    assert [Path(path).stem for path in chosen] == ["000", "004", "008"]


def test_what_cannot_work_is_refused_before_anything_is_written(tiny_data, tmp_path):
    ships = save_checkpoint(tmp_path / "ships.pt", names=("ship",))
    with pytest.raises(UnusableModelError, match="no class in common"):
        distill(config(tiny_data, ships), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"imgsz": 100}, "multiple of 32"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"terms": ("tanh",)}, "terms must be some of class, softmax"),
        ({"terms": ()}, "terms must be some of class, softmax"),
        ({"teacher_scale": 3}, "teacher_scale must be 1, 1.5, 2 or 4"),
        ({"teacher_scale": 1.5, "imgsz": 416}, "a multiple of 32 at 1.5 times the size, too"),
        ({"batch": 0}, "batch must be 1 or more, or -1"),
        ({"teacher_scale": 2, "overrides": {"multi_scale": 0.5}}, "needs a fixed input"),
        ({"overrides": {"learning_rate": 1}}, "unknown training setting learning_rate"),
        ({"overrides": {"epochs": 1}}, "epochs has an option of its own"),
    ],
)
def test_configuration_is_checked(changes, expected):
    with pytest.raises(ValueError, match=expected):
        Config(**{"data": "d", "teacher": NO_TEACHER, "student": "s.yaml", **changes})
