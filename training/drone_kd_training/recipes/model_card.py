# SPDX-License-Identifier: AGPL-3.0-or-later
"""Model card of the default model: docs/default-model.md with images, and a short README."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drone_kd.core.detections import Detections
from drone_kd.detector import Detector, load_detector
from drone_kd.files import write_text
from drone_kd.media.image_files import read_image
from drone_kd.paths import selftest_image_path
from drone_kd.progress import track
from drone_kd.visualization import contact_sheet, draw_detections
from drone_kd_training.data.folders import write_image
from drone_kd_training.models.checkpoints import cost, load_model
from drone_kd_training.recipes.default_model_data import Recipe
from drone_kd_training.recipes.default_model_figures import INPUT_PX, Figures
from drone_kd_training.tables import format_score
from drone_kd_training.teachers.fusion import count_right, fuse, translate
from drone_kd_training.teachers.prediction_cache import PredictionCache
from drone_kd_training.teachers.soft_labels import IGNORE_BAND
from drone_kd_training.teachers.teaching_plan import Plan, Source

# Only these may be shown in the repository: public domain and CC0.
SHOWN = ("bogota-niza", "chia-aqua")
WINDOW_PX, SHOWN_PX, SHEET_COLUMNS, SHEET_JPEG = 640, 400, 3, 80
IMAGES = 6
# An image with fewer confident predictions of the teachers says nothing about the model.
PREDICTIONS_NEEDED = 3
# A box that a window cuts to less does not count.
CUT_PX = 3

# Test set or source -> result of `evaluate`.
Scores = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Card:
    """Content of the card.

    Attributes:
        metrics: metrics.json of the student's run.
        alpha: of the weight interpolation.
        alphas: alpha -> test set -> result of `evaluate` on selection images.
        threshold: result of `default_model.choose_threshold`.
        attribution: of the training data.
        licence: of the weights.
    """

    plan: Plan
    recipe: Recipe
    metrics: dict[str, Any]
    figures: Figures
    alpha: float
    alphas: dict[str, dict[str, dict[str, Any]]]
    threshold: dict[str, Any]
    attribution: str
    licence: str


def write_card(card: Card, model: Path, docs: Path, models: Path) -> None:
    """Write default-model.md and its images to ``docs``, and the short README.md to ``models``."""
    draw_images(docs, model, card.plan)
    student = card.metrics["student"]["parameters"]
    parameters = {model.name: student, f"{model.name}, tiling auto": student}
    for teacher in card.plan.teachers:
        network = load_model(str(teacher.weights))[0]
        parameters[teacher.name] = cost(network, INPUT_PX)["parameters"]
    shared = {
        "names": ", ".join(card.plan.names),
        "parameters": student,
        "test_sets": table_by_test_set(card.figures.models, parameters),
        "attribution": _wrap(f"{card.attribution}."),
        "licence": card.licence,
    }
    f1, alarms = card.threshold["f1_by_class"], card.figures.alarms
    text = CARD.format(
        **shared,
        size_mb=model.stat().st_size / 1e6,
        plan=card.plan.table(),
        sizes=size_table(card.figures.models),
        classes=class_table(card.figures.by_source),
        alarms="\n".join(f"- {n}: {found} in {of} images" for n, (of, found) in alarms.items()),
        times=", ".join(f"{name} {ratio:.1f}" for name, ratio in card.figures.times.items()),
        alphas=table_by_test_set(card.alphas, {}, first="alpha"),
        alpha=card.alpha,
        threshold=card.threshold["threshold"],
        f1=_wrap("F1: " + ", ".join(f"{name} {value:.2f}" for name, value in f1.items()) + "."),
        minutes=card.metrics["seconds"] / 60,
        recipe=card.recipe,
    )
    write_text(docs / "default-model.md", text)
    write_text(models / "README.md", SHORT.format(**shared))


def _wrap(text: str) -> str:
    return textwrap.fill(text, 99, break_on_hyphens=False)


def table_by_test_set(
    figures: Mapping[str, Scores], parameters: Mapping[str, float], first: str = "model"
) -> str:
    """Return models x test sets: AP50 (mAP50-95), classes merged by kind."""
    names = list(next(iter(figures.values())))
    rows = []
    for model, scores in figures.items():
        pairs = [(scores[name]["map50"], scores[name]["map50_95"]) for name in names]
        means = [float(np.mean([x or 0 for x in column])) for column in zip(*pairs, strict=True)]
        count = parameters.get(model)
        size = f"{count / 1e6:.1f} M" if count else ""
        cells = (f"{format_score(a)} ({format_score(b)})" for a, b in [*pairs, means])
        rows.append([model, size, *cells])
    return _table([first, "parameters", *names, "mean"], rows)


def size_table(figures: Mapping[str, Scores]) -> str:
    """Return models x test sets: AP50 by class, and AP by object size."""
    rows = []
    for model, by_test_set in figures.items():
        for name, scores in by_test_set.items():
            per_class = scores["per_class"].items()
            classes = ", ".join(f"{c} {format_score(s['ap50'])}" for c, s in per_class)
            sizes = (format_score(scores[f"ap_{size}"]) for size in ("tiny", "small", "medium"))
            rows.append([model, name, classes, *sizes])
    return _table(["model", "test set", "AP50 by class", "AP tiny", "small", "medium"], rows)


def class_table(by_source: Scores) -> str:
    """Return the default model by source and class: AP50 (AP50-95)."""
    rows = []
    for name, scores in by_source.items():
        cells = ", ".join(
            f"{c} {format_score(s['ap50'])} ({format_score(s['ap50_95'])})"
            for c, s in scores["per_class"].items()
            if s["ap50"] is not None
        )
        rows.append([name, str(scores["images"]), cells])
    return _table(["source", "images", "class: AP50 (AP50-95)"], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    first, *others = (f"| {' | '.join(cells)} |" for cells in (header, *rows))
    return "\n".join([first, "|" + "---|" * len(header), *others])


def draw_images(docs: Path, model: Path, plan: Plan) -> None:
    """Draw the package's own image, and two sheets of windows from training images.

    The sheets show where the model agrees most and least with confident predictions of its
    teachers.
    """
    detector = load_detector(model, runtime="onnxruntime")
    image = read_image(selftest_image_path())
    drawn = draw_detections(image, detector(image), plan.names)
    height = 1000 * image.shape[0] // image.shape[1]
    write_image(docs / "default-model.jpg", cv2.resize(drawn, (1000, height)), 70)
    shown = [source for source in plan.sources if source.name in SHOWN]
    windows = [window for source in shown for window in _windows(detector, plan, source)]
    windows.sort(key=lambda window: (window.f1, window.name), reverse=True)
    for name, chosen in (("good", windows[:IMAGES]), ("bad", windows[-IMAGES:])):
        tiles = [_tile(window, plan.names) for window in chosen]
        sheet = contact_sheet(tiles, SHEET_COLUMNS, SHEET_COLUMNS * SHOWN_PX)
        write_image(docs / f"default-model-{name}.jpg", sheet, SHEET_JPEG)


@dataclass(frozen=True)
class _Window:
    """Part of an image, uint8 (WINDOW_PX, WINDOW_PX, 3) BGR, around the teachers' predictions.

    ``f1``: of the model's ``detections`` against these predictions.
    """

    f1: float
    name: str
    image: np.ndarray
    detections: Detections


def _windows(detector: Detector, plan: Plan, source: Source) -> list[_Window]:
    teachers = plan.teachers_of(source)
    caches = [PredictionCache(teacher, plan.predictions, plan.names) for teacher in teachers]
    classes = plan.names
    weights = [
        np.array([t.weight[c] * (c in t.taught_classes) for c in classes]) for t in teachers
    ]
    windows = []
    for path in track(source.train, f"Compare with the teachers on {source.name}", "image"):
        image = read_image(path)
        height, width = image.shape[:2]
        tables = [
            translate(cache.of(path, (height, width)), teacher, source.name, classes)
            for cache, teacher in zip(caches, teachers, strict=True)
        ]
        fused = fuse(tables, weights)
        fused[:, :4] *= np.array([width, height] * 2)
        confident = fused[fused[:, 4] > IGNORE_BAND[1]]
        if len(confident) < PREDICTIONS_NEEDED:
            continue
        x, y = _window_corner(confident, width, height)
        window = image[y : y + WINDOW_PX, x : x + WINDOW_PX]
        detections = detector(window)
        f1 = _agreement(detections, confident, x, y, len(classes))
        windows.append(_Window(f1, path.stem, window, detections))
    return windows


def _window_corner(boxes: np.ndarray, width: int, height: int) -> tuple[int, int]:
    """Return the top left corner of a window at the box that is nearest to the mean of all."""
    x, y = boxes[:, [0, 2]].mean(), boxes[:, [1, 3]].mean()
    near = boxes[np.hypot(boxes[:, 0] - x, boxes[:, 1] - y).argmin()]
    left, top = np.clip(near[:2] - WINDOW_PX / 2, 0, [width - WINDOW_PX, height - WINDOW_PX])
    return int(left), int(top)


def _agreement(detections: Detections, boxes: np.ndarray, x: int, y: int, classes: int) -> float:
    """Return the F1 of detections in a window against the teachers' boxes (n, 6) in the image."""
    inside = np.clip(boxes[:, :4] - np.array([x, y, x, y]), 0, WINDOW_PX)
    truth = np.concatenate([inside, boxes[:, 5:6]], axis=1)
    truth = truth[(inside[:, 2:] - inside[:, :2] > CUT_PX).all(axis=1)]
    table = np.column_stack([detections.xyxy, detections.scores, detections.class_ids])
    right = sum(count_right(table, truth, c, 0.0)[0] for c in range(classes))
    return 2 * right / max(len(table) + len(truth), 1)


