"""Weather by name: sunlight, shadows, haze, rain and what they do to the sensor.

To add a weather, add one entry to WEATHERS. A weather draws no random numbers of its own, so that
place, traffic and route of a seed are the same in every weather.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from drone_kd.simulation.scene.sensor import Conditions, sample_conditions


@dataclass(frozen=True)
class Weather:
    """Light and air over a world. Ranges are sampled from the seed of the world.

    Attributes:
        sun_deg: lowest and highest elevation of the sun.
        ambient: brightness of a surface without sunlight, 1 is its own colour.
        direct: brightness that sunlight adds where it meets the surface at a right angle.
        shade: range of the brightness of ground in a shadow relative to sunlight.
        shadows: whether the sun casts shadows.
        thermal: the place as a thermal camera shows it.
        exposure: factor on the brightness of the image.
        tint_bgr: factors on the channels.
        haze: least share of the light that haze adds, 0 to 0.95.
        visibility_m: distance at which 1 / e of the contrast is left; for effects by depth.
        rain_mm_h: rainfall; for drops and streaks.
        blur_px: defocus that the air or drops add.
        noise: factor on the sensor noise.
        sky_bgr: colours at the horizon and 30 degrees above it.
    """

    sun_deg: tuple[float, float] = (28.0, 68.0)
    ambient: float = 0.55
    direct: float = 0.6
    shade: tuple[float, float] = (0.32, 0.6)
    shadows: bool = True
    thermal: bool = False
    exposure: float = 1.0
    tint_bgr: tuple[float, float, float] = (1.0, 1.0, 1.0)
    haze: float = 0.0
    visibility_m: float = 8000.0
    rain_mm_h: float = 0.0
    blur_px: float = 0.0
    noise: float = 1.0
    sky_bgr: tuple[tuple[float, float, float], tuple[float, float, float]] = (
        (226.0, 214.0, 200.0),
        (206.0, 160.0, 112.0),
    )

    def conditions(self, rng: np.random.Generator) -> Conditions:
        """Sample the imaging conditions of a flight in this weather."""
        clear = sample_conditions(rng)
        if self.thermal:
            return replace(
                clear, gain=(1.0, 1.0, 1.0), gamma=1.0, haze=0.0, haze_bgr=(60.0, 60.0, 60.0)
            )
        blue, green, red = (
            gain * tint * self.exposure
            for gain, tint in zip(clear.gain, self.tint_bgr, strict=True)
        )
        return replace(
            clear,
            gain=(blue, green, red),
            haze=max(clear.haze, self.haze),
            blur_px=clear.blur_px + self.blur_px,
            noise=clear.noise * self.noise,
        )


_GREY_SKY = ((206.0, 204.0, 200.0), (188.0, 184.0, 180.0))

WEATHERS = {
    "clear": Weather(),
    "overcast": Weather(
        ambient=0.86, direct=0.16, shadows=False, visibility_m=4000.0, sky_bgr=_GREY_SKY
    ),
    "haze": Weather(shade=(0.5, 0.7), haze=0.35, visibility_m=700.0, sky_bgr=_GREY_SKY),
    "rain": Weather(
        ambient=0.86,
        direct=0.1,
        shadows=False,
        exposure=0.8,
        tint_bgr=(1.04, 1.0, 0.97),
        haze=0.18,
        visibility_m=1200.0,
        rain_mm_h=8.0,
        blur_px=0.35,
        noise=1.5,
        sky_bgr=((176.0, 172.0, 168.0), (150.0, 146.0, 142.0)),
    ),
    "dusk": Weather(
        sun_deg=(14.0, 24.0),
        shade=(0.4, 0.6),
        exposure=0.62,
        tint_bgr=(0.88, 0.97, 1.08),
        noise=2.2,
        visibility_m=5000.0,
        sky_bgr=((120.0, 160.0, 222.0), (150.0, 120.0, 96.0)),
    ),
    "night": Weather(
        shadows=False, thermal=True, sky_bgr=((30.0, 30.0, 30.0), (16.0, 16.0, 16.0))
    ),
}


def find_weather(name: str) -> Weather:
    """Return a weather of WEATHERS.

    Raises:
        ValueError: unknown name.
    """
    if name not in WEATHERS:
        raise ValueError(f"weather: expected one of {', '.join(WEATHERS)}, got {name!r}")
    return WEATHERS[name]
