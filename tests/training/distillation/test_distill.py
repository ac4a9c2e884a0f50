import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import polars
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, SegmentationModel

from commands import run_command
from drone_kd.cli import main
from drone_kd_training.data.dataset import load_data
from drone_kd_training.distillation import distill as distill_module
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config
from drone_kd_training.distillation.distill import Run, distill, prepare_data, train, validate
from drone_kd_training.distillation.run_report import plot_curves, warn_if_teacher_is_weaker
from drone_kd_training.distillation.train_data import spread_fraction
from drone_kd_training.distillation.trainer import DistillTrainer
from drone_kd_training.models.checkpoints import UnusableModelError, resolve_model
from drone_kd_training.models.safe_loading import write_plain
from drone_kd_training.teachers.teaching_dataset import read_regions
from tiny_training import (
    NAMES,
    SIZE,
    draw_set,
    interrupt_when_written,
    save_checkpoint,
    save_rtdetr,
)
from touch_file import TouchFile

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


@pytest.mark.slow
def test_run_writes_a_plain_student_and_its_figures(run):
    assert {"best.pt", "metrics.json", "results.csv", "config.yaml", "curves.png"} <= {
        p.name for p in run.iterdir()
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["student"]["images"] == metrics["teacher"]["images"] == 6
    student = YOLO(run / "best.pt")  # plain Ultralytics
    assert student.names == dict(enumerate(NAMES))
    reference = DetectionModel(resolve_model("aerial-student.yaml"), nc=2, verbose=False)
    assert set(student.model.state_dict()) == set(reference.state_dict())
    assert read_config(run).teacher.endswith("teacher.pt")
    # Ultralytics' own 0.1 would destroy the biases of a pretrained student.
    assert yaml.safe_load((run / "args.yaml").read_text())["warmup_bias_lr"] == 0.0


@pytest.mark.slow
def test_every_loss_term_is_logged_every_epoch_and_none_is_zero(run):
    table = polars.read_csv(run / "results.csv")
    names = [c for c in table.columns if "kd_" in c]
    assert set(names) == {
        f"train/kd_{x}" for x in ("cls_loss", "cls_scale", "dfl_loss", "dfl_scale")
    }
    assert len(table) == 2
    for name in [*names, "train/box_loss", "train/cls_loss", "train/dfl_loss"]:
        assert (table[name] > 0).all(), name


@pytest.mark.slow
def test_used_folder_is_refused_and_finished_run_is_not_repeated(run, tiny_data, tiny_teacher):
    with pytest.raises(ValueError, match="not an empty folder"):
        distill(config(tiny_data, tiny_teacher), run)
    before = (run / "best.pt").stat().st_mtime_ns
    assert distill(config(tiny_data, tiny_teacher), run, resume=True)["epochs"] == 2
    assert (run / "best.pt").stat().st_mtime_ns == before


def train_only(run: Config, output: Path, resume: bool = False) -> polars.DataFrame:
    """Train without evaluating; return the logged losses."""
    validated, data = prepare_data(validate(run, output, resume))
    train(validated, data)
    table = polars.read_csv(output / "results.csv")
    return table.select(sorted(c for c in table.columns if c.startswith("train/")))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_command_interrupted_by_ctrl_c_says_how_to_resume(tiny_data, tiny_teacher, tmp_path):
    output = tmp_path / "out"
    options = {
        "data": tiny_data,
        "teacher": tiny_teacher,
        "student": "aerial-student.yaml",
        "output": output,
        "epochs": 100,  # far from done when the first one is saved
        "imgsz": SIZE,
        "batch": 6,
        "device": "cpu",
    }
    command = [sys.executable, "-m", "training", "distill", "--no-val"]
    command += [f"--{name}={value}" for name, value in options.items()]
    assert "--resume" in interrupt_when_written(command, output / "weights" / "resume.pt")
    assert not (output / "metrics.json").exists()


@pytest.mark.slow
def test_interrupt_then_resume_finishes_the_run(tiny_data, tiny_teacher, tmp_path, monkeypatch):
    class InterruptedInTheSecondEpoch(DistillTrainer):
        def _seed_epoch(self) -> None:
            super()._seed_epoch()
            if self.epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

    run, output = config(tiny_data, tiny_teacher), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(
            "drone_kd_training.distillation.distill.DistillTrainer", InterruptedInTheSecondEpoch
        )
        with pytest.raises(KeyboardInterrupt):
            distill(run, output)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not (output / "metrics.json").exists()
    state = output / "weights" / "resume.pt"
    assert torch.load(state, weights_only=True)["balance"]["batches"] == 2
    unfinished = output / "weights" / "last.pt"  # may be given to others, too
    assert str(tmp_path).encode() not in unfinished.read_bytes()
    assert set(torch.load(unfinished, weights_only=False)["git"].values()) == {None, "None"}

    distill(run, output, resume=True, measure_teacher=False)
    assert polars.read_csv(output / "results.csv")["epoch"].to_list() == [1, 2]
    assert not state.exists()  # a finished run has nothing to resume


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 2])
def test_full_disk_between_the_files_of_the_last_checkpoint(
    epochs, tiny_data, tmp_path, monkeypatch
):
    """The checkpoint is whole, the state is missing or an epoch behind."""
    run, output = config(tiny_data, NO_TEACHER, epochs=epochs), tmp_path / "out"

    def write(path: Path, content: dict) -> None:
        if content["epoch"] == epochs - 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_plain(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("drone_kd_training.distillation.trainer.write_plain", write)
        with pytest.raises(OSError, match="No space left"):
            distill(run, output)
    metrics = distill(run, output, resume=True)
    assert metrics["epochs"] == epochs
    assert len(polars.read_csv(output / "results.csv")) == epochs


class Stop(Exception):  # noqa: N818 - an interruption at a known place, not an error
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "changes"),
    [
        pytest.param(2, {"optimizer": "SGD"}, id="SGD"),
        pytest.param(2, {"amp": "bf16"}, id="bf16"),
        # An optimizer step every three batches, in epochs of two: one gradient waits.
        pytest.param(4, {"nbs": 18}, id="accumulated"),
    ],
)
def test_a_resumed_run_has_the_loss_curve_of_an_uninterrupted_one(
    epochs, changes, tiny_data, tiny_teacher, tmp_path, monkeypatch
):
    """Balance, schedule, adapters, momentum, gradients and precision continue."""
    # As on a CPU without bfloat16: the teacher's precision follows from that of the training.
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    run = config(
        tiny_data,
        tiny_teacher,
        epochs=epochs,
        terms=("class", "box", "cross", "feature"),
        overrides={**SHORT, **changes},
    )

    class Averaging(DistillTrainer):
        def _load_state(self) -> None:
            super()._load_state()
            # Ultralytics' ramp forgets all but the last weights in runs as short as this one.
            self.ema.decay = lambda updates: 0.9

    monkeypatch.setattr("drone_kd_training.distillation.distill.DistillTrainer", Averaging)
    whole = train_only(run, tmp_path / "whole")

    class StopsHalfway(Averaging):
        def _save_state(self) -> None:
            super()._save_state()
            if self.epoch + 1 == epochs // 2:
                raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("drone_kd_training.distillation.distill.DistillTrainer", StopsHalfway)
        with pytest.raises(Stop):
            train_only(run, tmp_path / "halves")
    halves = train_only(run, tmp_path / "halves", resume=True)
    assert whole.shape == halves.shape
    assert len(whole) == epochs
    for name in whole.columns:
        assert whole[name].to_list() == pytest.approx(halves[name].to_list(), rel=1e-5), name
    states = [
        torch.load(tmp_path / name / "weights" / "resume.pt", weights_only=True)
        for name in ("whole", "halves")
    ]
    for part in ("student", "average"):
        torch.testing.assert_close(states[1][part], states[0][part], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
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
    dtypes = set()

    class Watched(DistillTrainer):
        def _load_state(self) -> None:
            super()._load_state()
            layers = getattr(self.student, "student_model", self.student).model
            layers[0].register_forward_hook(lambda *call: dtypes.add(call[2].dtype))

    monkeypatch.setattr("drone_kd_training.distillation.distill.DistillTrainer", Watched)
    names = {"tiny": str(tiny_teacher)}
    overrides = {key: names.get(value, value) for key, value in overrides.items()}
    run = config(
        tiny_data, names.get(teacher, teacher), epochs=1, overrides={**SHORT, **overrides}
    )
    losses = train_only(run, tmp_path / "out")
    assert dtypes == {expected}
    for name in losses.columns:
        assert 0 < losses[name][0] < float("inf"), name


@pytest.mark.slow
def test_teacher_sees_the_image_at_twice_the_size(tiny_data, tiny_teacher, tmp_path):
    run = config(tiny_data, tiny_teacher, teacher_scale=2, epochs=1)
    metrics = distill(run, tmp_path / "out")
    assert metrics["teacher"]["gflops"] == pytest.approx(4 * metrics["student"]["gflops"])
    table = polars.read_csv(tmp_path / "out" / "results.csv")
    assert table["train/kd_cls_loss"][0] > 0
    assert table["train/kd_dfl_loss"][0] > 0


@pytest.mark.slow
def test_a_teacher_without_a_common_level_teaches_with_its_boxes(
    tiny_data, tiny_teacher, tmp_path
):
    run = config(tiny_data, tiny_teacher, teacher_scale=1.5, teacher_tiles=True, epochs=1)
    losses = train_only(run, tmp_path / "out")
    assert losses["train/kd_cls_loss"][0] > 0
    assert "train/kd_box_loss" in losses.columns
    cost = json.loads((tmp_path / "out" / "teacher_cost.json").read_text())
    assert 0 < cost["share"] < 1
    assert cost["seconds_per_batch"] > 0
    assert cost["peak_mb"] >= 0
    with pytest.raises(UnusableModelError, match=r"no level in common .* but not feature; use"):
        distill(
            config(tiny_data, tiny_teacher, teacher_scale=1.5, terms=("class", "feature")),
            tmp_path / "b",
        )
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_automatic_batch_counts_the_teacher(tiny_data, tiny_teacher, tmp_path, monkeypatch):
    """Without a GPU Ultralytics takes its default: the test looks at what it would measure."""
    grids = {}

    def measure(model, imgsz, **_) -> int:
        student, teacher = model.train()(torch.rand(1, 3, imgsz, imgsz))
        grids["student"] = [tuple(f.shape[-2:]) for f in student["feats"]]
        grids["teacher"] = [tuple(f.shape[-2:]) for f in teacher["feats"]]
        raise Stop

    monkeypatch.setattr("ultralytics.engine.trainer.check_train_batch_size", measure)
    run = config(tiny_data, tiny_teacher, batch=-1, teacher_scale=2, epochs=1)
    with pytest.raises(Stop):
        train_only(run, tmp_path / "out")
    assert grids["teacher"] == [(2 * h, 2 * w) for h, w in grids["student"]]


def write_predictions(data: Path, output: Path) -> Path:
    """Write the labels of the training frames with confidences, as .txt files or COCO .json."""
    coco = output.suffix == ".json"
    entries = []
    if not coco:
        output.mkdir()
    for path in (data.parent / "labels" / "train").glob("*.txt"):
        lines = path.read_text().splitlines()
        if not coco:
            (output / path.name).write_text("".join(f"{line} 0.9\n" for line in lines))
        for line in lines:
            class_id, x, y, w, h = (float(value) for value in line.split())
            bbox = [(x - w / 2) * SIZE, (y - h / 2) * SIZE, w * SIZE, h * SIZE]
            entry = {"image_id": int(path.stem), "category_id": int(class_id)}
            entries.append({**entry, "bbox": bbox, "score": 0.9})
    if coco:
        output.write_text(json.dumps(entries))
    return output


@pytest.mark.slow
def test_stored_predictions_teach_the_same_from_yolo_and_coco_files(tiny_data, tmp_path):
    overrides = {**SHORT, "mosaic": 1.0, "close_mosaic": 1}
    losses = []
    for name in ("predictions", "predictions.json"):
        source = write_predictions(tiny_data, tmp_path / name)
        run = config(tiny_data, source, overrides=overrides)
        losses.append(train_only(run, tmp_path / f"run-{name}"))
    assert losses[0]["train/kd_cls_loss"][0] > 0
    assert losses[0]["train/kd_box_loss"][0] > 0
    for column in losses[0].columns:
        yolo, coco = (table[column].to_list() for table in losses)
        assert coco == pytest.approx(yolo, rel=1e-3), column


def test_unusable_stored_predictions_are_refused(tiny_data, tmp_path):
    source = write_predictions(tiny_data, tmp_path / "predictions")
    with pytest.raises(UnusableModelError, match="but not cross, feature; use --terms"):
        distill(config(tiny_data, source, terms=("class", "cross", "feature")), tmp_path / "b")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "zebra.txt").write_text("0 0.5 0.5 0.1 0.1 0.5\n")
    with pytest.raises(UnusableModelError, match="no prediction is named like a training frame"):
        distill(config(tiny_data, tmp_path / "others"), tmp_path / "c")


