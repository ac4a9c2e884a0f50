"""Procedural aerial pictures with exact boxes, for training data and for flights without a drone.

frame = draw_frame(seed=7, imgsz=640)
for frame in fly(seed=7, width=1280, height=720, fps=25): ...
"""

from drone_kd.scene.frames import CLASSES, FRAMES_PER_WORLD, Frame, draw_frame, fly

__all__ = ["CLASSES", "FRAMES_PER_WORLD", "Frame", "draw_frame", "fly"]
