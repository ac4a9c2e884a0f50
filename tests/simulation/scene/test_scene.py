import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest

from drone_kd.simulation.projection import MIN_SIDE_PX
from drone_kd.simulation.scene import (
    CLASSES,
    FRAMES_PER_WORLD,
    SCENES,
    FlightPlan,
    draw_frame,
    fly,
    meshes,
    objects,
)
from drone_kd.simulation.scene import render as rendering
from drone_kd.simulation.scene.camera import Camera
from drone_kd.simulation.scene.frames import _sample_camera
from drone_kd.simulation.scene.render import View, render, roll
from drone_kd.simulation.scene.town import build_world


@pytest.fixture(scope="module")
def frames():
    """One frame of each of 24 worlds."""
    return [draw_frame(FRAMES_PER_WORLD * i + i % FRAMES_PER_WORLD) for i in range(24)]


@pytest.fixture(scope="module")
def world():
    return build_world(7)


@pytest.mark.slow
def test_a_seed_always_gives_the_same_frame(frames):
    again = draw_frame(0)
    assert again.image.tobytes() == frames[0].image.tobytes()
    np.testing.assert_array_equal(again.xyxy, frames[0].xyxy)
    assert draw_frame(1).image.tobytes() != again.image.tobytes()


@pytest.mark.slow
def test_frames_have_valid_labels_inside_the_image(frames):
    for frame in frames:
        assert frame.image.shape == (640, 640, 3) and frame.image.dtype == np.uint8
        assert frame.xyxy.dtype == np.float32 and frame.class_ids.dtype == np.int64
        assert len(frame.xyxy) == len(frame.class_ids) == len(frame.ids)
        assert len(np.unique(frame.ids)) == len(frame.ids)
        assert (frame.xyxy >= 0).all() and (frame.xyxy <= 640).all()
        assert (frame.xyxy[:, 2:] - frame.xyxy[:, :2] > MIN_SIDE_PX - 0.01).all()


@pytest.mark.slow
def test_zoom_shows_the_same_place_with_larger_objects(frames):
    wide, near = frames[0], draw_frame(0, zoom=2)
    _, i, j = np.intersect1d(wide.ids, near.ids, return_indices=True)
    whole = ((near.xyxy[j] > 1) & (near.xyxy[j] < 639)).all(1)
    assert whole.sum() > 3
    side = [np.diff(xyxy.reshape(-1, 2, 2), axis=1) for xyxy in (wide.xyxy[i], near.xyxy[j])]
    assert np.median(side[1][whole] / side[0][whole]) == pytest.approx(2, rel=0.1)


def test_thermal_frame_shows_the_same_objects_in_grey(frames):
    frame = draw_frame(0, thermal=True)
    colour = frame.image.astype(int) - frame.image[..., :1]
    assert np.abs(colour).mean() < 5  # the noise of the sensor alone
    np.testing.assert_array_equal(frame.xyxy, frames[0].xyxy)


def test_all_classes_occur_in_small_sizes(frames):
    xyxy = np.concatenate([frame.xyxy for frame in frames])
    counts = np.bincount(
        np.concatenate([frame.class_ids for frame in frames]), minlength=len(CLASSES)
    )
    size_px = np.sqrt((xyxy[:, 2:] - xyxy[:, :2]).prod(1))
    assert (counts > 5).all(), dict(zip(CLASSES, counts, strict=True))
    assert 5 < counts.sum() / len(frames) < 150
    assert ((size_px >= 6) & (size_px <= 40)).mean() > 0.65
    assert 8 < np.median(size_px) < 25