@pytest.mark.slow
def test_rtdetr_teaches_a_run(tiny_data, tmp_path):
    teacher = save_rtdetr(tmp_path / "rtdetr.pt", score_bias=1.0)
    metrics = distill(config(tiny_data, teacher, epochs=1), tmp_path / "out")
    assert metrics["teacher"] is None  # only Detect teachers are evaluated
    table = polars.read_csv(tmp_path / "out" / "results.csv")
    assert table["train/kd_cls_loss"][0] > 0
    assert table["train/kd_box_loss"][0] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_one_student(tiny_data, tiny_teacher, tmp_path):
    """On the CPU with gloo, started by torchrun as on several machines."""
    run = config(tiny_data, tiny_teacher, epochs=1, terms=("class", "feature"), device="cpu")
    values = asdict(run)
    (tmp_path / "config.json").write_text(json.dumps(values))
    script = Path(__file__).parents[2] / "helpers" / "distill_on_two_cpus.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(script), str(tmp_path)]
    run_command(command)
    first, second = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)
    )
    assert first["metrics"]["student"]["images"] == 6
    assert second["metrics"] == {}  # the first process reports
    assert first["average"] == second["average"] == [0.5, 10.0]
    assert first["balance"] == second["balance"]
    assert set(first["balance"]["sums"]) == {"kd_cls_loss", "kd_feature_loss"}
    for part in ("student", "adapters"):
        assert first[part]
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), (part, name)
    assert first["images"].isdisjoint(second["images"])  # each trains on its half
    assert len(first["images"] | second["images"]) == 12


