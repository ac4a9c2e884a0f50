"""Damaged images, encoded and raw: an image, or one documented error."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drone_kd.media.compressed_images import EncodedError, decode, decode_reduced
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.media.raw_images import RawError, raw_to_bgr
from fuzzing import damaged, hostile_text, only
from process_memory import memory

MAX_PIXELS = 1_000_000
# An image of the largest size, decoded and converted; of a file that is 64 megapixels.
MEGABYTES, MEGABYTES_OF_FILE = 50, 450


def _encoded(suffix: str, *flags: int) -> bytes:
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    return bytes(cv2.imencode(suffix, image, flags)[1])


def _png_of_long_chunks() -> bytes:
    # OpenCV allocates what a chunk declares: 4 GB.
    data = _encoded(".png")
    position = data.index(b"IDAT") - 4
    return data[:position] + b"\xff" * 4 + data[position + 4 :]


FILES = [
    _encoded(".jpg"),
    _encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    _encoded(".png"),
    _encoded(".tiff"),
    _encoded(".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 1),
    _encoded(".webp"),
    _encoded(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
    _encoded(".bmp"),
]


def check_image(image: np.ndarray) -> None:
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size


@given(damaged(FILES))
@example(_png_of_long_chunks())
def test_encoded_image_is_decoded_or_refused(data: bytes) -> None:
    with memory(MEGABYTES), only(EncodedError):
        image = decode(data, cv2.IMREAD_COLOR, MAX_PIXELS)
        if image is not None:
            check_image(image)
            # What the header declares is what is decoded: else the limit could be bypassed.
            assert image.shape[0] * image.shape[1] < MAX_PIXELS


@given(damaged(FILES[:3]), st.integers(0, 640), st.integers(0, 640))
def test_compressed_image_message_is_decoded_or_refused(
    data: bytes, width: int, height: int
) -> None:
    with memory(MEGABYTES), only(EncodedError):
        image, reduction, *size = decode_reduced(data, width, height, MAX_PIXELS)
        check_image(image)
        assert reduction in (1, 2, 4, 8)
        assert size[0] * size[1] < MAX_PIXELS


@given(data=damaged(FILES) | st.binary(max_size=200))
def test_image_file_is_read_or_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    with memory(MEGABYTES_OF_FILE), only(SourceError):
        check_image(read_image(path))


ENCODINGS = [
    "bgr8",
    "rgb8",
    "bgra8",
    "rgba8",
    "mono8",
    "mono16",
    "16UC1",
    "bayer_rggb8",
    "bayer_grbg16",
    "nv12",
    "nv21",
    "uyvy",
    "yuyv",
    "yuv422",
    "yuv422_yuy2",
    "8UC3",
    "32FC1",
]
SIZES = st.integers(0, 40) | st.sampled_from([2**16, 2**31, 2**32 - 1])
messages = st.builds(
    SimpleNamespace,
    encoding=st.sampled_from(ENCODINGS) | hostile_text,
    width=SIZES,
    height=SIZES,
    step=SIZES | st.integers(0, 200),
    is_bigendian=st.integers(0, 255),
    data=st.sampled_from([0, 1, 100, 4000, 8000]).map(bytes),
)


@given(messages)
@example(SimpleNamespace(encoding="16UC1", width=1, height=1, step=3, is_bigendian=1, data=b"abc"))
def test_raw_image_is_converted_or_refused(message: Any) -> None:
    with memory(MEGABYTES), only(RawError):
        image = raw_to_bgr(message)
        check_image(image)
        assert image.shape[:2] == (message.height, message.width)


@pytest.mark.parametrize("data", FILES, ids=range(len(FILES)))
def test_undamaged_images_are_decoded(data: bytes) -> None:
    image = decode(data, cv2.IMREAD_COLOR, MAX_PIXELS)
    assert image is not None and image.shape == (24, 32, 3)
