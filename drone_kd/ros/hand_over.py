"""Hand-over from a subscription to the one that replaces it: no message is lost or repeated."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any


class HandOver:
    """Passes on the messages of two subscriptions to one topic until the new one is complete.

    A new subscription misses what is published before the publisher knows it. So both receive for
    a while; what the new one receives waits until the same message has come by the old one, which
    may be in arrears. All methods are called by the executor's thread.

    Args:
        deliver: called with each message, in order.
        end: called once: the old subscription is no longer needed.
        limit: so many messages of the new one wait; 1: none does, and those in arrears are lost.
    """

    def __init__(
        self, deliver: Callable[[Any], None], end: Callable[[], None], limit: int
    ) -> None:
        self._deliver, self._end, self._limit = deliver, end, limit
        self._old: deque[Any] = deque(maxlen=limit)  # delivered
        self._new: list[Any] = []  # they wait
        self._is_over = False

    def receive_old(self, message: Any) -> None:
        """Receive a message by the old subscription."""
        if self._is_over:
            return
        if message in self._new:
            self.finish()
            return
        self._old.append(message)
        self._deliver(message)

    def receive_new(self, message: Any) -> None:
        """Receive a message by the new subscription."""
        if message in self._old:
            self._new.clear()  # older than this one
            if message == self._old[-1]:
                self.finish()
        elif self._is_over:
            self._old.clear()
            self._deliver(message)
        else:
            self._new.append(message)
            if len(self._new) == self._limit:  # the old one receives nothing
                self.finish()

    def finish(self) -> None:
        """End the old subscription, and deliver what waits."""
        if self._is_over:
            return
        self._is_over = True
        self._end()
        waiting, self._new = self._new, []
        for message in waiting:
            self._deliver(message)
