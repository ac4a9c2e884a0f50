import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_convert, box_iou

from drone_kd.cli import main
from drone_kd.detector import Detector
from drone_kd_training.data.dataset import DataError
from drone_kd_training.evaluation.evaluate import CONFIDENCE, IOU, evaluate, over_classes
from drone_kd_training.export.export import export
from drone_kd_training.models.checkpoints import UnusableModelError, load_model
from drone_kd_training.models.torch_backend import TorchBackend
from folder_content import folder_content
from square_detector import draw_squares
from tiny_model import write_bright_cell_model
from tiny_training import NAMES, SIZE, draw_set, save_checkpoint

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def read_truth(image: Path) -> np.ndarray:
    """Read a frame's labels: (N, 5) as class and xyxy in pixels."""
    rows = np.loadtxt(image.parents[2] / "labels" / "val" / f"{image.stem}.txt", ndmin=2)
    xyxy = box_convert(torch.tensor(rows[:, 1:] * SIZE), "cxcywh", "xyxy").numpy()
    return np.column_stack([rows[:, 0], xyxy])


def reference_ap(frames: list[tuple[np.ndarray, np.ndarray]], threshold: float) -> float:
    """Compute the AP of one class as COCO defines it: precision at 101 recalls, interpolated.

    Args:
        frames: per frame the truth (N, 4) and the predictions (P, 5), xyxy and score.
        threshold: IoU of a hit.
    """
    outcomes = []
    for truth, predictions in frames:
        free = np.ones(len(truth), bool)
        for *box, score in sorted(predictions.tolist(), key=lambda row: -row[4]):
            overlap = box_iou(torch.tensor([box]), torch.tensor(truth)).numpy()[0] * free
            hit = bool(overlap.size) and overlap.max() >= threshold
            if hit:
                free[overlap.argmax()] = False
            outcomes.append((-score, hit))
    hits = np.array([hit for _, hit in sorted(outcomes, key=lambda outcome: outcome[0])])
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    recall = np.cumsum(hits) / sum(len(truth) for truth, _ in frames)
    at = [precision[recall >= r] for r in np.linspace(0, 1, 101)]
    return float(np.mean([p.max() if p.size else 0.0 for p in at]))


@pytest.mark.slow
def test_figures_equal_an_independent_computation(tiny_data, square_detector):
    metrics = evaluate(str(square_detector), tiny_data)
    detector = Detector(TorchBackend(load_model(str(square_detector))[0]), CONFIDENCE, IOU, 300)
    frames = []
    for path in sorted((tiny_data.parent / "images" / "val").iterdir()):
        found = detector(cv2.imread(str(path)))
        rows = np.column_stack([found.class_ids, found.xyxy, found.scores]).astype(np.float64)
        frames.append((read_truth(path), rows))
    expected = {
        name: [
            reference_ap([(t[t[:, 0] == k, 1:], p[p[:, 0] == k, 1:]) for t, p in frames], iou)
            for iou in THRESHOLDS
        ]
        for k, name in enumerate(NAMES)
    }
    for name, figures in metrics["per_class"].items():
        assert figures["ap50"] == pytest.approx(expected[name][0], abs=1e-4)
        assert figures["ap50_95"] == pytest.approx(np.mean(expected[name]), abs=1e-4)
        assert 0.1 < figures["ap50"] < 0.9
    assert metrics["map50_95"] == pytest.approx(np.mean([*expected.values()]), abs=1e-4)
    assert metrics["map50"] == pytest.approx(np.mean([e[0] for e in expected.values()]), abs=1e-4)
    assert (metrics["images"], metrics["boxes"]) == (6, 12)


def test_torch_and_onnx_give_the_same_figures(tiny_data, square_detector, tmp_path):
    export(square_detector, tmp_path / "model.onnx")
    first, second = (evaluate(m, tiny_data) for m in (square_detector, tmp_path / "model.onnx"))
    for key in ("map50_95", "map50", "ap_tiny", "ap_small"):
        assert first[key] > 0.05
        assert second[key] == pytest.approx(first[key], abs=5e-3)
    assert set(first["per_class"]) == {"car", "person"}


