# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cost of the teacher during training, in time and memory."""

from __future__ import annotations

import time
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5)


class Cost:
    """Measures what runs inside ``with cost:``; the memory only the first time.

    Memory is counted on top of what was in use before: on a GPU as torch counts it, on a CPU as
    resident memory of the process (Linux only).
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds = 0.0
        self.times = 0
        self.peak_mb: float | None = None

    def __enter__(self) -> None:
        if self.times == 0:
            self._before = self._peak_memory_mb(reset=True)
        if self.cuda:
            torch.cuda.synchronize()
        self._started = time.perf_counter()

    def __exit__(self, *_) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started
        if self.times == 0 and self._before is not None:
            peak = self._peak_memory_mb() or 0.0
            # The kernel's count of resident pages is a few pages late.
            self.peak_mb = max(0.0, round(peak - self._before, 1))
        self.times += 1

    def _peak_memory_mb(self, reset: bool = False) -> float | None:
        """Return the peak of memory in use since the last reset, None if it is not known."""
        if self.cuda:
            if reset:
                torch.cuda.reset_peak_memory_stats()
            return torch.cuda.max_memory_allocated() / 2**20
        try:
            if reset:
                _CLEAR.write_text(_RESET_PEAK)
            lines = _STATUS.read_text().splitlines()
        except OSError:  # not Linux, or not allowed
            return None
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

    def figures(self, seconds: float) -> dict:
        """Return ``seconds_per_batch``, ``share`` of the training, ``peak_mb`` and a ``text``.

        ``seconds`` is the duration of the whole training.
        """
        share = self.seconds / seconds if seconds else 0.0
        each = self.seconds / max(self.times, 1)
        memory = "" if self.peak_mb is None else f", peak memory {self.peak_mb:.0f} MB"
        return {
            "seconds_per_batch": round(each, 4),
            "share": round(share, 3),
            "peak_mb": self.peak_mb,
            "text": f"teacher: {each:.3f} s per batch, {100 * share:.0f} % of the time{memory}",
        }
