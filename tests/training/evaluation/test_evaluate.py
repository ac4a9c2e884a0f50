import logging

import cv2
import numpy as np
import pytest

from drone_kd_training.data.dataset import DataError
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.export.export import export
from drone_kd_training.models.checkpoints import UnusableModelError
from tiny_model import write_bright_cell_model
from tiny_training import draw_set, save_checkpoint


def test_torch_and_onnx_give_the_same_figures(tiny_data, tiny_teacher, tmp_path):
    export(tiny_teacher, tmp_path / "model.onnx")
    first, second = (
        evaluate(m, tiny_data, split="train") for m in (str(tiny_teacher), tmp_path / "model.onnx")
    )
    assert first["boxes"] == second["boxes"] == 24
    for key in ("map50_95", "map50", "ap_tiny", "ap_small"):
        assert second[key] == pytest.approx(first[key], abs=2e-3)
    assert set(first["per_class"]) == {"car", "person"}


@pytest.mark.parametrize("names", [("car", "person"), ("person", "car")])
def test_classes_are_matched_by_name_not_by_number(tmp_path, names):
    """A model that finds every bright cell as "car", on pictures whose cars are bright cells."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        image = np.zeros((64, 64, 3), np.uint8)
        image[8:16, 24:32] = 255
        cv2.imwrite(str(tmp_path / "images" / split / "a.png"), image)
        row = f"{names.index('car')} {28 / 64} {12 / 64} {8 / 64} {8 / 64}\n"
        (tmp_path / "labels" / split / "a.txt").write_text(row)
    content = f"train: images/train\nval: images/val\nnames: [{', '.join(names)}]\n"
    (tmp_path / "data.yaml").write_text(content)
    write_bright_cell_model(tmp_path / "model.onnx")
    metrics = evaluate(tmp_path / "model.onnx", tmp_path / "data.yaml")
    assert metrics["map50_95"] == 1 and metrics["per_class"]["car"]["ap50"] == 1
    assert metrics["per_class"]["person"]["ap50"] is None


def test_a_class_that_the_model_lacks_is_named_and_left_out(tiny_data, tmp_path):
    cars = save_checkpoint(tmp_path / "cars.pt", names=("car", "ship"))
    metrics = evaluate(str(cars), tiny_data)
    assert metrics["classes_not_in_model"] == ["person"] and list(metrics["per_class"]) == ["car"]


def test_unusable_pictures_are_counted(tmp_path, tiny_teacher, caplog):
    data = draw_set(tmp_path / "set")
    (tmp_path / "set/images/val/000.png").write_bytes(b"broken")
    (tmp_path / "set/labels/val/001.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    with caplog.at_level(logging.WARNING):
        metrics = evaluate(str(tiny_teacher), data)
    assert (metrics["images"], metrics["images_ignored"]) == (4, 2)
    assert len(caplog.records) == 2


def test_what_cannot_be_measured_is_refused(tiny_data, tiny_teacher, tmp_path):
    with pytest.raises(DataError, match="no split 'test'"):
        evaluate(str(tiny_teacher), tiny_data, split="test")
    with pytest.raises(UnusableModelError, match="no class in common"):
        evaluate(str(save_checkpoint(tmp_path / "ships.pt", names=("ship",))), tiny_data)
    with pytest.raises(ValueError, match="expected a .pt or a .onnx"):
        evaluate(tmp_path / "model.tflite", tiny_data)
