"""Image messages of every encoding become BGR; unusable ones are rejected in one line."""

from array import array

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image

from drone_kd.ros.image_conversion import ImageError, decode_message, image_to_bgr

BLUE, GREEN, RED, ALPHA = 10, 20, 30, 40
BGR = (BLUE, GREEN, RED)
# ITU-R BT.601, limited range, as in OpenCV and cameras.
Y = round(16 + 0.257 * RED + 0.504 * GREEN + 0.098 * BLUE)
U = round(128 - 0.148 * RED - 0.291 * GREEN + 0.439 * BLUE)
V = round(128 + 0.439 * RED - 0.368 * GREEN - 0.071 * BLUE)


def message(encoding, rows, width, height, padding=0, bigendian=False):
    """An image message of the given rows of bytes, each padded."""
    step = len(rows[0]) + padding
    data = b"".join(bytes(row) + bytes([255] * padding) for row in rows)
    return Image(
        encoding=encoding,
        width=width,
        height=height,
        step=step,
        is_bigendian=int(bigendian),
        data=array("B", data),
    )


def plain(encoding, pixel, width=4, height=2, **options):
    return message(encoding, [bytes(pixel) * width] * height, width, height, **options)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixel", "expected"),
    [
        ("bgr8", (BLUE, GREEN, RED), BGR),
        ("rgb8", (RED, GREEN, BLUE), BGR),
        ("bgra8", (BLUE, GREEN, RED, ALPHA), BGR),
        ("rgba8", (RED, GREEN, BLUE, ALPHA), BGR),
        ("mono8", (GREEN,), (GREEN, GREEN, GREEN)),
        ("mono16", (7, GREEN), (GREEN, GREEN, GREEN)),
    ],
)
def test_every_plain_encoding_becomes_bgr(encoding, pixel, expected, padding):
    image = image_to_bgr(plain(encoding, pixel, padding=padding))
    assert image.shape == (2, 4, 3)
    assert image.dtype == np.uint8
    assert (image == expected).all()


def test_big_endian_16_bit():
    image = image_to_bgr(plain("mono16", (GREEN, 7), padding=3, bigendian=True))
    assert (image == GREEN).all()


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(
    ("encoding", "pair"),
    [
        ("uyvy", (U, Y, V, Y)),
        ("yuv422", (U, Y, V, Y)),
        ("yuyv", (Y, U, Y, V)),
        ("yuv422_yuy2", (Y, U, Y, V)),
    ],
)
def test_packed_yuv(encoding, pair, padding):
    image = image_to_bgr(message(encoding, [bytes(pair) * 2] * 2, 4, 2, padding))
    assert image.shape == (2, 4, 3)
    np.testing.assert_allclose(image.reshape(-1, 3), [BGR] * 8, atol=3)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(("encoding", "pair"), [("nv12", (U, V)), ("nv21", (V, U))])
def test_planar_yuv(encoding, pair, padding):
    rows = [bytes([Y] * 4)] * 2 + [bytes(pair * 2)]
    image = image_to_bgr(message(encoding, rows, 4, 2, padding))
    assert image.shape == (2, 4, 3)
    np.testing.assert_allclose(image.reshape(-1, 3), [BGR] * 8, atol=3)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer(pattern, bits):
    """The name gives the colours of the first two rows, here of a sensor facing a plain wall."""
    colours = {"r": RED, "g": GREEN, "b": BLUE}
    rows = [[colours[pattern[2 * (y % 2) + x % 2]] for x in range(8)] for y in range(6)]
    if bits == 16:
        rows = [[byte for value in row for byte in (99, value)] for row in rows]
    image = image_to_bgr(message(f"bayer_{pattern}{bits}", rows, 8, 6, padding=2))
    assert image.shape == (6, 8, 3)
    assert (image == BGR).all()


