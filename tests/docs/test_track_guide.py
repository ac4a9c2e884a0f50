"""The example of docs/guides/track.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drone_kd.media.image_files import read_image
from drone_kd.paths import selftest_image_path

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "track.md"


@pytest.mark.slow
def test_example_of_the_guide_prints_boxes_with_ids(tmp_path, monkeypatch, capsys):
    import cv2

    image = read_image(selftest_image_path())
    size = image.shape[1], image.shape[0]
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, size)
    for _ in range(3):
        video.write(image)
    video.release()
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(example.strip().splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    exec(example.replace("flight.mp4", "v.avi"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 5
    assert all(re.match(r"[0-9]+ car \[", line) for line in lines)
    numbers = [line.split()[0] for line in lines]
    # Found in two frames of three, as the same objects.
    assert len(numbers) > len({*numbers})
