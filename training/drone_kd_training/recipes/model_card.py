# SPDX-License-Identifier: AGPL-3.0-or-later
"""The default model's card: docs/default-model.md with its pictures, and the short one beside the
model.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from drone_kd.core.detections import Detections
from drone_kd.detector import load_detector
from drone_kd.files import write_text
from drone_kd.paths import selftest_image_path
from drone_kd.visualization import draw_detections
from drone_kd_training.models.checkpoints import cost, load_model
from drone_kd_training.tables import format_score
from drone_kd_training.teachers.fusion import count_right, fuse, translate
from drone_kd_training.teachers.plan import Plan
from drone_kd_training.teachers.prediction_cache import PredictionCache
from drone_kd_training.teachers.soft_labels import IGNORE_BAND

# Only these may be shown in the repository: public domain and CC0.
SHOWN = ("bogota-niza", "chia-aqua")
WINDOW_PX, SHOWN_PX, SHEET_COLUMNS, SHEET_JPEG = 640, 400, 3, 80
PICTURES = 6


def write_card(
    docs: Path,
    models: Path,
    *,
    plan: Plan,
    recipe,
    metrics: dict,
    figures: dict[str, dict],
    by_source: dict[str, dict],
    alarms: dict[str, tuple[int, int]],
    times: dict[str, float],
    shares: dict[str, dict],
    share: float,
    threshold: dict,
    model: Path,
    pictures: Path,
    attribution: str,
    licence: str,
) -> None:
    """Write both cards and the pictures; what is in them is `recipes.default_model.build`'s.

    ``figures``: model -> ground -> `evaluate`; ``by_source``: of the model itself, by class;
    ``times``: teacher -> its time for a frame, in the model's; ``shares``: share of the start ->
    ground of training frames -> `evaluate`.
    """
    show(docs, model, plan, pictures)
    parameters = {name: None for name in figures}
    for teacher in plan.teachers:
        parameters[teacher.name] = cost(load_model(str(teacher.weights))[0], 640)["parameters"]
    own = metrics["student"]["parameters"]
    parameters["default.onnx"] = parameters["default.onnx, tiling auto"] = own
    text = CARD.format(
        size_mb=model.stat().st_size / 1e6,
        parameters=own,
        names=", ".join(plan.names),
        plan=plan.table(),
        grounds=grounds_table(figures, parameters),
        sizes=sizes_table(figures),
        classes=classes_table(by_source),
        alarms="\n".join(
            f"- {which}: {count} in {number} pictures" for which, (number, count) in alarms.items()
        ),
        times=", ".join(f"{name} {ratio:.1f}" for name, ratio in times.items()),
        shares=grounds_table(shares, {}).replace("| model |", "| share of the start |", 1),
        share=share,
        threshold=threshold["threshold"],
        f1="; ".join(f"{k} {v:.2f}" for k, v in threshold["f1_by_class"].items()),
        minutes=metrics["seconds"] / 60,
        attribution=attribution,
        licence=licence,
        recipe=recipe,
    )
    write_text(docs / "default-model.md", text)
    short = SHORT.format(
        names=", ".join(plan.names),
        parameters=own,
        grounds=grounds_table(figures, parameters),
        attribution=attribution,
        licence=licence,
    )
    write_text(models / "README.md", short)


def grounds_table(figures: dict[str, dict], parameters: dict[str, int | None]) -> str:
    """Models x grounds: AP50 (mAP50-95), classes of one kind taken together."""
    grounds = list(next(iter(figures.values())))
    lines = [
        "| model | parameters | " + " | ".join(grounds) + " | mean |",
        "|---|---|" + "---|" * (len(grounds) + 1),
    ]
    for name, by_ground in figures.items():
        cells = [
            f"{format_score(by_ground[g]['map50'])} ({format_score(by_ground[g]['map50_95'])})"
            for g in grounds
        ]
        means = [
            format_score(float(np.mean([by_ground[g][key] or 0 for g in grounds])))
            for key in ("map50", "map50_95")
        ]
        size = parameters.get(name)
        shown = f"{size / 1e6:.1f} M" if size else ""
        lines.append(f"| {name} | {shown} | {' | '.join(cells)} | {means[0]} ({means[1]}) |")
    return "\n".join(lines)


def sizes_table(figures: dict[str, dict]) -> str:
    """Models x (ground, class): AP50, and AP by the object's size."""
    lines = [
        "| model | ground | AP50 by class | AP tiny | small | medium |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_ground in figures.items():
        for ground, m in by_ground.items():
            classes = ", ".join(
                f"{c} {format_score(s['ap50'])}" for c, s in m["per_class"].items()
            )
            sizes = " | ".join(format_score(m[f"ap_{s}"]) for s in ("tiny", "small", "medium"))
            lines.append(f"| {name} | {ground} | {classes} | {sizes} |")
    return "\n".join(lines)


def classes_table(by_source: dict[str, dict]) -> str:
    """The model itself by source and class: AP50 (AP50-95)."""
    lines = ["| source | frames | class: AP50 (AP50-95) |", "|---|---|---|"]
    for name, m in by_source.items():
        cells = ", ".join(
            f"{c} {format_score(s['ap50'])} ({format_score(s['ap50_95'])})"
            for c, s in m["per_class"].items()
            if s["ap50"] is not None
        )
        lines.append(f"| {name} | {m['images']} | {cells} |")
    return "\n".join(lines)


def show(docs: Path, model: Path, plan: Plan, pictures: Path) -> None:
    """The package's own picture with boxes, and two sheets of windows of training pictures: where
    the model agrees most and least with what its teachers are sure of.
    """
    detector = load_detector(model, runtime="onnxruntime")
    image = cv2.imread(str(selftest_image_path()))
    shown = draw_detections(image, detector(image), plan.names)
    shown = cv2.resize(shown, (1000, 1000 * image.shape[0] // image.shape[1]))
    _write_picture(docs / "default-model.jpg", shown, 70)
    answers = {t.name: PredictionCache(t, plan.answers, plan.names) for t in plan.teachers}
    rated = []
    for source in (s for s in plan.sources if s.name in SHOWN):
        teachers = plan.teachers_of(source)
        for path in source.train:
            image = cv2.imread(str(path))
            height, width = image.shape[:2]
            tables = [
                translate(answers[t.name].of(path, (height, width)), t, source.name, plan.names)
                for t in teachers
            ]
            fused = fuse(
                tables,
                [
                    np.array([t.weight[n] for n in plan.names])
                    * [n in t.taught_classes for n in plan.names]
                    for t in teachers
                ],
            )
            fused[:, :4] *= np.array([width, height] * 2)
            sure = fused[fused[:, 4] > IGNORE_BAND[1]]
            if len(sure) < 3:
                continue
            x, y = sure[:, [0, 2]].mean(), sure[:, [1, 3]].mean()
            near = sure[np.hypot(sure[:, 0] - x, sure[:, 1] - y).argmin()]
            x1 = int(np.clip(near[0] - WINDOW_PX / 2, 0, width - WINDOW_PX))
            y1 = int(np.clip(near[1] - WINDOW_PX / 2, 0, height - WINDOW_PX))
            window = image[y1 : y1 + WINDOW_PX, x1 : x1 + WINDOW_PX]
            found = detector(window)
            rated.append(
                (_agreement(found, sure, x1, y1, len(plan.names)), path.stem, window, found)
            )
    rated.sort(key=lambda row: row[:2], reverse=True)
    sheets = {"good": rated[:PICTURES], "bad": rated[-PICTURES:]}
    for name, chosen in sheets.items():
        tiles = [
            cv2.resize(
                draw_detections(window, found, plan.names),
                (SHOWN_PX, SHOWN_PX),
                interpolation=cv2.INTER_AREA,
            )
            for _, _, window, found in chosen
        ]
        rows = [np.hstack(tiles[i : i + SHEET_COLUMNS]) for i in range(0, PICTURES, SHEET_COLUMNS)]
        _write_picture(docs / f"default-model-{name}.jpg", np.vstack(rows), SHEET_JPEG)


def _agreement(found: Detections, sure: np.ndarray, x1: int, y1: int, classes: int) -> float:
    """F1 of the model's boxes in a window against the teachers' sure ones."""
    corner = np.array([x1, y1, x1, y1])
    boxes = np.clip(sure[:, :4] - corner, 0, WINDOW_PX)
    truth = np.concatenate([boxes, sure[:, 5:6]], axis=1)
    truth = truth[(boxes[:, 2] - boxes[:, 0] > 3) & (boxes[:, 3] - boxes[:, 1] > 3)]
    table = np.concatenate([found.xyxy, found.scores[:, None], found.class_ids[:, None]], axis=1)
    right = sum(count_right(table, truth, c, 0.0)[0] for c in range(classes))
    return 2 * right / max(len(table) + len(truth), 1)


def _write_picture(path: Path, image: np.ndarray, quality: int) -> None:
    if not cv2.imwrite(str(path), image, (cv2.IMWRITE_JPEG_QUALITY, quality)):
        raise OSError(f"{path} could not be written")


SHORT = """# The default model

Written by `python -m drone_kd_training.recipes.default_model`; do not edit by hand. The whole
card, with what the model must not be used for: `docs/default-model.md` of the repository.

`default.onnx`: a YOLOv8n ({parameters:,} parameters), FP16, 640×640. Classes: {names}.

AP50 (mAP50-95) in percent on validation flights, at 640, classes of one kind taken together:

{grounds}

Attribution: {attribution}.

Licence of the weights: {licence}, as they were trained with Ultralytics from one of its
checkpoints.
"""

CARD = """# The default model

Written by `python -m drone_kd_training.recipes.default_model`; do not edit by hand.

`drone_kd/models/default.onnx`: a YOLOv8n, {parameters:,} parameters, {size_mb:.1f} MB, FP16 in the
graph, uint8 input of 640×640. Classes: {names} (two-wheeler: everything on two or three wheels;
car: vans and minibuses, too).

## What it knows

AP50 (mAP50-95) in percent at 640, classes of one kind taken together (person, two-wheeler,
vehicle). `hit-uav` is thermal; `aerial-cars` has tiny vehicles; of `unicamp-people` nothing was
trained on or labelled with. No flight is in both training and validation.

{grounds}

Time for one frame in PyTorch on a CPU, in that of this model: {times}.

By class and size (of the original picture: tiny under 16 px, small under 32, medium under 96):

{sizes}

The model by its own classes, on what each set's labels cover:

{classes}

False alarms at the default threshold of 0.25, on pictures of `rgb-unlabelled` that show nothing of
the model's classes:

{alarms}

The scores were moved so that 0.25 is the threshold of the best mean F1 on training pictures
(frames of HIT-UAV's training flights between those trained on, and aerial-cars' training frames);
before, it was {threshold}. F1 there: {f1}.

## How it looks

Where it agrees most with what its teachers were sure of, in pictures that it was trained on:

![Six pictures that went well](default-model-good.jpg)

Where it agrees least:

![Six pictures that went badly](default-model-bad.jpg)

Pictures: MaptimeBogota and angoca, public domain.

## What it learnt, and from whom

```text
{plan}
```

A frame is taught by its labels and by the teachers of its source; what neither covers is masked.
Where two teachers answer, their boxes are fused. `recipes/default_model.yaml` has every mapping
and threshold. The student began as COCO's YOLOv8n, saw windows of {recipe.imgsz} px at several
scales, {recipe.epochs} epochs in {minutes:.0f} minutes, seed {recipe.seed}. Anew:
`make default-model SHARED=...`.

What is hardly taught, people by day, would be forgotten. So the weights are a mean of those after
training and of those at the start (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903). The share of
the start is {share}, the one with the best mean on frames of the training splits:

{shares}

## What it must not be used for

It is a small model, trained briefly on little, and validated for no flight: measure it on your own
frames before anything depends on it. Not for finding people in distress, not for keeping away from
people (how few of them it finds by day: `unicamp-people` above), not for identifying anybody.
Thermal: the camera of HIT-UAV alone, in which neither trucks nor buses were taught. From straight
above people are a few pixels, and mostly missed at 640: use `tiling: auto`. Some of what it learnt
is wrong, since models said it.

## Attribution and licences

{attribution}.

The weights are {licence}, as they were trained with Ultralytics from one of its checkpoints; the
teachers' weights, too. `hit-uav` is CC BY 4.0, `aerial-cars` CC BY-SA and CC BY 3.0,
`rgb-unlabelled` public domain, CC0, CC BY 3.0 and CC BY 4.0. All allow commercial use, with
attribution; `unicamp-people` (CC BY-NC 4.0) was measured on alone.
"""
