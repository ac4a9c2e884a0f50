"""Retraining on the output of `mine`; the teacher predicts the true boxes."""

import json
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import drone_kd_training.retraining.guard
import drone_kd_training.retraining.retrain
from drone_kd.cli import main
from drone_kd.lineage import descend, generations, read_ancestry
from drone_kd_training.data.dataset import image_paths, load_data, write_list
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.export.export import export
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.retraining.guard import FEW, HOLDS, MIN_OBJECTS, WORSE
from drone_kd_training.retraining.training_set import (
    excluded_frames,
    read_mined,
    teacher_labelled,
)
from folder_contents import contents
from square_detector import draw_squares, save_square_detector
from tiny_training import NAMES, SIZE, save_checkpoint

# Squares of the base and of the mined flight, in pixels; boxes of the deployed model.
BASE_SIDE, NEW_SIDE, DEPLOYED_SIDE = 14, 16, 12


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(drone_kd_training.retraining.guard, "RESAMPLES", 50)


def mine(
    root: Path, names=NAMES, prefix: str = "flight-", train: int = 6, val: int = 2, side=NEW_SIDE
) -> Path:
    """Draw a folder as `mine` writes it, with a teacher's predictions."""
    draw_squares(root, side, train, val, prefix)
    (root / "predictions").mkdir()
    (root / "predictions" / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    for label in (root / "labels").rglob("*.txt"):
        (root / "predictions" / label.name).write_text(f"{label.read_text().strip()} 0.9\n")
    content = yaml.safe_load((root / "data.yaml").read_text())
    (root / "data.yaml").write_text(yaml.safe_dump({**content, "names": dict(enumerate(names))}))
    return root


@pytest.fixture(scope="module")
def mined(tmp_path_factory) -> Path:
    return mine(tmp_path_factory.mktemp("mined") / "mined", val=120)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return draw_squares(tmp_path_factory.mktemp("base"), BASE_SIDE, train=12, val=120)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("deployed") / "deployed.pt"
    return save_square_detector(path, (DEPLOYED_SIDE, DEPLOYED_SIDE))


@dataclass
class ReplacedTraining:
    """Training whose result is known: a square detector with boxes of ``side`` pixels.

    Attributes:
        interrupted: whether the next run is stopped by Ctrl-C.
        resumed: argument ``resume`` of each run.
    """

    side: float = DEPLOYED_SIDE
    interrupted: bool = False
    resumed: list[bool] = field(default_factory=list)

    def distill(self, config, output: Path, resume: bool) -> None:
        """Stand in for `drone_kd_training.distillation.distill.distill`."""
        self.resumed.append(resume)
        output.mkdir(exist_ok=True)
        (output / "config.yaml").touch()
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        save_square_detector(output / "best.pt", (self.side, self.side))


@pytest.fixture
def training(monkeypatch) -> ReplacedTraining:
    replaced = ReplacedTraining()
    monkeypatch.setattr(drone_kd_training.retraining.retrain, "distill", replaced.distill)
    return replaced


def command(model: Path, mined: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("retrain", str(model), "--mined", str(mined), "--data", str(data)),
        *("--teacher", str(model), "--output", str(output), "--epochs", "1", "--batch", "6"),
        *("--replay", "0.5", *more),
    ]


def read_rows(path: Path) -> dict[tuple[str, str], dict]:
    rows = json.loads(path.read_text())["rows"]
    return {(row["domain"], row["part"]): row for row in rows}


def first_weights(path: Path) -> torch.Tensor:
    return load_model(str(path))[0].state_dict()["model.2.cv2.0.2.bias"]


@pytest.mark.slow
def test_better_candidate_is_accepted_and_exported_with_its_lineage(
    mined, base, deployed, training, tmp_path, capsys
):
    training.side = 15
    output = tmp_path / "out"
    arguments = command(deployed, mined, base, output)
    originals = [contents(folder) for folder in (mined, base.parent, deployed.parent)]
    assert main(arguments) == 0
    assert [contents(folder) for folder in (mined, base.parent, deployed.parent)] == originals
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("new all", "base all", "accepted"))
    rows = read_rows(output / "accepted.json")
    for part in (("new", "all"), ("base", "all"), ("new", "labels")):
        assert rows[part]["verdict"] == HOLDS
        assert rows[part]["objects"] >= MIN_OBJECTS
    assert rows["new", "all"]["low"] > 0
    model = Path(json.loads((output / "accepted.json").read_text())["model"])
    itself, parent = generations(model)
    assert model.name == f"model-{itself.sha256[:12]}.onnx"
    assert "retrain" in itself.command
    assert set(itself.data) == {"base", "mined"}
    assert parent.sha256 == json.loads((output / "retrain.json").read_text())["model_sha256"]
    gain = evaluate(model, mined / "data.yaml")["map50_95"] - rows["new", "all"]["before"]
    assert gain == pytest.approx(
        rows["new", "all"]["after"] - rows["new", "all"]["before"], abs=1e-3
    )

    # The candidate lies halfway between the deployed and the trained weights.
    before, trained, candidate = (
        first_weights(path)
        for path in (deployed, output / "run" / "best.pt", output / "candidate.pt")
    )
    assert (before != trained).any()
    assert torch.allclose(candidate, (before + trained) / 2, atol=1e-6)

    written = model.stat().st_mtime_ns
    assert main(arguments) == 0  # again: everything is finished
    assert model.stat().st_mtime_ns == written
    assert training.resumed == [False]
    assert main([*arguments, "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "new", "old"),
    [
        pytest.param(DEPLOYED_SIDE, WORSE, HOLDS, id="nothing learned"),
        pytest.param(20, HOLDS, WORSE, id="base forgotten"),
        pytest.param(9, WORSE, WORSE, id="worse everywhere"),
    ],
)
def test_candidate_that_is_not_better_is_refused_with_exit_code_3(
    side, new, old, mined, base, deployed, training, tmp_path, capsys
):
    training.side = side
    arguments = command(deployed, mined, base, tmp_path, "--keep", "0")
    assert main(arguments) == 3
    assert "refused" in capsys.readouterr().out
    rows = read_rows(tmp_path / "refused.json")
    assert (rows["new", "all"]["verdict"], rows["base", "all"]["verdict"]) == (new, old)
    assert all(rows[domain, "all"]["objects"] >= MIN_OBJECTS for domain in ("new", "base"))
    assert not list(tmp_path.glob("*.onnx"))
    assert main(arguments) == 3  # it stays refused


@pytest.mark.slow
def test_training_uses_mined_frames_and_replayed_base_frames(deployed, tmp_path):
    """A real training run; two held-out frames are too few to accept any candidate."""
    output = tmp_path / "out"
    base = draw_squares(tmp_path / "base", BASE_SIDE, train=12, val=2)
    mined = mine(tmp_path / "mined")
    assert main(command(deployed, mined, base, output, "--set", "workers=0")) == 3
    rows = read_rows(output / "refused.json").values()
    assert {row["verdict"] for row in rows} == {FEW}
    # Six mined frames, and as many base frames for a share of a half.
    assert len((output / "unlabelled.txt").read_text().splitlines()) == 6
    assert len((output / "labelled.txt").read_text().splitlines()) == 6
    assert len(list((output / "predictions").glob("*.txt"))) == 12 + 1
    trained = load_model(str(output / "run" / "best.pt"))[0].state_dict()
    before = load_model(str(deployed))[0].state_dict()
    # Checkpoints are saved in half precision, so a change counts if rounding cannot make it.
    changed = [
        name
        for name, values in before.items()
        if "weight" in name
        and not torch.allclose(trained[name], values.half().float(), rtol=2**-9, atol=2**-20)
    ]
    assert changed


@pytest.mark.slow
def test_corrected_frame_has_its_labels_as_predictions(mined, base, deployed, training, tmp_path):
    folder = shutil.copytree(mined, tmp_path / "mined")
    name = "flight-train-002"
    (folder / "corrected.txt").write_text(f"{name}\n")
    (folder / "labels" / "train" / f"{name}.txt").write_text("1 0.5 0.5 0.25 0.25\n")
    read = read_mined(folder)
    assert [path.stem for path in read.labelled] == [name]
    assert len(read.unlabelled) == 5
    # The teacher of the base frames has to know what was mined: cars and persons.
    assert main(command(deployed, folder, base, tmp_path / "out", "--replay", "0")) == 3
    rows = np.loadtxt(tmp_path / "out" / "predictions" / f"{name}.txt")
    assert rows.tolist() == [1, 0.5, 0.5, 0.25, 0.25, 1.0]
    # Without replay a single frame of the base is left.
    assert len((tmp_path / "out" / "base.txt").read_text().splitlines()) == 1


@pytest.mark.slow
def test_interrupted_run_is_resumed_without_predicting_again(
    mined, base, deployed, training, tmp_path, capsys
):
    training.interrupted = True
    arguments = command(deployed, mined, base, tmp_path / "out")
    assert main(arguments) == 130
    assert "Traceback" not in capsys.readouterr().err
    written = (tmp_path / "out" / "predictions").stat().st_mtime_ns
    assert main(arguments) == 3
    assert (tmp_path / "out" / "predictions").stat().st_mtime_ns == written
    assert training.resumed == [False, True]


def test_mined_set_of_version_0_1_is_read(tmp_path):
    folder = mine(tmp_path / "mined")
    new = read_mined(folder).teacher
    (folder / "predictions").rename(folder / "answers")
    old = read_mined(folder).teacher
    assert old.found.keys() == new.found.keys() and len(new.found) == 8


@pytest.mark.slow
def test_parent_is_part_of_the_lineage(mined, base, deployed, training, tmp_path):
    training.side = 15
    parent, _ = export(deployed, tmp_path / "parent.onnx", ancestry="taught by a test")
    arguments = command(deployed, mined, base, tmp_path / "out", "--parent", str(parent))
    assert main(arguments) == 0
    model = json.loads((tmp_path / "out" / "accepted.json").read_text())["model"]
    _, ancestor = generations(Path(model))
    assert ancestor == generations(parent)[0]
    assert read_ancestry(Path(model)) == "taught by a test"


@pytest.mark.slow
def test_first_model_of_the_lineage_is_compared_with_on_the_base(
    mined, base, deployed, training, tmp_path, capsys
):
    """The first model had the base's box size: the deployed one and the candidate lost it."""
    first, _ = export(save_square_detector(tmp_path / "first.pt", (14, 14)), tmp_path / "1.onnx")
    lineage = descend(first, "the round before", {})
    parent, _ = export(deployed, tmp_path / "parent.onnx", lineage=lineage)
    training.side = DEPLOYED_SIDE
    arguments = command(deployed, mined, base, tmp_path / "out", "--parent", str(parent))
    assert main(arguments) == 3
    rows = read_rows(tmp_path / "out" / "refused.json")
    assert rows["base", "all"]["verdict"] == HOLDS
    assert rows["ancestor", "all"]["verdict"] == WORSE
    assert "worse than allowed: new all" in capsys.readouterr().out


def test_unusable_ancestor_is_refused_in_one_line(mined, base, deployed, tmp_path, capsys):
    parent, _ = export(deployed, tmp_path / "parent.onnx")
    ships = save_checkpoint(tmp_path / "ships.pt", names=("ship", "car"))
    for more, message in (
        (["--ancestor", "nowhere.pt"], "no such file"),
        (["--ancestor", str(ships)], "--ancestor has ['ship', 'car']"),
        (["--ancestor", str(ships), "--parent", str(parent)], "begins with"),
    ):
        assert main(command(deployed, mined, base, tmp_path / "out", *more)) == 2
        line = capsys.readouterr().err
        assert message in line and len(line.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_labels_of_a_teacher_in_the_base_are_no_truth(
    mined, base, deployed, training, tmp_path, capsys
):
    """Mined frames of an earlier round joined the base; a person corrected one of them."""
    earlier = mine(tmp_path / "earlier", prefix="early-", train=3, val=3, side=18)
    (earlier / "mined.csv").touch()
    (earlier / "corrected.txt").write_text("early-train-001\nearly-val-001\n")
    data = load_data(base)
    lists = {}
    for split in ("train", "val"):
        lists[split] = tmp_path / f"{split}.txt"
        own = image_paths(earlier / "images" / split)
        write_list(lists[split], [*image_paths(getattr(data, split)), *own])
    joined = replace(data, **lists).write_resolved(tmp_path / "joined.yaml")
    arguments = command(deployed, mined, joined, tmp_path / "out", "--replay", "0.9")
    assert main(arguments) == 3
    taught = teacher_labelled(image_paths(lists["val"]))
    assert {path.stem for path in taught} == {"early-val-000", "early-val-002"}
    # Squares at one place are near duplicates, too.
    excluded = int(re.findall(r"NOTE (\d+) validation frames", capsys.readouterr().out)[0])
    rows = read_rows(tmp_path / "out" / "refused.json")
    assert rows["base", "all"]["objects"] + rows["new", "all"]["objects"] == 243 - excluded
    unlabelled, labelled = (
        (tmp_path / "out" / f"{name}.txt").read_text() for name in ("unlabelled", "labelled")
    )
    for name in ("early-train-000", "early-train-002"):
        assert name in unlabelled and name not in labelled
    assert "early-train-001" in labelled


def test_held_out_frames_that_repeat_learning_frames_judge_nothing(
    mined, base, deployed, tmp_path, capsys
):
    folder = shutil.copytree(mined, tmp_path / "mined")
    for path in (folder / "images" / "val").iterdir():
        image = structured_image(int(path.stem[-3:]))
        assert cv2.imwrite(str(path), image)
    held_out = sorted((folder / "images" / "val").iterdir())
    learning = sorted((folder / "images" / "train").iterdir())
    shutil.copyfile(held_out[3], learning[0])
    read = read_mined(folder)
    assert excluded_frames(load_data(base), read, []) == {held_out[3].resolve()}
    for path in held_out:
        path.write_bytes(learning[0].read_bytes())
    assert main(command(deployed, folder, base, tmp_path / "out")) == 2
    line = capsys.readouterr().err
    assert "120 that repeat learning frames" in line
    assert len(line.strip().splitlines()) == 1


def structured_image(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(60, 200, (20, 20, 3), dtype=np.uint8)
    return cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)


def test_parent_of_another_checkpoint_is_refused(mined, base, deployed, tmp_path, capsys):
    other = save_square_detector(tmp_path / "other.pt", (16, 16))
    parent, _ = export(other, tmp_path / "parent.onnx")
    arguments = command(deployed, mined, base, tmp_path / "out", "--parent", str(parent))
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert "--parent" in line
    assert "was exported from" in line
    assert len(line.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def without(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def emptied(folder: Path, name: str) -> None:
    without(folder, name)
    (folder / name).mkdir()


def empty_labels(folder: Path, _: str) -> None:
    for path in (folder / "labels" / "val").iterdir():
        path.write_text("")


def no_frames(folder: Path, _: str) -> None:
    for path in (folder / "images" / "train").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "name", "message"),
    [
        (without, "data.yaml", "is not a folder of `drone-kd mine`"),
        (without, "images/val", "no held-out frames"),
        (emptied, "images/val", "no held-out frames"),
        (without, "predictions", "has no teacher predictions"),
        (no_frames, "", "images/train"),
        (empty_labels, "", "no labelled object"),
    ],
)
def test_unusable_mined_folder_is_refused_in_one_line(
    spoil, name, message, mined, base, deployed, tmp_path, capsys
):
    folder = shutil.copytree(mined, tmp_path / "mined")
    spoil(folder, name)
    assert main(command(deployed, folder, base, tmp_path / "out")) == 2
    line = capsys.readouterr().err
    assert message in line
    assert len(line.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_different_class_lists_are_both_shown(mined, base, deployed, tmp_path, capsys):
    folder = mine(tmp_path / "mined", names=("person", "car"), train=2, val=2)
    assert main(command(deployed, folder, base, tmp_path / "out")) == 2
    line = capsys.readouterr().err
    assert "['car', 'person']" in line
    assert "['person', 'car']" in line
    assert not (tmp_path / "out").exists()


def test_unusable_arguments_are_refused(mined, base, deployed, tmp_path, capsys):
    out = tmp_path / "out"
    same = mine(tmp_path / "same", prefix="", train=2, val=2)
    cases = (
        (command(deployed.with_suffix(".onnx"), mined, base, out), "checkpoint (.pt)"),
        (command(deployed, same, base, out), "same name, such as train-000"),
        (command(deployed, mined, base, out, "--replay", "1"), "below 1"),
        (command(deployed, mined, base, out, "--keep", "1"), "--keep must be"),
    )
    for arguments, message in cases:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
    folder = shutil.copytree(mined, tmp_path / "persons")
    (folder / "predictions" / "flight-train-000.txt").write_text("1 0.5 0.5 0.25 0.25 0.9\n")
    other = save_checkpoint(tmp_path / "cars.pt", names=("car", "ship"))
    arguments = command(deployed, folder, base, out, "--teacher", str(other))
    assert main(arguments) == 2
    assert "['person'], which --teacher does not know" in capsys.readouterr().err
    assert not (out / "predictions").exists()
