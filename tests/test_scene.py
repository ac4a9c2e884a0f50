import dataclasses
import itertools

import cv2
import numpy as np
import pytest

from drone_kd.scene import CLASSES, FRAMES_PER_WORLD, SCENES, Flight, draw_frame, fly, meshes
from drone_kd.scene.frames import _sample_camera
from drone_kd.scene.render import MIN_SIDE_PX, Camera, render
from drone_kd.scene.world import build_world


@pytest.fixture(scope="module")
def frames():
    """One frame of each of 24 worlds."""
    return [draw_frame(FRAMES_PER_WORLD * i + i % FRAMES_PER_WORLD) for i in range(24)]


@pytest.fixture(scope="module")
def world():
    return build_world(7)


def test_a_seed_always_gives_the_same_frame(frames):
    again = draw_frame(0)
    assert again.image.tobytes() == frames[0].image.tobytes()
    np.testing.assert_array_equal(again.xyxy, frames[0].xyxy)
    assert draw_frame(1).image.tobytes() != again.image.tobytes()


def test_frames_have_valid_labels_inside_the_image(frames):
    for frame in frames:
        assert frame.image.shape == (640, 640, 3) and frame.image.dtype == np.uint8
        assert frame.xyxy.dtype == np.float32 and frame.class_ids.dtype == np.int64
        assert len(frame.xyxy) == len(frame.class_ids) == len(frame.ids)
        assert len(np.unique(frame.ids)) == len(frame.ids)
        assert (frame.xyxy >= 0).all() and (frame.xyxy <= 640).all()
        assert (frame.xyxy[:, 2:] - frame.xyxy[:, :2] > MIN_SIDE_PX - 0.01).all()


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
    painted = dataclasses.replace(library, colours=colours)
    monkeypatch.setattr(meshes, "library", lambda: painted)
    # Shadows change pixels, too, but do not belong to the object.
    world = dataclasses.replace(world, shade_gain=1.0)
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
        # What it hid so far that it was not drawn at all appears now: not comparable.
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


def test_nadir_and_oblique_views_occur():
    pitch_deg = [
        np.degrees(_sample_camera(np.random.default_rng(i), 640).pitch) for i in range(60)
    ]
    assert 10 < sum(p > 80 for p in pitch_deg) < 50
    assert sum(p < 60 for p in pitch_deg) > 10


def test_a_flight_is_continuous_and_repeatable():
    frames = list(itertools.islice(fly(Flight(5, 320, 200, fps=20)), 8))
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
    again = next(itertools.islice(fly(Flight(5, 320, 200, fps=20)), 3, None))
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
        (lambda: Flight(-1, 320, 200, 10), "seed: expected"),
        (lambda: Flight(0, 320, 20, 10), "got 320 x 20"),
        (lambda: Flight(0, 320, 200, 0), "fps: expected more than 0, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()
