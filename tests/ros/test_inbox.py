import threading
import time

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from drone_kd.ros.inbox import Frame, Inbox


def frame(camera="", number=0):
    return Frame(camera, number, None, 0.0)


def cameras_and_numbers(frames):
    return [(f.camera, f.message) for f in frames]


def test_a_newer_frame_replaces_the_one_that_waits():
    inbox = Inbox([""])
    assert not inbox.put(frame(number=1))
    assert inbox.put(frame(number=2))
    assert cameras_and_numbers(inbox.take(4, 0)) == [("", 2)]
    assert not inbox.put(frame(number=3))


def test_cameras_take_turns():
    inbox, served = Inbox("abc"), []
    for _ in range(9):
        for camera in "abc":  # all of them are faster than the worker
            inbox.put(frame(camera))
        served += [f.camera for f in inbox.take(1, 0)]
    assert served == list("abcabcabc")


def test_a_slow_camera_does_not_wait_for_a_fast_one():
    inbox = Inbox("ab")
    for _ in range(3):
        inbox.put(frame("a"))
        assert [f.camera for f in inbox.take(1, 0)] == ["a"]
    inbox.put(frame("a"))
    inbox.put(frame("b"))
    assert [f.camera for f in inbox.take(1, 0)] == ["b"]


def test_a_batch_takes_several_cameras():
    inbox = Inbox("abc")
    for camera in "cba":
        inbox.put(frame(camera))
    assert [f.camera for f in inbox.take(2, 0)] == ["a", "b"]
    assert [f.camera for f in inbox.take(2, 0)] == ["c"]


def test_max_rate_holds_a_camera_back_and_takes_its_newest_frame():
    inbox = Inbox([""])
    inbox.put(frame(number=1))
    inbox.take(1, max_rate=5)
    start = time.perf_counter()
    inbox.put(frame(number=2))
    timer = threading.Timer(0.05, inbox.put, [frame(number=3)])
    timer.start()
    assert cameras_and_numbers(inbox.take(1, max_rate=5)) == [("", 3)]
    assert time.perf_counter() - start >= 0.15
    timer.join()


def test_take_wakes_up():
    inbox = Inbox([""])
    taken = []
    for call, expected in ((inbox.wake, []), (inbox.close, None)):
        thread = threading.Thread(target=lambda: taken.append(inbox.take(1, 0)))
        thread.start()
        call()
        thread.join(timeout=5)
        assert not thread.is_alive()
        assert taken.pop() == expected
    assert inbox.closed
    inbox.put(frame())
    assert inbox.take(1, 0) is None
    assert len(inbox.clear()) == 1
