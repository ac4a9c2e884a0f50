# SPDX-License-Identifier: AGPL-3.0-or-later
"""Labels of mined frames to annotation tools and back: COCO, CVAT and labelme.

python -m training labels mined --to cvat labels.xml
python -m training labels mined --from cvat corrected.xml
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
import yaml

from drone_kd.files import write_whole
from drone_kd.metrics import annotation
from drone_kd_training.data.dataset import (
    DataError,
    centre_and_size,
    image_paths,
    label_lines,
    label_path,
)

CORRECTED_FILE = "corrected.txt"
# Tools round what they write; a box that moved by less, in pixels, is as it was.
_SAME_PX = 0.5


class Labels(NamedTuple):
    """Of one frame: class names, and float (n, 4) xyxy in its pixels."""

    names: list[str]
    xyxy: np.ndarray


class MinedFrame(NamedTuple):
    """A mined frame: its picture's path and size in pixels, its label file, and its labels."""

    picture: Path
    width: int
    height: int
    label_file: Path
    labels: Labels


def export_labels(mined: Path, format_: str, output: Path) -> int:
    """Write the labels of all mined frames for an annotation tool; returns how many frames.

    Args:
        mined: what `python -m training mine` made.
        format_: "coco" (one .json), "cvat" (CVAT for images 1.1, one .xml) or "labelme" (a folder
            of .json, one per frame).

    Raises:
        DataError: there are no mined frames.
        FileExistsError: the output exists.
    """
    frames, classes = read_mined(mined)
    if output.exists():
        raise FileExistsError(f"{output} exists already: choose another, or delete it")
    FORMATS[format_][0](frames, classes, output)
    return len(frames)


def import_labels(mined: Path, format_: str, source: Path, checked: bool) -> tuple[int, int]:
    """Take corrected labels over into a mined data set.

    Args:
        mined, format_: see `export_labels`; of cvat, the .zip that CVAT exports is read as well.
        source: the file or folder with the corrections; all of it is checked before anything is
            written.
        checked: whether a person has looked at every frame in it; else those count as corrected
            whose labels have changed.

    Returns:
        How many frames were in the source, and how many of them are a person's now.

    Raises:
        DataError: not such a file, a frame or class that is not there, or no box.
    """
    frames, classes = read_mined(mined)
    found: dict[str, Labels] = {}
    for picture, labels in FORMATS[format_][1](source):
        # Only the name counts: wherever a path in the file points to, nothing is written there.
        name = Path(picture).stem
        if name not in frames:
            raise DataError(f"{source}: {picture!r} is no frame of {mined}")
        if unknown := sorted(set(labels.names) - set(classes)):
            raise DataError(
                f"{source}: {picture!r} has the class {unknown[0]!r}; the classes are "
                f"{', '.join(classes)}"
            )
        if not np.isfinite(labels.xyxy).all():
            raise DataError(f"{source}: {picture!r} has a box that is no box")
        found[name] = _inside(labels, frames[name])
    changed = [n for n, new in found.items() if checked or not _same(new, frames[n].labels)]
    listed = mined / CORRECTED_FILE
    before = set(listed.read_text(encoding="utf-8").split()) if listed.is_file() else set()
    if changed:
        # First: after a kill the same command finds these frames changed still.
        write_whole(listed, "".join(f"{n}\n" for n in sorted(before | set(changed))).encode())
    for name in changed:
        write_whole(frames[name].label_file, _lines(found[name], frames[name], classes))
    return len(found), len(changed)


