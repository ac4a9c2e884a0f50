import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from drone_kd.simulation.scene import FLIGHTS, FlightPlan, SceneFrames, fly
from drone_kd.simulation.scene.camera import Camera
from drone_kd.simulation.scene.render import render
from drone_kd.simulation.scene.town import build_world
from drone_kd.simulation.scene.trajectory import DISTURBANCES, Start, find_flight
from drone_kd.simulation.scene.weather import WEATHERS

START = Start(10.0, 20.0, 0.4, 8.0, 50.0, np.array([0.1, 1.0, 2.0, 3.0]), 5, False)


def poses(name, times, start=START):
    at = find_flight(name, start)
    return np.array([list(vars(at(t)).values()) for t in times])


@pytest.mark.parametrize("name", [*FLIGHTS, "orbit+gusts+vibration"])
def test_a_pose_depends_on_the_time_alone(name):
    times = np.arange(0, 40, 2.5)
    np.testing.assert_array_equal(poses(name, times[::-1])[::-1], poses(name, times))


@pytest.mark.parametrize("name", FLIGHTS)
def test_flights_keep_to_their_speed_and_move_smoothly(name):
    times = np.arange(0, 130, 0.05)
    x, y, height, yaw, pitch, _ = poses(name, times).T
    speed = np.hypot(np.diff(x), np.diff(y)) / 0.05
    np.testing.assert_allclose(speed, 0 if name == "hover" else 8.0, atol=0.05)
    assert (height >= 15).all() and (height <= 150).all()
    assert (pitch > 0).all() and (pitch <= math.pi / 2 + 1e-9).all()
    for angle, most in ((yaw, 0.3), (pitch, 0.4)):
        turn = np.angle(np.exp(1j * np.diff(angle))) / 0.05
        assert np.abs(turn).max() < most


def test_an_orbit_keeps_its_centre_in_the_middle_of_the_image():
    for x, y, height, yaw, pitch, roll in poses("orbit", (0, 7, 33)):
        camera = Camera(x, y, height, yaw, pitch, roll, 600.0, 640, 480)
        np.testing.assert_allclose(camera.project(np.array([10.0, 20.0, 0]))[0], [320, 240])


def test_turns_go_both_ways_and_come_back():
    lap_s = 4 * math.pi * 40 / 8
    x, y, _, yaw, *_ = poses("turns", (0, lap_s / 4, 3 * lap_s / 4, lap_s)).T
    right = np.stack([x - 10, y - 20], 1) @ [math.cos(0.4), math.sin(0.4)]
    np.testing.assert_allclose(right, [0, 80, -80, 0], atol=1e-6)
    np.testing.assert_allclose(np.cos(yaw - 0.4), [1, -1, -1, 1])


def test_climb_and_gimbal_cover_their_range():
    times = np.arange(0, 60, 0.5)
    height = poses("climb", times)[:, 2]
    assert height.min() == pytest.approx(20) and height.max() == pytest.approx(80)
    pitch = np.degrees(poses("gimbal", times)[:, 4])
    assert pitch.min() == pytest.approx(12) and pitch.max() == pytest.approx(90)


def test_disturbances_shift_any_flight_within_bounds():
    times = np.arange(0, 60, 0.01)
    calm = poses("straight", times)
    gusts, shaken = (poses(f"straight+{name}", times) - calm for name in DISTURBANCES)
    assert 1 < np.abs(gusts[:, :3]).max() < 3 and 0.01 < np.abs(gusts[:, 3:]).max() < 0.06
    assert not shaken[:, :3].any() and 0.001 < np.abs(shaken[:, 3:]).max() < 0.004
    other = poses("straight+gusts", times, replace(START, seed=6)) - calm
    assert np.abs(other - gusts).max() > 0.5
    both = poses("straight+vibration+gusts", times) - calm
    np.testing.assert_allclose(both, gusts + shaken, atol=1e-9)