@pytest.mark.slow
def test_unlabelled_frames_are_trained_on(tiny_data, tiny_teacher, tmp_path):
    unlabelled = draw_set(tmp_path / "more", train=6, seed=5).parent / "images" / "train"
    run = config(tiny_data, tiny_teacher, unlabelled=str(unlabelled), epochs=1)
    losses = train_only(run, tmp_path / "out")
    listed = (tmp_path / "out" / "train.txt").read_text().splitlines()
    assert len(set(listed)) == 18
    assert len(listed) == 24  # half of them without labels, as the default share wants
    kinds, kind_of = read_regions(tmp_path / "out" / "frames" / "regions.json")
    assert sum(not any(kinds[kind].labelled) for kind in kind_of.values()) == 6
    assert losses["train/kd_cls_loss"][0] > 0
    with pytest.raises(ValueError, match="unlabelled frames need a teacher"):
        config(tiny_data, NO_TEACHER, unlabelled=str(unlabelled))


@pytest.mark.parametrize("setting", ["pretrained", "distill_model"])
def test_checkpoint_of_a_training_setting_is_loaded_safely(setting, tiny_data, tmp_path):
    torch.save({"model": TouchFile(tmp_path / "ran")}, tmp_path / "hostile.pt")
    overrides = {**SHORT, setting: str(tmp_path / "hostile.pt")}
    with pytest.raises(UnusableModelError, match="may run code"):
        distill(config(tiny_data, NO_TEACHER, overrides=overrides), tmp_path / "run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["last.pt", "best.pt", "resume.pt"])
def test_resumed_run_of_others_runs_no_code(name, tiny_data, tmp_path, square_detector):
    run, weights = tmp_path / "run", tmp_path / "run" / "weights"
    settings = config(tiny_data, NO_TEACHER, student=str(square_detector), epochs=1)
    prepare_data(validate(settings, run, resume=False))
    weights.mkdir()
    if name != "last.pt":  # all epochs are done
        torch.save({"epoch": 0}, weights / "resume.pt")
    torch.save({"model": TouchFile(tmp_path / "ran")}, weights / name)
    with pytest.raises((ValueError, RuntimeError)) as error:
        distill(settings, run, resume=True)
    assert not (tmp_path / "ran").exists()
    words = {"last.pt": "run code", "best.pt": "no checkpoint", "resume.pt": "expected the state"}
    assert words[name] in str(error.value)


@pytest.mark.parametrize("content", ["epoch\n", "epoch,train/a\n1,x\n", "a,a\n", "\0", None])
def test_losses_of_a_run_are_checked(content, tmp_path):
    losses = tmp_path / "results.csv"
    header = ",".join(f"train/{i}" for i in range(1000))
    losses.write_text(f"epoch,{header}\n" if content is None else content)
    with pytest.raises(ValueError, match=r"results\.csv: expected the losses") as error:
        plot_curves(losses, tmp_path / "curves.png")
    assert str(error.value).isprintable()


def test_student_without_a_description_is_refused(tiny_data, tmp_path):
    path = save_checkpoint(tmp_path / "student.pt")
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["model"].yaml
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="a student with a description"):
        distill(config(tiny_data, NO_TEACHER, student=str(path)), tmp_path / "out")