def read_mined(mined: Path) -> tuple[dict[str, MinedFrame], tuple[str, ...]]:
    """All frames of a mined data set by name, and its classes.

    Raises:
        DataError: this is none.
    """
    try:
        names = yaml.safe_load((mined / "data.yaml").read_text(encoding="utf-8"))["names"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise DataError(f"{mined}: expected what `python -m training mine` makes") from None
    classes = tuple(names[i] for i in range(len(names)))
    frames = {}
    for picture in image_paths(mined / "images"):
        height, width = cv2.imread(str(picture)).shape[:2]
        file = label_path(picture)
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
        rows = np.array(lines, np.float64).reshape(-1, 5)
        half = rows[:, 3:] / 2
        xyxy = np.hstack([rows[:, 1:3] - half, rows[:, 1:3] + half]) * ([width, height] * 2)
        labels = Labels([classes[int(i)] for i in rows[:, 0]], xyxy)
        frames[picture.stem] = MinedFrame(picture, width, height, file, labels)
    return frames, classes


def _lines(labels: Labels, frame: MinedFrame, classes: tuple[str, ...]) -> bytes:
    """A label file: lines 'class cx cy w h'."""
    boxes = centre_and_size(labels.xyxy) / ([frame.width, frame.height] * 2)
    return label_lines(map(classes.index, labels.names), boxes).encode()


def _inside(labels: Labels, frame: MinedFrame) -> Labels:
    """The part of the boxes that lies in the picture; corners may come in any order."""
    corners = np.sort(labels.xyxy.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    xyxy = np.clip(corners, 0, [frame.width, frame.height] * 2)
    real = (xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)
    return Labels([n for n, r in zip(labels.names, real, strict=True) if r], xyxy[real])


def _same(new: Labels, old: Labels) -> bool:
    """Whether these are the same boxes, in whatever order."""
    if len(new.names) != len(old.names):
        return False
    left = list(range(len(old.names)))
    for name, box in zip(new.names, new.xyxy, strict=True):
        twin = next(
            (
                i
                for i in left
                if old.names[i] == name and np.abs(old.xyxy[i] - box).max() <= _SAME_PX
            ),
            None,
        )
        if twin is None:
            return False
        left.remove(twin)
    return True


def _write_coco(frames: dict[str, MinedFrame], classes: tuple[str, ...], output: Path) -> None:
    images, boxes = [], []
    for number, frame in enumerate(frames.values(), start=1):
        picture = f"{frame.picture.parent.name}/{frame.picture.name}"
        size = {"width": frame.width, "height": frame.height}
        images.append({"id": number, "file_name": picture, **size})
        for name, box in zip(frame.labels.names, frame.labels.xyxy, strict=True):
            boxes.append(annotation(len(boxes) + 1, number, box, classes.index(name) + 1))
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    write_whole(output, json.dumps(content).encode())


def _read_coco(source: Path) -> Iterator[tuple[str, Labels]]:
    try:
        content = json.loads(source.read_bytes())
        classes = {c["id"]: str(c["name"]) for c in content["categories"]}
        boxes: dict[Any, list] = {image["id"]: [] for image in content["images"]}
        for entry in content["annotations"]:
            x, y, w, h = map(float, entry["bbox"])
            row = classes[entry["category_id"]], [x, y, x + w, y + h]
            boxes[entry["image_id"]].append(row)
        found = [(str(i["file_name"]), _labels(boxes[i["id"]])) for i in content["images"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source}: not a COCO data set with boxes ({_what(error)})") from None
    yield from found


def _write_cvat(frames: dict[str, MinedFrame], classes: tuple[str, ...], output: Path) -> None:
    # CVAT for images 1.1: https://docs.cvat.ai, "CVAT annotation format".
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, frame in enumerate(frames.values()):
        size = {"width": str(frame.width), "height": str(frame.height)}
        image = ElementTree.SubElement(
            root, "image", {"id": str(number), "name": frame.picture.name, **size}
        )
        for name, box in zip(frame.labels.names, frame.labels.xyxy, strict=True):
            edges = zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
            ElementTree.SubElement(
                image,
                "box",
                {
                    "label": name,
                    "occluded": "0",
                    "source": "auto",
                    **{edge: f"{value:.2f}" for edge, value in edges},
                    "z_order": "0",
                },
            )
    ElementTree.indent(root)
    write_whole(output, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _read_cvat(source: Path) -> Iterator[tuple[str, Labels]]:
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                root = ElementTree.fromstring(archive.read("annotations.xml"))
        else:
            root = ElementTree.fromstring(source.read_bytes())
        if root.tag != "annotations":
            raise ValueError(f"<{root.tag}>")
        for image in root.iter("image"):
            if other := [shape.tag for shape in image if shape.tag not in ("box", "tag")]:
                raise ValueError(f"a {other[0]} in {image.get('name')}")
            rows = [
                (box.attrib["label"], [float(box.attrib[e]) for e in ("xtl", "ytl", "xbr", "ybr")])
                for box in image.iter("box")
            ]
            yield image.attrib["name"], _labels(rows)
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise DataError(
            f"{source}: not 'CVAT for images 1.1' with boxes alone ({_what(error)})"
        ) from None


def _write_labelme(frames: dict[str, MinedFrame], classes: tuple[str, ...], output: Path) -> None:
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        for stem, frame in frames.items():
            shapes = [
                {
                    "label": name,
                    "points": box.reshape(2, 2).tolist(),
                    "group_id": None,
                    "shape_type": "rectangle",
                    "flags": {},
                }
                for name, box in zip(frame.labels.names, frame.labels.xyxy, strict=True)
            ]
            content = {
                "version": "5.0.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": os.path.relpath(frame.picture.resolve(), output.resolve()),
                "imageData": None,
                "imageHeight": frame.height,
                "imageWidth": frame.width,
            }
            (temporary / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_labelme(source: Path) -> Iterator[tuple[str, Labels]]:
    files = sorted(source.glob("*.json"))
    if not files:
        raise DataError(f"{source}: expected a folder of labelme's .json files")
    for file in files:
        try:
            rows = []
            for shape in json.loads(file.read_bytes())["shapes"]:
                if shape["shape_type"] != "rectangle":
                    raise ValueError(f"a {shape['shape_type']}")
                (x1, y1), (x2, y2) = shape["points"]
                rows.append((str(shape["label"]), [float(v) for v in (x1, y1, x2, y2)]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: not labelme's, with rectangles ({_what(error)})") from None
        yield file.name, _labels(rows)


def _labels(rows: list[tuple[str, list[float]]]) -> Labels:
    return Labels([name for name, _ in rows], np.array([b for _, b in rows], float).reshape(-1, 4))


def _what(error: Exception) -> str:
    return f"{type(error).__name__} {error}"


# How to write and how to read each format.
FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], Iterable]]] = {
    "coco": (_write_coco, _read_coco),
    "cvat": (_write_cvat, _read_cvat),
    "labelme": (_write_labelme, _read_labelme),
}
