import numpy as np
import pytest

from drone_kd.core.detections import Detections
from drone_kd.core.postprocess import InferenceError
from drone_kd.detector import DecodedImage, Detector, load_detector
from drone_kd.paths import parameter_defaults
from tiny_model import tiny_spec, write_bright_cell_model, write_fixed_model


@pytest.fixture
def detector(tmp_path):
    return load_detector(write_bright_cell_model(tmp_path / "model.onnx"), confidence=0.9)


def test_detections_are_in_pixels_of_the_original_image(detector):
    # 2:1 image on a 64 x 64 canvas: a cell of 8 px is 32 px of the image.
    image = np.zeros((128, 256, 3), np.uint8)
    image[32:64, 96:128] = 255

    found = detector(image)

    np.testing.assert_allclose(found.xyxy, [[96, 32, 128, 64]], atol=1e-3)
    assert detector.backend.spec.classes[found.class_ids[0]] == "car"
    np.testing.assert_allclose(found.scores, [1.0], atol=1e-3)


def test_one_image_with_a_batched_model(tmp_path, detector):
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:16, 8:16] = 255
    path = write_bright_cell_model(tmp_path / "batch.onnx", tiny_spec(batch=3))
    found = load_detector(path, confidence=0.9)(image)
    np.testing.assert_array_equal(found.xyxy, detector(image).xyxy)


def test_black_image_has_no_detections(detector):
    assert len(detector(np.zeros((128, 256, 3), np.uint8))) == 0


def test_image_of_one_pixel(detector):
    found = detector(np.full((1, 1, 3), 255, np.uint8))
    assert len(found) == 64
    assert (found.xyxy >= 0).all() and (found.xyxy <= 1).all()


def test_stage_times_add_up(detector):
    _, times = detector.timed(np.zeros((64, 64, 3), np.uint8))
    stages = times.letterbox_ms + times.infer_ms + times.decode_ms
    assert min(times) > 0
    assert times.total_ms == pytest.approx(stages)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_invalid_image_is_rejected(detector, image):
    with pytest.raises(ValueError, match=r"expected uint8 \(height, width, 3\), got"):
        detector(image)


def test_failed_inference_is_not_an_empty_result(tmp_path):
    output = np.full((1, 3, 6), np.nan)
    with pytest.raises(InferenceError):
        load_detector(write_fixed_model(tmp_path / "nan.onnx", output))(
            np.zeros((8, 8, 3), np.uint8)
        )


def test_defaults_come_from_the_parameter_file(tmp_path):
    path = write_fixed_model(
        tmp_path / "model.onnx", np.zeros((1, 1, 6)), tiny_spec(head="end2end")
    )
    detector, defaults = load_detector(path), parameter_defaults("detector.yaml")
    for name in ("confidence", "iou", "max_detections"):
        assert getattr(detector, name) == defaults[name]
    assert load_detector(path, max_detections=3).max_detections == 3


@pytest.mark.parametrize("setting", [{"confidence": 1.5}, {"iou": -0.1}, {"max_detections": 0}])
def test_settings_out_of_range_are_rejected(detector, setting):
    values = {"confidence": 0.5, "iou": 0.5, "max_detections": 5, **setting}
    with pytest.raises(ValueError, match=next(iter(setting))):
        Detector(detector.backend, **values)


WHOLE = np.array([[0, 0, 64, 64]])


def bright(x, y, size=64):
    """Return a dark image with one bright cell of the network."""
    image = np.zeros((size, size, 3), np.uint8)
    scale = size // 64
    image[y * scale : (y + 8) * scale, x * scale : (x + 8) * scale] = 255
    return image


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_batch_of_several_images(tmp_path, monkeypatch, batch):
    path = write_bright_cell_model(tmp_path / "model.onnx", tiny_spec(batch=batch))
    detector = load_detector(path, confidence=0.9)
    calls, infer = [], detector.backend.infer

    def recording_infer(frames):
        calls.append(frames.shape)
        return infer(frames)

    monkeypatch.setattr(detector.backend, "infer", recording_infer)
    corners = [(0, 0), (16, 8), (56, 56)]
    images = [DecodedImage(bright(*c), 64, 64) for c in corners]
    results, times = detector.batch(images, [WHOLE] * 3)
    found = [r for r in results if isinstance(r, Detections)]
    assert [f.xyxy[:, :2].tolist() for f in found] == [[list(c)] for c in corners]
    assert calls == [(batch, 64, 64, 3)] * -(-3 // batch)
    assert min(times) > 0


def test_boxes_of_a_reduced_image_are_in_original_pixels(detector):
    """A JPEG of 127 x 127 px, decoded at half its size: the last pixel is a half one."""
    (found,), _ = detector.batch([DecodedImage(bright(56, 16), 127, 127, reduction=2)], [WHOLE])
    assert found.xyxy.tolist() == [[112, 32, 127, 48]]


def test_failed_image_does_not_affect_the_others(tmp_path, monkeypatch):
    path = write_bright_cell_model(tmp_path / "model.onnx", tiny_spec(batch=2))
    detector = load_detector(path, confidence=0.9)
    infer = detector.backend.infer

    def infer_with_nan(frames):
        output = infer(frames).copy()
        output[0] = np.nan
        return output

    monkeypatch.setattr(detector.backend, "infer", infer_with_nan)
    results, _ = detector.batch([DecodedImage(bright(0, 0), 64, 64)] * 2, [WHOLE] * 2)
    failed, detected = results
    assert isinstance(failed, InferenceError)
    assert isinstance(detected, Detections) and len(detected) == 1


def test_class_selection_and_thresholds_per_class(detector):
    def count(**settings):
        return len(
            Detector(detector.backend, 0.9, 0.7, 100, **settings)(
                np.full((8, 8, 3), 255, np.uint8)
            )
        )

    assert count() == 64
    assert count(class_confidence={"person": 0.5}) == 64
    assert count(class_confidence={"car": 1.0}) == 0
    assert count(only=("car",)) == 64
    assert count(only=("person",)) == 0
    with pytest.raises(ValueError, match="knows no class 'lorry'; its classes: car, person"):
        count(only=("lorry",))


@pytest.mark.parametrize("batch", [1, 4])
def test_tiling_finds_small_objects(tmp_path, batch):
    path = write_bright_cell_model(tmp_path / "model.onnx", tiny_spec(batch=batch))
    image = np.zeros((256, 256, 3), np.uint8)
    image[8:16, 16:24] = image[200:208, 128:136] = 255
    assert len(load_detector(path, confidence=0.9)(image)) == 0
    found = load_detector(path, confidence=0.9, tiling="4x4", tile_overlap=0.0)(image)
    corners = sorted(found.xyxy[:, :2].tolist())
    np.testing.assert_allclose(corners, [[16, 8], [128, 200]], atol=1e-3)


def test_very_large_image(detector):
    image = np.zeros((4320, 7680, 3), np.uint8)
    image[2160:3120, 960:1920] = 255
    assert len(detector(image)) == 1
