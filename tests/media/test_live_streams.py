import threading

import cv2
import numpy as np
import pytest

from drone_kd.media import live_streams
from drone_kd.media.image_files import SourceError
from drone_kd.media.live_streams import (
    StreamError,
    is_live,
    open_source,
    public_name,
    read_live,
)
from http_video import file_server, mjpeg_server


def grey(value, shape=(48, 64, 3)):
    return np.full(shape, value, np.uint8)


@pytest.mark.parametrize(
    ("source", "live"),
    [
        ("rtsp://drone:8554/front", True),
        ("HTTP://drone/camera.mjpg", True),
        ("udp://0.0.0.0:5600", True),
        ("0", True),
        ("/dev/video2", True),
        ("photo.jpg", False),
        ("frames/0", False),
        ("file://photo.jpg", False),
    ],
)
def test_urls_cameras_and_devices_are_live(source, live):
    assert is_live(source) is live


def test_existing_folder_named_like_a_number_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    assert not is_live("7") and is_live("8")


def test_mjpeg_stream_is_read_to_its_end():
    frames = []
    with (
        mjpeg_server([grey(0), grey(100), grey(200)]) as url,
        pytest.raises(StreamError, match="ended after 3 frames"),
    ):
        frames.extend(read_live(url))
    assert frames
    numbers = [int(name.removeprefix(f"{url}#")) for name, _ in frames]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 2
    for number, (_, image) in zip(numbers, frames, strict=True):
        assert image.shape == (48, 64, 3) and abs(float(image.mean()) - 100 * number) < 3


def test_slow_reader_gets_the_newest_frame():
    class Capture:
        """Gives five frames at once; blocks on the sixth until it may end."""

        def __init__(self):
            self.sent = 0
            self.blocked, self.may_end, self.released = (threading.Event() for _ in range(3))

        def read(self):
            if self.sent == 5:
                self.blocked.set()
                self.may_end.wait(30)
                return False, None
            self.sent += 1
            return True, grey(self.sent)

        def release(self):
            self.released.set()

    capture = Capture()
    newest = live_streams._Newest(capture)
    assert capture.blocked.wait(30)
    number, frame = newest.take()
    assert number == 4 and (frame == 5).all()
    capture.may_end.set()
    assert newest.take() is None
    newest.close()
    assert capture.released.wait(30)


def test_url_of_a_video_file_is_read_frame_by_frame(tmp_path):
    path = tmp_path / "flight.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for value in range(0, 250, 10):
        writer.write(grey(value))
    writer.release()
    with file_server(path) as url:
        frames = list(read_live(url))
    assert [name for name, _ in frames] == [f"{url}#{number}" for number in range(25)]


@pytest.mark.parametrize(
    "secret_part", ["pilot:secret@{}", "secret@{}", "pilot:se/secret@{}", "a:b@secret@{}"]
)
def test_secrets_of_a_url_are_in_no_message(secret_part):
    host = "127.0.0.1:9"
    with pytest.raises(SourceError) as error:
        next(read_live(f"http://{secret_part.format(host)}/camera?token=secret"))
    assert f"http://{host}/camera" in str(error.value) and "secret" not in str(error.value)


def test_missing_camera_is_named(tmp_path):
    with pytest.raises(SourceError, match="/dev/video999: no such camera"):
        next(read_live("999"))


@pytest.mark.parametrize(("rate_hz", "period_s"), [(25.0, 0.04), (5.0, 0.2)])
def test_file_as_a_camera_has_its_own_rate(tmp_path, rate_hz, period_s):
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate_hz, (64, 48))
    writer.write(grey(9))
    writer.release()
    capture, found_s = open_source(str(path))
    assert abs(found_s - period_s) < 1e-6 and capture.read()[1].shape == (48, 64, 3)
    capture.release()


def test_stream_as_a_camera_is_live():
    with mjpeg_server([grey(0)], endless=True) as url:
        capture, period_s = open_source(url)
        assert period_s == 0.0
        capture.release()


def test_pipeline_is_opened_by_gstreamer_alone(monkeypatch):
    pipeline = "rtspsrc location=rtsp://user:secret@drone/front ! appsink"
    assert public_name(pipeline) == "GStreamer pipeline"
    monkeypatch.setattr(cv2.videoio_registry, "getBackends", lambda: [cv2.CAP_FFMPEG])
    with pytest.raises(SourceError, match="expected an OpenCV with GStreamer") as caught:
        open_source(pipeline)
    assert "secret" not in str(caught.value)
    opened = []

    class Capture:
        def __init__(self, *arguments):
            opened.append(arguments)

        def isOpened(self):
            return True

        def get(self, _):
            return 64.0

    monkeypatch.setattr(cv2.videoio_registry, "getBackends", lambda: [cv2.CAP_GSTREAMER])
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    assert open_source(pipeline)[1] == 0.0
    assert opened == [(pipeline, cv2.CAP_GSTREAMER)]
