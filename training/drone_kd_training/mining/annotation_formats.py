# SPDX-License-Identifier: AGPL-3.0-or-later
"""Export and import of labels for annotation tools: COCO, CVAT and labelme.

drone-kd labels mined --to cvat labels.xml
drone-kd labels mined --from cvat corrected.xml

Written by hand, because no library covers the three formats: labelformat 0.1 and supervision lack
labelme, datumaro 1.13 reads labelme's XML of old and pins pandas and pyarrow, pylabel needs
opencv-python. labelformat also drops polygons silently, which must be refused here.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
import yaml

from drone_kd.files import atomic_folder, write_bytes, write_text
from drone_kd.metrics import annotation
from drone_kd_training.data.dataset import (
    DataError,
    centre_and_size,
    image_paths,
    label_lines,
    label_path,
)

CORRECTED_FILE = "corrected.txt"
_CVAT_EDGES = ("xtl", "ytl", "xbr", "ybr")
# Tools round coordinates; a box that moved by less, in pixels, is unchanged.
_SAME_PX = 0.5

# Class name, and float64 (4,) xyxy in pixels of the image.
Label = tuple[str, np.ndarray]


class MinedFrame(NamedTuple):
    """A mined frame: its path, size in pixels, label file and labels."""

    path: Path
    width: int
    height: int
    label_file: Path
    labels: list[Label]


# By the stem of the file's name.
Frames = dict[str, MinedFrame]


def export_labels(mined: Path, format_: str, output: Path) -> int:
    """Write the labels of all frames of a `drone-kd mine` folder; return the number of frames.

    ``format_``: "coco" (one .json), "cvat" (CVAT for images 1.1, one .xml) or "labelme" (a folder
    with one .json per frame). Raises DataError if there are no mined frames, FileExistsError if
    the output exists.
    """
    frames, classes = read_mined(mined)
    if output.exists():
        raise FileExistsError(f"{output} exists already: choose another, or delete it")
    FORMATS[format_].write(frames, classes, output)
    return len(frames)


def import_labels(mined: Path, format_: str, source: Path, checked: bool) -> tuple[int, int]:
    """Import corrected labels into a mined data set; nothing is written unless all is valid.

    ``format_``: see `export_labels`; "cvat" also reads the .zip that CVAT exports. ``checked``:
    whether a person has checked every frame in the source; otherwise the frames whose labels have
    changed count as corrected. Returns the number of frames in the source, and of corrected ones.
    Raises DataError if the source has another format, an unknown frame or class, or an invalid
    box.
    """
    frames, classes = read_mined(mined)
    found: dict[str, list[Label]] = {}
    for name, labels in _read(format_, source):
        # The stem only: whatever path the file holds, nothing is written there.
        stem = Path(name).stem
        if stem not in frames:
            raise DataError(f"{source}: {name!r} is no frame of {mined}")
        if unknown := sorted({label for label, _ in labels} - set(classes)):
            raise DataError(
                f"{source}: {name!r} has the class {unknown[0]!r}; the classes are "
                f"{', '.join(classes)}"
            )
        if not all(np.isfinite(box).all() for _, box in labels):
            raise DataError(f"{source}: {name!r} has a box with coordinates that are no numbers")
        found[stem] = _clip(labels, frames[stem])
    changed = [n for n, new in found.items() if checked or not _same(new, frames[n].labels)]
    listed = mined / CORRECTED_FILE
    before = set(listed.read_text(encoding="utf-8").split()) if listed.is_file() else set()
    if changed:
        # First: after an interruption the same command still finds these frames changed.
        write_text(listed, "".join(f"{n}\n" for n in sorted(before | set(changed))))
    for name in changed:
        write_text(frames[name].label_file, _lines(found[name], frames[name], classes))
    return len(found), len(changed)


def _read(format_: str, source: Path) -> list[tuple[str, list[Label]]]:
    try:
        return list(FORMATS[format_].read(source))
    except (OSError, ValueError, KeyError, TypeError, ElementTree.ParseError) as error:
        raise DataError(
            f"{source}: expected {FORMATS[format_].description} ({type(error).__name__}: {error})"
        ) from None


def read_mined(mined: Path) -> tuple[Frames, tuple[str, ...]]:
    """Return all frames of a mined data set, and its classes.

    Raises DataError if the folder is no mined data set, or an image in it cannot be read.
    """
    try:
        names = yaml.safe_load((mined / "data.yaml").read_text(encoding="utf-8"))["names"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        raise DataError(f"{mined}: expected a folder that `drone-kd mine` made") from None
    classes = tuple(names[i] for i in range(len(names)))
    frames = {}
    for path in image_paths(mined / "images"):
        image = cv2.imread(str(path))
        if image is None:
            raise DataError(f"{path} is not readable as an image")
        height, width = image.shape[:2]
        file = label_path(path)
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
        rows = np.array(lines, np.float64).reshape(-1, 5)
        half = rows[:, 3:] / 2
        xyxy = np.hstack([rows[:, 1:3] - half, rows[:, 1:3] + half]) * ([width, height] * 2)
        labels = [(classes[int(i)], box) for i, box in zip(rows[:, 0], xyxy, strict=True)]
        frames[path.stem] = MinedFrame(path, width, height, file, labels)
    return frames, classes


def _lines(labels: list[Label], frame: MinedFrame, classes: tuple[str, ...]) -> str:
    xyxy = np.array([box for _, box in labels]).reshape(-1, 4)
    boxes = centre_and_size(xyxy) / ([frame.width, frame.height] * 2)
    return label_lines([classes.index(name) for name, _ in labels], boxes)


def _clip(labels: list[Label], frame: MinedFrame) -> list[Label]:
    """Return the parts of boxes inside the frame; their corners may come in any order."""
    size = [frame.width, frame.height]
    clipped = [
        (name, np.clip(np.sort(box.reshape(2, 2), axis=0), 0, size).ravel())
        for name, box in labels
    ]
    return [(name, box) for name, box in clipped if (box[2:] > box[:2]).all()]


def _same(new: list[Label], old: list[Label]) -> bool:
    """Return whether these are the same boxes, in any order."""
    left = list(old)
    for name, box in new:
        for i, (other, twin) in enumerate(left):
            if name == other and np.abs(twin - box).max() <= _SAME_PX:
                del left[i]
                break
        else:
            return False
    return not left


def _write_coco(frames: Frames, classes: tuple[str, ...], output: Path) -> None:
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, frame in enumerate(frames.values(), start=1):
        name = f"{frame.path.parent.name}/{frame.path.name}"
        size = {"width": frame.width, "height": frame.height}
        images.append({"id": number, "file_name": name, **size})
        for label, box in frame.labels:
            boxes.append(annotation(len(boxes) + 1, number, box, classes.index(label) + 1))
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    write_text(output, json.dumps(content))


def _read_coco(source: Path) -> Iterator[tuple[str, list[Label]]]:
    content = json.loads(source.read_bytes())
    classes = {c["id"]: str(c["name"]) for c in content["categories"]}
    labels: dict[Any, list[Label]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        x, y, w, h = map(float, entry["bbox"])
        label = classes[entry["category_id"]], np.array([x, y, x + w, y + h])
        labels[entry["image_id"]].append(label)
    for image in content["images"]:
        yield str(image["file_name"]), labels[image["id"]]


def _write_cvat(frames: Frames, classes: tuple[str, ...], output: Path) -> None:
    # CVAT for images 1.1: https://docs.cvat.ai, "CVAT annotation format".
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, frame in enumerate(frames.values()):
        size = {"width": str(frame.width), "height": str(frame.height)}
        attributes = {"id": str(number), "name": frame.path.name, **size}
        image = ElementTree.SubElement(root, "image", attributes)
        for label, box in frame.labels:
            edges = {edge: f"{v:.2f}" for edge, v in zip(_CVAT_EDGES, box, strict=True)}
            attributes = {"label": label, "occluded": "0", "source": "auto", "z_order": "0"}
            ElementTree.SubElement(image, "box", attributes | edges)
    ElementTree.indent(root)
    write_bytes(output, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _read_cvat(source: Path) -> Iterator[tuple[str, list[Label]]]:
    content = source.read_bytes()
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            content = archive.read("annotations.xml")
    root = ElementTree.fromstring(content)
    if root.tag != "annotations":
        raise ValueError(f"found <{root.tag}>")
    for image in root.iter("image"):
        if other := [shape.tag for shape in image if shape.tag not in ("box", "tag")]:
            raise ValueError(f"found a {other[0]} in {image.get('name')}")
        boxes = [box.attrib for box in image.iter("box")]
        labels = [(b["label"], np.array([float(b[edge]) for edge in _CVAT_EDGES])) for b in boxes]
        yield image.attrib["name"], labels


def _write_labelme(frames: Frames, classes: tuple[str, ...], output: Path) -> None:
    with atomic_folder(output) as folder:
        rectangle: dict[str, Any] = {"group_id": None, "shape_type": "rectangle", "flags": {}}
        for stem, frame in frames.items():
            content: dict[str, Any] = {
                "version": "5.0.0",
                "flags": {},
                "shapes": [
                    {"label": label, "points": box.reshape(2, 2).tolist(), **rectangle}
                    for label, box in frame.labels
                ],
                "imagePath": os.path.relpath(frame.path.resolve(), output.resolve()),
                "imageData": None,
                "imageHeight": frame.height,
                "imageWidth": frame.width,
            }
            (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")


def _read_labelme(source: Path) -> Iterator[tuple[str, list[Label]]]:
    files = sorted(source.glob("*.json"))
    if not files:
        raise ValueError("found no .json file")
    for file in files:
        labels = []
        for shape in json.loads(file.read_bytes())["shapes"]:
            if shape["shape_type"] != "rectangle":
                raise ValueError(f"found a {shape['shape_type']} in {file.name}")
            points = np.array(shape["points"], np.float64).reshape(4)
            labels.append((str(shape["label"]), points))
        yield file.name, labels


class Format(NamedTuple):
    """An annotation format: its description, and how to write and read it."""

    description: str
    write: Callable[[Frames, tuple[str, ...], Path], None]
    read: Callable[[Path], Iterator[tuple[str, list[Label]]]]


FORMATS = {
    "coco": Format("a COCO .json with boxes", _write_coco, _read_coco),
    "cvat": Format("'CVAT for images 1.1' with boxes only", _write_cvat, _read_cvat),
    "labelme": Format(
        "a folder of labelme's .json with rectangles", _write_labelme, _read_labelme
    ),
}
