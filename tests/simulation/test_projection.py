import dataclasses

import numpy as np
import pytest

from drone_kd.simulation.projection import project, projection_matrix, solid_boxes
from drone_kd.simulation.scene import meshes
from drone_kd.simulation.scene.camera import Camera
from drone_kd.simulation.scene.render import render
from drone_kd.simulation.scene.scenes import build_scene

K = np.array([[1000.0, 0, 640], [0, 900.0, 360], [0, 0, 1]])
WIDTH, HEIGHT = 1280, 720
# A world with z up. Looking down with the image's upper side to +y.
NADIR = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
# Looking to +y, 45 degrees down.
HALF = np.sqrt(0.5)
OBLIQUE = np.array([[1.0, 0, 0], [0, -HALF, -HALF], [0, HALF, -HALF]])
# Looking to +y, level.
LEVEL = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


def cuboid(x, y, z, length, width, height):
    """Corners of a cuboid that stands at a place: four below, four above."""
    foot = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]]) * (length / 2, width / 2) + (x, y)
    return np.concatenate([np.insert(foot, 2, z, 1), np.insert(foot, 2, z + height, 1)])


def boxes(axes, position, *cuboids, labelled=None):
    """Boxes and indices of the cuboids that are visible enough."""
    xyxy, index, partly = all_boxes(axes, position, *cuboids, labelled=labelled)
    return xyxy[~partly], index[~partly]


def all_boxes(axes, position, *cuboids, labelled=None):
    corners = np.array(cuboids)
    labelled = np.ones(len(corners), bool) if labelled is None else np.array(labelled)
    matrix = projection_matrix(axes, K)
    return solid_boxes(corners, labelled, np.array(position, float), matrix, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("axes", "position", "point", "px", "depth"),
    [
        # 3 m right and 2 m up in the image, 50 m below: 3/50 * 1000, 2/50 * 900.
        (NADIR, (10, 20, 50), (13, 22, 0), (640 + 60, 360 - 36), 50),
        # The axis meets the ground as far ahead as the camera is high.
        (OBLIQUE, (0, 0, 30), (0, 30, 0), (640, 360), 30 / HALF),
        # From there 10 m on: 10 cos 45 deeper, 10 sin 45 higher in the image.
        (
            OBLIQUE,
            (0, 0, 30),
            (5, 40, 0),
            (640 + 5000 / (40 / HALF - 5 / HALF), 360 - 900 * 10 * HALF / (40 / HALF - 5 / HALF)),
            35 / HALF,
        ),
        (LEVEL, (0, 0, 10), (-4, 100, 0), (640 - 40, 360 + 90), 100),
        # Behind: the depth says so.
        (LEVEL, (0, 0, 10), (0, -5, 0), None, -5),
    ],
)
def test_points_computed_by_hand(axes, position, point, px, depth):
    found, at = project(np.array(point, float), np.array(position), projection_matrix(axes, K))
    assert at == pytest.approx(depth)
    if px is not None:
        assert found == pytest.approx(px)


def test_nadir_box():
    # Its roof, 48 m below, reaches farther out than its foot, 50 m below.
    (box,), (index,) = boxes(NADIR, (0, 0, 50), cuboid(0, 0, 0, 4, 2, 2))
    assert index == 0
    assert box == pytest.approx(
        [640 - 2000 / 48, 360 - 900 / 48, 640 + 2000 / 48, 360 + 900 / 48], abs=1e-3
    )


def test_oblique_box():
    # At 45 degrees: its near upper edge, at y = 29, z = 2, is 28 cos + 29 sin deep, and so on.
    (box,), _ = boxes(OBLIQUE, (0, 0, 30), cuboid(0, 30, 0, 4, 2, 2))

    def place(x, y, z):
        depth = HALF * (y + 30 - z)
        return 640 + 1000 * x / depth, 360 + 900 * HALF * (30 - z - y) / depth

    left, _ = place(-2, 29, 2)
    _, top = place(0, 31, 2)
    _, bottom = place(0, 29, 0)
    assert box == pytest.approx([left, top, 1280 - left, bottom], abs=1e-3)


def test_objects_outside_the_image_or_behind_have_no_box():
    outside, behind = cuboid(60, 0, 0, 4, 2, 2), cuboid(0, 0, 60, 4, 2, 2)
    assert len(boxes(NADIR, (0, 0, 50), outside, behind)[0]) == 0


