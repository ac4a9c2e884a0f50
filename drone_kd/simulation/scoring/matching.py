"""Which objects were found: in the frame looked at, and in the world as it was by then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from drone_kd.core.boxes import iou
from drone_kd.simulation.scoring.flight_record import Answer, Leg, Truth

FOUND_IOU = 0.5
# Stamps that differ by more from the recorder's time are of another clock.
_OTHER_CLOCK_NS = 10**9


@dataclass(frozen=True, eq=False)
class Moment:
    """One moment of ground truth, and what there was to compare it with.

    Attributes:
        stamp_ns: of the truth.
        truth: what there was to see.
        own: the answer to the frame of this very moment; None: there is none.
        held: the newest answer that was out at this moment; None: there was none yet.
        fresh: `held` came out since the moment before.
    """

    stamp_ns: int
    truth: Truth
    own: Answer | None
    held: Answer | None
    fresh: bool


def clock_offset_ns(leg: Leg) -> int:
    """What to add to a leg's stamps for the recorder's time: 0 where both clocks are one.

    Else that of the truth that arrived fastest: truth is published at its own moment.
    """
    late = np.array([at - stamp for stamp, at in leg.truths_at.items()])
    return 0 if abs(late.min()) < _OTHER_CLOCK_NS else int(late.min())


def moments(leg: Leg) -> Iterator[Moment]:
    """Pair every moment of ground truth with answers, in the order of time.

    `held` is the pairing of Li, Wang and Ramanan, "Towards Streaming Perception" (ECCV 2020): an
    answer counts from when it was out, and until the next is.
    """
    offset = clock_offset_ns(leg)
    own = {answer.stamp_ns: answer for answer in leg.answers}
    coming = iter(sorted(leg.answers, key=lambda answer: answer.at_ns))
    following, held = next(coming, None), None
    for stamp in sorted(leg.truths):
        fresh = False
        while following is not None and following.at_ns - offset <= stamp:
            held, following, fresh = following, next(coming, None), True
        yield Moment(stamp, leg.truths[stamp], own.get(stamp), held, fresh)


def match(truth: Truth, answer: Answer, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Match boxes of one class, best scores first, each with the best box that is left.

    Args:
        confidence: answers with a lower score are not looked at.

    Returns:
        found: bool (objects of the truth,); false_alarm: bool (boxes of the answer,).
    """
    found = np.zeros(len(truth.names), bool)
    sure = answer.scores >= confidence
    false_alarm = sure.copy()
    if not len(found) or not sure.any():
        return found, false_alarm
    overlap = iou(answer.xyxy, truth.xyxy)
    kinds, said = np.array(truth.names), np.array(answer.names)
    overlap[said[:, None] != kinds] = 0
    for k in np.argsort(-answer.scores, kind="stable"):
        if not sure[k]:
            continue
        free = np.where(found, 0.0, overlap[k])
        best = int(free.argmax())
        if free[best] >= FOUND_IOU:
            found[best], false_alarm[k] = True, False
    return found, false_alarm
