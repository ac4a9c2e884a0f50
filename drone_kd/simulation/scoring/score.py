"""Score of a flight, offline and streaming.

offline    every frame with predictions, against its own ground truth, as in published benchmarks
streaming  every moment, against the newest predictions that had arrived
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from drone_kd.metrics import SIZES, annotation, mean_precision, precision
from drone_kd.simulation.scoring.flight_record import Flight, FlightError, Leg, Predictions, Truth
from drone_kd.simulation.scoring.matching import (
    Moment,
    clock_offset_ns,
    latencies_ms,
    match,
    moments,
)

# A longer gap in a topic becomes a note.
_SILENCE_S = 1.0
# Of the ground truth: each takes an evaluation of its own.
_MAX_CLASSES = 1000


def score(flight: Flight, confidence: float = 0.25) -> dict:
    """Score a flight.

    `confidence` is the least score of a prediction for recall, false alarms and the time to the
    first detection; average precision uses all predictions.

    Returns:
        The dict below. "offline" and "streaming" hold "map50_95", "map50", "ap50", "recall",
        "recall_SIZE" (0 to 1, None if undefined), "false_alarms_per_minute" and
        "first_detection_s".

    Raises:
        FlightError: there is nothing to score, with the reason.
    """
    legs = [leg for leg in flight.legs if leg.truths]
    if not legs:
        raise FlightError("the flight is empty: no ground truth was recorded")
    known, unknown = _classes(flight, legs)
    notes = [*flight.notes, *_notes(legs)]
    if unknown:
        notes.append(f"the detector does not know {', '.join(unknown)}: left out")
    timed = [list(moments(_of_classes(leg, known))) for leg in legs]
    everything = [moment for leg in timed for moment in leg]
    processed = [moment for moment in everything if moment.own is not None]
    if not processed and any(leg.predictions for leg in legs):
        notes.append(_no_common_stamp(legs))
    seconds = sum((leg[-1].stamp_ns - leg[0].stamp_ns) / 1e9 for leg in timed)
    truths = [moment.truth for moment in everything]
    return {
        "confidence": confidence,
        "seconds": round(seconds, 3),
        "moments": len(everything),
        "objects": sum(len(truth.names) for truth in truths),
        "tracks": len({i for truth in truths for i in truth.ids if i}),
        "classes": known,
        "classes_not_in_detector": unknown,
        "offline": {
            **_precision([(m.truth, m.own) for m in processed], known),
            **_found(timed, lambda m: m.own, lambda m: m.own is not None, confidence, seconds),
        },
        "streaming": {
            **_precision([(m.truth, m.latest) for m in everything], known),
            **_found(timed, lambda m: m.latest, lambda m: m.fresh, confidence, seconds, True),
        },
        "latency_ms": _percentiles(latencies_ms(legs)),
        "age_ms": _percentiles(
            [(m.stamp_ns - m.latest.stamp_ns) / 1e6 for m in everything if m.latest is not None]
        ),
        "frames": _frames(legs, len(processed), seconds),
        "notes": notes,
        "timeline": _timeline(timed, confidence),
    }


def _classes(flight: Flight, legs: list[Leg]) -> tuple[list[str], list[str]]:
    """Return the classes of the ground truth that the detector knows, and the unknown ones."""
    present = sorted({_key(n) for leg in legs for t in leg.truths.values() for n in t.names})
    if len(present) > _MAX_CLASSES:
        raise FlightError(f"expected at most {_MAX_CLASSES} classes, got {len(present)}")
    predicted = {_key(n) for leg in legs for p in leg.predictions for n in p.names}
    able = {_key(name) for name in flight.classes} | predicted
    if not able:  # no message at all: every object counts as missed
        return present, []
    known = [name for name in present if name in able]
    if present and not known:
        raise FlightError(
            f"no class in common: the ground truth has {', '.join(present)}; the detector knows "
            f"{', '.join(sorted(able))}"
        )
    return known, [name for name in present if name not in able]


def _key(name: str) -> str:
    return name.strip().lower()


def _of_classes(leg: Leg, known: list[str]) -> Leg:
    """Return the leg with normalised names and without objects of unknown classes."""

    def truth(t: Truth) -> Truth:
        names = [_key(name) for name in t.names]
        keep = [i for i, name in enumerate(names) if name in known]
        return Truth(t.xyxy[keep], tuple(names[i] for i in keep), tuple(t.ids[i] for i in keep))

    return Leg(
        {stamp: truth(t) for stamp, t in leg.truths.items()},
        leg.truths_at,
        leg.frames,
        [replace(p, names=tuple(map(_key, p.names))) for p in leg.predictions],
    )


def _precision(pairs: list[tuple[Truth, Predictions | None]], known: list[str]) -> dict:
    """Average precision over pairs of ground truth and predictions; None: no predictions."""
    number = {name: i for i, name in enumerate(known)}
    images: list[dict] = []
    objects: list[dict] = []
    found: list[dict] = []
    for image_id, (truth, predictions) in enumerate(pairs):
        images.append({"id": image_id})
        for box, name in zip(truth.xyxy, truth.names, strict=True):
            objects.append(annotation(len(objects) + 1, image_id, box, number[name]))
        if predictions is None:
            continue
        columns = predictions.xyxy, predictions.scores, predictions.names
        for box, value, name in zip(*columns, strict=True):
            if name in number:
                found.append({**annotation(0, image_id, box, number[name]), "score": float(value)})
    if not objects:
        return {"map50_95": None, "map50": None, "ap50": {}}
    try:
        values = precision(images, objects, found, list(number.values()))
    except ImportError:
        raise FlightError(
            "average precision needs pycocotools: pip install 'drone_kd[simulation]'"
        ) from None
    return {
        "map50_95": mean_precision(values["all"]),
        "map50": mean_precision(values["all"][:1]),
        "ap50": {name: mean_precision(values["all"][:1, ..., i]) for name, i in number.items()},
    }


def _found(
    timed: list[list[Moment]],
    predictions_of: Callable[[Moment], Predictions | None],
    count_alarms: Callable[[Moment], bool],
    confidence: float,
    seconds: float,
    count_without: bool = False,
) -> dict:
    """Recall, false alarms and time to the first detection, over the moments of each leg.

    `count_alarms`: whether false alarms count at this moment, so that each counts once;
    `count_without`: objects of a moment without predictions are missed; else left out.
    """
    areas, hits, alarms = [], [], 0
    first_seen: dict[tuple[int, str], int] = {}
    first_found: dict[tuple[int, str], int] = {}
    for number, leg in enumerate(timed):
        for moment in leg:
            predictions, truth = predictions_of(moment), moment.truth
            for track in filter(None, truth.ids):
                first_seen.setdefault((number, track), moment.stamp_ns)
            found = np.zeros(len(truth.names), bool)
            if predictions is not None:
                found, false_alarm = match(truth, predictions, confidence)
                alarms += int(false_alarm.sum()) if count_alarms(moment) else 0
                for i in np.flatnonzero(found):
                    if truth.ids[i]:
                        first_found.setdefault((number, truth.ids[i]), moment.stamp_ns)
            elif not count_without:
                continue
            hits.append(found)
            areas.append((truth.xyxy[:, 2:] - truth.xyxy[:, :2]).prod(1))
    hit = np.concatenate([*hits, np.zeros(0, bool)])
    area = np.concatenate([*areas, np.zeros(0)])
    waits = [(at - first_seen[track]) / 1e9 for track, at in first_found.items()]
    return {
        "recall": _share(hit),
        **{
            f"recall_{size}": _share(hit[(area >= low) & (area < high)])
            for size, (low, high) in SIZES.items()
        },
        "false_alarms_per_minute": round(60 * alarms / seconds, 2) if seconds else None,
        "first_detection_s": {
            **_percentiles(waits, digits=3),
            "tracks": len(first_seen),
            "never": len(first_seen) - len(first_found),
        },
    }


def _share(hit: np.ndarray) -> float | None:
    return round(float(hit.mean()), 5) if len(hit) else None


def _percentiles(values: list[float], digits: int = 1) -> dict:
    if not values:
        return {"p50": None, "p95": None, "p99": None}
    found = np.percentile(values, (50, 95, 99)).round(digits).tolist()
    return dict(zip(("p50", "p95", "p99"), found, strict=True))


def _frames(legs: list[Leg], processed: int, seconds: float) -> dict:
    """Count frames; how many the camera delivered is None without camera_info."""
    due = sum(len(leg.truths) for leg in legs)
    known = any(leg.frames for leg in legs)
    delivered = sum(len(leg.frames & leg.truths.keys()) for leg in legs)
    return {
        "due": due,
        "rate_hz": round((due - len(legs)) / seconds, 1) if seconds else None,
        "not_delivered": due - delivered if known else None,
        "delivered": delivered if known else None,
        "processed": processed,
        "unprocessed": max((delivered if known else due) - processed, 0),
        "results_without_truth": sum(
            p.stamp_ns not in leg.truths for leg in legs for p in leg.predictions
        ),
    }


def _notes(legs: list[Leg]) -> list[str]:
    """Return irregularities, one line each; times are seconds since the start of the flight."""
    notes = []
    if not any(leg.predictions for leg in legs):
        notes.append("the detector published nothing")
    if not any(leg.frames for leg in legs):
        notes.append("no camera_info was recorded: what the camera delivered is not known")
    passed_s = 0.0
    for leg in legs:
        stamps = np.array(sorted(leg.truths))
        start, length_s = stamps[0], (stamps[-1] - stamps[0]) / 1e9
        if offset := clock_offset_ns(leg):
            notes.append(
                f"stamps are of another clock, {offset / 1e9:.1f} s behind: latency is counted "
                "from the fastest ground truth message"
            )
        delivered = np.array(sorted(leg.frames & leg.truths.keys()))
        for frm, length in _silences(delivered, start, stamps[-1]):
            notes.append(
                f"the camera delivered nothing for {length:.1f} s, from {passed_s + frm:.1f} s on"
            )
        if leg is legs[-1] and len(delivered) and any(leg.predictions for leg in legs):
            last = max((p.stamp_ns for p in leg.predictions), default=start)
            silent_s = (delivered[-1] - last) / 1e9
            if silent_s > _SILENCE_S:
                notes.append(
                    f"the detector fell silent {passed_s + (last - start) / 1e9:.1f} s after the "
                    f"start, {silent_s:.1f} s before the camera's last frame: did it die?"
                )
        passed_s += length_s
    return notes


def _silences(stamps: np.ndarray, start: int, end: int) -> list[tuple[float, float]]:
    """Return start (seconds since `start`) and length of gaps longer than _SILENCE_S."""
    if not len(stamps):
        return []
    edges = np.concatenate([[start], stamps, [end]])
    gaps = np.diff(edges) / 1e9
    return [((edges[i] - start) / 1e9, gaps[i]) for i in np.flatnonzero(gaps > _SILENCE_S)]


def _no_common_stamp(legs: list[Leg]) -> str:
    truth = [stamp for leg in legs for stamp in leg.truths]
    found = [p.stamp_ns for leg in legs for p in leg.predictions]
    spans = (f"{min(stamps) / 1e9:.3f} to {max(stamps) / 1e9:.3f} s" for stamps in (truth, found))
    return (
        "no detection has a stamp of the ground truth, so there is no offline score: truth {}, "
        "detections {}: are both of one camera?"
    ).format(*spans)


def _timeline(timed: list[list[Moment]], confidence: float) -> list[dict]:
    """Return objects, detected objects and age of the predictions, second by second."""
    seconds: dict[int, dict] = {}
    passed_s = 0.0
    for leg in timed:
        for moment in leg:
            at = int(passed_s + (moment.stamp_ns - leg[0].stamp_ns) / 1e9)
            row = seconds.setdefault(
                at, {"t_s": at, "objects": 0, "processed": 0, "offline": 0, "streaming": 0}
            )
            row["objects"] += len(moment.truth.names)
            if moment.own is not None:
                row["processed"] += len(moment.truth.names)
                row["offline"] += int(match(moment.truth, moment.own, confidence)[0].sum())
            if moment.latest is not None:
                row["streaming"] += int(match(moment.truth, moment.latest, confidence)[0].sum())
                age = (moment.stamp_ns - moment.latest.stamp_ns) / 1e6
                row["age_ms"] = round(max(row.get("age_ms", 0.0), age), 1)
        passed_s += (leg[-1].stamp_ns - leg[0].stamp_ns) / 1e9
    return [seconds[at] for at in sorted(seconds)]
