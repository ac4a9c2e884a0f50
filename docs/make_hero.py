"""Make docs/hero.gif: the node over DDS on a moving aerial frame, with its latency.

    .venv/bin/python docs/make_hero.py

A window moves over the photo of the self-test (public domain: drone_kd/data/README.md). The
node `camera` publishes it, the node `detector` runs the default model on it, and the frames of
~/debug/image are the picture. The photo is brightened, because it was taken at dusk, and was among
the default model's training images. Run it on an idle machine: the latency is the measured one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import rclpy
from PIL import Image as Picture
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image

from drone_kd.dds import carry_large_images, choose_domain, stay_on_this_machine
from drone_kd.media.image_files import read_image
from drone_kd.paths import selftest_image_path
from drone_kd.processes import running
from drone_kd.ros.image_conversion import image_to_bgr
from drone_kd.simulation.simulate import ros_arguments

OUTPUT = Path(__file__).with_name("hero.gif")
WIDTH, HEIGHT = 480, 270
FRAMES, RATE = 20, 5.0
COLOURS = 48
WAIT_S = 60.0


def write_frames(folder: Path) -> None:
    """Write the windows of the photo: right along the street, and slowly down."""
    photo = read_image(selftest_image_path())
    free = np.array([photo.shape[1] - WIDTH, photo.shape[0] - HEIGHT])
    for number, share in enumerate(np.linspace(0, 1, FRAMES)):
        x, y = np.round(free * (share, 0.35 * share)).astype(int)
        frame = photo[y : y + HEIGHT, x : x + WIDTH]
        cv2.imwrite(str(folder / f"{number:03d}.png"), cv2.convertScaleAbs(frame, alpha=1.6))


def fly(folder: Path) -> list[np.ndarray]:
    """Return the frames that the detector published with boxes and latency, BGR."""
    stay_on_this_machine()
    choose_domain()
    carry_large_images()
    rclpy.init()
    node = rclpy.create_node("hero")
    frames: list[np.ndarray] = []
    node.create_subscription(
        Image, "/detector/debug/image", lambda m: frames.append(image_to_bgr(m)), FRAMES
    )
    module = [sys.executable, "-m"]
    detector = [*module, "drone_kd.ros.detector", *ros_arguments({"autostart": True})]
    camera = {"source": str(folder), "rate": RATE, "loop": False, "listeners": 1}
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with running(detector):
        wait(executor, lambda: node.count_publishers("/detector/debug/image"))
        command = [*module, "drone_kd.simulation.camera_node", *ros_arguments(camera)]
        with running(command) as flight:
            wait(executor, lambda: flight.poll() is not None)
        wait(executor, lambda: len(frames) >= FRAMES, seconds=2.0)
    executor.shutdown()
    rclpy.shutdown()
    return frames


def wait(
    executor: SingleThreadedExecutor, condition: Callable[[], object], seconds: float = WAIT_S
) -> None:
    """Receive messages until a condition holds, or for some seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)


def write_gif(frames: list[np.ndarray]) -> None:
    """Write the frames with one palette."""
    pictures = [Picture.fromarray(np.ascontiguousarray(frame[..., ::-1])) for frame in frames]
    sheet = Picture.fromarray(np.vstack([np.asarray(p) for p in pictures[:: len(pictures) // 6]]))
    palette = sheet.quantize(COLOURS, dither=Picture.Dither.NONE)
    indexed = [p.quantize(palette=palette, dither=Picture.Dither.NONE) for p in pictures]
    indexed[0].save(
        OUTPUT,
        save_all=True,
        append_images=indexed[1:],
        duration=round(1000 / RATE),
        loop=0,
        optimize=True,
    )


def main() -> int:
    """Write the GIF; print its size and its number of frames."""
    with tempfile.TemporaryDirectory() as folder:
        write_frames(Path(folder))
        frames = fly(Path(folder))
    if len(frames) < FRAMES // 2:
        print(f"expected {FRAMES} frames from the detector, got {len(frames)}", file=sys.stderr)
        return 1
    write_gif(frames)
    print(f"{OUTPUT}: {len(frames)} frames, {OUTPUT.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