def test_rate_size_and_weather_do_not_change_the_route():
    slow = FlightPlan(seed=6, width=320, height=180, fps=2, flight="turns", scene="car-park")
    fast = replace(slow, width=640, height=360, fps=4, weather="rain")
    a = next(itertools.islice(fly(slow), 3, None))
    b = next(itertools.islice(fly(fast), 6, None))
    assert a.t_s == b.t_s == 1.5
    _, i, j = np.intersect1d(a.ids, b.ids, return_indices=True)
    # Small objects are visible in the larger frames alone.
    assert len(i) > 0.9 * len(a.ids) > 5
    centres = [xyxy.reshape(-1, 2, 2).mean(1) for xyxy in (2 * a.xyxy[i], b.xyxy[j])]
    assert np.median(np.abs(centres[0] - centres[1])) < 1


def looking(pitch_deg, roll=0.0, height_m=50.0):
    return Camera(30.0, 40.0, height_m, 0.7, math.radians(pitch_deg), roll, 640.0, 640, 480)


def test_the_horizon_is_where_geometry_says_and_only_ground_has_objects():
    world = build_world(7, weather=WEATHERS["haze"])
    view = render(world, looking(12), 0.0)
    horizon = 240 - 640 * math.tan(math.radians(12))
    sky = view.image[: int(horizon) - 4].reshape(-1, 3).astype(int)
    at_horizon, above = np.array(WEATHERS["haze"].sky_bgr)
    assert (sky >= above - 1).all() and (sky <= at_horizon + 1).all()
    assert np.abs(view.image[int(horizon) - 2].mean(0) - at_horizon).max() < 4
    # Far ground is hazy, near ground is not.
    contrast = [view.image[row].std() for row in (int(horizon) + 3, 450)]
    assert contrast[0] < 3 < 8 < contrast[1]
    assert len(view.xyxy) > 3 and (view.xyxy[:, 3] > horizon).all()


def test_bounds_of_a_far_view_contain_all_ground_within_the_limit():
    for roll in (0.0, 0.2, -0.4):
        for pitch_deg in (3, 12, 21):
            camera = looking(pitch_deg, roll)
            low, high = camera.ground_bounds()
            assert camera.reaches_far and (high - low <= 2 * camera.limit_m).all()
            angle = np.linspace(0, 2 * np.pi, 200)[:, None]
            radius = np.linspace(5, camera.limit_m, 60)
            x = 30 + (radius * np.cos(angle)).ravel()
            y = 40 + (radius * np.sin(angle)).ravel()
            px, depth = camera.project(np.column_stack([x, y, np.zeros(x.size)]))
            seen = (depth > 1) & (px > 0).all(1) & (px < [640, 480]).all(1)
            ground = np.column_stack([x, y])[seen]
            assert seen.sum() > 50
            assert (ground > low - 12).all() and (ground < high + 12).all()


def test_near_and_far_views_of_the_same_ground_agree():
    world = build_world(7)
    camera = looking(60)
    near = render(world, camera, 0.0)
    far = looking(60)
    far.__dict__["reaches_far"] = True  # a cached property
    again = render(world, far, 0.0)
    difference = np.abs(near.image.astype(int) - again.image).mean()
    assert difference < 6, difference
    np.testing.assert_array_equal(near.ids, again.ids)


@pytest.mark.parametrize("name", ["loop", "orbit+snow", "", "orbit+"])
def test_unknown_flights_are_refused(name):
    with pytest.raises(ValueError, match="flight: expected one of sweep, ") as caught:
        FlightPlan(flight=name)
    assert str(caught.value).endswith(f"got {name!r}")


@pytest.mark.parametrize("t_s", [-0.1, math.nan, math.inf])
def test_times_outside_the_flight_are_refused(t_s):
    frames = SceneFrames(FlightPlan(width=64, height=64))
    with pytest.raises(ValueError, match="t_s: expected 0 or more seconds, got"):
        frames.at(t_s)
