"""Generator of the Gazebo world.

    python worlds/generate.py

Writes aerial_traffic.sdf, the meshes and textures in aerial_traffic/, the shapes of all objects
for ground truth in aerial_traffic.yaml, and the bridge's topics in bridge.yaml. The world is the
crossing of `drone-kd simulate`, three tiles long from south to north, in Gazebo's axes: x east,
y north, z up. Nothing is downloaded.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from scipy.spatial import ConvexHull

from drone_kd.simulation.scene import CLASSES, meshes
from drone_kd.simulation.scene.buildings import GABLES, HOUSE_SIDES
from drone_kd.simulation.scene.meshes import FACES, NO_CLASS
from drone_kd.simulation.scene.scenes import build_scene
from drone_kd.simulation.scene.shapes import TILE_M
from drone_kd.simulation.scene.world import World

HERE = Path(__file__).resolve().parent
NAME = "aerial_traffic"
SEED = 2
# Centres of the south, middle and north tile.
TILES_Y = (-TILE_M, 0.0, TILE_M)
DRIVING, WALKING = 24, 12
POSE_HZ = 50
# The carrier flies north along the road, east of its centre.
DRONE_START = (8.0, -220.0, 50.0)
DRONE_MPS = 8.0
CAMERA_HZ, WIDTH, HEIGHT, FOCAL_PX = 10, 1280, 720, 1280.0
OBLIQUE_DEG = 40.0
# Texture with one cell per paint colour.
PALETTE_SIDE, CELL_PX = 16, 16
# Meshes have y to the right, Gazebo's models to the left.
_TO_LEFT = (1, -1, 1)
# Rings of a tree's crown: shares of its radius and of the tree's height.
_RINGS = ((0.55, 0.28), (1.0, 0.55), (0.7, 0.86))
_TURN = np.linspace(0, 2 * np.pi, 8, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], -1)


class Obj:
    """Builder of a Wavefront mesh: polygons by material."""

    def __init__(self) -> None:
        self._points: list[str] = []
        self._places: dict[str, int] = {}
        self._normals: dict[str, int] = {}
        self._faces: dict[str, list[str]] = {}

    def add(self, material: str, corners: np.ndarray, uv: np.ndarray) -> None:
        """Add a polygon, counter-clockwise seen from outside."""
        # Gazebo's renderer shows nothing of a mesh without normals.
        normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        line = "vn {:.3f} {:.3f} {:.3f}".format(*normal / np.linalg.norm(normal))
        side = self._normals.setdefault(line, len(self._normals) + 1)
        indices = []
        for point, place in zip(corners, uv, strict=True):
            self._points.append("v {:.2f} {:.2f} {:.2f}".format(*point))
            line = "vt {:.4f} {:.4f}".format(*place)
            number = self._places.setdefault(line, len(self._places) + 1)
            indices.append(f"{len(self._points)}/{number}/{side}")
        self._faces.setdefault(material, []).append(f"f {' '.join(indices)}")

    def write(self, folder: Path, name: str) -> None:
        """Write NAME.obj."""
        lines = [f"mtllib {NAME}.mtl", *self._points, *self._places, *self._normals]
        for material, faces in self._faces.items():
            lines += [f"usemtl {material}", *faces]
        (folder / f"{name}.obj").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Write all files."""
    world = build_scene("crossing", SEED)
    folder = HERE / NAME
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    palette = _palette(folder, world)
    _textures(folder, world)
    _ground().write(folder, "ground")
    _houses(world).write(folder, "houses")
    _trees(world).write(folder, "trees")
    moving, standing = _choose(world)
    furniture = Obj()
    for number in standing:
        _add_mesh(furniture, world, number, palette, place=True)
    furniture.write(folder, "standing")
    movers = []
    for k, number in enumerate(moving):
        obj = Obj()
        _add_mesh(obj, world, number, palette, place=False)
        kind = CLASSES[world.class_ids[number]]
        name = f"{kind}_{k:02d}"
        obj.write(folder, name)
        movers.append((name, number, TILES_Y[k % len(TILES_Y)]))
    (HERE / f"{NAME}.sdf").write_text(_sdf(world, movers))
    _write_yaml(HERE / f"{NAME}.yaml", _SHAPES_HEAD, _shapes(world, standing, movers))
    _write_yaml(HERE / "bridge.yaml", _BRIDGE_HEAD, _bridge(movers))


