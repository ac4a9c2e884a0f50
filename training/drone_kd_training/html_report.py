# SPDX-License-Identifier: AGPL-3.0-or-later
"""report.html: results of a training run or an experiment in one file that opens offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import nn

from drone_kd.core.boxes import iou
from drone_kd.core.detections import Detections
from drone_kd.detector import Detector
from drone_kd.files import write_text
from drone_kd.html_page import data_url, render_page
from drone_kd.metrics import MAX_DETECTIONS
from drone_kd.progress import track
from drone_kd.visualization import class_colour, draw_box, draw_detections, draw_ring
from drone_kd_training.data.dataset import Sample, image_paths, load_data, read_sample
from drone_kd_training.evaluation.evaluate import IOU
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.tables import format_score

# Operating point of the side-by-side images; `evaluate` keeps far weaker boxes.
CONFIDENCE, IOU_FOUND = 0.25, 0.5
IMAGES, WIDTHS_PX = 6, (640, 900)
GREEN, WHITE = (80, 220, 80), (255, 255, 255)
COLUMNS = {
    "map50_95": "mAP50-95",
    "map50": "mAP50",
    "ap_tiny": "AP tiny (< 16 px)",
    "ap_small": "AP small (< 32 px)",
    "ap_medium": "AP medium (32-96 px)",
}


@dataclass
class Sides:
    """Labelled objects of a split that two models found, at confidence 0.25 and IoU 0.5.

    ``images``: uint8 BGR, the first model left and the second right, of the images in which the
    second model gained most.
    """

    objects: int = 0
    only_first: int = 0
    only_second: int = 0
    images: list[np.ndarray] = field(default_factory=list)


def compare_frames(first: Path, second: Path, data: Path, imgsz: int) -> Sides:
    """Run two checkpoints on the validation split of a data set; the first is shown on the left.

    ``imgsz``: side of the square input in pixels. Raises DataError if the data cannot be read, and
    UnusableModelError if a checkpoint cannot be loaded.
    """
    dataset = load_data(data)
    detectors = [
        Detector(TorchBackend(load_model(str(path))[0], imgsz), CONFIDENCE, IOU, MAX_DETECTIONS)
        for path in (first, second)
    ]
    sides = Sides()
    best: list[tuple[int, int, np.ndarray]] = []
    for number, path in enumerate(track(image_paths(dataset.val), "Compare images", "image")):
        sample = read_sample(path, len(dataset.names))
        if sample is None:
            continue
        results = [(d(sample.image), d.backend.spec.classes) for d in detectors]
        hits = [found_objects(sample, *result, dataset.names) for result in results]
        lost, gained = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
        sides.objects += len(sample.xyxy)
        sides.only_first += lost
        sides.only_second += gained
        if gained > lost:
            first_only, second_only = hits[0] & ~hits[1], hits[1] & ~hits[0]
            left = annotate(sample, *results[0], second_only, first_only)
            right = annotate(sample, *results[1], first_only, second_only)
            best.append((lost - gained, number, np.hstack([left, right])))
            best = sorted(best, key=lambda b: b[:2])[:IMAGES]
    sides.images = [image for _, _, image in best]
    return sides


def example_frames(
    model: nn.Module, data: Path, imgsz: int, only: Sequence[str] = ()
) -> list[np.ndarray]:
    """Return images of the validation split, uint8 BGR: labels left, detections right.

    They are spread evenly over the split. White ring: a labelled object that the model misses at
    confidence 0.25. ``model``: a student. ``only``: classes that are labelled; empty: all. Raises
    DataError if the data cannot be read.
    """
    dataset = load_data(data)
    backend = TorchBackend(model, imgsz)
    detector = Detector(backend, CONFIDENCE, IOU, MAX_DETECTIONS, only=tuple(only))
    paths = image_paths(dataset.val)
    chosen = np.unique(np.linspace(0, len(paths) - 1, IMAGES).round().astype(int))
    samples = (read_sample(paths[index], len(dataset.names)) for index in chosen)
    return [_beside_labels(detector, s, dataset.names) for s in samples if s is not None]


def _beside_labels(detector: Detector, sample: Sample, names: tuple[str, ...]) -> np.ndarray:
    found, classes = detector(sample.image), detector.backend.spec.classes
    missed = ~found_objects(sample, found, classes, names)
    return np.hstack(
        [draw_labels(sample, names, classes), annotate(sample, found, classes, missed)]
    )


def found_objects(
    sample: Sample, detections: Detections, classes: tuple[str, ...], names: tuple[str, ...]
) -> np.ndarray:
    """Return which labelled objects were found, bool (objects,); each detection counts once.

    The best detection comes first. ``classes``: class names of the model; ``names``: of the
    labels.
    """
    hits = np.zeros(len(sample.xyxy), bool)
    for box, class_id in zip(detections.xyxy, detections.class_ids, strict=True):
        overlap = iou(box[None], sample.xyxy)[0] if len(sample.xyxy) else np.zeros(0)
        same = np.array([names[i] == classes[class_id] for i in sample.class_ids], bool)
        overlap = np.where(same & ~hits, overlap, 0.0)
        if len(overlap) and overlap.max() >= IOU_FOUND:
            hits[overlap.argmax()] = True
    return hits


def draw_labels(
    sample: Sample,
    names: tuple[str, ...],
    classes: tuple[str, ...],
    widths: tuple[int, int] = WIDTHS_PX,
) -> np.ndarray:
    """Return the frame with its labels, in the colours of a model with the classes ``classes``.

    ``names``: of the labels. Here and in `annotate` the frame is as wide as it is within
    ``widths`` (least, most) in pixels: text would hide a small one. uint8 BGR.
    """
    image, scale = _fit(sample.image, widths)
    for box, class_id in zip(sample.xyxy * scale, sample.class_ids, strict=True):
        name = names[class_id]
        draw_box(image, box, class_colour(classes.index(name) if name in classes else class_id))
    return image


def annotate(
    sample: Sample,
    detections: Detections,
    classes: tuple[str, ...],
    lost: np.ndarray,
    gained: np.ndarray | None = None,
    widths: tuple[int, int] = WIDTHS_PX,
) -> np.ndarray:
    """Draw detections, white rings round ``lost`` and green rings round ``gained`` objects.

    ``lost``, ``gained``: bool (objects,). See `draw_labels`.
    """
    image, scale = _fit(sample.image, widths)
    image = draw_detections(image, replace(detections, xyxy=detections.xyxy * scale), classes)
    for mask, colour in ((gained, GREEN), (lost, WHITE)):
        for box in () if mask is None else sample.xyxy[mask] * scale:
            draw_ring(image, box, colour)
    return image


def _fit(image: np.ndarray, widths: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Return a copy with a width in a range, and its scale."""
    scale = float(np.clip(image.shape[1], *widths)) / image.shape[1]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=how), scale


