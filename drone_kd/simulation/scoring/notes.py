"""Irregularities of a flight, one line each."""

from __future__ import annotations

import numpy as np

from drone_kd.simulation.scoring.flight_record import Leg
from drone_kd.simulation.scoring.matching import clock_offset_ns

# A longer gap in a topic becomes a note.
_SILENCE_S = 1.0


def notes_of(legs: list[Leg]) -> list[str]:
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


def no_common_stamp(legs: list[Leg]) -> str:
    """Return the note of a flight whose predictions are of other frames."""
    truth = [stamp for leg in legs for stamp in leg.truths]
    found = [p.stamp_ns for leg in legs for p in leg.predictions]
    spans = (f"{min(stamps) / 1e9:.3f} to {max(stamps) / 1e9:.3f} s" for stamps in (truth, found))
    return (
        "no detection has a stamp of the ground truth, so there is no offline score: truth {}, "
        "detections {}: are both of one camera?"
    ).format(*spans)