def _tile(window: _Window, names: tuple[str, ...]) -> np.ndarray:
    drawn = draw_detections(window.image, window.detections, names)
    return cv2.resize(drawn, (SHOWN_PX, SHOWN_PX), interpolation=cv2.INTER_AREA)


SHORT = """# The default model

Written by `python -m drone_kd_training.recipes.default_model`; do not edit by hand. The full
model card, with the limits of the model, is `docs/default-model.md` in the repository.

`default.onnx`: YOLOv8n, {parameters:,} parameters, FP16, 640x640.
Classes: {names}.

AP50 (mAP50-95) in percent on validation flights at 640 px, classes merged to person, two-wheeler
and vehicle. `unicamp-people` is a development set, with which settings were chosen:

{test_sets}

## Ancestry

One of its teachers was trained on VisDrone, whose images are published for non-commercial use. For
a commercial product, train your own model from other teachers.

## Attribution

{attribution}

Licence of the weights: {licence}, because they were trained with Ultralytics from one of its
checkpoints.
"""

CARD = """# The default model

Written by `python -m drone_kd_training.recipes.default_model`; do not edit by hand.

- File: `drone_kd/models/default.onnx`, {size_mb:.1f} MB
- Architecture: YOLOv8n, {parameters:,} parameters, FP16, uint8 input of 640x640
- Classes: {names}
- Two-wheeler includes everything on two or three wheels, car includes vans and minibuses.

## Results

AP50 (mAP50-95) in percent at 640 px, classes merged to person, two-wheeler and vehicle. `hit-uav`
is thermal. `aerial-cars` has tiny vehicles. `unicamp-people` is a development set, not a test set:
settings of the recipe were chosen with it. Nothing was trained on it or labelled with its help. No
flight is in both training and validation.

{test_sets}

Time per image in PyTorch on a CPU, as a multiple of this model's:
{times}.

By class and object size (in the original image: tiny < 16 px, small < 32 px, medium < 96 px):

{sizes}

By the model's own classes, as far as they are labelled in a source:

{classes}

False alarms at the default threshold of 0.25, on images of `rgb-unlabelled` without any object of
the model's classes:

{alarms}

The class logits were shifted so that 0.25 is the threshold of the best mean F1; it was {threshold}
before. The threshold was chosen on training images: frames of HIT-UAV's training flights between
those trained on, and the training images of aerial-cars. They are of the flights that were trained
on, so scores on them, as in the table of alpha below, are too high.

{f1}

## Examples

Training images in which the model agrees most with confident predictions of its teachers:

![Six images with correct detections](default-model-good.jpg)

Training images in which it agrees least:

![Six images with wrong or missing detections](default-model-bad.jpg)

Images: MaptimeBogota and angoca, public domain.

## Training

```text
{plan}
```

Each source is taught by its labels and by its teachers. Classes that neither covers are masked in
the loss. The boxes of several teachers are fused. `recipes/default_model.yaml` holds all class
mappings and thresholds. The student started from COCO's YOLOv8n and was trained on windows of
{recipe.imgsz} px at several scales, for {recipe.epochs} epochs ({minutes:.0f} minutes), seed
{recipe.seed}. To train it again: `make default-model SHARED=...`.

Training alone forgets what is hardly taught, such as people by day. So the weights are
interpolated with those of the start (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903). Alpha, the
share of the start, is {alpha}: the best mean AP50 on images of the training splits:

{alphas}

## Ancestry

| ancestor | role | trained on |
|---|---|---|
| YOLOv8n | the student's start, {alpha} of its weights | COCO |
| YOLOv5su, teacher `visdrone` | pseudo-labels of six sources | \
VisDrone, whose images are published for non-commercial use |
| YOLOv8s, teacher `coco` | pseudo-labels of five sources | COCO |
| YOLOv8s, teacher `thermal` | pseudo-labels of `hit-uav` | HIT-UAV |

No VisDrone image was used to train this model, but its `visdrone` teacher learned from them. What
that means for a commercial product is not settled here. To be independent of it, train your own
model from other teachers (`distill --teachers`). `drone-kd lineage` says so, too; the file has no
further lineage (hashes of its data and ancestors).

## Limits

- The model is small, was trained briefly on little data, and is not validated for flight. Measure
  it on your own images before anything depends on it.
- Do not use it to find people in distress, to keep a distance from people, or to identify anybody.
  It finds few people by day: see `unicamp-people` above, a development set.
- Thermal images: only the camera of HIT-UAV, and no trucks or buses in them.
- People seen from straight above are a few pixels tall and mostly missed at 640 px: use
  `tiling: auto`.
- Some pseudo-labels of the teachers were wrong, and the model has learned them, too.

## Attribution and licences

{attribution}

The weights are {licence}, because they and the teachers' weights were trained with Ultralytics
from its checkpoints. `hit-uav` is CC BY 4.0, `aerial-cars` CC BY-SA and CC BY 3.0,
`rgb-unlabelled` public domain, CC0, CC BY 3.0 and CC BY 4.0. All of them allow commercial use with
attribution. `unicamp-people` (CC BY-NC 4.0) is a development set, nothing was trained on it.
VisDrone: see [ancestry](#ancestry).
"""
