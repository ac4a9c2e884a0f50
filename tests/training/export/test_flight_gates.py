"""Gates on detections: which changes of a file they refuse, and which they let pass."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnx
import pytest
import yaml

import onnx_mutants
from drone_kd.backends import open_backend
from drone_kd.core.detections import Detections
from drone_kd.core.model_spec import PRECISIONS
from drone_kd.detector import Detector
from drone_kd.paths import parameter_defaults
from drone_kd_training.data.dataset import DataSet, Sample, load_data
from drone_kd_training.evaluation.evaluate import IOU
from drone_kd_training.export.export import export
from drone_kd_training.export.flight_gates import (
    INVALID,
    LIMITS,
    MAX_DETECTIONS,
    Flight,
    Frame,
    _reported,
    fly,
    measure,
)
from drone_kd_training.export.gate_outcomes import FAILS, HOLDS, NOT_ENOUGH, outcome
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from onnx_mutants import affine, scores_times
from tiny_training import NAMES, SIZE

ALL_SAME = [0, 0, 0, 0, 0, 0]


def draw_objects(root: Path, val: int = 24, train: int = 4, classes=(0, 1)) -> Path:
    """Draw an object in each quarter of an image, every second image dark."""
    rng = np.random.default_rng(0)
    half = SIZE // 2
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            dark = i % 2 == 0
            # The detector's scores of this background are below the threshold, or far below.
            image = rng.integers(*((60, 66) if dark else (118, 127)), (SIZE, SIZE, 3), np.uint8)
            rows = []
            for quarter in range(4):
                class_id = classes[quarter % len(classes)]
                (w, h), value = (((14, 14), 240), ((6, 16), 5))[class_id]
                x = rng.integers(0, half - w) + half * (quarter % 2)
                y = rng.integers(0, half - h) + half * (quarter // 2)
                image[y : y + h, x : x + w] = value
                box = (x + w / 2) / SIZE, (y + h / 2) / SIZE, w / SIZE, h / SIZE
                rows.append(" ".join(map(str, (class_id, *box))))
            cv2.imwrite(str(root / "images" / split / f"{i:03d}.png"), image)
            (root / "labels" / split / f"{i:03d}.txt").write_text("\n".join(rows) + "\n")
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


class Remembering:
    """Backend that runs once per frame."""

    def __init__(self, backend):
        self.spec, self.backend, self.rows = backend.spec, backend, {}

    def infer(self, batch):
        key = batch.tobytes()
        if key not in self.rows:
            self.rows[key] = self.backend.infer(batch)
        return self.rows[key]


class Exported(NamedTuple):
    data: DataSet
    reference: Remembering
    file: Path


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Path:
    return draw_objects(tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="module", params=PRECISIONS)
def exported(request, objects, square_detector, tmp_path_factory) -> Exported:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    # Forced: so few objects decide little, but nothing may fail either (tested below).
    file, _ = export(square_detector, path, request.param, str(objects), force=True)
    model, _ = load_model(str(square_detector))
    return Exported(load_data(objects), Remembering(TorchBackend(model, SIZE)), file)


def failures(gates: dict) -> list[str]:
    return [name for name, gate in gates.items() if outcome(gate) == FAILS]


def gates_of(exported: Exported, change: Callable, folder: Path) -> dict:
    proto = onnx.load(exported.file)
    change(proto)
    onnx.save(proto, folder / "mutant.onnx")
    file = open_backend(folder / "mutant.onnx", runtime="onnxruntime")
    return measure(fly(file, exported.reference, exported.data), file.spec.precision)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (scores_times(0.3), "boxes lost, %"),
        (scores_times(1.7), "scores raised, mean"),
        (onnx_mutants.silence_class(0), "boxes lost, %: class car"),
        (onnx_mutants.silence_class(1), "boxes lost, %: class person"),
        (affine([1] * 6, [4, 4, 4, 4, 0, 0]), "boxes lost, %"),
        (onnx_mutants.swap_two_classes, "boxes lost, %"),
        (onnx_mutants.not_a_number_on_dark_frames, INVALID),
        (onnx_mutants.zero_class_channel, "boxes invented, %"),
        (affine([1, 1, 1, 1, 0, 1], ALL_SAME), "boxes lost, %"),
        (affine([0, 1, 1, 1, 1, 1], ALL_SAME), "boxes lost, %"),
    ],
)
def test_faulty_graph_is_refused(change, gate, exported, tmp_path):
    failed = failures(gates_of(exported, change, tmp_path))
    assert any(name.startswith(gate) for name in failed), failed


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [lambda _: None, onnx_mutants.reverse_rows, onnx_mutants.noise_in_scores]
)
def test_harmless_change_passes(change, exported, tmp_path):
    assert failures(gates_of(exported, change, tmp_path)) == []


def detections(xyxy, scores, class_ids) -> Detections:
    return Detections(np.float32(xyxy).reshape(-1, 4), np.float32(scores), np.int64(class_ids))


def flight(change: Callable[[Detections], Detections], images: int = 60, seed: int = 0) -> Flight:
    """Return a flight over 12 objects per image, of three classes and all sizes."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(images):
        # One per cell of a grid: 6, 20, 40 or 120 px wide.
        centres = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2) * 150 + 75
        sides = np.resize([6.0, 20.0, 40.0, 120.0], 12)[:, None]
        xyxy = np.float32(np.hstack([centres - sides / 2, centres + sides / 2]))
        class_ids = rng.integers(0, 3, 12)
        found = rng.random(12) < 0.9
        scores = rng.uniform(0.1, 0.95, 12)[found]
        reference = detections(xyxy[found], scores, class_ids[found])
        image = np.broadcast_to(np.uint8(0), (480, 640, 3))
        sample = Sample(Path(f"{i}.png"), image, xyxy, class_ids)
        frames.append(Frame(sample, change(reference), reference, True))
    return Flight(frames, 0, ("car", "person", "bus"), (640, 480), np.arange(3))


