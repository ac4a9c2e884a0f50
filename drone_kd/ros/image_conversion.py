"""Image messages to BGR pixels."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from drone_kd.detector import DecodedImage
from drone_kd.media.compressed_images import MAX_PIXELS, EncodedError, decode_reduced
from drone_kd.media.raw_images import RawError, raw_to_bgr
from drone_kd.ros.local_image import LocalImage
from drone_kd.text import one_line

_SHOWN_CHARACTERS = 500
# Each detection carries the header of its image.
_MAX_FRAME_ID = 1000


class ImageError(ValueError):
    """An image message is unusable; the message is one line."""


def decode_message(
    message: Image | CompressedImage | LocalImage,
    width: int,
    height: int,
    max_pixels: int = MAX_PIXELS,
) -> DecodedImage:
    """Return a message's pixels; a JPEG at the smallest scale not below a size.

    Args:
        message: of a camera.
        width, height: that size in pixels, of the network's input; 0: full size.
        max_pixels: a compressed image has fewer.

    Raises:
        ImageError: the message is unusable, or its frame_id is very long.
    """
    if (length := len(message.header.frame_id)) > _MAX_FRAME_ID:
        raise ImageError(f"frame_id: expected up to {_MAX_FRAME_ID} characters, got {length}")
    if isinstance(message, Image | LocalImage):
        image = message.pixels() if isinstance(message, LocalImage) else image_to_bgr(message)
        return DecodedImage(image, image.shape[1], image.shape[0])
    data = bytes(message.data)
    try:
        image, reduction, full_width, full_height = decode_reduced(data, width, height, max_pixels)
    except EncodedError as error:
        kind, reason = one_line(message.format, 50), one_line(error, _SHOWN_CHARACTERS)
        raise ImageError(f'compressed image ("{kind}"): {reason}') from None
    return DecodedImage(image, full_width, full_height, reduction)


def image_to_bgr(message: Image) -> np.ndarray:
    """Return an image message's pixels as uint8 (height, width, 3) BGR; see `raw_to_bgr`.

    Raises:
        ImageError: the encoding is unknown, the image is empty, or its data are too short.
    """
    try:
        return raw_to_bgr(message)
    except RawError as error:
        raise ImageError(one_line(error, _SHOWN_CHARACTERS)) from None
