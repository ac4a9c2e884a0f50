# SPDX-License-Identifier: AGPL-3.0-or-later
"""Export and import of labels for annotation tools: COCO, CVAT and labelme.

drone-kd labels mined --to cvat labels.xml
drone-kd labels mined --from cvat corrected.xml

Written by hand, because no library covers the three formats: labelformat 0.1 and supervision lack
labelme, datumaro 1.13 reads labelme's XML of old and pins pandas and pyarrow, pylabel needs
opencv-python. labelformat also drops polygons silently, which must be refused here.

The files come from others: their size is limited, and of a zip a single file is unpacked, in
memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from drone_kd.files import atomic_folder, write_bytes, write_text
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.metrics import annotation
from drone_kd.parsing import ParseError, read_json, read_yaml
from drone_kd.text import one_line
from drone_kd_training.data.dataset import (
    centre_and_size,
    image_paths,
    label_lines,
    label_path,
    read_labels,
    read_text,
)
from drone_kd_training.data.folders import check_inside
from drone_kd_training.data.names import DataError, class_list
from drone_kd_training.mining.annotation_archives import read_annotations

CORRECTED_FILE = "corrected.txt"
# Bytes of a file with annotations: some 400,000 boxes.
MAX_BYTES = 64_000_000
# Boxes of one file, or of all files in a folder.
MAX_BOXES = 500_000
# Elements of an XML file, and their nesting.
MAX_ELEMENTS, MAX_DEPTH = 2_000_000, 16
# What readers raise for other content.
_WRONG_CONTENT = (
    OSError, ValueError, TypeError, AttributeError, LookupError, OverflowError,
    ElementTree.ParseError,
)  # fmt: skip
_PIECE = 1 << 20
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
        stem, where = Path(name).stem, f"{one_line(source)}: {one_line(repr(name), 60)}"
        if stem not in frames:
            raise DataError(f"{where} is no frame of {one_line(mined)}")
        if unknown := sorted({label for label, _ in labels} - set(classes)):
            raise DataError(
                f"{where} has the class {one_line(repr(unknown[0]), 60)}; the classes are "
                f"{one_line(', '.join(classes))}"
            )
        if not all(np.isfinite(box).all() for _, box in labels):
            raise DataError(f"{where} has a box with coordinates that are no numbers")
        found[stem] = _clip(labels, frames[stem])
    changed = [n for n, new in found.items() if checked or not _same(new, frames[n].labels)]
    listed = mined / CORRECTED_FILE
    before = read_corrected(mined)
    for name in changed:
        check_inside(frames[name].label_file, mined)
    if changed:
        # First: after an interruption the same command still finds these frames changed.
        write_text(listed, "".join(f"{n}\n" for n in sorted(before | set(changed))))
    for name in changed:
        write_text(frames[name].label_file, _lines(found[name], frames[name], classes))
    return len(found), len(changed)


def read_corrected(mined: Path) -> set[str]:
    """Return the names of the frames whose labels are a person's; DataError if unreadable."""
    listed = mined / CORRECTED_FILE
    return set(read_text(listed).splitlines()) if listed.is_file() else set()


def _read(format_: str, source: Path) -> Iterator[tuple[str, list[Label]]]:
    """Yield what a reader yields, up to `MAX_BOXES`; DataError if it has another format."""
    boxes = 0
    try:
        for name, labels in FORMATS[format_].read(source):
            boxes += len(labels)
            if boxes > MAX_BOXES:
                raise ValueError(f"more than {MAX_BOXES} boxes")
            yield name, labels
    except _WRONG_CONTENT as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        if isinstance(error, ParseError):
            reason = one_line(str(error).removeprefix(f"{one_line(source)}: "))
        raise DataError(
            f"{one_line(source)}: expected {FORMATS[format_].description} ({reason})"
        ) from None


def read_mined(mined: Path) -> tuple[Frames, tuple[str, ...]]:
    """Return all frames of a mined data set, and its classes.

    Raises DataError if the folder is no mined data set, or a file in it cannot be read.
    """
    try:
        names = read_yaml(mined / "data.yaml")["names"]
        classes = class_list((names[i] for i in range(len(names))), mined / "data.yaml")
    except (ParseError, KeyError, TypeError):
        raise DataError(
            f"{one_line(mined)}: expected a folder that `drone-kd mine` made"
        ) from None
    frames = {}
    for path in image_paths(mined / "images"):
        try:
            height, width = read_image(path).shape[:2]
        except SourceError as error:
            raise DataError(one_line(error)) from None
        file = label_path(path)
        rows = read_labels(file, len(classes))
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
    if len(new) != len(old):
        return False
    names = np.array([name for name, _ in old], object)
    boxes = np.array([box for _, box in old]).reshape(-1, 4)
    left = np.ones(len(old), bool)
    for name, box in new:
        twins = left & (names == name) & (np.abs(boxes - box) <= _SAME_PX).all(axis=1)
        if not twins.any():
            return False
        left[twins.argmax()] = False
    return True


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
    content = read_json(source, MAX_BYTES)
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


class _CvatTarget:
    """Collects the images of CVAT's XML while it is parsed, so that nothing else is kept."""

    def __init__(self) -> None:
        self.images: list[tuple[str, list[Label]]] = []
        self._open: list[str] = []
        self._elements = 0

    def doctype(self, name: str, *_: object) -> None:
        """Refuse declarations of entities, which may stand for gigabytes or other files."""
        raise ValueError(f"found a DOCTYPE {name}")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Keep an image or box."""
        self._open.append(tag)
        self._elements += 1
        if len(self._open) > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise ValueError("too many elements, or too many levels")
        if self._open[0] != "annotations":
            raise ValueError(f"found <{tag}>")
        if self._open[1:] == ["image"]:
            self.images.append((attributes["name"], []))
        elif self._open[1:-1] == ["image"]:
            name, labels = self.images[-1]
            if tag == "box":
                edges = np.array([float(attributes[edge]) for edge in _CVAT_EDGES])
                labels.append((attributes["label"], edges))
            elif tag != "tag":
                raise ValueError(f"found a {tag} in {name}")

    def end(self, tag: str) -> None:
        """Leave an element."""
        self._open.pop()

    def close(self) -> None:
        """Do nothing: the parser expects this method."""


def _read_cvat(source: Path) -> Iterator[tuple[str, list[Label]]]:
    target = _CvatTarget()
    parser = ElementTree.XMLParser(target=target)
    content = read_annotations(source, "annotations.xml", MAX_BYTES)
    # In pieces: the parser ends at an error of its target only after all that it was given.
    for start in range(0, len(content), _PIECE):
        parser.feed(content[start : start + _PIECE])
    parser.close()
    yield from target.images


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
        for shape in read_json(file, MAX_BYTES)["shapes"]:
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