def test_tiling_detects_objects_that_the_whole_image_misses(square_detector, tmp_path):
    """Squares of 14 px in images of four times the network's side shrink to 3.5 px."""
    data = draw_squares(tmp_path / "set", side=14, train=1, val=16)
    folder = tmp_path / "set"
    small = sorted((folder / "images" / "val").iterdir())
    mosaic = cv2.vconcat(
        [cv2.hconcat([cv2.imread(str(p)) for p in small[i : i + 4]]) for i in range(0, 16, 4)]
    )
    rows = []
    for i, path in enumerate(small):
        label = folder / "labels" / "val" / f"{path.stem}.txt"
        _, x, y, w, h = (float(value) for value in label.read_text().split())
        rows.append(f"0 {(i % 4 + x) / 4} {(i // 4 + y) / 4} {w / 4} {h / 4}\n")
        path.unlink()
        label.unlink()
    cv2.imwrite(str(folder / "images" / "val" / "large.png"), mosaic)
    (folder / "labels" / "val" / "large.txt").write_text("".join(rows))
    figures = {}
    for tiling in ("off", "4x4"):
        output = tmp_path / f"{tiling}.json"
        command = ["evaluate", str(square_detector), "--data", str(data), "--json", str(output)]
        assert main([*command, "--tiling", tiling]) == 0
        figures[tiling] = json.loads(output.read_text())
    assert figures["off"]["boxes"] == figures["4x4"]["boxes"] == 16
    assert figures["off"]["map50"] == 0
    assert figures["4x4"]["map50"] > 0.5


@pytest.mark.parametrize("names", [("car", "person"), ("person", "car")])
def test_classes_are_matched_by_name_not_by_number(tmp_path, names):
    """The model detects every bright cell as "car"."""
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
    assert metrics["map50_95"] == 1
    assert metrics["per_class"]["car"]["ap50"] == 1
    assert metrics["per_class"]["person"]["ap50"] is None


def test_renamed_and_selected_classes(tiny_data, square_detector):
    plain = evaluate(square_detector, tiny_data)
    cars = evaluate(square_detector, tiny_data, only=("car",))
    assert cars["per_class"] == {"car": plain["per_class"]["car"]}
    assert cars["map50_95"] == plain["per_class"]["car"]["ap50_95"]
    assert cars["classes_not_in_model"] == []
    swapped = evaluate(square_detector, tiny_data, classes={"car": "person", "person": "car"})
    assert swapped["map50"] < 0.1 < plain["map50"]


def test_means_over_some_classes_are_those_of_an_evaluation_of_them(tiny_data, square_detector):
    both = evaluate(square_detector, tiny_data)
    cars = evaluate(square_detector, tiny_data, only=("car",))
    means = ("map50_95", "map50", "ap_tiny", "ap_small", "ap_medium", "ap_large")
    assert over_classes(both, ["car"]) == {key: cars[key] for key in means}
    assert cars["map50_95"] != both["map50_95"]
    for names in (["car", "person"], ["person", "car"]):
        assert over_classes(both, names) == {key: both[key] for key in means}
    # The path of a mean over several classes, beside a third one with objects.
    third = {**both, "per_class": {**both["per_class"], "bus": {"ap50_95": 0.9}}}
    assert over_classes(third, ["car", "person"]) == pytest.approx(
        {key: both[key] for key in means}, abs=2e-5
    )
    with pytest.raises(ValueError, match="figures of the class bus, got none; evaluate again"):
        over_classes(both, ["car", "bus"])


def test_figures_without_sizes_per_class_have_no_means_by_size():
    ap = {"ap50_95": 0.2, "ap50": 0.4}
    before = {"map50_95": 0.4, "ap_tiny": 0.1, "per_class": {"car": ap, "bus": {"ap50_95": 0.6}}}
    found = over_classes(before, ["car"])
    assert (found["map50_95"], found["map50"], found["ap_tiny"]) == (0.2, 0.4, None)


def test_class_that_the_model_lacks_is_named_and_left_out(tiny_data, tmp_path):
    cars = save_checkpoint(tmp_path / "cars.pt", names=("car", "ship"))
    metrics = evaluate(str(cars), tiny_data)
    assert metrics["classes_not_in_model"] == ["person"]
    assert list(metrics["per_class"]) == ["car"]


def test_unusable_images_are_counted(tmp_path, square_detector, caplog):
    data = draw_set(tmp_path / "set")
    (tmp_path / "set/images/val/000.png").write_bytes(b"broken")
    (tmp_path / "set/labels/val/001.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    with caplog.at_level(logging.WARNING):
        metrics = evaluate(square_detector, data)
    assert (metrics["images"], metrics["images_ignored"]) == (4, 2)
    assert len(caplog.records) == 2


def test_unusable_input_is_refused(tiny_data, square_detector, tmp_path):
    with pytest.raises(DataError, match="no split 'test'"):
        evaluate(square_detector, tiny_data, split="test")
    with pytest.raises(UnusableModelError, match="no class in common"):
        evaluate(save_checkpoint(tmp_path / "ships.pt", names=("ship",)), tiny_data)
    with pytest.raises(ValueError, match=r"expected a \.pt or \.onnx"):
        evaluate(tmp_path / "model.tflite", tiny_data)


def test_evaluation_leaves_the_data_set_as_it_was(square_detector, tmp_path):
    data = draw_set(tmp_path / "set", train=1, val=2)
    before = folder_content(data.parent)
    evaluate(load_model(str(square_detector))[0], data, imgsz=SIZE)
    assert folder_content(data.parent) == before
