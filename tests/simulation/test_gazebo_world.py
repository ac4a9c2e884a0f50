import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from drone_kd.media.image_files import SourceError
from drone_kd.paths import share_path
from drone_kd.simulation.gazebo_world import read_gazebo_world, rotation, visible_truth
from drone_kd.simulation.scene import CLASSES
from drone_kd.simulation.scene.camera import Camera
from drone_kd.simulation.scene.render import render
from drone_kd.simulation.scene.scenes import build_scene
from drone_kd.simulation.scene.shapes import TILE_M

WORLDS = Path(__file__).resolve().parents[2] / "worlds"
K = np.array([[1280.0, 0, 640], [0, 1280.0, 360], [0, 0, 1]])


@pytest.fixture(scope="module")
def shapes():
    return read_gazebo_world(share_path("worlds/aerial_traffic.yaml"))


@pytest.fixture(scope="module")
def world_file():
    return ElementTree.parse(WORLDS / "aerial_traffic.sdf").find("world")


def pose(x, y, z, yaw):
    return np.array([x, y, z, 0, 0, math.sin(yaw / 2), math.cos(yaw / 2)])


def overlaps(a, b):
    low, high = np.maximum(a[:2], b[:, :2]), np.minimum(a[2:], b[:, 2:])
    inside = (high - low).clip(0).prod(1)
    return inside / ((a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(1) - inside)


@pytest.mark.slow
@pytest.mark.parametrize(("camera", "pitch_deg"), [("down", 90), ("front", 40)])
def test_the_committed_world_has_the_boxes_of_the_procedural_one(shapes, camera, pitch_deg):
    """The same place through both, each in its own axes: shapes, places and cameras agree."""
    world = build_scene("crossing", 2)
    x, y, z = 10.0, -30.0, 50.0
    truth = visible_truth(shapes, camera, {"drone": pose(x, y, z, math.pi / 2)}, K, 1280, 720)
    # The carrier heads north, and each camera hangs where it says.
    ahead, _, up = shapes.cameras[camera][:3]
    seen_from = Camera(
        x + TILE_M / 2, TILE_M / 2 - y - ahead, z + up, 0.0, math.radians(pitch_deg), 0.0, 1280.0,
        1280, 720,
    )  # fmt: skip
    view = render(world, seen_from, 0.0, present=world.speed == 0)
    best = [
        max(overlaps(box, truth.xyxy[[n == CLASSES[c] for n in truth.names]]), default=0)
        for box, c in zip(view.xyxy, view.class_ids, strict=True)
    ]
    assert len(best) > 10
    # Crowns are hulls here and textures there: objects below a tree differ.
    assert np.median(best) > 0.9 and np.mean(np.array(best) > 0.8) > 0.75, np.sort(best)


@pytest.mark.slow
def test_moving_object_is_at_its_pose(shapes):
    car = next(name for name, kind in shapes.moving_names.items() if kind == "car")
    poses = {"drone": pose(0, 0, 50, 0), car: pose(5, 10, 0, 1.0)}
    truth = visible_truth(shapes, "down", poses, K, 1280, 720)
    (box,) = truth.xyxy[[i == car for i in truth.ids]]
    # Heading east, the upper side of the image: 5 m ahead is up, 10 m to the left is left.
    centre = (box[:2] + box[2:]) / 2
    assert centre == pytest.approx([640 - 10 * 1280 / 49.9, 360 - 5 * 1280 / 49.9], abs=12)
    assert not any(i == car for i in visible_truth(shapes, "down", {
        "drone": pose(0, 0, 50, 0), car: pose(500, 10, 0, 1.0)
    }, K, 1280, 720).ids)  # fmt: skip


def test_a_quaternion_turns_as_ros_says():
    quarter = np.array([0, 0, math.sqrt(0.5), math.sqrt(0.5)])
    np.testing.assert_allclose(rotation(quarter) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No such file"), ("a: [1", "not the shapes of a world"), ("a: 1", "not the shapes")],
)
def test_other_files_are_refused(tmp_path, text, says):
    path = tmp_path / "shapes.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SourceError, match=says):
        read_gazebo_world(path)


@pytest.mark.skipif(
    shutil.which("ign") is None, reason="no `ign sdf`: apt install ignition-tools libsdformat-dev"
)
def test_the_real_parser_takes_the_world_and_names_an_error(tmp_path):
    def check(path):
        done = subprocess.run(["ign", "sdf", "-k", str(path)], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, said = check(WORLDS / "aerial_traffic.sdf")
    assert code == 0 and "Valid" in said, said
    broken = tmp_path / "broken.sdf"
    text = (WORLDS / "aerial_traffic.sdf").read_text()
    broken.write_text(text.replace('<link name="link">', "<link>", 1))
    code, said = check(broken)
    assert "Error" in said, said


def test_the_world_brings_all_it_shows(world_file, shapes):
    folder = WORLDS / "aerial_traffic"
    for uri in world_file.iter("uri"):
        mesh = WORLDS / uri.text
        lines = mesh.read_text().splitlines()
        used = {line.split()[1] for line in lines if line.startswith("usemtl")}
        (library,) = [line.split()[1] for line in lines if line.startswith("mtllib")]
        # Gazebo's renderer (ogre 2) shows nothing of a mesh without normals.
        faces = [line.split()[1:] for line in lines if line.startswith("f ")]
        assert faces and all(re.fullmatch(r"\d+/\d+/\d+", end) for face in faces for end in face)
        materials = (folder / library).read_text()
        assert used <= set(re.findall(r"newmtl (\S+)", materials))
        for texture in re.findall(r"map_Kd (\S+)", materials):
            assert (folder / texture).is_file()
    assert not re.search(r"https?://|model://|fuel", ElementTree.tostring(world_file, "unicode"))
    names = {model.get("name") for model in world_file.iter("model")}
    assert set(shapes.moving) < names and "drone" in names


def test_all_that_moves_tells_its_pose(world_file, shapes):
    for name in ("drone", *shapes.moving):
        (model,) = world_file.findall(f"model[@name='{name}']")
        (poses,) = (p for p in model.iter("plugin") if p.get("name").endswith("PosePublisher"))
        # Fortress publishes nothing at all where the second is false.
        assert poses.findtext("publish_model_pose") == "true"
        assert poses.findtext("publish_nested_model_pose") == "true"


def test_cameras_are_as_wide_as_ground_truth_expects(world_file, shapes):
    sensors = list(world_file.iter("sensor"))
    assert {sensor.get("name") for sensor in sensors} == set(shapes.cameras) == {"down", "front"}
    for sensor in sensors:
        assert sensor.findtext("camera/image/width") == "1280"
        fov = float(sensor.findtext("camera/horizontal_fov"))
        assert 640 / math.tan(fov / 2) == pytest.approx(1280, rel=1e-4)
        # Where camera_info comes from: without it, some releases of Fortress write 277.
        lens = {e.tag: float(e.text) for e in sensor.find("camera/lens/intrinsics")}
        assert lens == {"fx": 1280, "fy": 1280, "cx": 640, "cy": 360, "s": 0}
        x, y, z, _, pitch, _ = map(float, sensor.findtext("pose").split())
        mount = shapes.cameras[sensor.get("name")]
        assert mount[:3] == pytest.approx([x, y, z])
        assert 2 * math.asin(mount[4]) == pytest.approx(pitch, abs=1e-5)


@pytest.mark.slow
def test_the_generator_writes_what_is_committed(tmp_path):
    pytest.importorskip("scipy", reason="scipy is not here: it comes with the training packages")
    source = (WORLDS / "generate.py").read_text()
    (tmp_path / "worlds").mkdir()
    (tmp_path / "worlds" / "generate.py").write_text(source)
    import runpy

    runpy.run_path(str(tmp_path / "worlds" / "generate.py"), run_name="__main__")
    for name in ("worlds/aerial_traffic.sdf", "worlds/bridge.yaml", "worlds/aerial_traffic.yaml"):
        made, committed = (folder / name for folder in (tmp_path, WORLDS.parent))
        assert made.read_text() == committed.read_text(), name
    made = sorted(p.name for p in (tmp_path / "worlds" / "aerial_traffic").iterdir())
    assert made == sorted(p.name for p in (WORLDS / "aerial_traffic").iterdir())


def world_text(tiles, objects, points):
    entry = f"{{class: car, points: [{points}]}}"
    return (
        "carrier: drone\ncameras: {a: [0, 0, 0, 0, 0, 0, 1]}\nmoving: {}\n"
        f"tiles_y: [{', '.join('0' * tiles)}]\nstanding: [{', '.join([entry] * objects)}]\n"
    )


def test_small_world_is_read(tmp_path):
    (tmp_path / "world.yaml").write_text(world_text(2, 3, "0, 0, 0"))
    assert read_gazebo_world(tmp_path / "world.yaml").standing.shape == (6, 1, 3)


@pytest.mark.parametrize(
    "text",
    [
        world_text(200, 200, "0, 0, 0"),
        world_text(1, 1, ", ".join("0" * 3000)),
        world_text(1, 1, ".nan, 0, 0"),
        world_text(1, 1, ""),
        "[" * 200 + "]" * 200,
        "!!python/object/apply:os.system [touch /tmp/no]",
        "tiles_y: \x1b",
    ],
)
def test_hostile_world_is_one_short_line(tmp_path, text):
    (tmp_path / "world.yaml").write_text(text)
    with pytest.raises(SourceError, match="not the shapes of a world") as error:
        read_gazebo_world(tmp_path / "world.yaml")
    assert str(error.value).isprintable() and len(str(error.value)) < 500