def _gazebo(xy: np.ndarray) -> np.ndarray:
    """Points (..., 2) of the tile, x east and y south, in Gazebo's axes around its middle."""
    return (xy - TILE_M / 2) * (1, -1)


def _textures(folder: Path, world: World) -> None:
    # Gazebo renders its own shadows: remove those of the ground.
    lit = world.ground[0][..., :3].astype(np.float32)
    lit[world.shadow > 0] /= world.shadow_gain
    _write_jpeg(folder, "ground", lit.clip(0, 255).astype(np.uint8), 72)
    for k, roof in enumerate(world.roof_textures):
        _write_jpeg(folder, f"roof{k}", roof[0][..., :3], 80)
    for k, facade in enumerate(world.facade_textures):
        _write_jpeg(folder, f"facade{k}", facade[0][..., :3], 80)
    for k, tree in enumerate(world.tree_textures):
        colour, alpha = tree[0][..., :3], tree[0][..., 3]
        # Pixels outside the crown take its mean colour.
        mean = colour[alpha > 128].mean(0)
        _write_jpeg(folder, f"tree{k}", np.where(alpha[..., None] > 128, colour, mean), 80)
    files = ["ground.jpg", "paint.png"]
    for kind in ("roof", "facade", "tree"):
        files += [f"{kind}{k}.jpg" for k in range(len(getattr(world, f"{kind}_textures")))]
    lines = []
    for file in files:
        lines += [f"newmtl {Path(file).stem}", "Ka 1 1 1", "Kd 1 1 1", "Ks 0.05 0.05 0.05"]
        lines += [f"map_Kd {file}", ""]
    (folder / f"{NAME}.mtl").write_text("\n".join(lines))


def _write_jpeg(folder: Path, name: str, image: np.ndarray, quality: int) -> None:
    options = (cv2.IMWRITE_JPEG_QUALITY, quality)
    cv2.imwrite(str(folder / f"{name}.jpg"), image.astype(np.uint8), options)


def _palette(folder: Path, world: World) -> np.ndarray:
    """Write paint.png; returns its colours, float32 (K, 3) RGB, row by row."""
    shapes = meshes.library()
    parts = [
        shapes.colours[shapes.first[m] : shapes.first[m] + shapes.count[m]].reshape(-1, 3)
        for m in np.unique(world.mesh_ids)
    ]
    colours = np.concatenate(parts)
    colours = colours[~np.isnan(colours[:, 0])].astype(np.float32)
    cv2.setRNGSeed(0)
    count = PALETTE_SIDE**2
    stop = (cv2.TERM_CRITERIA_MAX_ITER | cv2.TERM_CRITERIA_EPS, 20, 0.5)
    labels = np.empty((len(colours), 1), np.int32)
    _, _, centres = cv2.kmeans(colours, count, labels, stop, 1, cv2.KMEANS_PP_CENTERS)
    palette = np.asarray(centres)
    cells = palette.reshape(PALETTE_SIDE, PALETTE_SIDE, 3)[..., ::-1].clip(0, 255)
    sheet = np.kron(cells, np.ones((CELL_PX, CELL_PX, 1))).round().astype(np.uint8)
    cv2.imwrite(str(folder / "paint.png"), sheet)
    return palette


def _ground() -> Obj:
    obj, half = Obj(), TILE_M / 2
    corners = np.array([[-half, -half, 0], [half, -half, 0], [half, half, 0], [-half, half, 0]])
    obj.add("ground", corners, np.array([[0, 0], [1, 0], [1, 1], [0, 1]]))
    return obj


