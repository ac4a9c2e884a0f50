"""Score of a flight, offline and streaming.

offline    every frame with predictions, against its own ground truth, as in published benchmarks
streaming  every 10 ms, the true tracks against the newest predictions that had arrived
sap        every frame, its ground truth against the newest predictions that had arrived: the
           pairing of Li, Wang and Ramanan, "Towards Streaming Perception" (ECCV 2020)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from drone_kd.metrics import annotation, mean_precision, precision
from drone_kd.simulation.scoring.counts import TimedLeg, count_legs
from drone_kd.simulation.scoring.flight_record import Flight, FlightError, Leg, Predictions, Truth
from drone_kd.simulation.scoring.matching import (
    Moment,
    clock_offset_ns,
    grid_moments,
    latencies_ms,
    match,
    moments,
)
from drone_kd.simulation.scoring.notes import no_common_stamp, notes_of
from drone_kd.simulation.scoring.tracks import TrueTracks

# Average precision uses each seventh moment of the grid: 70 ms have another phase against the
# usual frame rates each time, so that all ages of the predictions occur.
_PRECISION_STEP = 7
# Of the ground truth: each takes an evaluation of its own.
_MAX_CLASSES = 1000


def score(flight: Flight, confidence: float = 0.25) -> dict:
    """Score a flight.

    `confidence` is the least score of a prediction for recall, false alarms and the time to the
    first detection; average precision uses all predictions.

    Returns:
        The dict below; docs/guides/simulate.md describes it. "offline", "streaming" and "sap" have
        the same keys.

    Raises:
        FlightError: there is nothing to score, with the reason.
    """
    legs = [leg for leg in flight.legs if leg.truths]
    if not legs:
        raise FlightError("the flight is empty: no ground truth was recorded")
    known, unknown = _classes(flight, legs)
    notes = [*flight.notes, *notes_of(legs)]
    if unknown:
        notes.append(f"the detector does not know {', '.join(unknown)}: left out")
    legs = [_of_classes(leg, known) for leg in legs]
    tracks = [TrueTracks(leg) for leg in legs]
    if not any(track for leg in legs for truth in leg.truths.values() for track in truth.ids):
        notes.append("no track ids: streaming is scored at the times of the camera's frames")
    framed = [TimedLeg(list(moments(leg)), t) for leg, t in zip(legs, tracks, strict=True)]
    timed = [TimedLeg(list(grid_moments(leg, t)), t) for leg, t in zip(legs, tracks, strict=True)]
    frames = [moment for leg in framed for moment in leg.moments]
    grid = [moment for leg in timed for moment in leg.moments]
    processed = [moment for moment in frames if moment.own is not None]
    if not processed and any(leg.predictions for leg in legs):
        notes.append(no_common_stamp(legs))
    seconds = sum((leg.moments[-1].stamp_ns - leg.moments[0].stamp_ns) / 1e9 for leg in framed)
    sparse = grid[::_PRECISION_STEP] if len(grid) > len(frames) else grid
    return {
        "confidence": confidence,
        "seconds": round(seconds, 3),
        "moments": len(grid),
        "objects": sum(int((~m.truth.ignored).sum()) for m in frames),
        "ignored": sum(int(m.truth.ignored.sum()) for m in frames),
        "tracks": len({i for m in frames for i in m.truth.ids if i}),
        "classes": known,
        "classes_not_in_detector": unknown,
        "offline": {
            **_precision([(m.truth, m.own) for m in processed], known),
            **count_legs(framed, lambda m: m.own, lambda _: True, confidence, seconds),
        },
        "streaming": {
            **_precision([(m.truth, m.latest) for m in sparse], known),
            **count_legs(timed, lambda m: m.latest, lambda m: m.fresh, confidence, seconds, True),
        },
        "sap": {
            **_precision([(m.truth, m.latest) for m in frames], known),
            **count_legs(framed, lambda m: m.latest, lambda m: m.fresh, confidence, seconds, True),
        },
        "latency_ms": _percentiles(latencies_ms(legs)),
        "age_ms": _percentiles(
            [(m.stamp_ns - m.latest.stamp_ns) / 1e6 for m in grid if m.latest is not None]
        ),
        "frames": _frames(flight, legs, len(processed), seconds),
        "notes": notes,
        "timeline": _timeline(framed, timed, confidence),
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
        ids = tuple(t.ids[i] for i in keep)
        return Truth(t.xyxy[keep], tuple(names[i] for i in keep), ids, t.ignored[keep])

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
        for box, name, ignored in zip(truth.xyxy, truth.names, truth.ignored, strict=True):
            added = annotation(len(objects) + 1, image_id, box, number[name])
            # pycocotools ignores a "crowd", and what has half of its area in it.
            objects.append({**added, "iscrowd": int(ignored)})
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


def _percentiles(values: list[float], digits: int = 1) -> dict:
    if not values:
        return {"p50": None, "p95": None, "p99": None}
    found = np.percentile(values, (50, 95, 99)).round(digits).tolist()
    return dict(zip(("p50", "p95", "p99"), found, strict=True))


def _frames(flight: Flight, legs: list[Leg], processed: int, seconds: float) -> dict:
    """Count frames, and tell how late they were; None: not known.

    What the camera delivered needs camera_info, what was not made in time the rate asked for. The
    real-time factor is the time of the stamps over that of the recorder's clock.
    """
    due = sum(len(leg.truths) for leg in legs)
    known = any(leg.frames for leg in legs)
    delivered = sum(len(leg.frames & leg.truths.keys()) for leg in legs)
    asked = None
    if flight.rate_hz is not None:
        asked = sum(round(_span_ns(leg.truths) / 1e9 * flight.rate_hz) + 1 for leg in legs)
    delays = [
        (at - stamp - offset) / 1e6
        for leg in legs
        for offset in [clock_offset_ns(leg)]
        for stamp, at in leg.truths_at.items()
    ]
    passed_s = sum(_span_ns(leg.truths_at.values()) for leg in legs) / 1e9
    return {
        "due": due,
        "rate_hz": round((due - len(legs)) / seconds, 1) if seconds else None,
        "asked_hz": flight.rate_hz,
        "not_made": None if asked is None else max(asked - due, 0),
        "delay_ms": _percentiles(delays),
        "real_time_factor": round(seconds / passed_s, 3) if passed_s > 0 else None,
        "not_delivered": due - delivered if known else None,
        "delivered": delivered if known else None,
        "processed": processed,
        "unprocessed": max((delivered if known else due) - processed, 0),
        "results_without_truth": sum(
            p.stamp_ns not in leg.truths for leg in legs for p in leg.predictions
        ),
    }


def _span_ns(times: Iterable[int]) -> int:
    """Return the time between the first and the last of some times, one at least."""
    ordered = list(times)
    return ordered[-1] - ordered[0]


def _timeline(framed: list[TimedLeg], timed: list[TimedLeg], confidence: float) -> list[dict]:
    """Return boxes, detected boxes and age of the predictions, second by second.

    "processed" and "offline" are of the frames, "objects" and "streaming" of the streaming score.
    """
    seconds: dict[int, dict] = {}
    passed_s = 0.0
    for frames, leg in zip(framed, timed, strict=True):
        start = frames.moments[0].stamp_ns

        def row(moment: Moment, start: int = start, passed_s: float = passed_s) -> dict:
            at = int(passed_s + (moment.stamp_ns - start) / 1e9)
            empty = {"t_s": at, "objects": 0, "processed": 0, "offline": 0, "streaming": 0}
            return seconds.setdefault(at, empty)

        for moment in frames.moments:
            if moment.own is not None:
                row(moment)["processed"] += int((~moment.truth.ignored).sum())
                row(moment)["offline"] += int(
                    match(moment.truth, moment.own, confidence).found.sum()
                )
        for moment in leg.moments[::_PRECISION_STEP]:
            second = row(moment)
            second["objects"] += int((~moment.truth.ignored).sum())
            if moment.latest is not None:
                found = match(moment.truth, moment.latest, confidence).found
                second["streaming"] += int(found.sum())
                age = (moment.stamp_ns - moment.latest.stamp_ns) / 1e6
                second["age_ms"] = round(max(second.get("age_ms", 0.0), age), 1)
        passed_s += (frames.moments[-1].stamp_ns - start) / 1e9
    return [seconds[at] for at in sorted(seconds)]
