import contextlib
import struct
import time
import zlib

import cv2
import numpy as np
import pytest

from drone_kd.media import compressed_images
from drone_kd.media.compressed_images import (
    EncodedError,
    check_size,
    decode,
    decode_reduced,
    encode,
    image_size,
    is_incomplete,
    jpeg_size,
)
from process_memory import memory


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
    with memory(2), pytest.raises(EncodedError, match="megapixels"):
        decode_reduced(data, 0, 0)


def test_limit_is_an_argument():
    assert decode_reduced(jpeg(100, 60), 0, 0, max_pixels=6001)[2:] == (100, 60)
    with pytest.raises(EncodedError, match=r"less than 0\.006 megapixels, got 100x60"):
        decode_reduced(jpeg(100, 60), 0, 0, max_pixels=6000)


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".png", ".tiff", ".webp"])
def test_size_in_the_header_is_that_of_the_decoded_image(suffix):
    data = cv2.imencode(suffix, np.zeros((60, 100, 3), np.uint8))[1].tobytes()
    assert image_size(data) == (100, 60)
    assert decode(data, cv2.IMREAD_COLOR).shape == (60, 100, 3)


def test_other_headers_of_bmp_and_webp():
    top_down = b"BM" + bytes(12) + struct.pack("<Iii", 40, 32767, -32767)
    os2 = b"BM" + bytes(12) + struct.pack("<IHH", 12, 32767, 32766)
    sides = struct.pack("<I", 16382)[:3] + struct.pack("<I", 16381)[:3]
    extended = b"RIFF" + bytes(4) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + sides
    assert image_size(top_down) == (32767, 32767)
    assert image_size(os2) == (32767, 32766)
    assert image_size(extended) == (16383, 16382)


def test_top_down_bmp_is_read():
    data = bytearray(cv2.imencode(".bmp", np.zeros((60, 100, 3), np.uint8))[1].tobytes())
    struct.pack_into("<i", data, 22, -60)
    assert decode(bytes(data), cv2.IMREAD_COLOR).shape == (60, 100, 3)


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


def png_chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_with(*chunks):
    """Return a PNG of 8 x 8 px with more chunks after its header."""
    data = cv2.imencode(".png", np.full((8, 8, 3), 77, np.uint8))[1].tobytes()
    return data[:33] + b"".join(chunks) + data[33:]


def progressive_jpeg(scans):
    data = cv2.imencode(
        ".jpg", np.full((40, 60, 3), 128, np.uint8), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    )[1].tobytes()
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[last:end] * scans + data[end:]


@pytest.mark.parametrize(
    "start",
    [
        b"\xff" * 16_000_000,
        b"\xff\xd0" * 8_000_000,
        b"\xff\x00" * 8_000_000,
        b"\xff\xe0\x00\x02" * 4_000_000,
        (b"\xff\xe1\xff\xff" + bytes(65533)) * 1001,
    ],
    ids=["fill bytes", "restart markers", "stuffing", "empty segments", "long segments"],
)
def test_jpeg_that_hides_its_size_is_refused_after_a_few_bytes(start):
    data = b"\xff\xd8" + start + jpeg()[2:]
    started = time.process_time()
    with pytest.raises(EncodedError, match="no header that is readable"):
        decode_reduced(data, 640, 640)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("canvas", [0, 640])
def test_jpeg_of_a_thousand_scans_is_refused(canvas):
    """A scan of 49 megapixels takes some hundred bytes and 30 ms."""
    image, _, width, height = decode_reduced(progressive_jpeg(0), canvas, canvas)
    assert (width, height) == (60, 40) and abs(image.astype(int) - 128).max() < 3
    with pytest.raises(EncodedError, match="expected a JPEG of at most 32 scans"):
        decode_reduced(progressive_jpeg(1000), canvas, canvas)


@pytest.mark.parametrize("make", [jpeg, lambda: progressive_jpeg(0), lambda: huge_png(8)])
def test_image_cut_anywhere_is_refused(make):
    data = make()
    ends = [size for size in range(len(data)) if size < 700 or size % 50 == 0]
    for size in ends:
        with pytest.raises(EncodedError):
            decode_reduced(data[:size], 0, 0)
        with contextlib.suppress(EncodedError):
            decode(data[:size], cv2.IMREAD_COLOR)  # OpenCV may fill it up


def test_bytes_after_the_only_scan_of_a_jpeg_are_no_scans():
    """Libjpeg reads no further."""
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    data = jpeg(16, 16)[:-2] + scan * 1000 + b"\xff\xd9"
    assert decode_reduced(data, 0, 0)[2:] == (16, 16)


def test_bytes_after_the_end_of_an_image_are_no_scans():
    data = progressive_jpeg(0) + b"\xff\xda\x00\x02" * 1000
    assert decode_reduced(data, 0, 0)[2:] == (60, 40)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iCCP", b"\x1b]0;evil\x07\0\0" + zlib.compress(bytes(1_000_000))),
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8_000_000))) * 100,
        png_chunk(b"eXIf", b"MM\0*" + bytes(9_000_000)),
        png_chunk(b"tEXt", b"a\0b") * 900,
        png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
    ],
    ids=["iCCP", "zTXt", "eXIf", "tEXt", "acTL"],
)
def test_png_is_decoded_without_its_other_chunks(chunk, capfd):
    started = time.process_time()
    image = decode(png_with(chunk), cv2.IMREAD_COLOR)
    assert time.process_time() - started < 0.5
    assert (image == 77).all() and capfd.readouterr().err == ""