@pytest.mark.parametrize("pitch_deg", [90, 48])
def test_boxes_bound_the_pixels_an_object_changes(world, pitch_deg, monkeypatch):
    # Paint that stands out everywhere: dark shoes on asphalt would change hardly a pixel.
    library = meshes.library()
    colours = np.where(np.isnan(library.colours), np.nan, (255.0, 0.0, 255.0))
    painted = replace(library, colours=colours)
    monkeypatch.setattr(meshes, "library", lambda: painted)
    # Shadows change pixels, too, but do not belong to the object.
    world = replace(world, shadow_gain=1.0)
    x, y = world.poses(0)[world.class_ids == 1][0, :2]
    camera = Camera(x, y + 45, 50.0, 0.3, np.radians(pitch_deg), 0.02, 600.0, 640, 640)
    everything = world.class_ids != meshes.NO_CLASS
    view = render(world, camera, 0.0, everything)
    checked = []
    for i, (box, number) in enumerate(zip(view.xyxy, view.ids, strict=True)):
        others = np.delete(view.xyxy, i, 0)
        apart = (others[:, :2] > box[2:] + 8) | (others[:, 2:] < box[:2] - 8)
        # Paint on the same paint changes nothing.
        if not apart.any(1).all():
            continue
        without = everything.copy()
        without[number % len(everything)] = False
        other = render(world, camera, 0.0, without)
        # An object that it hid completely appears now: not comparable.
        if not np.isin(other.ids, view.ids).all():
            continue
        difference = cv2.absdiff(view.image, other.image).max(-1)
        # The world repeats: the object may be seen elsewhere, too.
        left, top = np.maximum(box[:2].astype(int) - 8, 0)
        right, bottom = box[2:].astype(int) + 8
        difference = difference[top:bottom, left:right]
        # Less than a quarter of the strongest change is the soft edge of the antialiasing.
        rows, columns = np.nonzero(difference > difference.max() / 4)
        bounds = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        changed = np.add(bounds, [left, top, left, top])
        np.testing.assert_allclose(box, changed, atol=1.1)
        checked.append(view.class_ids[i])
    assert len(checked) >= 8 and len(set(checked)) >= 2, checked


def test_enlarged_ground_is_where_it_belongs(world, monkeypatch):
    # Up to 1.3 cm per pixel: a sixteenth of the ground's pixels is computed.
    camera = Camera(30, 45, 20.0, 0.3, np.radians(60), 0.1, 2900.0, 1270, 715)
    nothing = np.zeros(len(world.class_ids), bool)
    enlarged = render(world, camera, 0.0, nothing).image
    monkeypatch.setattr(rendering, "_MAX_STEP", 1)
    whole = render(world, camera, 0.0, nothing).image
    assert enlarged.shape == whole.shape and (enlarged != whole).any()
    inside = slice(2, -2), slice(2, -2)
    moves = list(itertools.product((-1, 0, 1), repeat=2))
    errors = [
        cv2.absdiff(np.roll(enlarged, move, (0, 1))[inside], whole[inside]).mean()
        for move in moves
    ]
    assert moves[int(np.argmin(errors))] == (0, 0) and min(errors) < 0.5, errors


def test_shadows_that_overlap_are_as_dark_as_one():
    image = np.full((60, 80, 3), 200, np.uint8)
    square = np.array([[5, 5], [30, 5], [30, 30], [5, 30]] * 2) * 16
    # The second reaches beyond the image, the third is outside.
    shadows = [np.array([square + (16 * d, 0)], np.int32) for d in (0, 15, 200)]
    objects._draw_shadows(image, [*shadows, shadows[0] + (16 * 50, 16 * 40)], 0.5)
    assert np.unique(image).tolist() == [100, 200]
    dark = image[..., 0] == 100
    assert dark[5:31, 5:46].all() and dark[45:, 55:].all()
    assert dark.sum() == 26 * 41 + 15 * 25


def test_nadir_and_oblique_views_occur():
    pitch_deg = [
        np.degrees(_sample_camera(np.random.default_rng(i), 640).pitch) for i in range(60)
    ]
    assert 10 < sum(p > 80 for p in pitch_deg) < 50
    assert sum(p < 60 for p in pitch_deg) > 10


def test_a_flight_is_continuous_and_repeatable():
    frames = list(itertools.islice(fly(FlightPlan(5, 320, 200, fps=20)), 8))
    assert frames[0].image.shape == (200, 320, 3)
    np.testing.assert_allclose([frame.t_s for frame in frames], np.arange(8) / 20)
    kept = 0
    for a, b in itertools.pairwise(frames):
        _, i, j = np.intersect1d(a.ids, b.ids, return_indices=True)
        kept += len(i)
        np.testing.assert_array_equal(a.class_ids[i], b.class_ids[j])
        centres = [f.xyxy[k].reshape(-1, 2, 2).mean(1) for f, k in ((a, i), (b, j))]
        # Half a metre of flight and a metre of a vehicle, at the closest some 6 px per metre.
        assert np.abs(centres[1] - centres[0]).max(initial=0) < 14
    assert kept > 0.8 * sum(len(frame.ids) for frame in frames[1:]) > 20
    again = next(itertools.islice(fly(FlightPlan(5, 320, 200, fps=20)), 3, None))
    assert again.image.tobytes() == frames[3].image.tobytes()


