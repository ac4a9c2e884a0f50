import dataclasses
import itertools

import numpy as np
import pytest

from drone_kd.scene import CLASSES, FRAMES_PER_WORLD, draw_frame, fly
from drone_kd.scene.frames import _sample_camera
from drone_kd.scene.render import MIN_SIDE_PX, Camera, render
from drone_kd.scene.world import build_world


@pytest.fixture(scope="module")
def frames():
    """One frame of each of 24 worlds."""
    return [draw_frame(FRAMES_PER_WORLD * i + i % FRAMES_PER_WORLD) for i in range(24)]


@pytest.fixture(scope="module")
def world():
    return build_world(3)


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
def test_boxes_bound_the_pixels_an_object_changes(world, pitch_deg):
    # A sun in the zenith keeps shadows under the objects.
    world = dataclasses.replace(world, sun=np.array([0.0, 0.0, 1.0]))
    x, y = world.poses(0)[world.class_ids == 1][0, :2]
    camera = Camera(x, y + 45, 50.0, 0.3, np.radians(pitch_deg), 0.02, 600.0, 640, 640)
    everything = np.ones(len(world.class_ids), bool)
    view = render(world, camera, 0.0)
    checked = {}
    for box, class_id, number in zip(view.xyxy, view.class_ids, view.ids, strict=True):
        without = everything.copy()
        without[number % len(everything)] = False
        other = render(world, camera, 0.0, without)
        # Its going uncovers parts of others: only those that stand alone can be compared.
        changed_others = set(other.ids) - set(view.ids)
        same = np.isin(view.ids, other.ids)
        moved = not np.array_equal(view.xyxy[same], other.xyxy[np.isin(other.ids, view.ids)])
        if changed_others or moved:
            continue
        rows, columns = np.nonzero((view.image != other.image).any(-1))
        changed = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(box, changed, atol=1.25)
        checked[class_id] = checked.get(class_id, 0) + 1
    assert sum(checked.values()) >= 8 and len(checked) >= 2, checked