def without_tiny(d: Detections) -> Detections:
    kept = d.xyxy[:, 2] - d.xyxy[:, 0] > 16
    return detections(d.xyxy[kept], d.scores[kept], d.class_ids[kept])


def swapped(d: Detections) -> Detections:
    return detections(d.xyxy, d.scores, np.array([0, 2, 1])[d.class_ids])


def one_class_at_half_the_score(d: Detections) -> Detections:
    return detections(d.xyxy, np.where(d.class_ids == 2, d.scores / 2, d.scores), d.class_ids)


def kept(d: Detections, chosen: np.ndarray) -> Detections:
    return detections(d.xyxy[chosen], d.scores[chosen], d.class_ids[chosen])


def centres(d: Detections) -> np.ndarray:
    return (d.xyxy[:, :2] + d.xyxy[:, 2:]) / 2


def one_class_confused_half_of_the_time(d: Detections) -> Detections:
    wrong = (d.class_ids == 2) & (np.arange(len(d)) % 2 == 0)
    return detections(d.xyxy, d.scores, np.where(wrong, 0, d.class_ids))


def grown_by_15_percent(d: Detections) -> Detections:
    half = 1.15 * (d.xyxy[:, 2:] - d.xyxy[:, :2]) / 2
    return detections(np.hstack([centres(d) - half, centres(d) + half]), d.scores, d.class_ids)


def scores_minus_a_tenth(d: Detections) -> Detections:
    return detections(d.xyxy, np.maximum(d.scores - 0.1, 0.002), d.class_ids)


def blind_at_the_border(d: Detections) -> Detections:
    return kept(d, centres(d)[:, 0] > 100)


def blind_in_one_tile(d: Detections) -> Detections:
    return kept(d, (centres(d) > (320, 240)).any(axis=1))


