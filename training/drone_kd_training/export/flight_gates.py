# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gates on what flies: detections of the file against those of its reference, and of the labels.

Both run over the validation split through `drone_kd.detector.Detector`, with the preprocessing,
NMS and thresholds of the node. What the interval of a figure decides: see `gate_outcomes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np

from drone_kd.backends import Backend
from drone_kd.core.boxes import iou
from drone_kd.core.detections import Detections
from drone_kd.core.postprocess import InferenceError
from drone_kd.detector import Detector
from drone_kd.metrics import MAX_DETECTIONS, SIZES, annotation
from drone_kd.paths import parameter_defaults
from drone_kd.progress import track
from drone_kd.text import one_line
from drone_kd_training.data.dataset import DataError, DataSet, Sample, image_paths, read_sample
from drone_kd_training.evaluation.evaluate import CONFIDENCE, IOU, class_map
from drone_kd_training.export.calibration import spread
from drone_kd_training.export.gate_outcomes import judge
from drone_kd_training.retraining.bootstrap import Matches, resample_blocks
from drone_kd_training.retraining.stretches import frame_blocks

# Name of the gate that every export with data has.
INVALID = "frames with invalid output"
# What separates the name of a gate from the class or size that it is about.
GROUP = ": "
# IoU of a box with a label, as in mAP50; with the same box of the other model, which for a tiny
# object is lower after one pixel of drift.
LABEL_IOU, PARTNER_IOU = 0.5, 0.3
RESAMPLES = 100
# Flights that the bootstrap draws, at least; with fewer it draws images.
FLIGHTS = 10
# Gates by class: for the most frequent ones of a model with hundreds.
MAX_CLASSES = 100
# An FP32 file has no mAP to compare: its reference runs on this share of the images.
FP32_SHARE, FP32_FRAMES = 4, 32


@dataclass(frozen=True)
class Limits:
    """Largest changes from the reference that a precision may make.

    Attributes:
        boxes: share of boxes that are lost or invented.
        group: the same, and recall lost, of one class or size.
        drift: share of boxes that moved, or whose score differs.
        moved_px: a box has moved if an edge differs by more, in input pixels.
        size: mean change of a box's side, as a share of it, up or down: pixels say little about
            small boxes.
        score: a score differs if by more than this; a box this far below its threshold counts as
            reported, since the smallest change of its score decides.
        bias: mean difference of the scores, up or down.
        labels: recall, precision and F1 lost.
        mean_ap: mAP50-95 lost.
    """

    boxes: float
    group: float
    drift: float
    moved_px: float
    size: float
    score: float
    bias: float
    labels: float
    mean_ap: float


LIMITS = {
    # Rounding only; a tie in NMS moves a box now and then. Smaller shares need more images than
    # most people have.
    "fp32": Limits(0.02, 0.1, 0.02, 0.5, 0.01, 0.02, 0.01, 0.02, 0.001),
    # A few thousandths of a score, hundredths of a pixel.
    "fp16": Limits(0.02, 0.1, 0.02, 1.0, 0.01, 0.02, 0.01, 0.02, 0.001),
    # benchmarks/export/*-gates.csv. demo-student.pt on synthetic images and on aerial-cars: 0.2 to
    # 1.1 % of the boxes lost or invented, 0.7 to 1.6 % moved by more than 3 px, 0.9 to 1.1 % of
    # the scores off by more than 0.1. night-teacher.pt on HIT-UAV, of whose domain it knows
    # nothing (it was trained on rendered images), fails: 14.7 % [11.0, 18.4] of the scores are
    # off; with 8.5 % [2.5, 14.5] of the boxes moved there is not enough data. No limit was raised
    # for it.
    "int8": Limits(0.05, 0.1, 0.1, 3.0, 0.05, 0.1, 0.05, 0.03, 0.01),
    # Trained for its rounding: less mAP is lost.
    "int8 aware": Limits(0.05, 0.1, 0.1, 3.0, 0.05, 0.1, 0.05, 0.03, 0.005),
}


class Frame(NamedTuple):
    """An image with its labels, and the detections of both models down to `CONFIDENCE`."""

    sample: Sample
    file: Detections
    reference: Detections
    compared: bool  # the reference ran on this image


class Flight(NamedTuple):
    """Validation split, run through both models."""

    frames: list[Frame]
    invalid: int  # images for which the file has no valid output
    classes: tuple[str, ...]
    input_wh: tuple[int, int]  # pixels
    to_data: np.ndarray  # int64 (classes,), the data set's class of each; -1: none


class Boxes(NamedTuple):
    """One row per box: index of its image, class, area in square pixels of it, and a value."""

    image: np.ndarray
    class_id: np.ndarray
    area: np.ndarray
    value: np.ndarray


def fly(file: Backend, reference: Backend, dataset: DataSet) -> Flight:
    """Run the file, and its reference (FP32: on a part), over the validation split.

    Raises DataError if it has no usable image, ValueError if the two differ in their classes,
    UnusableModelError if these have nothing in common with the data set's.
    """
    spec = file.spec
    if spec.classes != reference.spec.classes:
        expected, got = (one_line(list(b.spec.classes)) for b in (reference, file))
        raise ValueError(
            f"expected a file with the classes {expected}, got {got}; export it again"
        )
    to_data = class_map(spec.classes, dataset, (), {})
    # What is reported in flight is the part of these above its threshold: NMS goes by score.
    detectors = [Detector(b, CONFIDENCE, IOU, MAX_DETECTIONS) for b in (file, reference)]
    paths = image_paths(dataset.val)
    part = max(FP32_FRAMES, len(paths) // FP32_SHARE) if spec.precision == "fp32" else len(paths)
    compared = set(spread(paths, part))
    frames, invalid = [], 0
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int))
    for path in track(paths, "Compare on val", "image"):
        sample = read_sample(path, len(dataset.names))
        if sample is None:
            continue
        in_reference = detectors[1](sample.image) if path in compared else nothing
        try:
            in_file = detectors[0](sample.image)
        except InferenceError:
            invalid += 1
            in_file = nothing
        frames.append(Frame(sample, in_file, in_reference, path in compared))
    if not any(frame.compared for frame in frames):
        raise DataError(f"no usable image in {one_line(dataset.val)}")
    return Flight(frames, invalid, spec.classes, (spec.input_width, spec.input_height), to_data)


def measure(
    flight: Flight, precision: str
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return gates and metrics of a flight; ``precision``: a key of `LIMITS`.

    A gate is {"measured", "limit", "low", "high", "count", "missing"}: the interval, the number of
    objects, and how many more the decision needs; see `outcome`. Shares are in percent. Metrics
    are those of the file, in [0, 1]; ``NAME_fp32`` those of the reference.
    """
    limits = LIMITS[precision]
    compared = [frame for frame in flight.frames if frame.compared]
    weights = resample_blocks(_blocks(compared), RESAMPLES)
    agreement = _agreement(flight, compared, limits, weights)
    of_labels, metrics = _against_labels(flight, compared, limits, weights)
    mean_ap, aps = _mean_ap(flight, limits, weights if precision != "fp32" else None)
    invalid = {"measured": float(flight.invalid), "limit": 0.0, "count": len(flight.frames)}
    return {INVALID: invalid, **agreement, **of_labels, **mean_ap}, aps | metrics


def _blocks(frames: list[Frame]) -> np.ndarray:
    """Return what the bootstrap draws, int64 (F,): the flight of each frame, or itself.

    Frames of one flight are not independent; but of few flights an interval is a guess.
    """
    blocks = frame_blocks([frame.sample.path for frame in frames], FLIGHTS)
    return blocks.of_frame if blocks.unit == "flight" else np.arange(len(frames))


def _agreement(
    flight: Flight, frames: list[Frame], limits: Limits, weights: np.ndarray
) -> dict[str, dict[str, float]]:
    """Compare the reported boxes of both models; needs no labels."""
    parts = [_differences(i, frame, flight.input_wh, limits) for i, frame in enumerate(frames)]
    lost, invented, moved, grown, raised = map(_join, zip(*parts, strict=True))
    lowered = raised._replace(value=-raised.value)
    off = raised._replace(value=np.abs(raised.value) > limits.score)

    def share(boxes: Boxes, limit: float = limits.boxes) -> dict[str, float]:
        return _of_boxes(boxes, weights, limit)

    def mean(boxes: Boxes, limit: float = limits.bias, scale: float = 1) -> dict[str, float]:
        return _of_boxes(boxes, weights, limit, scale, share=False)

    gates = {}
    for name, boxes in (("boxes lost, %", lost), ("boxes invented, %", invented)):
        gates[name] = share(boxes)
        for group, members in _groups(boxes, flight.classes):
            gates[f"{name}{GROUP}{group}"] = share(members, limits.group)
    gates[f"boxes moved > {limits.moved_px:g} px, %"] = share(moved, limits.drift)
    shrunk = grown._replace(value=-grown.value)
    gates["boxes grown, mean %"] = mean(grown, limits.size, 100)
    gates["boxes shrunk, mean %"] = mean(shrunk, limits.size, 100)
    gates[f"scores off > {limits.score:g}, %"] = share(off, limits.drift)
    gates["scores lowered, mean"] = mean(lowered)
    gates["scores raised, mean"] = mean(raised)
    return gates


def _differences(
    image: int, frame: Frame, input_wh: tuple[int, int], limits: Limits
) -> tuple[Boxes, Boxes, Boxes, Boxes, Boxes]:
    """Return which boxes are lost, invented and moved, and how much sizes and scores rose."""
    file, reference = _reported(frame.file), _reported(frame.reference)
    lost = _partners(reference, _reported(frame.file, limits.score), PARTNER_IOU) < 0
    invented = _partners(file, _reported(frame.reference, limits.score), PARTNER_IOU) < 0
    # Also partners that are not reported: their scores may be what went wrong.
    partner = _partners(reference, frame.file, PARTNER_IOU)
    ours = _select(reference, partner >= 0)
    theirs = _select(frame.file, partner[partner >= 0])
    height, width = frame.sample.image.shape[:2]
    scale = min(input_wh[0] / width, input_wh[1] / height)
    distance_px = scale * np.abs(ours.xyxy - theirs.xyxy).max(axis=1, initial=0)
    return (
        _boxes(image, reference, lost),
        _boxes(image, file, invented),
        _boxes(image, ours, distance_px > limits.moved_px),
        _boxes(image, ours, np.log(_area(theirs) / _area(ours)) / 2),
        _boxes(image, ours, theirs.scores - ours.scores),
    )


def _against_labels(
    flight: Flight, frames: list[Frame], limits: Limits, weights: np.ndarray
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Compare recall, precision and F1 of both models at the thresholds of the flight."""
    parts, counts = [], np.zeros((len(frames), 5))  # labels; reported and right of both models
    for i, frame in enumerate(frames):
        labels = _labels(frame.sample)
        labels = _select(labels, np.isin(labels.class_ids, flight.to_data))
        models = (frame.reference, frame.file)
        reported = [_in_data(_reported(model), flight.to_data) for model in models]
        hits = [_partners(labels, boxes, LABEL_IOU) >= 0 for boxes in reported]
        counts[i] = [len(labels), *map(len, reported), *(hit.sum() for hit in hits)]
        parts.append(_boxes(i, labels, hits[0].astype(int) - hits[1]))
    lost = _join(parts)
    images = int((counts[:, 0] > 0).sum())
    gates: dict[str, dict[str, float]] = {}
    metrics: dict[str, float] = {}
    for k, name in enumerate(("recall", "precision", "F1")):

        def change(weights: np.ndarray, k: int = k) -> np.ndarray:
            reference, file = _label_scores(weights @ counts)[k].T
            return reference - file

        gate = judge(change, weights, limits.labels, len(lost.value), images)
        gates[f"{name} lost, %"] = gate
        if images:
            reference, file = _label_scores(counts.sum(axis=0, keepdims=True))[k][0].tolist()
            metrics |= {name.lower(): round(file, 5), f"{name.lower()}_fp32": round(reference, 5)}
    names = dict(zip(flight.to_data.tolist(), flight.classes, strict=True))
    classes = tuple(names.get(i, "") for i in range(max(names) + 1))
    for group, members in _groups(lost, classes):
        gates[f"recall lost, %{GROUP}{group}"] = _of_boxes(members, weights, limits.group)
    return gates, metrics


def _label_scores(counts: np.ndarray) -> list[np.ndarray]:
    """Return recall, precision and F1 of reference and file, each (N, 2).

    ``counts``: (N, 5), labels, reported boxes of reference and file, right ones of both.
    """
    labels, reported, right = counts[:, :1], counts[:, 1:3], counts[:, 3:]
    recall, both = _ratio(right, labels, 0.0), _ratio(2 * right, labels + reported, 0.0)
    return [recall, _ratio(right, reported, 1.0), both]


def _mean_ap(
    flight: Flight, limits: Limits, weights: np.ndarray | None
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Return mAP50-95 and mAP50 of the file; with ``weights`` also what it lost, as a gate."""
    images = [{"id": i} for i in range(len(flight.frames))]
    truth: list[dict] = []
    for i, frame in enumerate(flight.frames):
        for box, class_id in zip(frame.sample.xyxy, frame.sample.class_ids, strict=True):
            truth.append(annotation(len(truth) + 1, i, box, class_id))
    known = sorted({*flight.to_data.tolist()} - {-1})
    count = sum(label["category_id"] in known for label in truth)
    once = np.ones((1, len(images)), np.int64)

    def matches(name: str) -> Matches:
        predictions = [
            annotation(0, i, d.xyxy[k], d.class_ids[k]) | {"score": float(d.scores[k])}
            for i, frame in enumerate(flight.frames)
            for d in [_in_data(getattr(frame, name), flight.to_data)]
            for k in range(len(d))
        ]
        return Matches(images, truth, predictions, known)

    file = matches("file")
    metrics = {}
    if count:
        metrics["map50_95"] = _mean(file.precision("all", once))
        metrics["map50"] = _mean(file.precision("all", once, ious=slice(1)))
    if weights is None:
        return {}, metrics
    reference = matches("reference")
    if count:
        metrics["map50_95_fp32"] = _mean(reference.precision("all", once))

    def lost(weights: np.ndarray) -> np.ndarray:
        change = reference.precision("all", weights) - file.precision("all", weights)
        return np.ma.masked_invalid(change).mean(axis=0).filled(np.nan)

    with_objects = sum(len(frame.sample.xyxy) > 0 for frame in flight.frames)
    gate = judge(lost, weights, limits.mean_ap, count, with_objects, share=False)
    return {"mAP50-95 lost, points": gate}, metrics


def _mean(values: np.ndarray) -> float:
    return round(float(np.nanmean(values)), 5)


def _of_boxes(
    boxes: Boxes, weights: np.ndarray, limit: float, scale: float = 100, share: bool = True
) -> dict[str, float]:
    """Return the gate of the mean value of boxes."""
    images = weights.shape[1]
    total = np.bincount(boxes.image, boxes.value, images)
    count = np.bincount(boxes.image, minlength=images)

    def figure(weights: np.ndarray) -> np.ndarray:
        return _ratio(weights @ total, weights @ count, np.nan)

    return judge(figure, weights, limit, int(count.sum()), int((count > 0).sum()), scale, share)


def _groups(boxes: Boxes, classes: tuple[str, ...]) -> Iterator[tuple[str, Boxes]]:
    """Return the boxes of each class, most frequent first, and of each of `SIZES`."""
    count = np.bincount(boxes.class_id, minlength=len(classes))
    for i in np.argsort(-count, kind="stable")[:MAX_CLASSES]:
        if classes[i]:
            yield f"class {one_line(classes[i], 60)}", _members(boxes, boxes.class_id == i)
    for name, (low, high) in SIZES.items():
        yield name, _members(boxes, (boxes.area >= low) & (boxes.area < high))


def _members(boxes: Boxes, chosen: np.ndarray) -> Boxes:
    return Boxes(*(column[chosen] for column in boxes))


def _boxes(image: int, boxes: Detections, value: np.ndarray) -> Boxes:
    return Boxes(np.full(len(boxes), image), boxes.class_ids, _area(boxes), value)


def _area(boxes: Detections) -> np.ndarray:
    area: np.ndarray = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(axis=1)
    return area


def _join(parts: Iterable[Boxes]) -> Boxes:
    return Boxes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float) -> np.ndarray:
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(whole.shape, empty), where=whole > 0)


@cache
def _threshold() -> float:
    threshold: float = parameter_defaults("detector.yaml")["confidence"]
    return threshold


def _reported(detections: Detections, slack: float = 0.0) -> Detections:
    """Return what the node reports; ``slack``: also what scores this much less."""
    return _select(detections, detections.scores > _threshold() - slack)


def _select(detections: Detections, chosen: np.ndarray) -> Detections:
    columns = detections.xyxy, detections.scores, detections.class_ids
    return Detections(*(column[chosen] for column in columns))


def _in_data(detections: Detections, to_data: np.ndarray) -> Detections:
    """Return the detections of the data set's classes, with its class ids."""
    kept = _select(detections, to_data[detections.class_ids] >= 0)
    return replace(kept, class_ids=to_data[kept.class_ids])


def _labels(sample: Sample) -> Detections:
    return Detections(sample.xyxy, np.ones(len(sample.xyxy), np.float32), sample.class_ids)


def _partners(boxes: Detections, others: Detections, least: float) -> np.ndarray:
    """Return the index of each box's partner, int64 (N,); -1: no box of its class is left.

    Pairs of the largest IoU come first; each box has at most one partner.
    """
    overlap = iou(boxes.xyxy, others.xyxy)
    overlap[boxes.class_ids[:, None] != others.class_ids] = 0
    rows, columns = np.nonzero(overlap >= least)
    partner = np.full(len(boxes), -1)
    free = np.ones(len(others), bool)
    for k in np.argsort(-overlap[rows, columns], kind="stable"):
        if partner[rows[k]] < 0 and free[columns[k]]:
            partner[rows[k]], free[columns[k]] = columns[k], False
    return partner