def test_vehicles_drive_in_the_direction_they_point(world):
    before, after = world.poses(0.0), world.poses(0.1)
    moving = world.speed != 0
    step = after[moving, :2] - before[moving, :2]
    heading = before[moving, 2]
    ahead = step[:, 0] * np.cos(heading) + step[:, 1] * np.sin(heading)
    assert moving.sum() > 10
    assert (ahead > 0.9 * np.hypot(*step.T)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_frame(-1), "seed: expected 0 or more, got -1"),
        (lambda: draw_frame(0, imgsz=32), "imgsz: expected at least 64 px, got 32"),
        (lambda: draw_frame(0, zoom=0.5), "zoom: expected 1 to 4, got 0.5"),
        (lambda: FlightPlan(-1, 320, 200, 10), "seed: expected"),
        (lambda: FlightPlan(0, 320, 20, 10), "got 320 x 20"),
        (lambda: FlightPlan(0, 320, 200, 0), "fps: expected more than 0, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("scene", SCENES)
def test_named_scenes_have_their_objects_and_repeat(scene):
    plan = FlightPlan(seed=2, width=640, height=360, scene=scene, fps=0.2, altitude_m=90)
    frames = list(itertools.islice(fly(plan), 3))
    again = next(itertools.islice(fly(plan), 2, None))
    assert again.image.tobytes() == frames[2].image.tobytes()
    wanted = {"search": "person", "crowd": "person"}.get(scene, "car")
    seen = sum((frame.class_ids == CLASSES.index(wanted)).sum() for frame in frames)
    assert seen >= (1 if scene == "search" else 3)
    colourful = np.ptp(frames[0].image.astype(int), axis=2).mean()
    assert (colourful < 12) == (scene == "night"), colourful


@pytest.mark.slow
def test_people_glow_at_night():
    for frame in itertools.islice(fly(FlightPlan(seed=1, scene="night", fps=1)), 4):
        for x0, y0, x1, y1 in frame.xyxy[frame.class_ids == 0].astype(int):
            assert frame.image[y0:y1, x0:x1].max() > np.median(frame.image) + 60


def test_altitude_and_speed_change_what_is_seen():
    def width_of_cars(altitude_m):
        frame = next(fly(FlightPlan(scene="car-park", altitude_m=altitude_m)))
        cars = frame.xyxy[frame.class_ids == CLASSES.index("car")]
        return np.median(cars[:, 2] - cars[:, 0])

    assert width_of_cars(30) == pytest.approx(2 * width_of_cars(60), rel=0.35)

    def moved(speed_mps):
        plan = FlightPlan(scene="car-park", altitude_m=50, speed_mps=speed_mps)
        a, b = itertools.islice(fly(plan), 2)
        _, i, j = np.intersect1d(a.ids, b.ids, return_indices=True)
        return np.median((b.xyxy[j] - a.xyxy[i])[:, 3])

    hovering, slow, fast = map(moved, (0.0, 10.0, 20.0))
    assert abs(hovering) < 10  # the camera nods
    assert fast - hovering == pytest.approx(2 * (slow - hovering), rel=0.2) and fast > 30


def test_haze_and_motion_blur_take_contrast_away():
    clear, hazy, blurred = (
        next(fly(plan)).image.std()
        for plan in (
            FlightPlan(scene="crossing", haze=0.0, motion_px=0.0),
            FlightPlan(scene="crossing", haze=0.7),
            FlightPlan(scene="crossing", motion_px=40.0),
        )
    )
    assert hazy < 0.6 * clear and blurred < 0.9 * clear


def test_a_rolling_shutter_moves_the_lower_rows_and_their_boxes():
    view = next(fly(FlightPlan(scene="car-park")))
    rolled = roll(View(view.image, view.xyxy, view.class_ids, view.ids), np.array([36.0, 0.0]))
    np.testing.assert_array_equal(rolled.image[0], view.image[0])
    # The row in the middle has moved by half.
    np.testing.assert_allclose(
        rolled.image[360, 40:].astype(int), view.image[360, 22:-18].astype(int), atol=3
    )
    _, i, j = np.intersect1d(view.ids, rolled.ids, return_indices=True)
    uncut = view.xyxy[i, 2] < 1200
    middle = view.xyxy[i][:, [1, 3]].mean(1)
    shift = (rolled.xyxy[j] - view.xyxy[i])[:, [0, 2]].mean(1)
    np.testing.assert_allclose(shift[uncut], 36 * middle[uncut] / 720, atol=0.1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"scene": "moon"}, "scene: expected one of highway, .*, got 'moon'"),
        ({"altitude_m": 2.0}, "altitude_m: expected 15 to 150, got 2.0"),
        ({"haze": float("nan")}, "haze: expected 0 to 0.95, got nan"),
    ],
)
def test_plans_out_of_range_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        FlightPlan(**value)
