"""A teacher's boxes on unlabelled frames are stored, and augmentation moves them as labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg

from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.data.names import DataError
from drone_kd_training.distillation.train_data import (
    FRAME_BOXES,
    FRAMES,
    TrainData,
    add_unlabelled,
    read_pseudo_labels,
    write_pseudo_labels,
)
from drone_kd_training.models.checkpoints import match_classes
from drone_kd_training.models.safe_loading import write_plain
from drone_kd_training.teachers.soft_labels import PSEUDO_LABELS
from tiny_training import NAMES, SIZE, draw_set

# xyxy of a frame and the scores of both classes: a pseudo-label, and a box below every threshold.
SURE, BACKGROUND = (0.1, 0.2, 0.3, 0.6, 0.0, 0.9), (0.5, 0.5, 0.6, 0.6, 0.05, 0.0)
TABLE = np.array([SURE, BACKGROUND], np.float32)


def test_boxes_are_read_as_written(tmp_path):
    empty = np.zeros((0, 6), np.float32)
    write_pseudo_labels(tmp_path, {Path("/a/1.png"): TABLE, Path("/b/1.png"): empty}, 0.1)
    found = read_pseudo_labels(tmp_path, NAMES)
    assert found is not None
    boxes, scores = found.found["/a/1.png"]
    assert boxes == pytest.approx(np.array([[0.2, 0.4, 0.2, 0.4]]), abs=1e-6)
    assert scores == pytest.approx(np.array([[0.0, 0.9]]), abs=1e-6)
    assert len(found.found["/b/1.png"][0]) == 0  # another frame of the same name
    assert read_pseudo_labels(tmp_path / "none", NAMES) is None


@pytest.mark.parametrize(
    "content",
    [
        None,
        {"frames": ["a"]},
        {"frames": ["a"], "counts": torch.tensor([2]), "boxes": torch.zeros(1, 4),
         "scores": torch.zeros(1, 2)},
        {"frames": ["a"], "counts": torch.tensor([1]), "boxes": torch.zeros(1, 4),
         "scores": torch.zeros(1, 80)},
        {"frames": [], "counts": torch.tensor([1]), "boxes": torch.zeros(1, 4),
         "scores": torch.zeros(1, 2)},
        {"frames": 1, "counts": [1], "boxes": 2, "scores": 3},
    ],
)  # fmt: skip
def test_another_file_is_refused(content, tmp_path):
    if content is None:
        (tmp_path / FRAME_BOXES).write_bytes(b"cut off")
    else:
        write_plain(tmp_path / FRAME_BOXES, content)
    with pytest.raises(DataError, match="expected boxes on unlabelled frames; start the run anew"):
        read_pseudo_labels(tmp_path, NAMES)


def test_augmentation_moves_boxes_as_labels(tmp_path):
    data = load_data(draw_set(tmp_path / "set", train=4))
    labelled, unlabelled = image_paths(data.train)[:2], image_paths(data.train)[2:]
    run = tmp_path / "run"
    match = match_classes(NAMES, NAMES)
    run.mkdir()
    add_unlabelled(data, labelled, unlabelled, match, run, 0.5)
    write_pseudo_labels(run / FRAMES, dict.fromkeys(unlabelled, TABLE), 0.1)
    description = {"names": dict(enumerate(NAMES)), "nc": 2, "channels": 3}
    train_data = TrainData(run, "teacher", object(), description)
    changes = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "fliplr": 1.0, "scale": 0.0}
    args = get_cfg(overrides={"imgsz": SIZE, "mosaic": 0.0, "translate": 0.0, **changes})
    dataset = train_data.build_dataset(args, str(run / "train.txt"), 4, 32)
    for number, label in enumerate(dataset.labels):
        batch = train_data.split(dataset.collate_fn([dataset[number]]))
        boxes = batch[PSEUDO_LABELS]
        if Path(label["im_file"]) in unlabelled:
            assert boxes.cxcywh.tolist() == [pytest.approx([0.8, 0.4, 0.2, 0.4], abs=1e-3)]
            assert boxes.scores.tolist() == [pytest.approx([0.0, 0.9])]
        else:
            assert len(boxes.image) == 0 and len(batch["cls"]) == 2