def _houses(world: World) -> Obj:
    obj = Obj()
    for k, house in enumerate(world.houses):
        roof, facade = world.house_textures[k]
        points = np.column_stack([_gazebo(house[:, :2]), house[:, 2]])
        middle = points[:8].mean(0)
        for side, ends in enumerate(HOUSE_SIDES):
            if not np.any(world.house_normals[k, side]):
                continue
            quad = points[ends]
            uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], dtype=float)
            if side in GABLES:  # two of its corners are one
                quad, uv = quad[:3], uv[:3]
            material = f"roof{roof}" if side >= 6 else f"facade{facade}"
            _add_outwards(obj, material, quad, uv, middle)
    return obj


def _trees(world: World) -> Obj:
    """Crowns of three rings, with the texture from above on them."""
    obj = Obj()
    uvs = [0.5 + 0.46 * share * _CIRCLE for share, _ in _RINGS]
    for *tree, number in world.trees:
        rings, material = _crown(*tree), f"tree{int(number)}"
        for low, high in ((0, 1), (1, 2)):
            for i in range(8):
                j = (i + 1) % 8
                quad, uv = (
                    np.stack([of[low][i], of[low][j], of[high][j], of[high][i]])
                    for of in (rings, uvs)
                )
                obj.add(material, quad, uv)
        obj.add(material, rings[2], uvs[2])
    return obj


def _crown(x: float, y: float, radius: float, height: float) -> list[np.ndarray]:
    """Return the rings (8, 3) of a tree's crown in Gazebo's axes."""
    middle = _gazebo(np.array([x, y]))
    return [
        np.column_stack([middle + share * radius * _CIRCLE, np.full(8, level * height)])
        for share, level in _RINGS
    ]


def _add_mesh(obj: Obj, world: World, number: int, palette: np.ndarray, place: bool) -> None:
    """Add an object's faces, at its place on the tile or at the origin with x forward."""
    shapes = meshes.library()
    mesh = world.mesh_ids[number]
    for part in range(shapes.first[mesh], shapes.first[mesh] + shapes.count[mesh]):
        corners = shapes.corners[part] * _TO_LEFT
        if place:
            corners = _placed(corners, *_pose(world, number))
        middle = corners.mean(0)
        for face, ends in enumerate(FACES):
            colour = shapes.colours[part, face]
            if np.isnan(colour[0]):
                continue
            cell = int(np.linalg.norm(palette - colour, axis=1).argmin())
            row, column = divmod(cell, PALETTE_SIDE)
            spot = np.array([(column + 0.5) / PALETTE_SIDE, 1 - (row + 0.5) / PALETTE_SIDE])
            _add_outwards(obj, "paint", corners[ends], np.tile(spot, (4, 1)), middle)


def _add_outwards(
    obj: Obj, material: str, corners: np.ndarray, uv: np.ndarray, middle: np.ndarray
) -> None:
    """Add a polygon that faces away from `middle`."""
    normal = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    if normal @ (corners.mean(0) - middle) < 0:
        corners, uv = corners[::-1], uv[::-1]
    obj.add(material, corners, uv)


def _pose(world: World, number: int) -> tuple[float, float, float]:
    """x, y, yaw in Gazebo's axes."""
    x, y, heading = world.poses(0.0)[number]
    east, north = _gazebo(np.array([x % TILE_M, y % TILE_M]))
    return float(east), float(north), float(-heading)


def _placed(points: np.ndarray, x: float, y: float, yaw: float) -> np.ndarray:
    sin, cos = math.sin(yaw), math.cos(yaw)
    return points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) + (x, y, 0)


