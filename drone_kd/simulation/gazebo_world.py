"""Ground truth of a Gazebo world: known shapes and poses, projected by a camera model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drone_kd.media.image_files import SourceError
from drone_kd.parsing import ParseError, read_yaml
from drone_kd.simulation.projection import projection_matrix, solid_boxes
from drone_kd.simulation.scoring.flight_record import Truth, class_name
from drone_kd.text import one_line

# Each object takes as much memory as the one of the most points.
_MAX_OBJECTS, _MAX_POINTS = 10_000, 200


@dataclass(frozen=True, eq=False)
class GazeboWorld:
    """Shapes of all objects of a world, in its axes: x east, y north, z up, metres.

    A pose is float64 (7,): x, y, z and quaternion x, y, z, w.
    """

    carrier: str  # name of the model that carries the cameras
    # By name, pose relative to the carrier. A camera looks along its x axis; y is left, z up.
    cameras: dict[str, np.ndarray]
    standing: np.ndarray  # float64 (N, P, 3), hulls of standing objects
    standing_names: tuple[str, ...]  # N class names; "": unlabelled, only hides others
    moving: dict[str, np.ndarray]  # hull of each moving model in its own axes, float64 (P, 3)
    moving_names: dict[str, str]  # class name of each moving model


def read_gazebo_world(path: str | Path) -> GazeboWorld:
    """Read a file like worlds/aerial_traffic.yaml.

    Raises:
        SourceError: the file is missing or malformed.
    """
    try:
        content = read_yaml(path)
        if len(content["tiles_y"]) * len(content["standing"]) > _MAX_OBJECTS:
            raise ValueError(f"expected at most {_MAX_OBJECTS} standing objects")
        standing, names = [], []
        for y in content["tiles_y"]:
            for entry in content["standing"]:
                standing.append(_points(entry["points"]) + (0, y, 0))
                names.append(class_name(entry["class"]))
        moving = content["moving"]
        return GazeboWorld(
            carrier=str(content["carrier"]),
            cameras={str(n): _numbers(p).reshape(7) for n, p in content["cameras"].items()},
            standing=_stack(standing),
            standing_names=tuple(names),
            moving={str(name): _points(entry["points"]) for name, entry in moving.items()},
            moving_names={str(n): class_name(entry["class"]) for n, entry in moving.items()},
        )
    except ParseError as error:
        raise SourceError(f"{error}: not the shapes of a world") from None
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"not the shapes of a world: {one_line(error)}"
        raise SourceError(f"{one_line(path)}: {problem}") from None


def visible_truth(
    world: GazeboWorld,
    camera: str,
    poses: Mapping[str, np.ndarray],
    intrinsics: np.ndarray,
    width: int,
    height: int,
) -> Truth:
    """Return the objects that a camera of the carrier sees; those little in view are ignored.

    Args:
        world: the shapes.
        camera: one of world.cameras.
        poses: of the carrier and of moving models; a model without a pose is absent.
        intrinsics: float64 (3, 3), K of camera_info.
        width: of the image in pixels.
        height: of the image in pixels.

    Raises:
        KeyError: the carrier has no pose.
    """
    carrier, mount = poses[world.carrier], world.cameras[camera]
    turn = rotation(carrier[3:])
    position = carrier[:3] + turn @ mount[:3]
    ahead, left, up = (turn @ rotation(mount[3:])).T
    matrix = projection_matrix(np.stack([-left, -up, ahead]), intrinsics)
    present = [name for name in world.moving if name in poses]
    moved = [
        world.moving[name] @ rotation(poses[name][3:]).T + poses[name][:3] for name in present
    ]
    solids = _stack([*world.standing, *moved])
    names = (*world.standing_names, *(world.moving_names[name] for name in present))
    ids = (*(f"standing_{k}" for k in range(len(world.standing))), *present)
    labelled = np.array([bool(name) for name in names])
    xyxy, index, partly = solid_boxes(solids, labelled, position, matrix, width, height)
    return Truth(xyxy, tuple(names[i] for i in index), tuple(ids[i] for i in index), partly)


def rotation(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation matrix (3, 3), for column vectors, of a unit quaternion x, y, z, w."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _points(numbers: list[float]) -> np.ndarray:
    points = _numbers(numbers).reshape(-1, 3)
    if not 0 < len(points) <= _MAX_POINTS:
        raise ValueError(f"expected 1 to {_MAX_POINTS} points of an object, got {len(points)}")
    return points


def _numbers(values: list[float]) -> np.ndarray:
    numbers = np.array(values, dtype=float)
    if not np.isfinite(numbers).all():
        raise ValueError("expected finite numbers")
    return numbers


def _stack(hulls: list[np.ndarray]) -> np.ndarray:
    """Stack hulls of different sizes as (N, P, 3), padded with their last points."""
    most = max((len(points) for points in hulls), default=1)
    out = np.empty((len(hulls), most, 3))
    for row, points in zip(out, hulls, strict=True):
        row[: len(points)] = points
        row[len(points) :] = points[-1]
    return out
