"""Video on a camera's topic: decoded packet by packet, losses named, recorded as images."""

import sys
import threading

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header
from std_srvs.srv import SetBool

from drone_kd.media.video_streams import StreamDecoder
from drone_kd.ros import pipeline, videos
from drone_kd.ros.drop_reasons import DISABLED, UNDECODABLE
from drone_kd.ros.videos import _Numbers, _Stamps
from ground_station import WAIT_SECONDS

CODECS = ("h264", "hevc")
KEYS = 5


@pytest.fixture
def packets():
    """Packets of ten frames, a key frame among five."""
    pytest.importorskip("av", reason="needs PyAV: pip install -r requirements/video.txt")
    from video_packets import encode, moving

    return {codec: encode(codec, moving(10), KEYS) for codec in CODECS}


class Stream:
    """A camera that sends video, and a detector in this process."""

    def __init__(self, site, kind, topic, **fields):
        self.site, self.kind, self.fields = site, kind, fields
        self.detector = site.add_detector()
        self.publisher = site.node.create_publisher(kind, topic, QoSProfile(depth=50))
        site.wait_for_subscriber(self.publisher)
        site.wait_for_publisher("/detector/detections")

    def send(self, data, number):
        """Send a packet, and wait until it is received."""
        header = Header(frame_id="camera")
        header.stamp.sec = number
        before = self.site.received()
        self.publisher.publish(self.kind(header=header, data=data, **self.fields))
        self.site.wait_until(lambda: self.site.received() > before, "it is received")

    def check_published(self, data, number):
        """Send a packet, and receive the detections of its frame."""
        self.send(data, number)
        found = self.site.receive()
        assert (found.header.stamp.sec, found.header.frame_id) == (number, "camera")

    def check_dropped(self, data, number, reason):
        """Send a packet whose frame is dropped for a reason that the status names."""
        before = self.site.dropped(UNDECODABLE)
        self.send(data, number)
        self.site.wait_until(lambda: self.site.dropped(UNDECODABLE) > before, "it is dropped")
        assert reason in self.detector.reports()[""].last_problem


@pytest.fixture
def compressed(ground, model):
    site = ground(model=model, autostart=True, image_transport="compressed")
    return lambda text: Stream(site, CompressedImage, "image/compressed", format=text)


@pytest.mark.parametrize("codec", CODECS)
def test_lost_packet_is_named_and_the_next_frame_is_a_key_frame(compressed, packets, codec):
    stream, sent = compressed({"hevc": "h265"}.get(codec, codec)), packets[codec]
    stream.check_dropped(sent[2], 2, "waiting for a key frame (none has come yet)")
    for number in (5, 6):
        stream.check_published(sent[number], number)
    stream.check_dropped(sent[8], 8, "a packet was lost")  # without 7
    stream.check_dropped(sent[9], 9, "waiting for a key frame (a packet was lost")
    stream.check_published(sent[0], 20)
    stats = stream.site.collect(DiagnosticArray, "/detector/stats")
    stream.site.receive_until(
        stats,
        lambda message: any(
            pair.key == "last problem" and "key frame" in pair.value
            for status in message.status
            for pair in status.values
        ),
        "the loss is in the status",
    )
    assert stream.site.detections.empty()


def test_disabled_detector_starts_again_at_a_key_frame(compressed, packets):
    stream, sent = compressed("h264"), packets["h264"]
    stream.check_published(sent[0], 1)
    stream.detector._pipeline.enable(False)
    stream.send(sent[1], 2)
    stream.detector._pipeline.enable(True)
    stream.check_dropped(sent[2], 3, "waiting for a key frame (disabled before)")
    stream.check_published(sent[5], 4)