def _choose(world: World) -> tuple[list[int], list[int]]:
    """Return the objects that move along the north-south road, and those that stand."""
    on_main = (world.road_ids == 0) & (world.speed != 0)
    people = world.class_ids == meshes.PERSON
    rng = np.random.default_rng(SEED)

    def some(which: np.ndarray, count: int) -> list[int]:
        numbers = np.flatnonzero(which)
        return sorted(rng.permutation(numbers)[:count].tolist())

    moving = some(on_main & ~people, DRIVING) + some(on_main & people, WALKING)
    standing = np.flatnonzero((world.speed == 0) | ((world.road_ids > 0) & people))
    return moving, standing.tolist()


def _points_of(world: World, number: int) -> np.ndarray:
    """Return the hull of an object: (P, 3), metres, at the origin with x forward."""
    shapes = meshes.library()
    mesh = world.mesh_ids[number]
    points = shapes.corners[shapes.first[mesh] : shapes.first[mesh] + shapes.count[mesh]]
    return _hull(points.reshape(-1, 3) * _TO_LEFT)


def _hull(points: np.ndarray) -> np.ndarray:
    return points[ConvexHull(points).vertices]


def _shapes(world: World, standing: list[int], movers: list) -> dict:
    """Return the shapes for ground truth; see drone_kd.simulation.gazebo_world."""
    half = math.radians(OBLIQUE_DEG) / 2
    shapes: dict[str, Any] = {
        "classes": list(CLASSES),
        "cameras": {
            # From the carrier to the camera: x, y, z, and the quaternion x, y, z, w.
            "down": [0, 0, -0.1, 0, round(math.sqrt(0.5), 6), 0, round(math.sqrt(0.5), 6)],
            "front": [0.2, 0, 0, 0, round(math.sin(half), 6), 0, round(math.cos(half), 6)],
        },
        "carrier": "drone",
        "moving": {},
        "standing": [],
        # Standing objects repeat at these tile centres.
        "tiles_y": [round(y, 2) for y in TILES_Y],
    }
    for name, number, _ in movers:
        kind = CLASSES[world.class_ids[number]]
        shapes["moving"][name] = {"class": kind, "points": _rounded(_points_of(world, number))}
    for number in standing:
        kind = world.class_ids[number]
        points = _placed(_points_of(world, number), *_pose(world, number))
        entry = {"class": "" if kind == NO_CLASS else CLASSES[kind], "points": _rounded(points)}
        shapes["standing"].append(entry)
    for house in world.houses:
        points = np.column_stack([_gazebo(house[:, :2]), house[:, 2]])
        shapes["standing"].append({"class": "", "points": _rounded(_hull(points))})
    for tree in world.trees:
        points = np.concatenate(_crown(*tree[:4]))
        shapes["standing"].append({"class": "", "points": _rounded(points)})
    return shapes


def _rounded(points: np.ndarray) -> list[float]:
    """Return all coordinates in one list: x, y, z, x, y, z, ..."""
    return [round(float(v), 2) for v in points.ravel()]


def _bridge(movers: list) -> list[dict]:
    def entry(ros: str, gazebo: str, kind: str, gz_kind: str) -> dict:
        return {
            "ros_topic_name": ros,
            "gz_topic_name": gazebo,
            "ros_type_name": kind,
            "gz_type_name": gz_kind,
            "direction": "GZ_TO_ROS",
        }

    topics = [entry("/clock", "/clock", "rosgraph_msgs/msg/Clock", "gz.msgs.Clock")]
    for camera in ("down", "front"):
        for name, kind in (("image", "Image"), ("camera_info", "CameraInfo")):
            topic = f"/drone/{camera}/{name}"
            topics.append(entry(topic, topic, f"sensor_msgs/msg/{kind}", f"gz.msgs.{kind}"))
    pose = "geometry_msgs/msg/TransformStamped"
    topics += [
        entry("/poses", f"/model/{name}/pose", pose, "gz.msgs.Pose")
        for name in ("drone", *(name for name, *_ in movers))
    ]
    return topics


