"""Retraining on what `training mine` writes; the teacher here answers with the true boxes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import drone_kd_training.retraining.guard
from drone_kd.cli import main
from drone_kd.lineage import generations
from drone_kd_training.data.dataset import image_paths
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.retraining.retrain import Plan, read_mined, retrain
from tiny_training import NAMES, draw_set, interrupt_when_written, save_checkpoint

SHORT = {"mosaic": 0.0, "close_mosaic": 0}


def mine(root: Path, names=NAMES, prefix: str = "flight-", **counts) -> Path:
    """A mined folder: the drawn set under the names of a flight, with a teacher's answers."""
    draw_set(root, seed=7, **counts)
    (root / "answers").mkdir()
    (root / "answers" / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    for split in ("train", "val"):
        for picture in sorted((root / "images" / split).iterdir()):
            name = f"{prefix}{split}-{picture.stem}"
            label = root / "labels" / split / f"{picture.stem}.txt"
            rows = label.read_text().splitlines()
            (root / "answers" / f"{name}.txt").write_text("".join(f"{r} 0.9\n" for r in rows))
            label.rename(label.with_stem(name))
            picture.rename(picture.with_stem(name))
    content = yaml.safe_load((root / "data.yaml").read_text())
    (root / "data.yaml").write_text(yaml.safe_dump({**content, "names": dict(enumerate(names))}))
    return root


@pytest.fixture(scope="module")
def mined(tmp_path_factory) -> Path:
    return mine(tmp_path_factory.mktemp("mined") / "mined", train=6, val=6)


def command(model: Path, mined: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("retrain", str(model), "--mined", str(mined), "--data", str(data)),
        *("--teacher", str(model), "--output", str(output), "--epochs", "1", "--batch", "6"),
        *("--replay", "0.5", "--set", "mosaic=0", "--set", "close_mosaic=0", *more),
    ]


def lower_the_bars(monkeypatch) -> None:
    """Of a guard that lets everything pass: what comes after it is what is looked at."""
    for name in ("GAIN", "MARGIN", "PART_MARGIN"):
        monkeypatch.setattr(drone_kd_training.retraining.guard, name, -1.1)
    monkeypatch.setattr(drone_kd_training.retraining.guard, "FEWEST_OBJECTS", 1)


def test_an_accepted_candidate_is_exported_under_its_hash_with_its_lineage(
    mined, tiny_data, tiny_teacher, tmp_path, monkeypatch, capsys
):
    lower_the_bars(monkeypatch)
    monkeypatch.setattr(drone_kd_training.retraining.guard, "DRAWS", 20)
    output = tmp_path / "out"
    arguments = command(tiny_teacher, mined, tiny_data, output)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "new all" in printed and "base all" in printed and "accepted" in printed
    found = json.loads((output / "accepted.json").read_text())
    model = Path(found["model"])
    itself, parent = generations(model)
    assert model.name == f"model-{itself.sha256[:12]}.onnx"
    assert "retrain" in itself.command and set(itself.data) == {"base", "mined"}
    assert parent.sha256 == json.loads((output / "retrain.json").read_text())["model_sha256"]
    # Six mined frames, and for a share of a half as many of the base.
    assert len((output / "unlabelled.txt").read_text().splitlines()) == 6
    assert len((output / "labelled.txt").read_text().splitlines()) == 6
    assert len(list((output / "answers").glob("*.txt"))) == 12 + 1

    # Half of the flying model stays.
    weights = [
        load_model(str(path))[0].state_dict()["model.0.conv.weight"]
        for path in (tiny_teacher, output / "run" / "best.pt", output / "candidate.pt")
    ]
    assert (weights[0] != weights[1]).any()
    assert torch.allclose(weights[2], (weights[0] + weights[1]) / 2, atol=1e-6)

    before = model.stat().st_mtime_ns
    assert main(arguments) == 0  # again: nothing is left to do
    assert model.stat().st_mtime_ns == before
    assert main([*arguments, "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err


def test_nothing_learnt_is_refused_with_exit_code_3(
    mined, tiny_data, tiny_teacher, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(drone_kd_training.retraining.guard, "DRAWS", 20)
    arguments = command(tiny_teacher, mined, tiny_data, tmp_path, "--set", "lr0=1e-9")
    assert main(arguments) == 3
    assert "refused" in capsys.readouterr().out
    found = json.loads((tmp_path / "refused.json").read_text())
    assert not found["accepted"] and found["rows"][0]["domain"] == "new"
    assert not list(tmp_path.glob("*.onnx"))
    assert main(arguments) == 3  # it stays refused


def test_a_corrected_frame_has_a_person_s_boxes_as_labels_and_as_answers(
    mined, tiny_data, tiny_teacher, tmp_path, monkeypatch
):
    folder = shutil.copytree(mined, tmp_path / "mined")
    name = "flight-train-002"
    (folder / "corrected.txt").write_text(f"{name}\n")
    (folder / "labels" / "train" / f"{name}.txt").write_text("1 0.5 0.5 0.25 0.25\n")
    read = read_mined(folder)
    assert [path.stem for path in read.labelled] == [name] and len(read.unlabelled) == 5
    monkeypatch.setattr(drone_kd_training.retraining.guard, "DRAWS", 20)
    plan = Plan(str(tiny_teacher), str(folder), str(tiny_data), str(tiny_teacher), epochs=1,
                batch=6, replay=0.0, overrides=SHORT)  # fmt: skip
    retrain(plan, tmp_path / "out", "retrain")
    answer = (tmp_path / "out" / "answers" / f"{name}.txt").read_text().split()
    assert [float(x) for x in answer] == [1, 0.5, 0.5, 0.25, 0.25, 1.0]
    # Without replay a single frame of the base is left.
    assert len((tmp_path / "out" / "base.txt").read_text().splitlines()) == 1


def without(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def empty_labels(folder: Path, _: str) -> None:
    for path in (folder / "labels" / "val").iterdir():
        path.write_text("")


def no_frames(folder: Path, _: str) -> None:
    for path in (folder / "images" / "train").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "what", "said"),
    [
        (without, "data.yaml", "no folder of `training mine`"),
        (without, "images/val", "no held-out frames"),
        (without, "answers", "no answers of a teacher"),
        (no_frames, "", "no picture in"),
        (empty_labels, "", "no labelled object"),
    ],
)
def test_a_mined_folder_that_cannot_do_is_one_line_and_exit_code_2(
    spoil, what, said, mined, tiny_data, tiny_teacher, tmp_path, capsys
):
    folder = shutil.copytree(mined, tmp_path / "mined")
    spoil(folder, what)
    assert main(command(tiny_teacher, folder, tiny_data, tmp_path / "out")) == 2
    line = capsys.readouterr().err
    assert said in line and len(line.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_class_lists_that_differ_are_both_shown(mined, tiny_data, tiny_teacher, tmp_path, capsys):
    folder = mine(tmp_path / "mined", names=("person", "car"), train=2, val=2)
    assert main(command(tiny_teacher, folder, tiny_data, tmp_path / "out")) == 2
    line = capsys.readouterr().err
    assert "['car', 'person']" in line and "['person', 'car']" in line
    assert not (tmp_path / "out").exists()


def test_other_input_that_cannot_work(mined, tiny_data, tiny_teacher, tmp_path, capsys):
    out = tmp_path / "out"
    same = mine(tmp_path / "same", prefix="", train=2, val=2)
    for picture in image_paths(same / "images" / "train"):  # named like frames of the base
        name = picture.stem.removeprefix("train-")
        picture.rename(picture.with_stem(name))
    cases = (
        (command(tiny_teacher.with_suffix(".onnx"), mined, tiny_data, out), "checkpoint (.pt)"),
        (command(tiny_teacher, same, tiny_data, out), "same name, such as 000"),
        (command(tiny_teacher, mined, tiny_data, out, "--replay", "1"), "below 1"),
        (command(tiny_teacher, mined, tiny_data, out, "--keep", "1"), "--keep must be"),
    )
    for arguments, said in cases:
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
        assert not out.exists()
    other = save_checkpoint(tmp_path / "cars.pt", names=("car", "ship"))
    arguments = command(tiny_teacher, mined, tiny_data, out, "--teacher", str(other))
    assert main(arguments) == 2
    assert "['person'], of which --teacher knows nothing" in capsys.readouterr().err
    assert not (out / "answers").exists()


def test_interrupted_and_resumed(mined, tiny_data, tiny_teacher, tmp_path):
    arguments = command(tiny_teacher, mined, tiny_data, tmp_path / "out", "--epochs", "4")
    typed = [sys.executable, "-m", "training", *arguments]
    state = tmp_path / "out" / "run" / "weights" / "resume.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert "goes on where it was" in interrupt_when_written(typed, state, 100, environment)
    written = (tmp_path / "out" / "answers").stat().st_mtime_ns
    again = subprocess.run(typed, capture_output=True, text=True, timeout=110, env=environment)
    assert again.returncode == 3, again.stderr[-2000:]
    assert (tmp_path / "out" / "answers").stat().st_mtime_ns == written
    results = (tmp_path / "out" / "run" / "results.csv").read_text().splitlines()
    assert [line.split(",")[0].strip() for line in results[1:]] == ["1", "2", "3", "4"]