def test_processes_of_a_training_import_nothing_from_the_working_directory(
    tiny_data, tmp_path, monkeypatch
):
    (tmp_path / "intruder.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    codes = []

    class Launching:
        def __init__(self, overrides):
            self.add_callback = lambda *_: None

        def train(self):
            command = [sys.executable, "-m", "intruder"]
            codes.append(subprocess.run(command, check=False, capture_output=True).returncode)

    monkeypatch.setattr("drone_kd_training.distillation.distill.DistillTrainer", Launching)
    run = validate(config(tiny_data, NO_TEACHER), tmp_path / "out", resume=False)
    train(run, tiny_data)
    assert codes == [int(sys.version_info >= (3, 11))]
    assert os.environ["PYTHONSAFEPATH"] == ""


@pytest.mark.parametrize(
    "content", ["[1]", "data: d", "nosuch: 1", "a: [", "{data: d, teacher: t, student: 3}"]
)
def test_settings_that_are_no_settings_are_refused_in_one_line(content, tiny_data, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml|expected") as error:
        distill(config(tiny_data, NO_TEACHER), tmp_path, resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["args.yaml", "results.csv", "weights", "weights/last.pt"])
def test_resumed_run_with_links_is_refused_and_nothing_is_written(name, tiny_data, tmp_path):
    settings, run = config(tiny_data, NO_TEACHER), tmp_path / "run"
    prepare_data(validate(settings, run, resume=False))
    other = tmp_path / "other"
    other.mkdir()
    (other / ".a.tmp").write_text("mine")
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(other)
    with pytest.raises(ValueError, match="got a link"):
        distill(settings, run, resume=True)
    assert [path.name for path in other.iterdir()] == [".a.tmp"]


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"student": 1}', '{"student": {"map50": "x"}, "seconds": 1}', "["]
)
def test_figures_of_a_finished_run_are_checked(content, tiny_data, tmp_path):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match="expected"):
        distill(config(tiny_data, NO_TEACHER), tmp_path, resume=True)