_SHAPES_HEAD = """\
# Shapes and places of all that worlds/aerial_traffic.sdf shows, for ground truth. Written by
# worlds/generate.py. Points are x, y, z, x, y, z, ... in metres, of the hull of each object:
# in the world for what stands, and in its model for what moves.
"""
_BRIDGE_HEAD = """\
# What ros_gz_bridge carries from Gazebo to ROS for worlds/aerial_traffic.sdf. Written by
# worlds/generate.py. Poses come one model at a time, because only these carry their names.
"""


class _Flow(yaml.SafeDumper):
    """YAML dumper that writes lists of numbers in one line."""


def _list(dumper: yaml.SafeDumper, data: list) -> yaml.SequenceNode:
    numbers = all(isinstance(v, (int, float)) for v in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=numbers)


_Flow.add_representer(list, _list)


def _write_yaml(path: Path, head: str, content: dict | list) -> None:
    text = yaml.dump(content, Dumper=_Flow, sort_keys=False, width=10**6)
    path.write_text(head + text)


def _sdf(world: World, movers: list) -> str:
    sun = world.sun * (1, -1, 1)
    statics = "".join(
        _STATIC.format(name=f"{part}_{k}", mesh=part, y=y, cast=int(part != "ground"))
        for part in ("ground", "houses", "trees", "standing")
        for k, y in enumerate(TILES_Y)
    )
    moving = ""
    for name, number, tile_y in movers:
        x, y, yaw = _pose(world, number)
        speed = abs(world.speed[number])
        moving += _MOVER.format(name=name, x=x, y=y + tile_y, yaw=yaw, speed=speed, hz=POSE_HZ)
    lens = {"fov": 2 * math.atan(WIDTH / 2 / FOCAL_PX), "focal": FOCAL_PX, "hz": CAMERA_HZ}
    lens |= {"width": WIDTH, "height": HEIGHT, "cx": WIDTH / 2, "cy": HEIGHT / 2}
    cameras = _CAMERA.format(name="down", place="0 0 -0.1", pitch=math.pi / 2, **lens)
    oblique = math.radians(OBLIQUE_DEG)
    cameras += _CAMERA.format(name="front", place="0.2 0 0", pitch=oblique, **lens)
    place = {"start": "{} {} {}".format(*DRONE_START), "yaw": math.pi / 2}
    drone = _DRONE.format(**place, speed=DRONE_MPS, hz=POSE_HZ, cameras=cameras)
    light = " ".join(f"{-v:.3f}" for v in sun)
    return _WORLD.format(sun=light, statics=statics, moving=moving, drone=drone)


_WORLD = """\
<?xml version="1.0"?>
<!-- A crossing with traffic, seen by a carrier with two cameras. Written by worlds/generate.py.
     The names of the plugins are those of Fortress; Harmonic and Ionic take them, too. -->
<sdf version="1.9">
  <world name="aerial_traffic">
    <physics name="steps" type="ignored">
      <max_step_size>0.01</max_step_size>
      <real_time_factor>1.0</real_time_factor>
    </physics>
    <!-- Nothing falls: what moves has its speed and keeps it. -->
    <gravity>0 0 0</gravity>
    <plugin filename="ignition-gazebo-physics-system"
      name="ignition::gazebo::systems::Physics"/>
    <plugin filename="ignition-gazebo-user-commands-system"
      name="ignition::gazebo::systems::UserCommands"/>
    <plugin filename="ignition-gazebo-scene-broadcaster-system"
      name="ignition::gazebo::systems::SceneBroadcaster"/>
    <plugin filename="ignition-gazebo-sensors-system"
      name="ignition::gazebo::systems::Sensors">
      <render_engine>ogre2</render_engine>
    </plugin>
    <scene>
      <ambient>0.55 0.55 0.58 1</ambient>
      <background>0.62 0.71 0.82 1</background>
      <shadows>true</shadows>
    </scene>
    <light type="directional" name="sun">
      <cast_shadows>true</cast_shadows>
      <pose>0 0 100 0 0 0</pose>
      <diffuse>0.9 0.88 0.82 1</diffuse>
      <specular>0.1 0.1 0.1 1</specular>
      <direction>{sun}</direction>
    </light>
    <model name="meadow">
      <static>true</static>
      <link name="link">
        <visual name="visual">
          <cast_shadows>false</cast_shadows>
          <pose>0 0 -0.2 0 0 0</pose>
          <geometry><plane><normal>0 0 1</normal><size>3000 3000</size></plane></geometry>
          <material>
            <ambient>0.33 0.38 0.22 1</ambient>
            <diffuse>0.33 0.38 0.22 1</diffuse>
          </material>
        </visual>
      </link>
    </model>
{statics}{moving}{drone}  </world>
</sdf>
"""

