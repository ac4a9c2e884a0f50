# SPDX-License-Identifier: AGPL-3.0-or-later
"""report.html: what a run or an experiment brought, in one file that opens offline."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment

from drone_kd.core.boxes import iou
from drone_kd.core.detections import Detections
from drone_kd.detector import Detector
from drone_kd.metrics import MAX_DETECTIONS
from drone_kd.progress import track
from drone_kd.visualization import draw_detections
from drone_kd_training.data.dataset import Sample, image_paths, load_data, read_sample, write_text
from drone_kd_training.evaluation.evaluate import IOU
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import TorchBackend
from drone_kd_training.tables import format_score

# What a pilot would be shown; the evaluation goes far lower.
CONFIDENCE, IOU_FOUND = 0.25, 0.5
PICTURES = 6
GREEN, RED = (80, 220, 80), (60, 60, 255)


@dataclass(frozen=True)
class Sides:
    """What two models found of the labelled objects of a split, at confidence 0.25 and IoU 0.5.

    ``pictures``: BGR, the first model left and the second right, of the frames where the second
    found most that the first missed.
    """

    objects: int
    only_first: int
    only_second: int
    pictures: list[np.ndarray]


def compare_frames(first: Path, second: Path, data: Path, imgsz: int) -> Sides:
    """Run two checkpoints on the validation split of ``data``."""
    dataset = load_data(data)
    detectors = [
        Detector(TorchBackend(load_model(str(path))[0], imgsz), CONFIDENCE, IOU, MAX_DETECTIONS)
        for path in (first, second)
    ]
    objects = only_first = only_second = 0
    best: list[tuple[int, int, np.ndarray]] = []
    for number, path in enumerate(track(image_paths(dataset.val), "Compare images", "image")):
        sample = read_sample(path, len(dataset.names))
        if sample is None:
            continue
        found = [d(sample.image) for d in detectors]
        hits = [
            found_objects(sample, f, d.backend.spec.classes, dataset.names)
            for f, d in zip(found, detectors, strict=True)
        ]
        objects += len(sample.xyxy)
        lost, gained = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
        only_first, only_second = only_first + lost, only_second + gained
        if gained > lost:
            picture = np.hstack(
                [
                    _annotate(sample, f, d.backend.spec.classes, own & ~other, other & ~own)
                    for f, d, own, other in (
                        (found[0], detectors[0], hits[0], hits[1]),
                        (found[1], detectors[1], hits[1], hits[0]),
                    )
                ]
            )
            best = sorted([*best, (gained - lost, -number, picture)], key=lambda b: b[:2])
            best = best[-PICTURES:]
    return Sides(objects, only_first, only_second, [b[2] for b in reversed(best)])


def found_objects(
    sample: Sample, found: Detections, classes: tuple[str, ...], names: tuple[str, ...]
) -> np.ndarray:
    """Which labelled objects were found: bool (objects,); a detection counts for one object."""
    hits = np.zeros(len(sample.xyxy), bool)
    for box, class_id in zip(found.xyxy, found.class_ids, strict=True):  # the best score first
        overlap = iou(box[None], sample.xyxy)[0] if len(sample.xyxy) else np.zeros(0)
        same = np.array([names[i] == classes[class_id] for i in sample.class_ids], bool)
        overlap = np.where(same & ~hits, overlap, 0.0)
        if len(overlap) and overlap.max() >= IOU_FOUND:
            hits[overlap.argmax()] = True
    return hits


def _annotate(
    sample: Sample, found: Detections, classes: tuple[str, ...], gained: np.ndarray, lost
) -> np.ndarray:
    """Detections, and a green ring round what only this model found, red round what it alone
    missed.
    """
    picture = draw_detections(sample.image, found, classes)
    for mask, colour in ((gained, GREEN), (lost, RED)):
        for x1, y1, x2, y2 in sample.xyxy[mask]:
            centre = round(float(x1 + x2) / 2), round(float(y1 + y2) / 2)
            radius = round(float(max(x2 - x1, y2 - y1)) * 0.8) + 6
            cv2.circle(picture, centre, radius, colour, 2, cv2.LINE_AA)
    scale = min(1.0, 900 / picture.shape[1])
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def write_report(
    path: Path,
    title: str,
    models: dict[str, dict],
    curves: dict[str, Path],
    sides: Sides | None = None,
    table: str = "",
) -> None:
    """Write the page.

    Args:
        path: the .html.
        title: of the page.
        models: name -> what `evaluate` returns.
        curves: name of a run -> picture of its curves (.png).
        sides: plain against distilled.
        table: a Markdown table of an experiment, shown first.
    """
    sizes = [("map50_95", "mAP50-95"), ("map50", "mAP50"), ("ap_tiny", "AP tiny (< 16 px)")]
    sizes += [("ap_small", "AP small (< 32 px)"), ("ap_medium", "AP medium (32-96 px)")]
    classes = list(dict.fromkeys(c for m in models.values() for c in m["per_class"]))
    rows = [
        [name, *(format_score(m[key]) for key, _ in sizes)]
        + [
            f"{format_score(m['per_class'].get(c, {}).get('ap50_95'))} / "
            f"{format_score(m['per_class'].get(c, {}).get('ap50'))}"
            for c in classes
        ]
        for name, m in models.items()
    ]
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    page = Environment(autoescape=True).from_string(TEMPLATE)
    write_text(
        path,
        page.render(
            title=title,
            experiment=[line for line in lines if not set("".join(line)) <= set("-")],
            notes=[line for line in table.splitlines() if line and not line.startswith("|")],
            header=["", *(label for _, label in sizes), *(f"{c}: AP / AP50" for c in classes)],
            rows=rows,
            curves={n: _data_url(p.read_bytes(), "png") for n, p in curves.items()},
            sides=sides,
            pictures=[] if sides is None else [_jpeg_url(p) for p in sides.pictures],
        ),
    )


def _jpeg_url(picture: np.ndarray) -> str:
    return _data_url(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], "jpeg")


def _data_url(content, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(bytes(content)).decode()}"


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px;
       padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; }
</style></head><body>
<h1>{{ title }}</h1>
{% if experiment %}<h2>Experiment</h2>
<table>{% for row in experiment %}<tr>{% for cell in row %}
<td>{{ cell.strip() }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}{% endif %}
<h2>Models</h2>
<table><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table>
{% if sides %}<h2>Student alone (left) and distilled (right)</h2>
<p>Of {{ sides.objects }} labelled objects, at a confidence of 0.25 and an IoU of 0.5:
{{ sides.only_second }} were found by the distilled student alone, {{ sides.only_first }} by the
plain one alone. Green ring: found by this one only; red ring: missed by this one only. Shown are
the frames where the distilled student gained most.</p>
{% for picture in pictures %}<p><img src="{{ picture }}" alt="frame"></p>{% endfor %}{% endif %}
<h2>Curves</h2>
{% for name, picture in curves.items() %}<h3>{{ name }}</h3>
<p><img src="{{ picture }}" alt="curves of {{ name }}"></p>{% endfor %}
</body></html>
"""
