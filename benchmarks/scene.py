"""Frames per second of the procedural scene on one core: python -m benchmarks.scene"""

from __future__ import annotations

import time

import cv2

from drone_kd.simulation.scene import FRAMES_PER_WORLD, draw_frame

WORLDS = 25


def main() -> None:
    cv2.setNumThreads(1)
    draw_frame(0)  # fills the texture banks, which a process does once
    start = time.process_time()
    first = FRAMES_PER_WORLD
    frames = WORLDS * FRAMES_PER_WORLD
    for seed in range(first, first + frames):
        draw_frame(seed)
    seconds = time.process_time() - start
    print(f"{frames / seconds:.1f} frames/s at 640x640 on one core ({frames} frames)")


if __name__ == "__main__":
    main()
