"""Procedural aerial pictures with exact boxes, for training data and for flights without a drone.

frame = draw_frame(seed=7, imgsz=640)
for frame in fly(Flight(scene="crossing", seed=7, fps=25)): ...
"""

from drone_kd.scene.frames import CLASSES, FRAMES_PER_WORLD, Flight, Frame, draw_frame, fly
from drone_kd.scene.layouts import SCENES

__all__ = ["CLASSES", "FRAMES_PER_WORLD", "SCENES", "Flight", "Frame", "draw_frame", "fly"]
