"""Progress of long work: one line that updates in place on a terminal, a line every 10 s in a log.

    for path in track(paths, "Evaluate val", unit="frame"):
        ...
    with Progress("Train", total=steps, unit="batch") as progress:
        progress.update(note=f"loss {loss:.2f}")

tqdm does not fit: it is no on-board requirement, and in a log it joins its updates by carriage
returns instead of writing lines.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import ClassVar, TextIO, TypeVar

LOG_INTERVAL_S = 10.0
TERMINAL_INTERVAL_S = 0.1
_ERASE = "\r\x1b[K"

T = TypeVar("T")


class Progress:
    """Progress line of one task on stderr; of nested tasks only the innermost one is shown.

    A task that takes less than `LOG_INTERVAL_S` leaves nothing behind. A longer one leaves its
    count and its duration.

    Args:
        what: the task, such as "Evaluate val".
        unit: singular noun, such as "frame".
        done: units that an earlier run finished; they do not count for the rate.
        summary: leave a line at the end of long work; False if the caller prints its own.
        clock: monotonic seconds.
    """

    _active: ClassVar[list[Progress]] = []

    def __init__(
        self,
        what: str,
        total: float | None = None,
        unit: str = "step",
        done: float = 0,
        summary: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.note = ""
        self._before, self._summary, self._clock = done, summary, clock
        self._terminal = is_terminal(sys.stderr)
        self._started = self._shown_at = clock()
        if self._terminal:
            self._shown_at -= TERMINAL_INTERVAL_S

    def __enter__(self) -> Progress:
        erase_line()
        Progress._active.append(self)
        self._show()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        erase_line()
        Progress._active.remove(self)
        seconds = self._clock() - self._started
        finished = kind is None and self._summary and not Progress._active
        if finished and seconds >= LOG_INTERVAL_S:
            line = f"{self.what}: {_count(self.done, self.unit)} in {duration(seconds)}"
            print(line, file=sys.stderr, flush=True)

    def update(self, done: float = 1, note: str | None = None) -> None:
        """Add finished units, and replace the note at the end of the line."""
        self.done += done
        if note is not None:
            self.note = note
        self._show()

    def line(self) -> str:
        """Return "what: done/total units, rate, time left, note" as far as these are known."""
        parts = [_count(self.done, self.unit)]
        if self.total is not None:
            parts = [f"{self.done:.0f}/{_count(self.total, self.unit)}"]
        new, seconds = self.done - self._before, self._clock() - self._started
        timed = self.unit == "s"
        if new > 0 and seconds > 0:
            if not timed:
                parts.append(_rate(new / seconds, self.unit))
            if self.total is not None:
                left = max(self.total - self.done, 0) * (1 if timed else seconds / new)
                parts.append(f"{duration(left)} left")
        return f"{self.what}: {', '.join([*parts, *filter(None, [self.note])])}"

    def _show(self) -> None:
        interval = TERMINAL_INTERVAL_S if self._terminal else LOG_INTERVAL_S
        if Progress._active[-1:] != [self] or self._clock() - self._shown_at < interval:
            return
        self._shown_at = self._clock()
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"{_ERASE}{self.line()[:width]}", end="", file=sys.stderr, flush=True)
        else:
            print(self.line(), file=sys.stderr, flush=True)


def track(
    items: Iterable[T], what: str, unit: str = "step", total: float | None = None
) -> Iterator[T]:
    """Yield the items and show the progress; ``total`` defaults to their number if known."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()


def erase_line() -> None:
    """Erase the progress line before other output on the terminal; the next update redraws it."""
    if Progress._active and is_terminal(sys.stderr):
        print(_ERASE, end="", file=sys.stderr, flush=True)


def print_line(text: str = "", stream: TextIO | None = None) -> None:
    """Print a line to ``stream`` (default: stdout) without mixing it with the progress line."""
    erase_line()
    print(text, file=stream or sys.stdout, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether a line on this stream can be updated in place."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def duration(seconds: float) -> str:
    """Return "34 s", "2:05 min" or "1:02:05 h"."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def _count(number: float, unit: str) -> str:
    return f"{number:.0f} {unit if unit == 's' or number == 1 else _plural(unit)}"


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith(("ch", "sh", "s")) else f"{unit}s"


def _rate(per_second: float, unit: str) -> str:
    if per_second >= 1:
        return f"{_short(per_second)} {_plural(unit)}/s"
    return f"{_short(1 / per_second)} s/{unit}"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
