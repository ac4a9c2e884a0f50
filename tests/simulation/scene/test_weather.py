import itertools

import numpy as np
import pytest

from drone_kd.simulation.scene import WEATHERS, FlightPlan, fly
from drone_kd.simulation.scene.scenes import build_scene
from drone_kd.simulation.scene.town import build_world


def brightness(weather):
    return next(fly(FlightPlan(seed=3, width=320, height=200, weather=weather))).image.mean()


def test_a_weather_changes_neither_place_nor_traffic():
    clear = build_world(3)
    for weather in WEATHERS.values():
        world = build_world(3, weather=weather)
        np.testing.assert_array_equal(world.mesh_ids, clear.mesh_ids)
        np.testing.assert_array_equal(world.poses(7.5), clear.poses(7.5))
        np.testing.assert_array_equal(world.houses, clear.houses)
        assert world.shadow_gain == clear.shadow_gain or weather.shade != clear.weather.shade


def test_a_weather_does_not_change_the_route():
    boxes = [
        next(itertools.islice(fly(FlightPlan(3, 320, 200, weather=name)), 2, None)).xyxy
        for name in ("clear", "rain")
    ]
    np.testing.assert_array_equal(*boxes)


def test_only_sunlight_casts_shadows():
    shaded = {name: (build_world(3, weather=w).shadow > 0).mean() for name, w in WEATHERS.items()}
    assert shaded["overcast"] == shaded["rain"] == 0 < shaded["clear"] < shaded["dusk"]
    # A thermal ground is even: its darkest places are no shadows.
    night, clear = build_scene("night", 3), build_scene("night", 3, "clear")
    in_shadow = clear.shadow > 0
    ground = [world.ground[0][..., 1].astype(float) for world in (night, clear)]
    ratios = [np.median(g[in_shadow]) / np.median(g[~in_shadow]) for g in ground]
    assert ratios[0] > 0.9 and ratios[1] < 0.75, ratios


def test_weathers_look_different():
    assert brightness("dusk") < 0.8 * brightness("clear")
    frame = next(fly(FlightPlan(seed=3, width=320, height=200, weather="night")))
    assert np.ptp(frame.image.astype(int), axis=2).mean() < 12
    assert np.isfinite([brightness(name) for name in WEATHERS]).all()


def test_an_unknown_weather_is_refused():
    with pytest.raises(ValueError, match="weather: expected one of clear, "):
        FlightPlan(weather="snow")
    with pytest.raises(ValueError, match="weather: expected one of clear, "):
        build_scene("crossing", 0, "snow")
