"""Synthetic aerial images with exact boxes, for training data and for simulated flights.

frame = draw_frame(seed=7, imgsz=640)
for frame in fly(FlightPlan(scene="crossing", seed=7, fps=25)): ...
"""

from drone_kd.simulation.scene.frames import (
    CLASSES,
    FRAMES_PER_WORLD,
    FlightPlan,
    Frame,
    SceneFrames,
    draw_frame,
    fly,
)
from drone_kd.simulation.scene.scenes import SCENES
from drone_kd.simulation.scene.trajectory import DISTURBANCES, FLIGHTS
from drone_kd.simulation.scene.weather import WEATHERS

__all__ = [
    "CLASSES",
    "DISTURBANCES",
    "FLIGHTS",
    "FRAMES_PER_WORLD",
    "SCENES",
    "WEATHERS",
    "FlightPlan",
    "Frame",
    "SceneFrames",
    "draw_frame",
    "fly",
]