def some_boxes_twice(d: Detections) -> Detections:
    again = kept(d, np.arange(len(d)) % 8 == 0)
    columns = zip(
        (d.xyxy, d.scores, d.class_ids),
        (again.xyxy + 2, 0.95 * again.scores, again.class_ids),
        strict=True,
    )
    return detections(*(np.concatenate(column) for column in columns))


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (one_class_confused_half_of_the_time, "boxes lost, %: class bus"),
        (grown_by_15_percent, "boxes grown, mean %"),
        (scores_minus_a_tenth, "scores lowered, mean"),
        (blind_at_the_border, "boxes lost, %"),
        (blind_in_one_tile, "boxes lost, %"),
        (some_boxes_twice, "boxes invented, %"),
    ],
)
def test_fault_of_a_part_of_the_boxes_is_refused(change, gate, limits):
    assert gate in failures(measure(flight(change, 40), limits)[0])


def test_growth_of_small_boxes_is_refused_without_labels():
    """15 % of 18 px are less than the 3 px by which a box of INT8 may move."""
    found = flight(lambda d: d, images=40)
    frames = []
    for frame in found.frames:
        reference = kept(
            frame.reference, frame.reference.xyxy[:, 2] - frame.reference.xyxy[:, 0] < 32
        )
        sample = replace(
            frame.sample, xyxy=np.zeros((0, 4), np.float32), class_ids=np.zeros(0, int)
        )
        frames.append(Frame(sample, grown_by_15_percent(reference), reference, True))
    gates = measure(found._replace(frames=frames), "int8")[0]
    assert failures(gates) == ["boxes grown, mean %"]
    frames = [f._replace(file=f.reference, reference=f.file) for f in frames]
    gates = measure(found._replace(frames=frames), "int8")[0]
    assert failures(gates) == ["boxes shrunk, mean %"]


def test_limits_after_quantization_aware_training_are_no_wider():
    """So what INT8 refuses is refused then, too."""
    aware, int8 = asdict(LIMITS["int8 aware"]), asdict(LIMITS["int8"])
    assert all(aware[name] <= int8[name] for name in int8)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (without_tiny, "boxes lost, %: tiny"),
        (swapped, "boxes lost, %: class person"),
        (one_class_at_half_the_score, "recall lost, %: class bus"),
    ],
)
def test_fault_of_one_class_or_size_is_refused(change, gate, precision):
    failed = failures(measure(flight(change), precision)[0])
    assert gate in failed
    unchanged = "large" if change is without_tiny else "class car"
    assert not [name for name in failed if name.endswith(unchanged)]


