"""Bags written on the spot, without ROS."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from rosbags import rosbag2
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_KILTED)
MESSAGES = {kind: STORE.types[f"sensor_msgs/msg/{kind}"] for kind in ("Image", "CompressedImage")}
HEADER, TIME = STORE.types["std_msgs/msg/Header"], STORE.types["builtin_interfaces/msg/Time"]


def header(stamp_ns: int):
    return HEADER(TIME(stamp_ns // 10**9, stamp_ns % 10**9), "camera")


def image(pixels: np.ndarray, stamp_ns: int, encoding: str = "bgr8"):
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1)
    return MESSAGES["Image"](header(stamp_ns), height, width, encoding, 0, 3 * width, data)


def jpeg(pixels: np.ndarray, stamp_ns: int):
    data = cv2.imencode(".jpg", pixels)[1].reshape(-1)
    return MESSAGES["CompressedImage"](header(stamp_ns), "jpeg", data)


def write_bag(
    path: Path, messages: Iterable[tuple[str, int, object]], storage: str = "MCAP"
) -> Path:
    """Write (topic, time in ns, message) into a bag; returns its folder."""
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
    """The one file of a bag that holds its messages."""
    (file,) = [p for p in bag.iterdir() if p.name != "metadata.yaml"]
    return file


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cut(path: Path, share: float) -> None:
    """Leave only the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def scene(number: int, shift: int = 0, width: int = 128, height: int = 96) -> np.ndarray:
    """A picture of one of many places, uint8 (height, width, 3), that bright squares cross."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(20, 110, (6, 8, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    for i in range(3):
        x, y = (8 + 40 * i + shift) % (width - 16), 16 + 24 * i
        picture[y : y + 16, x : x + 16] = 250
    return picture