def write_report(
    path: Path,
    title: str,
    models: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Path],
    sides: Sides | None = None,
    table: str = "",
    facts: Mapping[str, Any] | None = None,
    frames: Sequence[np.ndarray] = (),
) -> None:
    """Write the page to the .html file ``path``; raises OSError.

    ``models``: name -> result of `evaluate`. ``curves``: name of a run -> image of its curves
    (.png). ``sides``: baseline against distilled student. ``table``: Markdown tables and lines of
    an experiment, shown first. ``facts``: about the run, by name. ``frames``: of `example_frames`.
    """
    classes = list(dict.fromkeys(c for m in models.values() for c in m["per_class"]))
    page = render_page(
        _CONTENT,
        title,
        experiment=_blocks(table),
        facts=facts or {},
        header=["", *models],
        rows=[
            [label, *(format_score(figures[key]) for figures in models.values())]
            for key, label in COLUMNS.items()
        ],
        classes=[[name, *(_class_scores(m, name) for m in models.values())] for name in classes],
        frames=[_jpeg_url(image) for image in frames],
        legend=[(name, _css(class_colour(number))) for number, name in enumerate(classes)],
        curves={name: data_url(png.read_bytes(), "png") for name, png in curves.items()},
        sides=sides,
        images=[] if sides is None else [_jpeg_url(image) for image in sides.images],
    )
    write_text(path, page)


def _blocks(text: str) -> list[tuple[list[list[str]], list[str]]]:
    """Return tables and lines of Markdown in their order: rows of cells, or lines outside them."""
    found = []
    for is_table, block in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        lines = [line for line in block if line.strip("|- ")]
        rows = [line.strip("|").split("|") for line in lines] if is_table else []
        found.append((rows, [] if is_table else lines))
    return found


def _class_scores(figures: Mapping[str, Any], name: str) -> str:
    found = figures["per_class"].get(name, {})
    return f"{format_score(found.get('ap50_95'))} / {format_score(found.get('ap50'))}"


def _css(colour: tuple[int, int, int]) -> str:
    blue, green, red = colour
    return f"rgb({red}, {green}, {blue})"


def _jpeg_url(image: np.ndarray) -> str:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return data_url(encoded.tobytes(), "jpeg")


_CONTENT = """{% if experiment %}<h2>Experiment</h2>
{% for rows, lines in experiment %}{% if rows %}
<table>{% for row in rows %}<tr>{% for cell in row %}
<td>{{ cell.strip() }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% for line in lines %}<p>{{ line }}</p>{% endfor %}{% endfor %}{% endif %}
{% macro table(header, rows) %}
<table><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table>{% endmacro %}
<h2>Scores on the validation split, in percent</h2>
{{ table(header, rows) }}
{% if facts %}<p>{% for name, value in facts.items() %}{{ name }}: {{ value }}<br>
{% endfor %}</p>{% endif %}
{% if classes %}<h3>By class: AP (mAP50-95) / AP50</h3>{{ table(header, classes) }}{% endif %}
{% if frames %}<h2>Labels (left) and the student's detections (right)</h2>
<p>Images spread evenly over the validation split; confidence at least 0.25. White ring: a
labelled object that the student misses (IoU below 0.5).
{% for name, colour in legend %}
<span class="box" style="border-color: {{ colour }}">{{ name }}</span>
{% endfor %}</p>
{% for image in frames %}<p><img src="{{ image }}" alt="Validation image {{ loop.index }}: boxes of
the labels on the left, of the student's detections on the right"></p>{% endfor %}{% endif %}
{% if sides %}<h2>Student alone (left) and distilled (right)</h2>
<p>Of {{ sides.objects }} labelled objects, {{ sides.only_second }} were found by the distilled
student alone, and {{ sides.only_first }} by the baseline (student alone), at confidence 0.25 and
IoU 0.5. Green ring: found by this model only. White ring: missed by this model only. The images
are those in which the distilled student gained most.</p>
{% for image in images %}<p><img src="{{ image }}" alt="Validation image {{ loop.index }}:
detections of the student alone on the left, of the distilled student on the right"></p>
{% endfor %}{% endif %}
<h2>Curves</h2>
{% for name, image in curves.items() %}<h3>{{ name }}</h3>
<p><img src="{{ image }}" alt="curves of {{ name }}"></p>{% endfor %}"""
