import cv2
import numpy as np
import pytest

from drone_kd.media.compressed_images import EncodedError, decode_reduced, is_incomplete, jpeg_size


def jpeg(width=100, height=60, value=128):
    return cv2.imencode(".jpg", np.full((height, width, 3), value, np.uint8))[1].tobytes()


def with_orientation(data, orientation):
    """Add an EXIF header with an orientation."""
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01"
    exif = b"Exif\x00\x00" + tiff + orientation.to_bytes(2, "big") + bytes(6)
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


def test_jpeg_size():
    assert jpeg_size(jpeg(100, 60)) == (100, 60)
    assert jpeg_size(with_orientation(jpeg(100, 60), 6)) == (100, 60)
    assert jpeg_size(jpeg()[:20]) is None
    assert jpeg_size(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()) is None


@pytest.mark.parametrize(
    ("canvas", "reduction"), [(0, 1), (100, 1), (51, 1), (50, 2), (30, 2), (25, 4), (1, 8)]
)
def test_decoded_image_is_never_smaller_than_the_canvas(canvas, reduction):
    image, got, width, height = decode_reduced(jpeg(100, 60), canvas, canvas)
    assert (got, width, height) == (reduction, 100, 60)
    assert image.shape == (-(-60 // reduction), -(-100 // reduction), 3)
    assert max(image.shape) >= canvas
    np.testing.assert_allclose(image, 128, atol=2)


def test_exif_orientation_is_ignored():
    for canvas in (0, 50):
        image, *_ = decode_reduced(with_orientation(jpeg(100, 60), 6), canvas, canvas)
        assert image.shape[0] < image.shape[1]


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(30) + b"IEND"])
def test_other_bytes_are_rejected(data):
    with pytest.raises(EncodedError):
        decode_reduced(data, 10, 10)


def test_cut_jpeg_is_incomplete():
    assert not is_incomplete(jpeg())
    assert is_incomplete(jpeg()[:-2])
    assert is_incomplete(b"")
    with pytest.raises(EncodedError, match="cut off"):
        decode_reduced(jpeg()[:-2], 10, 10)
