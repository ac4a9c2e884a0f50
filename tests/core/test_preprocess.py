import numpy as np
import pytest

from drone_kd.core.preprocess import Letterbox, letterbox, network_input
from tiny_model import tiny_spec

SHAPES = [
    (1080, 1920),
    (720, 1280),
    (719, 1281),
    (1281, 719),
    (1, 1),
    (1, 3000),
    (640, 640),
    (7, 5),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(640, 640), (640, 384), (96, 63)])
def test_letterbox_equals_ultralytics(shape, size):
    augment = pytest.importorskip(
        "ultralytics.data.augment", reason="ultralytics is not installed"
    )
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    width, height = size

    canvas, _ = letterbox(image, width, height)

    expected = augment.LetterBox(new_shape=(height, width), auto=False)(image=image.copy())
    np.testing.assert_array_equal(canvas, expected)


def test_letterbox_placement_and_padding():
    canvas, placement = letterbox(np.full((50, 100, 3), 200, np.uint8), 64, 65)

    assert placement == Letterbox(scale=0.64, pad_x=0, pad_y=16)
    assert (canvas[:16] == 114).all()
    assert (canvas[16:48] == 200).all()
    assert (canvas[48:] == 114).all()  # the odd row is at the bottom


def test_letterbox_of_a_huge_image_with_strided_rows():
    wide = np.zeros((6000, 8001, 3), np.uint8)
    canvas, placement = letterbox(wide[:, :8000], 640, 640)
    assert canvas.shape == (640, 640, 3)
    assert placement == Letterbox(scale=0.08, pad_x=0, pad_y=80)


def test_network_input_has_the_layout_of_the_spec():
    frames = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    assert network_input(frames, tiny_spec()) is frames
    spec = tiny_spec(layout="NCHW", dtype="float32", colour="RGB")
    planes = network_input(frames, spec)
    assert planes.shape == (1, 3, 2, 4) and planes.dtype == np.float32
    assert planes.flags.c_contiguous
    np.testing.assert_allclose(planes[0, 0], frames[0, ..., 2] / 255, rtol=1e-6)