def test_interval_is_over_flights_where_ten_are_known():
    """In each of the flights all or none of the boxes are moved."""

    def moved_in_every_second_flight(names: str) -> dict[str, float]:
        found = flight(lambda d: d, images=120)
        frames = []
        for i, frame in enumerate(found.frames):
            path = Path(names.format(flight=i // 10, frame=i % 10, number=i))
            if i // 10 % 2:
                moved = detections(frame.file.xyxy + 20, frame.file.scores, frame.file.class_ids)
                frame = frame._replace(file=moved)
            frames.append(frame._replace(sample=replace(frame.sample, path=path)))
        gate = measure(found._replace(frames=frames), "int8")[0]["boxes lost, %"]
        return gate["high"] - gate["low"]

    by_flight = moved_in_every_second_flight("{flight}-{frame}.png")
    assert by_flight > 2 * moved_in_every_second_flight("{number}.png")


@pytest.mark.slow
def test_harmless_changes_pass_in_at_least_99_of_100_flights():
    rng = np.random.default_rng(1)

    def shuffled_with_noise(d: Detections) -> Detections:
        order = rng.permutation(len(d))
        scores = d.scores + rng.uniform(-0.002, 0.002, len(d))
        return detections(d.xyxy[order], scores[order], d.class_ids[order])

    refused = [
        seed
        for seed in range(100)
        if failures(measure(flight(shuffled_with_noise, 12, seed), PRECISIONS[seed % 3])[0])
    ]
    assert len(refused) <= 1


def test_reported_boxes_are_those_of_the_node(square_detector, objects):
    """NMS goes by score, so a higher threshold only drops the end of the list."""
    defaults = parameter_defaults("detector.yaml")
    assert (defaults["iou"], defaults["max_detections"]) == (IOU, MAX_DETECTIONS)
    assert defaults["tiling"] == "off"
    model, _ = load_model(str(square_detector))
    backend = TorchBackend(model, SIZE)
    found = fly(backend, backend, load_data(objects))
    node = Detector(backend, defaults["confidence"], defaults["iou"], defaults["max_detections"])
    for frame in found.frames[:4]:
        expected = node(frame.sample.image)
        assert len(expected) > 0
        np.testing.assert_array_equal(_reported(frame.file).xyxy, expected.xyxy)
        np.testing.assert_array_equal(_reported(frame.file).scores, expected.scores)


def test_recall_precision_and_f1_are_those_of_the_thresholds():
    def two_of_three(d: Detections) -> Detections:
        kept = np.arange(len(d)) % 3 > 0
        return detections(d.xyxy[kept], d.scores[kept], d.class_ids[kept])

    run = flight(two_of_three)
    gates, metrics = measure(run, "int8")
    labels = sum(len(frame.sample.xyxy) for frame in run.frames)
    right = {
        name: sum((getattr(frame, name).scores > 0.25).sum() for frame in run.frames)
        for name in ("file", "reference")
    }
    assert metrics["recall"] == pytest.approx(right["file"] / labels, abs=1e-5)
    assert metrics["recall_fp32"] == pytest.approx(right["reference"] / labels, abs=1e-5)
    assert metrics["precision"] == metrics["precision_fp32"] == 1
    f1 = 2 * right["file"] / (labels + right["file"])
    assert metrics["f1"] == pytest.approx(f1, abs=1e-5)
    lost = 100 * (metrics["recall_fp32"] - metrics["recall"])
    assert gates["recall lost, %"]["measured"] == pytest.approx(lost, abs=0.01)
    assert gates["recall lost, %"]["count"] == labels


def test_files_of_another_class_order_are_refused_in_one_line(square_detector, objects):
    model, _ = load_model(str(square_detector))
    reference = TorchBackend(model, SIZE)
    model.names = {0: "person", 1: "car"}
    with pytest.raises(
        ValueError, match=r"expected a file with the classes .*car.*, got"
    ) as error:
        fly(TorchBackend(model, SIZE), reference, load_data(objects))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_little_data_is_said_and_no_failure(precision, square_detector, tmp_path):
    """One image, with a class missing."""
    data = draw_objects(tmp_path / "data", val=1, classes=(0,))
    _, spec = export(square_detector, tmp_path / "model.onnx", precision, str(data))
    assert failures(spec.gates) == []
    for name in ("boxes lost, %", "boxes lost, %: class person", "recall lost, %"):
        assert outcome(spec.gates[name]) == NOT_ENOUGH
    lacking = spec.gates["recall lost, %: class person"]
    assert (lacking["count"], lacking["missing"]) == (0, 35)


@pytest.mark.slow
def test_agreement_needs_no_labels(square_detector, tmp_path):
    data = draw_objects(tmp_path / "data")
    for label in (data.parent / "labels" / "val").iterdir():
        label.unlink()
    _, spec = export(square_detector, tmp_path / "model.onnx", "int8", str(data))
    assert outcome(spec.gates["boxes lost, %"]) == HOLDS
    for name in ("recall lost, %", "F1 lost, %", "mAP50-95 lost, points"):
        assert outcome(spec.gates[name]) == NOT_ENOUGH
        assert spec.gates[name]["count"] == 0
    assert spec.metrics == {}
