"""A tiny data set and tiny teachers, so that a real training run takes seconds."""

import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel

from commands import PATIENCE_S, started
from drone_kd_training.models.checkpoints import resolve_model

NAMES = ("car", "person")
SIZE = 64


def interrupt_when_written(command: list[str], file: Path) -> str:
    """Start a command, interrupt it once it has written a file, and return its stderr.

    It must end with exit code 130 and without a traceback.
    """
    deadline = time.monotonic() + PATIENCE_S
    with started(command, stdout=subprocess.DEVNULL) as process:
        while not file.is_file():
            assert process.poll() is None, process.communicate()[1][-2000:]
            assert time.monotonic() < deadline, f"{file} was not written within {PATIENCE_S} s"
            time.sleep(0.05)  # another process writes the file: there is no event to wait for
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130
    assert "Traceback" not in errors
    return errors


def draw_set(root: Path, train: int = 12, val: int = 6, seed: int = 0) -> Path:
    """Draw bright squares (car) and dark bars (person) on grey noise, in Ultralytics' layout."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.integers(90, 130, (SIZE, SIZE, 3), dtype=np.uint8)
            rows = []
            for class_id, (w, h), value in ((0, (14, 14), 240), (1, (6, 16), 10)):
                x, y = rng.integers(0, SIZE - w), rng.integers(0, SIZE - h)
                image[y : y + h, x : x + w] = value
                rows.append(
                    f"{class_id} {(x + w / 2) / SIZE} {(y + h / 2) / SIZE} {w / SIZE} {h / SIZE}"
                )
            cv2.imwrite(str(root / "images" / split / f"{i:03d}.png"), image)
            (root / "labels" / split / f"{i:03d}.txt").write_text("\n".join(rows) + "\n")
    content = {
        "path": ".",
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(NAMES)),
    }
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def save_checkpoint(path: Path, names=NAMES, architecture: str = "aerial-student.yaml") -> Path:
    """Save an untrained detector that predicts arbitrary objects, as an Ultralytics checkpoint."""
    torch.manual_seed(1)
    model = DetectionModel(resolve_model(architecture), nc=len(names), verbose=False)
    model.names = dict(enumerate(names))
    _calibrate_norms(model)
    head = model.model[-1]
    with torch.no_grad():  # an untrained head predicts no objects
        for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
            for branch in getattr(head, name, None) or []:
                branch[-1].weight.mul_(0.1)
                branch[-1].bias.fill_(-1.0 if name.endswith("cv3") else 1.0)
    model.args = {"imgsz": SIZE}
    torch.save({"model": model, "train_args": {"imgsz": SIZE}}, path)
    return path


def _calibrate_norms(model: DetectionModel) -> None:
    """Fit the batch norms to their inputs, or an untrained network predicts one constant."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(8, 3, 2 * SIZE, 2 * SIZE))
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    model.eval()


def save_rtdetr(path: Path, score_bias: float = 1.0) -> Path:
    """Save an untrained, tiny RT-DETR: 3 strides, 20 queries, one decoder layer.

    Every query has a score near sigmoid(score_bias) for each class.
    """
    torch.manual_seed(0)
    layers = [[-1, 1, "Conv", [16, 3, 2]] for _ in range(5)]  # strides 2 to 32
    head = [[[2, 3, 4], 1, "RTDETRDecoder", ["nc", 32, 20, 2, 2, 1, 32]]]
    model = RTDETRDetectionModel(
        {"nc": len(NAMES), "backbone": layers, "head": head}, nc=len(NAMES), verbose=False
    )
    model.names = dict(enumerate(NAMES))
    model.model[-1].dec_score_head[-1].bias.data.fill_(score_bias)
    model.args = {"imgsz": SIZE}
    torch.save({"model": model, "train_args": {"imgsz": SIZE}}, path)
    return path