@pytest.mark.parametrize("bigendian", [False, True])
def test_thermal_values_are_stretched(bigendian):
    """A scene of 20 to 30 degrees uses a thousand of the 65536 values; one pixel is dead."""
    kelvin = np.linspace(29315, 30315, 64 * 48).reshape(48, 64)
    kelvin[0, 0] = 0
    rows = [row.tobytes() for row in kelvin.astype(">u2" if bigendian else "<u2")]
    image = image_to_bgr(message("16UC1", rows, 64, 48, padding=1, bigendian=bigendian))
    assert image.dtype == np.uint8 and image.shape == (48, 64, 3)
    assert image[0, 1].max() <= 3 and image[-1, -1].min() >= 252
    assert 115 <= image[24, 0, 0] <= 140
    assert (np.diff(image[1:, 5, 0].astype(int)) >= 0).all()


def test_thermal_image_without_contrast_is_black():
    assert (image_to_bgr(plain("16UC1", (5, 5))) == 0).all()


def test_bgr8_is_not_copied():
    source = plain("bgr8", BGR, padding=5)
    assert np.shares_memory(image_to_bgr(source), np.frombuffer(source.data, np.uint8))


def test_data_may_be_longer_than_the_rows():
    image = plain("bgr8", BGR)
    image.data.frombytes(bytes(7))
    assert (image_to_bgr(image) == BGR).all()


def broken(encoding="bgr8", **changes):
    image = plain(encoding, BGR)
    for name, value in changes.items():
        setattr(image, name, value)
    return image


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"encoding": "yuv444"}, "expected an image encoded as bgr8, .* got 'yuv444'"),
        ({"encoding": ""}, "expected an image encoded as"),
        ({"data": array("B", bytes(23))}, "expected 24 bytes for 2 rows of 12, got 23"),
        ({"step": 11}, "row step of at least 12 bytes for 4 pixels of bgr8, got 11"),
        ({"width": 0}, "got 0x2"),
        ({"height": 0}, "got 4x0"),
        ({"height": 2**32 - 1}, "got 24"),
        ({"encoding": "uyvy", "width": 3}, "expected an even size for uyvy, got 3x2"),
        ({"encoding": "nv12", "height": 1}, "expected an even size for nv12, got 4x1"),
        ({"encoding": "nv12"}, "expected 36 bytes for 3 rows of 12, got 24"),
        ({"encoding": "bayer_rggb8"}, "of at least 3x3 pixels, got 4x2"),
    ],
)
def test_unusable_image_is_rejected(changes, says):
    with pytest.raises(ImageError, match=says):
        image_to_bgr(broken(**changes))


def compressed(image, suffix):
    data = array("B")
    data.frombytes(cv2.imencode(suffix, image)[1].tobytes())
    return CompressedImage(format=suffix[1:], data=data)


def test_compressed_image_is_decoded_no_larger_than_needed():
    image = np.full((480, 641, 3), BGR, np.uint8)
    for suffix, canvas, reduction in (
        (".jpg", (0, 0), 1),
        (".jpg", (640, 640), 1),
        (".jpg", (320, 320), 2),
        (".jpg", (64, 64), 8),
        (".png", (64, 64), 1),
    ):
        decoded = decode_message(compressed(image, suffix), *canvas)
        assert (decoded.width, decoded.height, decoded.reduction) == (641, 480, reduction)
        assert decoded.image.shape[1] == -(-641 // reduction)
        np.testing.assert_allclose(decoded.image[5, 5], BGR, atol=3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_compressed_image_is_rejected(suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    message = compressed(noise, suffix)
    message.data = message.data[: len(message.data) // 2]
    with pytest.raises(ImageError, match="cut off"):
        decode_message(message, 64, 64)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8" + bytes(50) + b"\xff\xd9"])
def test_bytes_that_are_no_image_are_rejected(data):
    with pytest.raises(ImageError, match="compressed image"):
        decode_message(CompressedImage(format="jpeg", data=array("B", data)), 64, 64)


def test_size_of_a_compressed_image_is_limited():
    message = compressed(np.full((480, 641, 3), BGR, np.uint8), ".jpg")
    with pytest.raises(ImageError, match=r"less than 0\.3 megapixels, got 641x480 pixels"):
        decode_message(message, 64, 64, max_pixels=300_000)