_STATIC = """\
    <model name="{name}">
      <static>true</static>
      <pose>0 {y:.2f} 0 0 0 0</pose>
      <link name="link">
        <visual name="visual">
          <cast_shadows>{cast}</cast_shadows>
          <geometry><mesh><uri>aerial_traffic/{mesh}.obj</uri></mesh></geometry>
        </visual>
      </link>
    </model>
"""

# Fortress publishes a model's own pose only where those of nested models are asked for, too.
_POSES = """\
      <plugin filename="ignition-gazebo-velocity-control-system"
        name="ignition::gazebo::systems::VelocityControl">
        <initial_linear>{speed:.2f} 0 0</initial_linear>
      </plugin>
      <plugin filename="ignition-gazebo-pose-publisher-system"
        name="ignition::gazebo::systems::PosePublisher">
        <publish_model_pose>true</publish_model_pose>
        <publish_link_pose>false</publish_link_pose>
        <publish_visual_pose>false</publish_visual_pose>
        <publish_collision_pose>false</publish_collision_pose>
        <publish_sensor_pose>false</publish_sensor_pose>
        <publish_nested_model_pose>true</publish_nested_model_pose>
        <use_pose_vector_msg>false</use_pose_vector_msg>
        <update_frequency>{hz}</update_frequency>
      </plugin>
"""

_MOVER = (
    """\
    <model name="{name}">
      <pose>{x:.2f} {y:.2f} 0 0 0 {yaw:.4f}</pose>
      <link name="link">
        <inertial><mass>100</mass></inertial>
        <visual name="visual">
          <geometry><mesh><uri>aerial_traffic/{name}.obj</uri></mesh></geometry>
        </visual>
      </link>
"""
    + _POSES
    + """\
    </model>
"""
)

_DRONE = (
    """\
    <model name="drone">
      <pose>{start} 0 0 {yaw:.6f}</pose>
      <link name="link">
        <inertial><mass>2</mass></inertial>
        <visual name="body">
          <geometry><box><size>0.4 0.4 0.1</size></box></geometry>
          <material><diffuse>0.1 0.1 0.1 1</diffuse></material>
        </visual>
{cameras}      </link>
"""
    + _POSES
    + """\
    </model>
"""
)

# Before 6.8, Fortress's sensors fill camera_info from the lens, not from the field of view.
_CAMERA = """\
        <sensor name="{name}" type="camera">
          <pose>{place} 0 {pitch:.6f} 0</pose>
          <topic>drone/{name}/image</topic>
          <update_rate>{hz}</update_rate>
          <always_on>true</always_on>
          <camera>
            <horizontal_fov>{fov:.6f}</horizontal_fov>
            <image>
              <width>{width}</width>
              <height>{height}</height>
              <format>R8G8B8</format>
            </image>
            <clip>
              <near>0.5</near>
              <far>1000</far>
            </clip>
            <lens>
              <intrinsics>
                <fx>{focal}</fx>
                <fy>{focal}</fy>
                <cx>{cx}</cx>
                <cy>{cy}</cy>
                <s>0</s>
              </intrinsics>
            </lens>
            <noise>
              <type>gaussian</type>
              <mean>0</mean>
              <stddev>0.01</stddev>
            </noise>
          </camera>
        </sensor>
"""

if __name__ == "__main__":
    main()