def test_stream_that_was_idle_starts_again_at_a_key_frame(compressed, packets, monkeypatch):
    monkeypatch.setattr(pipeline, "IDLE_SECONDS", 0.0)
    stream, sent = compressed("h264"), packets["h264"]
    stream.check_published(sent[0], 1)
    stream.detector._pipeline.enable(False)
    count = stream.publisher.get_subscription_count
    stream.site.wait_until(lambda: count() == 0, "no packets are received")
    stream.detector._pipeline.enable(True)
    stream.site.wait_for_subscriber(stream.publisher)
    stream.check_dropped(sent[1], 2, "waiting for a key frame (idle before)")
    stream.check_published(sent[5], 3)


def test_new_subscription_starts_at_a_key_frame(compressed, packets):
    stream, sent = compressed("h264"), packets["h264"]
    stream.check_published(sent[0], 1)
    stream.site.set_parameter("reliability", "reliable")
    stream.site.wait_for_subscriber(stream.publisher)
    stream.check_dropped(sent[1], 2, "waiting for a key frame (subscribed anew)")
    stream.check_published(sent[5], 3)


def test_packets_that_come_faster_than_they_are_decoded_are_dropped(
    compressed, packets, monkeypatch
):
    stream, sent = compressed("h264"), packets["h264"]
    stream.check_published(sent[0], 1)
    with monkeypatch.context() as patch:
        patch.setattr(videos, "_MAX_PACKETS", 0)
        stream.check_dropped(sent[1], 2, "decoding is too slow: lower the camera's rate or size")
    stream.check_dropped(sent[2], 3, "waiting for a key frame (decoding is too slow)")
    stream.check_published(sent[5], 4)


def test_lost_packets_that_leave_no_gap_in_the_numbers_are_found_by_the_stamps(compressed):
    pytest.importorskip("av", reason="needs PyAV: pip install -r requirements/video.txt")
    from video_packets import encode, moving

    stream, sent = compressed("h264"), encode("h264", moving(30), 25)
    for number in range(5):
        stream.check_published(sent[number], number + 1)
    stream.check_dropped(sent[21], 22, "waiting for a key frame (the stamps jump")
    stream.check_published(sent[25], 26)


def test_lost_packets_that_leave_no_other_gap_are_found_by_the_encoders_count(ground, model):
    messages = pytest.importorskip(
        "ffmpeg_image_transport_msgs.msg", reason="needs it: run interfaces/build.py"
    )
    pytest.importorskip("av", reason="needs PyAV: pip install -r requirements/video.txt")
    from video_packets import encode, moving

    site = ground(model=model, autostart=True, image_transport="ffmpeg")
    stream = Stream(site, messages.FFMPEGPacket, "image/ffmpeg", encoding="h264")
    sent = encode("h264", moving(21), KEYS)
    for number in (*range(12), 17, 20):  # without a group of pictures
        stream.fields["pts"] = number
        if number == 17:
            stream.check_dropped(sent[number], number, "waiting for a key frame (pts jumps")
        else:
            stream.check_published(sent[number], number)


def test_pts_jumps_only_if_it_counts_the_packets():
    counted, timed, absent = _Numbers(), _Numbers(), _Numbers()
    assert not any(map(counted.jumps, [7, 8, 9, 10, 10, 11, 12, 13, 14, 15]))
    assert counted.jumps(21) and not counted.jumps(27)
    assert not any(map(timed.jumps, [0, 33, 66, 100, 101, 200, 5, 1000]))
    assert not any(map(absent.jumps, [0] * 20))


def test_stamps_jump_by_much_more_than_their_usual_distance():
    stamps = _Stamps()
    assert not any(map(stamps.jumps, [0, 0, 10, 20, 20, 35, 140]))  # none, equal, 7 times
    assert stamps.jumps(340)
    assert not any(map(stamps.jumps, [350, 5, 15, 0, 900, 910]))  # set back, without
    assert [stamps.jumps(1_000 + 200 * number) for number in range(9)][-1] is False


