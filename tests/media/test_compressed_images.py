import resource
import struct
import time
import zlib

import cv2
import numpy as np
import pytest

from drone_kd.media.compressed_images import (
    EncodedError,
    decode,
    decode_reduced,
    image_size,
    is_incomplete,
    jpeg_size,
)


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


def huge_jpeg(width=32767, height=32767):
    """Return a small JPEG whose header declares another size."""
    data = jpeg(16, 16)
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def huge_png(side=8000):
    """Return a valid, black PNG; it compresses to a thousandth."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(side * (3 * side + 1)), 9)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "says"), [(huge_jpeg, "got 32767x32767 pixels"), (huge_png, "got 8000x8000 pixels")]
)
@pytest.mark.parametrize("canvas", [0, 640])
def test_huge_image_is_refused_before_it_is_decoded(make, says, canvas, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    data = make()
    assert len(data) < 300_000
    with pytest.raises(EncodedError, match=f"expected less than 64 megapixels, {says}"):
        decode_reduced(data, canvas, canvas)


def test_refusal_takes_no_memory():
    data = huge_jpeg()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(EncodedError, match="megapixels"):
        decode_reduced(data, 0, 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1000  # kB


def test_limit_is_an_argument():
    assert decode_reduced(jpeg(100, 60), 0, 0, max_pixels=6001)[2:] == (100, 60)
    with pytest.raises(EncodedError, match=r"less than 0\.006 megapixels, got 100x60"):
        decode_reduced(jpeg(100, 60), 0, 0, max_pixels=6000)


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".png", ".tiff", ".webp"])
def test_size_in_the_header_is_that_of_the_decoded_image(suffix):
    data = cv2.imencode(suffix, np.zeros((60, 100, 3), np.uint8))[1].tobytes()
    assert image_size(data) == (100, 60)
    assert decode(data, cv2.IMREAD_COLOR).shape == (60, 100, 3)


def test_lossy_and_lossless_webp():
    noise = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    for quality in (50, 101):  # above 100: lossless
        data = cv2.imencode(".webp", noise, (cv2.IMWRITE_WEBP_QUALITY, quality))[1].tobytes()
        assert image_size(data) == (100, 60)


@pytest.mark.parametrize("filler", [b"\xff" * 9, b"junk", b"\xff\xd0", b"\xff\x00"])
def test_bytes_before_a_segment_do_not_hide_the_size(filler):
    """Libjpeg skips them, too."""
    data = huge_jpeg()
    start = data.index(b"\xff\xc0")
    data = data[:start] + filler + data[start:]
    assert jpeg_size(data) == (32767, 32767)
    plain = jpeg(16, 16)
    start = plain.index(b"\xff\xc0")
    assert jpeg_size(plain[:start] + filler + plain[start:]) == (16, 16)


def test_image_without_a_size_is_refused():
    for data in (
        jpeg(16, 16)[:20] + b"\xff\xd9",
        huge_png(8)[:12] + b"IEND",
        b"GIF89a" + bytes(99),
    ):
        assert image_size(data) is None
        with pytest.raises(EncodedError, match="no header that is readable"):
            decode(data, cv2.IMREAD_COLOR)


def test_duplicate_tag_of_a_tiff_counts_as_the_larger():
    def entry(tag, value):
        return struct.pack("<HHII", tag, 4, 1, value)

    for widths in ((9, 32767), (32767, 9)):
        tags = [entry(256, width) for width in widths] + [entry(257, 32767)]
        data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags)
        assert image_size(data) == (32767, 32767)


def test_jpeg_of_millions_of_segments_is_refused_at_once():
    segments = b"\xff\xe0\x00\x02" * 2_000_000
    started = time.process_time()
    with pytest.raises(EncodedError):
        decode_reduced(b"\xff\xd8" + segments + jpeg()[2:], 640, 640)
    assert time.process_time() - started < 0.5