def test_png_chunk_longer_than_the_file_is_refused():
    """OpenCV would allocate what it declares."""
    data = png_with(struct.pack(">I", 2**31 - 1) + b"tEXt" + bytes(99))
    with memory(20), pytest.raises(EncodedError, match="chunks inside the file, got a longer one"):
        decode(data, cv2.IMREAD_COLOR)


def test_png_of_too_many_chunks_is_refused():
    for kind in (b"IDAT", b"tEXt"):
        with pytest.raises(EncodedError, match="expected a PNG of at most 1"):
            decode(png_with(png_chunk(kind, b"") * 20_000), cv2.IMREAD_COLOR)


def test_orientation_of_a_png_is_kept():
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    data = cv2.imencode(".png", np.zeros((8, 16, 3), np.uint8))[1].tobytes()
    extra = png_chunk(b"eXIf", exif) + png_chunk(b"tEXt", b"a\0b")
    plain, both = (data[:33] + chunks + data[33:] for chunks in (png_chunk(b"eXIf", exif), extra))
    shapes = [decode(content, cv2.IMREAD_COLOR).shape for content in (plain, both)]
    assert shapes[0] == shapes[1]  # older OpenCV ignores it


def tiff(*tags, at=8):
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0" + struct.pack("<I", at) + bytes(at - 8) + struct.pack("<H", len(tags)) + entries
    )


def test_tile_of_a_tiff_counts_if_it_is_larger():
    data = tiff((256, 64), (257, 64), (322, 32752), (323, 32752))
    with pytest.raises(EncodedError, match="got 32752x32752 pixels"):
        decode(data, cv2.IMREAD_COLOR)


def test_tiff_of_too_many_tags_is_refused():
    assert image_size(tiff((256, 64), (257, 64), *[(1000, 5)] * 5000)) is None


def test_opencv_has_a_limit_of_its_own(monkeypatch):
    with pytest.raises(EncodedError, match="expected less than 256 megapixels"):
        decode_reduced(huge_jpeg(), 0, 0, max_pixels=2_000_000_000)
    monkeypatch.setattr(compressed_images, "check_size", lambda *_: None)
    assert decode(huge_jpeg(), cv2.IMREAD_COLOR) is None


def webp(width, height, flags):
    """Return the head of an extended WebP."""
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return (
        b"RIFF" + bytes(4) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + size
    )


def sized_png(width, height, depth):
    header = struct.pack(">II5B", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


def sized_jpeg(width, height, kind=0xC0, in_first_scan=3):
    size = struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)
    scan = struct.pack(">HB", 6 + 2 * in_first_scan, in_first_scan) + bytes(9)
    return b"\xff\xd8\xff" + bytes([kind]) + size + b"\xff\xda" + scan


def sized_bmp(width, height):
    return b"BM" + bytes(12) + struct.pack("<Iii", 40, width, height)


def sized_tiff(width, height, bits):
    """Return a TIFF with the bits of its samples."""
    values = struct.pack(f"<{len(bits)}H", *bits)
    # Two of them fit into the tag.
    (value,) = (60,) if len(bits) > 2 else struct.unpack("<I", values.ljust(4, b"\0"))
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, len(bits), value)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(60, b"\0") + values


@pytest.mark.parametrize(
    "make",
    [
        lambda w, h: sized_png(w, h, 8),
        sized_jpeg,
        sized_bmp,
        lambda w, h: webp(w, h, 0),
        lambda w, h: sized_tiff(w, h, (8, 8, 8)),
    ],
    ids=["png", "jpeg", "bmp", "webp", "tiff"],
)
def test_large_image_has_a_byte_per_300_pixels(make):
    check_size(make(4000, 3999))
    with pytest.raises(EncodedError, match="at most 300 pixels per byte of a large image, got"):
        check_size(make(7999, 7999))
    # A photograph of 60 megapixels in 3 MB.
    check_size(make(9504, 6336) + bytes(3_000_000))


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        (lambda w, h: sized_png(w, h, 16), 2),
        (lambda w, h: sized_jpeg(w, h, 0xC2), 2),
        (lambda w, h: sized_jpeg(w, h, 0xCA), 2),
        (lambda w, h: sized_jpeg(w, h, in_first_scan=1), 2),
        (lambda w, h: webp(w, h, 2), 2),
        (lambda w, h: sized_tiff(w, h, (16,)), 2),
        (lambda w, h: sized_tiff(w, h, (16, 16, 16)), 2),
        (lambda w, h: sized_tiff(w, h, (8, 8, 8, 64)), 8),
    ],
)
def test_image_that_takes_more_memory_has_fewer_pixels(make, factor):
    check_size(make(1000, 999), 1_000_000 * factor)
    with pytest.raises(EncodedError, match="less than 1 megapixels for a progressive, deep or"):
        check_size(make(1000, 1000), 1_000_000 * factor)


def test_uniform_baseline_jpeg_of_24_megapixels_passes():
    check_size(encode(np.zeros((4000, 6000), np.uint8), ".jpg"))
