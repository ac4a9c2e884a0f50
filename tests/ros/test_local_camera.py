"""Camera of the detector's process: no DDS on the way, image published on request, reconnects."""

import threading

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool

from drone_kd.ros import local_camera
from drone_kd.ros.diagnostics import ERROR
from ground_station import WAIT_SECONDS
from http_video import mjpeg_server

BRIGHT = np.zeros((64, 64, 3), np.uint8)
BRIGHT[8:16, 8:16] = 255


@pytest.fixture
def video(tmp_path):
    """A video file of three frames at 20 Hz."""
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20.0, (64, 64))
    for _ in range(3):
        writer.write(BRIGHT)
    writer.release()
    return path


@pytest.fixture
def fly(ground, model, monkeypatch):
    """Return a function that starts a detector with a camera."""
    monkeypatch.setattr(local_camera, "_FIRST_PAUSE_S", 0.05)

    def start(source, **parameters):
        site = ground(model=model, confidence=0.9, autostart=True, camera=source, **parameters)
        site.node.destroy_publisher(site.images)
        site.add_detector()
        site.wait_for_publisher("/detector/detections")
        return site

    return start


def test_file_is_played_again_and_again_with_stamps_of_its_capture(fly, video):
    site = fly(video)
    began = site.node.get_clock().now().nanoseconds
    stamps = []
    while len(stamps) < 8:
        found = site.receive()
        assert found.header.frame_id == "camera"
        if found.header.stamp.sec * 10**9 + found.header.stamp.nanosec > began:
            assert len(found.detections) == 1
            stamps.append(found.header.stamp.sec * 10**9 + found.header.stamp.nanosec)
    assert stamps == sorted(set(stamps))
    assert stamps[-1] < site.node.get_clock().now().nanoseconds
    assert site.node.count_subscribers("/image") == 0
    assert "opened again" not in site.log()


def test_image_is_published_while_somebody_subscribes(fly, video):
    site = fly(video)
    site.receive()
    images = site.collect(Image, "/image")
    image = images.get(timeout=WAIT_SECONDS)
    assert (image.width, image.height, image.encoding) == (64, 64, "bgr8")
    pixels = np.frombuffer(image.data, np.uint8).reshape(64, 64, 3)
    assert abs(pixels.astype(int) - BRIGHT).mean() < 10
    stamp = image.header.stamp
    site.wait_until(
        lambda: any(found.header.stamp == stamp for found in list(site.detections.queue)),
        "detections of the same frame",
    )


@pytest.mark.slow
def test_lost_camera_is_named_and_opened_again(fly):
    site = None
    with mjpeg_server([BRIGHT], endless=True) as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        site = fly(url.replace("http://", "http://user:secret@"), silence_s=0.2)
        site.receive()
        stats = site.collect(DiagnosticArray, "/detector/stats")
        pipeline = site.detector._pipeline
        capture = pipeline.subscriptions[""]
    # The server is gone.
    status = site.receive_until(
        stats, lambda m: problem(m, "it is opened again in"), "the lost camera is named"
    )
    assert problem(status, url) and not problem(status, "secret")
    site.wait_for_log("opened again in 0.1 s")  # growing
    while not site.detections.empty():
        site.detections.get()
    with mjpeg_server([BRIGHT], endless=True, port=port):
        site.receive()
    assert capture is pipeline.subscriptions[""]
    assert "secret" not in site.log()


def problem(message: DiagnosticArray, text: str) -> bool:
    """Return whether the camera's status is ERROR and contains a text."""
    cameras: list[DiagnosticStatus] = [s for s in message.status if s.name.endswith(": image")]
    return any(status.level == ERROR and text in status.message for status in cameras)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("/no/such/video.mp4", "/no/such/video.mp4: No such file"),
        ("/dev/video97", "no such camera"),
        ("v4l2src device=/dev/video97 ! appsink", "GStreamer pipeline: "),
    ],
)
def test_camera_that_cannot_be_opened_is_named(fly, source, text):
    site = fly(source, silence_s=0.1)
    stats = site.collect(DiagnosticArray, "/detector/stats")
    site.receive_until(stats, lambda m: problem(m, text), "the status names it")


def test_deactivated_detector_leaves_the_camera(fly, video):
    site = fly(video)
    site.receive()
    camera = site.detector._pipeline.subscriptions[""]
    site._in_executor(site.detector.trigger_deactivate)
    assert not camera._thread.is_alive()
    assert site.detector.count_publishers("/image") == 0


def test_camera_and_names_are_refused(ground, model, video):
    site = ground(model=model, camera=video, cameras="[front, down]")
    with pytest.raises(ValueError, match="camera: expected no names in cameras beside it"):
        site.add_detector()


