import json
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import polars
import pytest
import torch
from tiny_training import NAMES, SIZE, save_checkpoint
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from training.data import load_data
from training.distill import (
    NO_TEACHER,
    Balance,
    Config,
    DistillationLoss,
    _thin,
    distill,
    raw_predictions,
    read_config,
    schedule,
)
from training.models import UnusableModelError, load_model, match_classes, resolve_model

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
    last = output / "weights" / "last.pt"
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 120
    while not last.is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)  # a file written by another process: there is nothing to wait on
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in errors and "--resume" in errors
    assert not (output / "metrics.json").exists()
    balance = json.loads((output / "balance.json").read_text())

    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr[-2000:]
    assert polars.read_csv(output / "results.csv")["epoch"].to_list() == [1, 2, 3, 4, 5, 6]
    resumed = json.loads((output / "balance.json").read_text())
    assert (
        resumed["batches"] == 12 and balance["batches"] < 12
    )  # went on counting, did not start anew


def test_resume_needs_something_to_resume(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        distill(config(tiny_data, NO_TEACHER), tmp_path / "new", resume=True)


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
        ({"response": "tanh"}, "response must be sigmoid or softmax"),
        ({"overrides": {"learning_rate": 1}}, "unknown training setting learning_rate"),
        ({"overrides": {"epochs": 1}}, "epochs has an option of its own"),
    ],
)
def test_configuration_is_checked(changes, expected):
    with pytest.raises(ValueError, match=expected):
        Config(**{"data": "d", "teacher": NO_TEACHER, "student": "s.yaml", **changes})


def one_batch() -> dict:
    return {
        "img": torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.1]]),
    }


def student_and_loss(student_yaml: str, teacher: DetectionModel):
    torch.manual_seed(0)
    student = DetectionModel(resolve_model(student_yaml), nc=2, verbose=False)
    student.args = DEFAULT_CFG
    detection = student.train().init_criterion()
    match = match_classes(NAMES, NAMES)
    return student, DistillationLoss(
        detection, teacher, student, match, Config("d", "t", "s.yaml")
    )


def loss_on_one_batch(student_yaml: str, teacher_yaml: str) -> dict:
    teacher = DetectionModel(resolve_model(teacher_yaml), nc=2, verbose=False)
    student, criterion = student_and_loss(student_yaml, teacher)
    batch = one_batch()
    loss, items = criterion(student(batch["img"]), batch)
    loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    assert isinstance(deepcopy(criterion), type(criterion.detection))
    return items


def test_the_student_comes_closer_to_its_teacher(tiny_teacher):
    """Same student, same frames: with the distillation terms its answers move to the teacher's."""
    teacher, _ = load_model(str(tiny_teacher))
    batch = one_batch()
    wanted = raw_predictions(teacher(batch["img"]))
    distances = {}
    for weight in (0.0, 300.0):
        student, criterion = student_and_loss("aerial-student.yaml", teacher)
        sums = {"kd_cls_loss": [weight, 1.0], "kd_dfl_loss": [weight, 1.0]}
        criterion.balance = Balance(1.0, {"batches": 10**6, "sums": sums})
        criterion.steps = (0, 0, 10**6, False)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            predictions = student(batch["img"])
            criterion(predictions, batch)[0].sum().backward()
            optimizer.step()
        distances[weight] = [
            (predictions[key].softmax(1) - wanted[key].softmax(1)).abs().mean().item()
            if key == "boxes"
            else (predictions[key].sigmoid() - wanted[key].sigmoid()).abs().mean().item()
            for key in ("scores", "boxes")
        ]
    assert distances[300.0][0] < 0.5 * distances[0.0][0]
    assert distances[300.0][1] < 0.9 * distances[0.0][1]


def test_yolo26_has_no_distribution_so_that_boxes_are_compared():
    items = loss_on_one_batch("yolo26n.yaml", "yolo11n.yaml")
    assert {"kd_cls_loss", "kd_box_loss"} <= set(items) and "kd_dfl_loss" not in items
    assert items["kd_box_loss"] > 0


def test_other_strides_are_refused_with_both_lists():
    with pytest.raises(UnusableModelError, match=r"student \[8, 16\], teacher \[8, 16, 32\]"):
        loss_on_one_batch("aerial-student.yaml", "yolo11n.yaml")


def test_balance_gives_a_term_its_share_of_the_gradient():
    prediction = torch.tensor([1.0, 2.0], requires_grad=True)
    balance = Balance(0.2)
    detection, term = 3 * prediction.sum(), (prediction**2).sum() * 100
    balance.measure(detection, {"kd": (term, prediction)})
    share = torch.autograd.grad(balance.weight("kd") * term, prediction)[0].norm() / (3 * 2**0.5)
    assert share.item() == pytest.approx(0.2)
    assert Balance(0.2, balance.state()).weight("kd") == balance.weight("kd")
    assert Balance(0.2).weight("kd") == 0.0


def test_schedule_ramps_decays_and_closes():
    values = [schedule(step, 10, 100, True) for step in range(120)]
    assert values[0] == pytest.approx(0.1, abs=0.01)
    assert max(values) > 0.95 and values.index(max(values)) in range(9, 12)
    assert values[10:100] == sorted(values[10:100], reverse=True)
    assert values[99] == pytest.approx(0.1, abs=0.01) and values[100:] == [0.0] * 20
    assert schedule(110, 10, 100, False) == pytest.approx(0.1)
