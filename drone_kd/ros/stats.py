"""Outcome counts and stage times of a camera's frames."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

import numpy as np

from drone_kd.ros.drop_reasons import DROPS, SUPERSEDED

# Rates and percentiles cover this window.
WINDOW_SECONDS = 10.0

# transport: stamp to reception; wait: for the worker; decode: message to BGR; prepare, infer,
# post: of the whole batch; publish; total: stamp to publication.
STAGES = ("transport", "wait", "decode", "prepare", "infer", "post", "publish", "total")

PROCESSED = "processed"


@dataclass(frozen=True)
class CameraReport:
    """A camera's state at one moment."""

    received: int  # frames since activation
    processed: int  # frames published
    dropped: Mapping[str, int]  # frames not published, by reason
    recent: Mapping[str, int]  # the same outcomes within the window
    rate_hz: float  # frames published per second within the window
    silent_s: float  # since the last frame, or since activation before the first one
    pending_s: (
        float  # since a frame came, or the last one's outcome, without another; 0: none waits
    )
    stages: Mapping[str, tuple[float, float, float]]  # measured ones: p50, p95, p99 in ms
    last_problem: str = ""  # why a frame was last unreadable or failed, one line

    def __str__(self) -> str:
        drops = "".join(f", {count} {reason}" for reason, count in self.dropped.items() if count)
        return f"{self.received} images received, {self.processed} published{drops}"


class CameraStats:
    """Counts the frames of a camera; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._received = 0
        self._outcomes: Counter[str] = Counter()
        self._events: deque[tuple[float, str, Mapping[str, float]]] = deque()
        self._started = self._last_received = monotonic()
        self._pending_since: float | None = None
        self._last_problem = ""

    def resume(self) -> None:
        """Start to wait for frames after a time in which none were received on purpose."""
        with self._lock:
            self._started = self._last_received = monotonic()
            self._pending_since = None

    def count_received(self) -> None:
        """Count a received frame."""
        with self._lock:
            self._received += 1
            self._last_received = monotonic()
            if self._pending_since is None:
                self._pending_since = self._last_received

    def discount(self) -> None:
        """Take back a received message that holds no frame."""
        with self._lock:
            self._received -= 1
            if self._received <= self._outcomes.total():
                self._pending_since = None

    def count_drop(self, reason: str, problem: str = "") -> int:
        """Count a frame dropped for one of `DROPS`; return that reason's count.

        `problem` is a line that says more, if the frame or the model is to blame.
        """
        self._last_problem = problem or self._last_problem
        return self._count(reason, {})

    def count_processed(self, stages_ms: Mapping[str, float]) -> None:
        """Count a published frame with its stage times in ms."""
        self._count(PROCESSED, stages_ms)

    def _count(self, outcome: str, stages_ms: Mapping[str, float]) -> int:
        now = monotonic()
        with self._lock:
            self._outcomes[outcome] += 1
            self._events.append((now, outcome, stages_ms))
            if outcome != SUPERSEDED:  # which says nothing about the worker
                more = self._received > self._outcomes.total()
                self._pending_since = now if more else None
            self._forget(now)
            return self._outcomes[outcome]

    def _forget(self, now: float) -> None:
        while self._events and self._events[0][0] < now - WINDOW_SECONDS:
            self._events.popleft()

    def report(self) -> CameraReport:
        """Return the current state."""
        now = monotonic()
        with self._lock:
            self._forget(now)
            events = list(self._events)
            outcomes = Counter(self._outcomes)
            received, last_received = self._received, self._last_received
            pending_since = self._pending_since
        recent = Counter(outcome for _, outcome, _ in events)
        stages = {}
        for stage in STAGES:
            times = [times[stage] for _, _, times in events if stage in times]
            if times:
                stages[stage] = tuple(np.percentile(times, (50, 95, 99)).tolist())
        dropped = {reason: outcomes[reason] for reason in DROPS}
        rate_hz = recent[PROCESSED] / max(min(WINDOW_SECONDS, now - self._started), 1.0)
        silent_s = now - last_received
        pending_s = 0.0 if pending_since is None else now - pending_since
        return CameraReport(
            received,
            outcomes[PROCESSED],
            dropped,
            recent,
            rate_hz,
            silent_s,
            pending_s,
            stages,
            self._last_problem,
        )