def test_weights_to_start_from_may_have_another_head(tiny_data, tmp_path):
    path = tmp_path / "other.pt"
    network = SegmentationModel("yolov8n-seg.yaml", nc=2, verbose=False)
    torch.save({"model": network}, path)
    start = config(tiny_data, NO_TEACHER, overrides={"pretrained": str(path)})
    validate(start, tmp_path / "run", resume=False)
    network.model[0].conv.padding = (4000, 4000)
    torch.save({"model": network}, path)
    with pytest.raises(UnusableModelError, match="values of a layer"):
        validate(start, tmp_path / "run", resume=False)


@pytest.mark.parametrize(("epochs", "closed"), [(1, 1), (2, 1), (30, 3), (1000, 10)])
def test_last_tenth_is_without_mosaic(epochs, closed, tiny_data, tmp_path):
    run = Run(config(tiny_data, NO_TEACHER, epochs=epochs, overrides={}), tmp_path, "s.yaml")
    assert distill_module._overrides(run, tiny_data)["close_mosaic"] == closed


def test_resume_needs_the_output_alone(tiny_data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    settings = config(tiny_data, NO_TEACHER, epochs=3)
    prepare_data(validate(settings, output, resume=False))
    given = []
    monkeypatch.setattr(
        distill_module, "distill", lambda run, folder, resume: given.append((run, resume)) or {}
    )
    assert main(["distill", "--resume", "--output", str(output), "--device", "cpu"]) == 0
    assert given == [(replace(settings, device="cpu"), True)]
    assert "settings of the run" not in capsys.readouterr().out
    main(["distill", "--resume", "--output", str(output), "--epochs=100", "--seed", "0"])
    assert given[1] == (settings, True)
    assert capsys.readouterr().out.startswith(
        "--resume continues with the settings of the run: epochs 3\n"
    )
    assert main(["distill", "--resume", "--output", str(tmp_path / "none")]) == 2
    assert main(["distill", "--output", str(tmp_path / "new"), "--teacher", "none",
                 "--data", "d.yaml"]) == 2  # fmt: skip


def test_run_that_failed_before_training_can_be_corrected(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="device"):
        distill(config(tiny_data, NO_TEACHER, device="7"), tmp_path / "out")
    assert read_config(tmp_path / "out").device == "7"
    corrected = config(tiny_data, NO_TEACHER, device="cpu", epochs=1)
    prepare_data(validate(corrected, tmp_path / "out", resume=False))
    assert read_config(tmp_path / "out") == corrected


def test_output_that_is_a_file_is_named_as_one(tiny_data, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match=r"out is a file: choose another$"):
        validate(config(tiny_data, NO_TEACHER), tmp_path / "out", resume=False)


@pytest.mark.parametrize("content", ["data: 1", "a: b", "- 1", ""])
def test_folder_with_another_config_is_not_free(content, tiny_data, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match="not an empty folder"):
        validate(config(tiny_data, NO_TEACHER), tmp_path, resume=False)
    assert (tmp_path / "config.yaml").read_text() == content


def test_resumed_run_keeps_its_settings_but_the_device(tiny_data, tmp_path, caplog):
    run = validate(config(tiny_data, NO_TEACHER, device="7"), tmp_path / "out", resume=False)
    prepare_data(run)
    given = config(tiny_data, NO_TEACHER, device="cpu", epochs=9, seed=0)
    resumed = validate(given, tmp_path / "out", resume=True).config
    assert (resumed.device, resumed.epochs) == ("cpu", 2)
    (line,) = [r.getMessage() for r in caplog.records if "--resume continues" in r.getMessage()]
    assert line.endswith("config.yaml: epochs 2")


def test_resume_needs_a_run_to_resume(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        distill(config(tiny_data, NO_TEACHER), tmp_path / "new", resume=True)


def test_non_finite_teacher_is_refused(tiny_data, tmp_path):
    teacher = save_checkpoint(tmp_path / "t.pt")
    checkpoint = torch.load(teacher, weights_only=False)
    checkpoint["model"].model[-1].cv3[0][-1].bias.data.fill_(torch.nan)
    torch.save(checkpoint, teacher)
    with pytest.raises(UnusableModelError, match="the teacher's output is not finite"):
        distill(config(tiny_data, teacher), tmp_path / "out")


def test_weaker_teacher_is_reported_with_both_figures(monkeypatch):
    messages = []
    monkeypatch.setattr(
        "drone_kd_training.distillation.run_report.LOGGER.warning", messages.append
    )
    warn_if_teacher_is_weaker({"student": {"map50_95": 0.31}, "teacher": {"map50_95": 0.25}})
    assert len(messages) == 1
    assert "25.0 against 31.0" in messages[0]
    warn_if_teacher_is_weaker({"student": {"map50_95": 0.31}, "teacher": {"map50_95": 0.45}})
    warn_if_teacher_is_weaker({"student": {"map50_95": 0.31}, "teacher": None})
    assert len(messages) == 1


def test_out_of_memory_names_the_options_to_lower(tiny_data, tmp_path, monkeypatch):
    def allocate(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(DistillTrainer, "train", allocate)
    with pytest.raises(RuntimeError, match=r"lower --batch \(now 6\) or --imgsz \(now 64\)"):
        distill(config(tiny_data, NO_TEACHER), tmp_path / "out")


def test_a_fraction_is_spread_over_the_training_frames(tiny_data, tmp_path):
    listed = spread_fraction(load_data(tiny_data).train, 0.25, tmp_path / "train.txt")
    chosen = listed.read_text().split()
    assert [Path(path).stem for path in chosen] == ["000", "004", "008"]


def test_unusable_input_is_refused_before_anything_is_written(tiny_data, tmp_path):
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
        ({"views": 2, "overrides": {"multi_scale": 0.5}}, "leave multi_scale or --views out"),
        ({"views": 2, "overrides": {"cutmix": 0.5}}, "leave cutmix or --views out"),
        ({"views": 2, "temperature": 2.0}, "background is not stored"),
        ({"overrides": {"learning_rate": 1}}, "unknown training setting learning_rate"),
        ({"overrides": {"epochs": 1}}, "epochs has an option of its own"),
        ({"overrides": {"data": "d.yaml"}}, "data has an option of its own"),
        ({"overrides": {"save_dir": "/x"}}, "unknown training setting save_dir"),
        *[
            ({"overrides": {key: "/x"}}, f"{key} is no training setting")
            for key in (
                "project",
                "name",
                "model",
                "cfg",
                "tracker",
                "resume",
                "source",
                "mode",
                "rect",
            )
        ],
        ({"overrides": {"lr0": "fast"}}, "--set: 'lr0=fast' is of invalid type"),
        ({"overrides": {"\x1b[2J": 1}}, r"unknown training setting \\x1b\[2J"),
    ],
)
def test_configuration_is_checked(changes, expected):
    with pytest.raises(ValueError, match=expected):
        Config(**{"data": "d", "teacher": NO_TEACHER, "student": "s.yaml", **changes})
