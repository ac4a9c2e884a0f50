from itertools import islice

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from drone_kd.simulation.camera_frames import FramesAhead, NumberedFrame, generated, in_time
from drone_kd.simulation.replay import LabelledFrame
from drone_kd.simulation.scene import FlightPlan, SceneFrames

IMAGE = LabelledFrame(np.zeros((2, 2, 3), np.uint8), None)


@pytest.mark.parametrize("scene", ["", "highway"])
def test_a_scene_depends_on_the_time_alone(scene):
    one, other = (SceneFrames(FlightPlan(1, 160, 120, fps, scene)) for fps in (5, 60))
    late = one.at(3.5, 2)
    assert late.t_s == 3.5
    assert (late.image == other.at(3.5, 2).image).all()
    other.at(0.0)  # earlier times come later
    again = other.at(3.5, 1)
    assert (again.xyxy == late.xyxy).all() and (again.image != late.image).any()


def test_a_generated_frame_that_is_late_is_that_of_a_later_time():
    plan = FlightPlan(1, 160, 120, 20, "highway")
    due = iter([0, 0, 7])
    made = list(islice(generated(plan, lambda: next(due)), 3))
    assert [frame.number for frame in made] == [0, 1, 7]
    assert (made[2].frame.image == SceneFrames(plan).at(7 / 20, 7).image).all()


def test_recorded_frames_that_are_late_are_left_out_unless_all_are():
    due = iter([0, 3, 3, 3, 3, 30, 30])
    made = list(in_time([IMAGE] * 7, lambda: next(due), 20))
    assert [frame.number for frame in made] == [0, 3, 4, 5, 6]


def test_the_newest_due_frame_is_taken_and_the_end_comes_last():
    ahead = FramesAhead(10)
    assert ahead.start(NumberedFrame(k, IMAGE) for k in (0, 2, 5)).number == 0
    ahead._thread.join()  # all of them are made
    assert ahead.take(1).number == 0 and ahead.take(1) is None
    assert ahead.take(99).number == 5 and ahead.take(99).frame is None
    assert FramesAhead(10).start(iter(())) is None


def test_an_error_of_the_source_follows_its_last_frame():
    def source():
        yield NumberedFrame(0, IMAGE)
        yield NumberedFrame(1, IMAGE)
        raise ValueError("no disk")

    ahead = FramesAhead(10)
    ahead.start(source())
    ahead._thread.join()  # all of them are made
    assert ahead.take(9).number == 1
    with pytest.raises(ValueError, match="no disk"):
        ahead.take(9)
