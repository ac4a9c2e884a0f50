"""drone-kd detect --track."""

import json

import cv2
import numpy as np
import pytest

from command_line import only_message, run
from tiny_model import write_fixed_model


@pytest.fixture
def two_objects(tmp_path):
    """A model that finds a car and a person at the same places of every image."""
    rows = [[8, 8, 24, 24, 0.5, 0], [40, 40, 56, 56, 0.4, 1]]
    return write_fixed_model(tmp_path / "two.onnx", np.array([rows]))


def write_video(path, frames=6, size=(64, 64)):
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8), size)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, size)
    for _ in range(frames):
        writer.write(image)
    writer.release()
    return path


def test_objects_keep_their_ids_from_their_second_frame_on(two_objects, tmp_path):
    video, out, save = write_video(tmp_path / "a.avi"), tmp_path / "out.json", tmp_path / "drawn"
    assert run("detect", two_objects, video, "--track", "--json", out, "--save", save) == 0
    frames = [record["detections"] for record in json.loads(out.read_text())]
    assert frames[0] == []
    for found in frames[1:]:
        assert [(box["id"], box["class"]) for box in found] == [(1, "car"), (2, "person")]
    assert frames[-1][0]["xyxy"] == pytest.approx([8, 8, 24, 24], abs=0.5)
    first, last = (cv2.imread(str(save / f"a.avi_{n}.jpg")) for n in (0, 5))
    assert np.abs(last.astype(int) - first).max() > 50


@pytest.mark.parametrize("source", ["one.png", "."])
def test_images_are_refused(two_objects, images, source, capfd):
    assert run("detect", two_objects, images / source, "--track") == 2
    assert "--track: expected a video or a live source" in only_message(capfd)


def test_without_track_there_are_no_ids(two_objects, tmp_path):
    out = tmp_path / "out.json"
    assert run("detect", two_objects, write_video(tmp_path / "a.avi", 2), "--json", out) == 0
    assert all("id" not in box for r in json.loads(out.read_text()) for box in r["detections"])