def test_age_of_a_frame_is_that_of_the_driver(monkeypatch):
    class Capture:
        name, milliseconds = "V4L2", 0.0

        def getBackendName(self):
            return self.name

        def get(self, _):
            return self.milliseconds

    monkeypatch.setattr(local_camera, "monotonic", lambda: 100.0)
    capture = Capture()
    capture.milliseconds = 99_970.0
    assert abs(local_camera._age_ns(capture, 0.0) - 30_000_000) < 1000
    capture.milliseconds = 1_000.0  # another clock
    assert local_camera._age_ns(capture, 0.0) == 0
    capture.name, capture.milliseconds = "FFMPEG", 99_970.0
    assert local_camera._age_ns(capture, 0.0) == 0


def test_frames_that_nobody_wants_are_left_in_the_camera(fly, video, monkeypatch):
    monkeypatch.setattr("drone_kd.ros.pipeline.IDLE_SECONDS", 0.0)
    site = fly(video)
    site.receive()
    camera = site.detector._pipeline.subscriptions[""]
    site.call(SetBool, "/detector/enable", SetBool.Request(data=False))
    site.wait_until(lambda: not camera.is_open, "it rests")
    count = camera._count
    site.wait_until(lambda: camera._count > count + 3, "the camera goes on")
    images = site.collect(Image, "/image")
    images.get(timeout=WAIT_SECONDS)
    received = site.received()
    images.get(timeout=WAIT_SECONDS)
    assert site.received() == received
    site.call(SetBool, "/detector/enable", SetBool.Request(data=True))
    site.wait_until(lambda: site.received() > received, "frames are handed over again")


def test_frame_that_is_too_large_is_not_handed_over(fly, video, monkeypatch):
    class Capture:
        """A stream whose frames have grown."""

        def grab(self):
            return True

        def retrieve(self):
            return True, np.broadcast_to(BRIGHT[:1, :1], (8001, 8001, 3))

        def getBackendName(self):
            return "FFMPEG"

        def release(self):
            pass

    monkeypatch.setattr(local_camera, "open_source", lambda _: (Capture(), 0.0))
    site = fly(video)
    camera = site.detector._pipeline.subscriptions[""]
    site.wait_until(lambda: "8001x8001" in camera.why_silent(), "the size is named")
    assert site.received() == 0


def test_frames_that_are_not_bgr_are_refused(fly, video, monkeypatch):
    class Capture:
        """A GStreamer pipeline of grey frames."""

        def grab(self):
            return True

        def retrieve(self):
            return True, BRIGHT[..., 0]

        def getBackendName(self):
            return "GSTREAMER"

        def release(self):
            pass

    monkeypatch.setattr(local_camera, "open_source", lambda _: (Capture(), 0.0))
    site = fly(video)
    line = site.wait_for_log("expected BGR frames, got (64, 64); add videoconvert ! video/x-raw")
    assert "opened again" in line
    site.wait_for_log("opened again in 0.1 s")  # growing
    assert site.received() == 0 and site.detections.empty()


def test_camera_that_was_given_up_is_not_opened_any_more(fly, video, monkeypatch):
    begun, may_end, opened = threading.Event(), threading.Event(), []

    def slow_open(source):
        opened.append(threading.current_thread())
        begun.set()
        assert may_end.wait(WAIT_SECONDS)
        return open_source(source)

    open_source = local_camera.open_source
    monkeypatch.setattr(local_camera, "_STOP_SECONDS", 0.1)
    monkeypatch.setattr(local_camera, "open_source", slow_open)
    site = fly(video)
    assert begun.wait(WAIT_SECONDS)
    cameras = [site.detector._pipeline.subscriptions[""]]
    for _ in range(2):
        site._in_executor(site.detector.trigger_deactivate)
        site._in_executor(site.detector.trigger_activate)
        cameras.append(site.detector._pipeline.subscriptions[""])
    may_end.set()
    site.receive()
    for camera in cameras[:2]:
        camera._thread.join(WAIT_SECONDS)
    assert opened[:2] == [cameras[0]._thread, cameras[2]._thread]
    assert cameras[1]._thread not in opened


def test_read_that_hangs_does_not_keep_the_process(fly, video, monkeypatch):
    begun, may_end = threading.Event(), threading.Event()

    class Capture:
        """A camera whose read lasts until its time limit."""

        def grab(self):
            begun.set()
            return not may_end.wait(WAIT_SECONDS)

        def release(self):
            pass

    monkeypatch.setattr(local_camera, "_STOP_SECONDS", 0.1)
    monkeypatch.setattr(local_camera, "open_source", lambda _: (Capture(), 0.0))
    site = fly(video)
    assert begun.wait(WAIT_SECONDS)
    camera = site.detector._pipeline.subscriptions[""]
    assert not site._in_executor(site.detector.stop)  # so `run_node` exits without the thread
    assert local_camera.is_reading()
    may_end.set()
    camera._thread.join(WAIT_SECONDS)
    assert not local_camera.is_reading()
