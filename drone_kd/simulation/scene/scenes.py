"""Named scenes for rehearsals: what is built there, and the road that the drone follows."""

from __future__ import annotations

from dataclasses import dataclass

from drone_kd.simulation.scene.roads import Road
from drone_kd.simulation.scene.shapes import TILE_M
from drone_kd.simulation.scene.town import Layout, build_world
from drone_kd.simulation.scene.weather import find_weather
from drone_kd.simulation.scene.world import World

_MIDDLE = TILE_M / 2


def _road(
    vertical: bool, lanes: int, sidewalk_m: float, amplitude_m: float = 0.0, lane_m: float = 3.3
) -> Road:
    return Road(vertical, _MIDDLE, amplitude_m, 0.0, lanes, lane_m, sidewalk_m)


@dataclass(frozen=True)
class Scene:
    """A named place. The first road of its layout runs north-south: the drone follows it."""

    layout: Layout
    weather: str = "clear"  # where none is asked for


# To add a scene, add one entry: it changes no other scene.
_SCENES = {
    "highway": Scene(
        Layout(
            "rural",
            {"field": 6, "forest": 3, "houses": 2, "industry": 1},
            (_road(True, 3, 0.0, amplitude_m=5.0, lane_m=3.6),),
            speed_mps=(20.0, 34.0),
        )
    ),
    "crossing": Scene(
        Layout(
            "town",
            {"flats": 4, "houses": 2, "car_park": 2, "park": 2, "plaza": 4},
            (_road(True, 2, 3.5), _road(False, 2, 3.5)),
        )
    ),
    "car-park": Scene(
        Layout(
            "suburb",
            {"car_park": 8, "flats": 1, "park": 1},
            (_road(True, 1, 2.0), _road(False, 1, 2.0)),
        )
    ),
    "forest-edge": Scene(
        Layout(
            "rural",
            {"forest": 5, "field": 3, "park": 3, "yard": 1},
            (_road(True, 1, 0.0, amplitude_m=8.0),),
        )
    ),
    "night": Scene(
        Layout(
            "suburb",
            {"houses": 4, "flats": 2, "car_park": 3, "park": 3},
            (_road(True, 2, 2.5), _road(False, 1, 2.5)),
        ),
        weather="night",
    ),
    "search": Scene(
        Layout(
            "rural",
            {"wilderness": 6, "forest": 1, "water": 1},
            (_road(True, 1, 0.0, amplitude_m=9.0, lane_m=1.6),),
            speed_mps=(3.0, 6.0),
            traffic=0.1,
        )
    ),
    "crowd": Scene(
        Layout(
            "town",
            {"crowd": 5, "plaza": 3, "park": 1},
            (_road(True, 1, 4.0), _road(False, 1, 4.0)),
            traffic=0.5,
        )
    ),
    "landing-pad": Scene(
        Layout(
            "suburb",
            {"landing_pad": 4, "park": 2, "houses": 1, "car_park": 1},
            (_road(True, 1, 2.0), _road(False, 1, 2.0)),
        )
    ),
}
SCENES = tuple(_SCENES)


def find_scene(name: str) -> Scene:
    """Return a scene of SCENES.

    Raises:
        ValueError: unknown name.
    """
    if name not in _SCENES:
        raise ValueError(f"scene: expected one of {', '.join(SCENES)}, got {name!r}")
    return _SCENES[name]


def build_scene(scene: str, seed: int, weather: str = "") -> World:
    """Build one of SCENES; the same arguments give the same world.

    `weather`: one of WEATHERS; empty: the scene's own. The place does not depend on it.

    Raises:
        ValueError: unknown scene or weather.
    """
    found = find_scene(scene)
    return build_world(seed, found.layout, find_weather(weather or found.weather))
