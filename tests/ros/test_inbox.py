"""Inbox: newest frame per camera, turns, rate limit, wake-up."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from drone_kd.ros import inbox as inbox_module
from drone_kd.ros.inbox import Frame, Inbox


def frame(camera: str = "", number: Any = 0) -> Frame:
    return Frame(camera, "/image", number, None, 0.0)


def take(inbox: Inbox, limit: int = 1, max_rate: float = 0.0) -> list[tuple[str, Any]]:
    """Return camera and number of the frames taken."""
    frames = inbox.take(limit, max_rate)
    assert frames is not None, "the inbox is closed"
    return [(frame.camera, frame.message) for frame in frames]


def test_newer_frame_replaces_the_waiting_one() -> None:
    inbox = Inbox([""])
    assert not inbox.put(frame(number=1))
    assert inbox.put(frame(number=2))
    assert take(inbox, limit=4) == [("", 2)]
    assert not inbox.put(frame(number=3))


def test_cameras_take_turns() -> None:
    inbox, served = Inbox("abc"), ""
    for _ in range(9):
        for camera in "abc":  # all are faster than the worker
            inbox.put(frame(camera))
        ((camera, _),) = take(inbox)
        served += camera
    assert served == "abcabcabc"


def test_slow_camera_is_served_before_a_fast_one() -> None:
    inbox = Inbox("ab")
    for _ in range(3):
        inbox.put(frame("a"))
        assert take(inbox) == [("a", 0)]
    inbox.put(frame("a"))
    inbox.put(frame("b"))
    assert take(inbox) == [("b", 0)]


def test_batch_holds_frames_of_several_cameras() -> None:
    inbox = Inbox("abc")
    for camera in "cba":
        inbox.put(frame(camera))
    assert take(inbox, limit=2) == [("a", 0), ("b", 0)]
    assert take(inbox, limit=2) == [("c", 0)]


def test_max_rate_delays_a_camera_and_takes_its_newest_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(inbox_module, "perf_counter", lambda: now)
    inbox, taken = Inbox([""]), []
    inbox.put(frame(number=1))
    assert take(inbox, max_rate=5) == [("", 1)]
    inbox.put(frame(number=2))
    worker = threading.Thread(target=lambda: taken.extend(take(inbox, max_rate=5)))
    worker.start()
    now = 100.19
    assert inbox.put(frame(number=3)), "number 2 was taken before its time"
    now = 100.2
    worker.join(60)
    assert taken == [("", 3)]


@pytest.mark.parametrize(
    ("arrivals", "served"),
    [
        ([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [0.0, 0.2, 0.4]),
        ([0.0, 0.25, 0.41, 0.62], [0.0, 0.25, 0.41, 0.62]),  # a late frame does not delay the next
        ([0.0, 1.0, 1.15, 1.25], [0.0, 1.0, 1.25]),  # a pause saves up no frames
    ],
)
def test_max_rate_is_met_on_average(
    arrivals: list[float], served: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(inbox_module, "perf_counter", lambda: 100.0 + now)
    inbox, taken = Inbox([""]), []
    for now in arrivals:
        inbox.put(frame(number=now))
        with inbox._condition:  # `take` would wait for a frame that is not due
            due = inbox._not_before[""] <= 100.0 + now
        if due:
            taken += [number for _, number in take(inbox, max_rate=5)]
    assert taken == served


def test_take_returns_on_wake_and_on_close() -> None:
    inbox = Inbox([""])
    taken: list[list[Frame] | None] = []
    for call, expected in ((inbox.wake, []), (inbox.close, None)):
        thread = threading.Thread(target=lambda: taken.append(inbox.take(1, 0)))
        thread.start()
        call()
        thread.join(60)
        assert taken.pop() == expected
    assert inbox.closed
    inbox.put(frame())
    assert inbox.take(1, 0) is None
    assert len(inbox.clear()) == 1


def test_rate_of_nearly_zero_waits_until_it_is_changed() -> None:
    inbox, taken = Inbox([""]), []
    inbox.put(frame(number=1))
    assert take(inbox, max_rate=5e-324) == [("", 1)]
    inbox.put(frame(number=2))
    worker = threading.Thread(target=lambda: taken.append(inbox.take(1, 5e-324)))
    worker.start()
    inbox.wake()
    worker.join()
    # The old rate must not hold back the next frame.
    assert taken == [[]]
    assert take(inbox) == [("", 2)]
    inbox.put(frame(number=3))
    assert take(inbox) == [("", 3)]
