from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from drone_kd_training.data.dataset import DataError, image_paths, load_data
from drone_kd_training.distillation.heads import confident_boxes
from drone_kd_training.models.checkpoints import match_classes
from drone_kd_training.teachers import teacher_scores
from drone_kd_training.teachers.soft_labels import Boxes, Predictions
from drone_kd_training.teachers.teacher_scores import score_teacher
from drone_kd_training.teachers.teachers import open_teacher
from tiny_training import NAMES, SIZE, save_rtdetr

CAR = match_classes(("car",), ("person", "car"))


def write_images(root: Path, count: int = 1, labels: str = "") -> list[Path]:
    """Write blue images of 40 x 20 pixels, each with the same labels."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    paths = [root / "images" / f"{i:04d}.png" for i in range(count)]
    for path in paths:
        cv2.imwrite(str(path), np.full((20, 40, 3), (255, 0, 0), np.uint8))
        (root / "labels" / f"{path.stem}.txt").write_text(labels)
    return paths


def predict_rows(*rows: tuple[float, ...]):
    """Return a teacher that predicts the same rows in every image: cxcywh, person, car."""
    table = torch.tensor(rows).reshape(-1, 6)

    def predict(images: torch.Tensor) -> Boxes:
        image = torch.arange(len(images)).repeat_interleave(len(table))
        repeated = table.repeat(len(images), 1)
        return Boxes(image, repeated[:, :4], repeated[:, 4:])

    return predict


def test_boxes_of_the_letterboxed_input_are_compared_with_labels_of_the_image(tmp_path):
    # An image of 40 x 20 fills the rows 0.25 to 0.75 of the square input.
    labelled = write_images(tmp_path / "a", 3, "0 0.5 0.5 0.2 0.4\n")
    teacher = predict_rows((0.5, 0.5, 0.2, 0.2, 0.0, 0.9), (0.5, 0.5, 0.2, 0.4, 0.0, 0.6))
    result = score_teacher(teacher, CAR, labelled, write_images(tmp_path / "b", 2), 64, batch=2)
    (car,) = result.scores
    assert car is not None
    assert (car.labels, car.frames) == (3, 3)
    assert car.labelled.tolist() == pytest.approx([0.9] * 3 + [0.6] * 3)
    assert car.right.tolist() == [True] * 3 + [False] * 3
    assert car.unlabelled.tolist() == pytest.approx([0.9, 0.6] * 2)
    assert (result.labelled, result.unlabelled) == ((3, 3), (2, 2))
    for boxes in result.boxes.values():
        assert boxes == pytest.approx(
            np.array([[0.4, 0.3, 0.6, 0.7, 0.9], [0.4, 0.1, 0.6, 0.9, 0.6]]), abs=1e-6
        )


def test_teacher_sees_the_letterboxed_image_as_rgb(tmp_path):
    seen = []

    def predict(images: torch.Tensor) -> Boxes:
        seen.append(images)
        return predict_rows((0.5, 0.5, 0.2, 0.2, 0.0, 0.9))(images)

    score_teacher(predict, CAR, [], write_images(tmp_path, 3), 64, batch=2)
    assert [x.shape for x in seen] == [(2, 3, 64, 64), (1, 3, 64, 64)]
    assert seen[0].dtype == torch.float32
    assert seen[0][0, :, 32, 32].tolist() == [0, 0, 1]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([114 / 255] * 3)


def test_a_label_is_found_once_and_by_its_own_class(tmp_path):
    labelled = write_images(tmp_path / "a", 1, "0 0.5 0.5 0.5 1.0\n")
    teacher = predict_rows(
        (0.5, 0.5, 0.50, 0.5, 0.0, 0.5),
        (0.5, 0.5, 0.28, 0.5, 0.0, 0.7),  # IoU 0.56 with the label and the box above: no duplicate
        (0.5, 0.5, 0.49, 0.5, 0.0, 0.4),  # a duplicate of the first
        (0.5, 0.5, 0.50, 0.5, 0.9, 0.04),  # of another class
    )
    (car,) = score_teacher(teacher, CAR, labelled, labelled, 64).scores
    assert car is not None
    assert car.labelled.tolist() == pytest.approx([0.7, 0.5])
    assert car.right.tolist() == [True, False]
    assert car.counts(0.5) == (1, 2)
    assert car.counts(0.6) == (1, 1)


def test_class_that_the_teacher_does_not_know_has_no_scores(tmp_path):
    images = write_images(tmp_path)
    match = match_classes(("boat", "car"), ("person", "car"))
    result = score_teacher(predict_rows((0.5, 0.5, 0.2, 0.2, 0, 0.9)), match, images, images, 64)
    assert result.scores[0] is None
    assert result.scores[1] is not None


def test_stored_predictions_are_read_without_the_images(tmp_path):
    row = np.array([[0.5, 0.5, 0.2, 0.4]]), np.array([[0.0, 0.8]], np.float32)
    stored = Predictions(("person", "car"), {"a": row, "12": row}, pixels=False)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    unlabelled = [tmp_path / "images" / name for name in ("000012.png", "none.png")]
    result = score_teacher(stored, CAR, [tmp_path / "images" / "a.png"], unlabelled, 64)
    (car,) = result.scores
    assert car is not None
    assert car.right.tolist() == [True]
    assert car.unlabelled.tolist() == pytest.approx([0.8])
    assert result.unlabelled == (2, 2)


def test_stored_predictions_in_pixels(tmp_path):
    labelled = write_images(tmp_path, 1, "0 0.5 0.5 0.2 0.4\n")
    row = np.array([[20.0, 10.0, 8.0, 8.0]]), np.array([[0.0, 0.8]], np.float32)
    stored = Predictions(("person", "car"), {"0000": row}, pixels=True)
    (car,) = score_teacher(stored, CAR, labelled, labelled, 64).scores
    assert car is not None
    assert car.right.tolist() == [True]


def test_detector_with_a_detect_head(tiny_data, square_detector):
    teacher = open_teacher(str(square_detector), NAMES)
    images = image_paths(load_data(tiny_data).train)

    def predict(batch: torch.Tensor) -> Boxes:
        return confident_boxes(teacher(batch, {}), teacher.head, SIZE)

    result = score_teacher(predict, match_classes(NAMES, teacher.names), images, images, SIZE)
    car = result.scores[0]
    assert car is not None
    assert car.labels == len(images)
    assert car.right.sum() > car.labels / 2
    assert np.array_equal(np.sort(car.unlabelled)[::-1], car.labelled)


def test_detector_that_predicts_boxes(tiny_data, tmp_path):
    teacher = open_teacher(str(save_rtdetr(tmp_path / "rtdetr.pt")), NAMES)
    images = image_paths(load_data(tiny_data).train)[:2]
    match = match_classes(NAMES, teacher.names)
    result = score_teacher(lambda batch: teacher(batch, {}), match, [], images, SIZE)
    assert all(s is not None and len(s.unlabelled) for s in result.scores)


def test_many_frames_are_read_in_part_and_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_scores, "MAX_LABELLED", 4)
    read = []
    monkeypatch.setattr(
        teacher_scores, "read_image", lambda p: read.append(int(p.stem)) or np.zeros((8, 8, 3))
    )
    labelled, unlabelled = (
        write_images(tmp_path / kind, count) for kind, count in (("a", 8), ("b", 9))
    )
    teacher = predict_rows((0.5, 0.5, 0.2, 0.2, 0.0, 0.9))
    # Lists that repeat the labelled frames count each once.
    result = score_teacher(teacher, CAR, labelled * 2, unlabelled, 64, most=3)
    assert (result.labelled, result.unlabelled) == ((4, 8), (3, 9))
    assert read == [0, 2, 4, 6, 0, 3, 6]


def test_frames_that_cannot_be_read_are_left_out(tmp_path, caplog):
    labelled = write_images(tmp_path / "a", 3, "0 0.5 0.5 0.2 0.4\n")
    labelled[0].write_bytes(b"no image")
    (tmp_path / "a" / "labels" / "0001.txt").write_text("0 0.5\n")
    teacher = predict_rows((0.5, 0.5, 0.2, 0.2, 0.0, 0.9))
    result = score_teacher(teacher, CAR, labelled, labelled, 64)
    assert (result.labelled, result.unlabelled) == ((1, 3), (2, 3))
    assert result.scores[0] is not None
    assert result.scores[0].labels == 1
    assert "0000.png: expected a BMP, JPEG" in caplog.text
    assert "must be 'class cx cy w h'" in caplog.text


@pytest.mark.parametrize("kind", ["labelled", "unlabelled"])
def test_no_readable_frame_is_refused(tmp_path, kind):
    bad, good = write_images(tmp_path / "a"), write_images(tmp_path / "b")
    bad[0].write_bytes(b"no image")
    frames = (bad, good) if kind == "labelled" else (good, bad)
    teacher = predict_rows((0.5, 0.5, 0.2, 0.2, 0.0, 0.9))
    with pytest.raises(DataError, match=f"expected {kind} frames, got none of 1 that can be read"):
        score_teacher(teacher, CAR, *frames, 64)


@pytest.mark.parametrize("rows", [(), ((0.5, 0.5, 0.2, 0.2, 0.9, 0.09),)])
def test_teacher_that_finds_nothing_is_refused(tmp_path, rows):
    images = write_images(tmp_path, 2)
    message = "the teacher finds nothing in 2 unlabelled frames: expected car with a score ≥ 0.1"
    with pytest.raises(DataError, match=message):
        score_teacher(predict_rows(*rows), CAR, images, images, 64)