def test_disabled_detector_drops_the_packets_that_wait(compressed, packets, monkeypatch):
    stream, sent = compressed("h264"), packets["h264"]
    stream.check_published(sent[0], 1)
    begun, may_end, decode = threading.Event(), threading.Event(), StreamDecoder.decode

    def slow(decoder, packet):
        begun.set()
        assert may_end.wait(WAIT_SECONDS)
        return decode(decoder, packet)

    monkeypatch.setattr(StreamDecoder, "decode", slow)
    for number in range(1, 5):
        stream.send(sent[number], number + 1)
    assert begun.wait(WAIT_SECONDS)
    site, offered = stream.site, []
    assert site.call(SetBool, "/detector/enable", SetBool.Request(data=False)).success
    with monkeypatch.context() as patch:
        patch.setattr(stream.detector._pipeline._inbox, "put", offered.append)
        may_end.set()
        site.wait_until(lambda: site.dropped(DISABLED) == 4, "none of them is detected in")
    assert not offered
    assert site.call(SetBool, "/detector/enable", SetBool.Request(data=True)).success
    stream.check_dropped(sent[9], 10, "waiting for a key frame (disabled before)")
    stream.check_published(sent[5], 11)
    assert site.detections.empty()


def test_parameter_sets_alone_are_no_frame_without_a_result(compressed, packets):
    stream, first = compressed("h264"), packets["h264"][0]
    at = first.index(b"\0\0\1\x65")
    for number, parts in enumerate([(first[:at], first[at:]), (first[:at], first)], start=1):
        header = Header(frame_id="camera")
        header.stamp.sec = number
        for data in parts:
            stream.publisher.publish(CompressedImage(header=header, data=data, format="h264"))
        stream.site.receive()
        stream.site.wait_until(
            lambda n=number: stream.detector.reports()[""].processed == n, "it is counted"
        )
        report = stream.detector.reports()[""]
        assert (report.received, report.pending_s) == (number, 0.0)


def test_without_the_extra_a_line_says_what_to_install(compressed, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    compressed("h264").check_dropped(bytes(9), 1, "pip install 'drone_kd[video]'")


def test_image_that_the_stream_shares_its_topic_with_is_decoded(compressed, packets):
    import cv2
    import numpy as np

    stream = compressed("jpeg")
    jpeg = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    stream.check_published(jpeg, 1)
    stream.fields["format"] = "h264"
    stream.check_published(packets["h264"][0], 2)


@pytest.mark.parametrize("encoding", ["h264;yuv420p;bgr8;bgr8", "libx264"])
def test_packets_of_ffmpeg_image_transport(ground, model, packets, encoding):
    messages = pytest.importorskip(
        "ffmpeg_image_transport_msgs.msg", reason="needs it: run interfaces/build.py"
    )
    site = ground(model=model, autostart=True, image_transport="ffmpeg")
    stream = Stream(site, messages.FFMPEGPacket, "image/ffmpeg", encoding=encoding)
    for number in range(3):
        stream.check_published(packets["h264"][number], number + 1)
    stream.fields["encoding"] = "av1;yuv420p;bgr8;bgr8"
    stream.check_dropped(packets["h264"][3], 4, 'expected a stream in H.264 or H.265, got "av1;')


def test_missing_messages_are_named(ground, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffmpeg_image_transport_msgs.msg", None)
    site = ground(model=model, autostart=True)
    site.add_detector()
    result = site.try_parameter("image_transport", "ffmpeg")
    assert not result.successful and "ffmpeg-image-transport-msgs" in result.reason
    assert site.detector.get_parameter("image_transport").value == "raw"


@pytest.mark.parametrize("record_format", ["jpeg", "raw"])
def test_frame_of_a_video_is_recorded_as_an_image(compressed, packets, record_format):
    from drone_kd.ros.recording.recorder import _image

    stream, results = compressed("h264"), []
    stream.detector._pipeline._record = results.append
    stream.check_published(packets["h264"][0], 1)
    stream.site.wait_until(lambda: results, "it is offered")
    topic, message = _image(results[0], record_format)
    assert topic == {"jpeg": "/image/compressed", "raw": "/image"}[record_format]
    assert message.header.stamp.sec == 1 and len(message.data) > 100
    if record_format == "raw":
        assert max(message.data) > 200, "the square is bright"