def test_border_clips_boxes_and_marks_those_with_less_than_two_fifths_visible():
    # The border is 640 px from the middle: 30.72 m of a roof at 48 m, 32 m of the ground at 50 m.
    def at(x):
        return boxes(NADIR, (0, 0, 50), cuboid(x, 0, 0, 4, 2, 2))[0]

    (box,) = at(30)
    assert box[[0, 2]] == pytest.approx([640 + 28 * 1000 / 50, 1280], abs=1e-3)
    # From 1260 to 1388 px: 16 % are in the image.
    assert len(at(33)) == 0
    (box,), _, partly = all_boxes(NADIR, (0, 0, 50), cuboid(33, 0, 0, 4, 2, 2))
    assert partly.tolist() == [True]
    assert box[[0, 2]] == pytest.approx([640 + 31 * 1000 / 50, 1280], abs=1e-3)
    # 1 % is as good as nothing.
    assert len(all_boxes(NADIR, (0, 0, 50), cuboid(33.9, 0, 0, 4, 2, 2))[0]) == 0


def test_solid_that_reaches_behind_the_camera_is_clipped():
    # A wall along the view, from 20 m behind to 20 m ahead, fills the image's right side.
    wall = cuboid(6, 0, 0, 2, 40, 30)
    car = cuboid(3, 12, 9, 2, 2, 2)
    _, index = boxes(LEVEL, (0, 0, 10), wall, car, labelled=[False, True])
    assert index.tolist() == [1]
    hidden = cuboid(9, 30, 9, 2, 2, 2)
    assert len(boxes(LEVEL, (0, 0, 10), wall, hidden, labelled=[False, True])[0]) == 0
    assert len(boxes(LEVEL, (0, 0, 10), hidden)[0]) == 1


def test_near_solids_hide_far_ones():
    far, near = cuboid(0, 60, 0, 4, 2, 2), cuboid(0, 50, 0, 8, 2, 4)
    _, index = boxes(LEVEL, (0, 0, 2), far, near)
    assert index.tolist() == [1]
    # Half of it looks out on the left.
    aside = cuboid(-5.0, 60, 0, 4, 2, 2)
    found, index = boxes(LEVEL, (0, 0, 2), aside, near)
    assert index.tolist() == [1, 0]
    whole = boxes(LEVEL, (0, 0, 2), aside)[0][0]
    assert found[1][0] == pytest.approx(whole[0]) and found[1][2] < whole[2] - 10
    # What is in front counts, labelled or not.
    assert len(boxes(LEVEL, (0, 0, 2), far, near, labelled=[True, False])[0]) == 0


def test_no_visible_solid_gives_empty_arrays():
    xyxy, index, _ = all_boxes(NADIR, (0, 0, 50), cuboid(60, 0, 0, 4, 2, 2))
    assert xyxy.shape == (0, 4) and xyxy.dtype == np.float32 and index.dtype == np.int64


@pytest.mark.parametrize("pitch_deg", [90, 55])
def test_solids_have_the_boxes_of_the_renderer(pitch_deg):
    """Boxes of rendered meshes equal boxes of their hulls and poses."""
    world, shapes = build_scene("car-park", 1), meshes.library()
    cars = world.poses(0.0)[world.class_ids == meshes.CAR, :2]
    # Away from the tile's border, where most cars are.
    inside = cars[(abs(cars - 102) < 60).all(1)]
    apart = np.linalg.norm(inside[:, None] - cars, axis=-1)
    x, y = inside[(apart < 15).sum(1).argmax()]
    back = 45 / np.tan(np.radians(pitch_deg))
    camera = Camera(x, y + back, 45.0, 0.0, np.radians(pitch_deg), 0.02, 1000.0, 1280, 720)
    # A wood would hide some: here are no trees.
    world = dataclasses.replace(world, trees=world.trees[:0])
    view = render(world, camera, 0.0)
    poses = world.poses(0.0)
    chosen = [k for k, number in enumerate(view.ids) if number < len(poses)]
    solids = []
    for number in view.ids[chosen]:
        mesh = world.mesh_ids[number]
        first = shapes.first[mesh]
        points = shapes.corners[first : first + shapes.count[mesh]].reshape(-1, 3)
        x, y, heading = poses[number]
        sin, cos = np.sin(heading), np.cos(heading)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        solids.append(np.resize(points @ turn + (x, y, 0), (64, 3)))
    everything = np.ones(len(solids), bool)
    xyxy, index, _ = solid_boxes(
        np.array(solids), everything, camera.position, camera.projection, 1280, 720
    )
    wanted = view.xyxy[chosen][index]
    low, high = np.maximum(xyxy[:, :2], wanted[:, :2]), np.minimum(xyxy[:, 2:], wanted[:, 2:])
    inside = (high - low).clip(0).prod(1)
    areas = sum((box[:, 2:] - box[:, :2]).prod(1) for box in (xyxy, wanted))
    overlap = inside / (areas - inside)
    assert len(overlap) > 30 and np.median(overlap) > 0.95, np.sort(overlap)
