"""Bags written without ROS."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags import rosbag2
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_KILTED)
MESSAGES = {kind: STORE.types[f"sensor_msgs/msg/{kind}"] for kind in ("Image", "CompressedImage")}
HEADER, TIME = STORE.types["std_msgs/msg/Header"], STORE.types["builtin_interfaces/msg/Time"]


def header(stamp_ns: int) -> Any:
    """Return a header."""
    return HEADER(TIME(stamp_ns // 10**9, stamp_ns % 10**9), "camera")


def image(pixels: np.ndarray, stamp_ns: int, encoding: str = "bgr8") -> Any:
    """Return an Image message of pixels uint8 (h, w, 3)."""
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1)
    return MESSAGES["Image"](header(stamp_ns), height, width, encoding, 0, 3 * width, data)


def jpeg(pixels: np.ndarray, stamp_ns: int) -> Any:
    """Return a CompressedImage message of pixels uint8 (h, w, 3)."""
    data = cv2.imencode(".jpg", pixels)[1].reshape(-1)
    return MESSAGES["CompressedImage"](header(stamp_ns), "jpeg", data)


def write_bag(path: Path, messages: Iterable[tuple[str, int, Any]], storage: str = "MCAP") -> Path:
    """Write (topic, time in ns, message) to a bag; returns its folder."""
    plugin = getattr(rosbag2.StoragePlugin, storage)
    with rosbag2.Writer(path, version=9, storage_plugin=plugin) as writer:
        connections = {}
        for topic, logged_ns, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            data = STORE.serialize_cdr(message, kind)
            writer.write(connections[topic], logged_ns, data)
    return path


def storage_file(bag: Path) -> Path:
    """Return the only storage file of a bag."""
    (file,) = [p for p in bag.iterdir() if p.name != "metadata.yaml"]
    return file


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files below a folder by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cut(path: Path, share: float) -> None:
    """Truncate a file to a share of its size."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def scene(number: int, shift: int = 0, width: int = 128, height: int = 96) -> np.ndarray:
    """Return an image of a place with moving bright squares: uint8 (height, width, 3)."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(20, 110, (6, 8, 3), dtype=np.uint8)
    image = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST))
    for i in range(3):
        x, y = (8 + 40 * i + shift) % (width - 16), 16 + 24 * i
        image[y : y + 16, x : x + 16] = 250
    return image
