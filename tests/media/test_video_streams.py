import sys

import numpy as np
import pytest

from drone_kd.media.video_streams import MAX_PACKET_BYTES, PacketError, StreamDecoder, codec_of

CODECS = ("h264", "hevc")


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("h264", "h264"),
        ("H.264", "h264"),
        ("avc1", "h264"),
        ("libx264", "h264"),
        ("h264;yuv420p;bgr8;bgr8", "h264"),
        ("h265", "hevc"),
        ("hevc_nvenc", "hevc"),
        ("libx265", "hevc"),
        ("jpeg", None),
        ("bgr8; jpeg compressed bgr8", None),
        ("rgb8; h264 compressed", None),
        ("16UC1; compressedDepth png", None),
        ("", None),
    ],
)
def test_codec_is_known_by_format_and_encoder(text, codec):
    assert codec_of(text) == codec


@pytest.mark.parametrize("version", [None, "15.1.0"])
def test_missing_library_says_what_to_install(monkeypatch, version):
    library = None
    if version is not None:
        library = type(sys)("av")
        library.__version__ = version
    monkeypatch.setitem(sys.modules, "av", library)
    with pytest.raises(PacketError, match=r"pip install 'drone_kd\[video\]'; found") as caught:
        StreamDecoder("h264")
    assert str(caught.value).endswith(version or "none")


@pytest.fixture
def video():
    pytest.importorskip("av", reason="needs PyAV: pip install -r requirements/video.txt")
    import video_packets

    return video_packets


def outcomes(decoder, packets):
    """Return the image of each packet, or the text of its error."""
    found = []
    for packet in packets:
        try:
            frame = decoder.decode(packet)
        except PacketError as error:
            found.append(str(error))
        else:
            found.append(None if frame is None else frame.pixels())
    return found


def are_images(found, images):
    """Return whether what was decoded are these images, up to the loss of compression."""
    return len(found) == len(images) and all(
        isinstance(got, np.ndarray)
        and got.shape == image.shape
        and np.abs(got.astype(int) - image).mean() < 3
        for got, image in zip(found, images, strict=True)
    )


@pytest.mark.parametrize("codec", CODECS)
def test_each_packet_gives_its_frame_at_once(video, codec):
    images = video.moving(12)
    assert are_images(outcomes(StreamDecoder(codec), video.encode(codec, images)), images)


@pytest.mark.parametrize("codec", CODECS)
def test_decoding_starts_at_a_key_frame(video, codec):
    images = video.moving(14)
    found = outcomes(StreamDecoder(codec), video.encode(codec, images)[3:])
    assert found[:7] == ["waiting for a key frame (none has come yet)"] * 7
    assert are_images(found[7:], images[10:])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("lost", [14, 15])
def test_loss_of_as_many_packets_as_h264_numbers_is_found(video, codec, lost):
    images = video.moving(30)
    packets = video.encode(codec, images, keys=30)
    del packets[5 : 5 + lost]
    found = outcomes(StreamDecoder(codec), packets)
    assert are_images(found[:5], images[:5])
    assert all(isinstance(outcome, str) and "lost" in outcome for outcome in found[5:])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("lost", [1, 3])
def test_after_a_lost_packet_the_next_frame_is_a_key_frame(video, codec, lost):
    images = video.moving(14)
    packets = video.encode(codec, images)
    del packets[4 : 4 + lost]
    found = outcomes(StreamDecoder(codec), packets)
    assert are_images(found[:4], images[:4])
    first, *waiting = found[4 : 10 - lost]
    assert first.startswith("a packet was lost")
    assert waiting == [f"waiting for a key frame ({first})"] * (5 - lost)
    assert are_images(found[10 - lost :], images[10:])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "damage",
    [lambda data: bytes(len(data)), lambda data: b"", lambda data: data[:4] + b"\xff" * 30],
)
def test_after_a_damaged_packet_the_next_frame_is_a_key_frame(video, codec, damage):
    images = video.moving(12)
    packets = video.encode(codec, images)
    packets[4] = damage(packets[4])
    found = outcomes(StreamDecoder(codec), packets)
    assert are_images(found[:4], images[:4])
    assert not any(isinstance(outcome, np.ndarray) for outcome in found[4:10])
    assert are_images(found[10:], images[10:])


@pytest.mark.parametrize("codec", CODECS)
def test_a_packet_that_was_left_out_is_a_lost_one(video, codec):
    images = video.moving(12)
    packets = video.encode(codec, images)
    decoder = StreamDecoder(codec)
    assert are_images(outcomes(decoder, packets[:4]), images[:4])
    decoder.lose("disabled")
    found = outcomes(decoder, packets[5:])
    assert found[:5] == ["waiting for a key frame (disabled)"] * 5
    assert are_images(found[5:], images[10:])


@pytest.mark.parametrize("codec", CODECS)
def test_b_frames_are_refused(video, codec):
    packets = video.encode(codec, video.moving(12), b_frames=2)
    found = outcomes(StreamDecoder(codec), packets)
    assert "B frames" in found[0] and all(isinstance(outcome, str) for outcome in found)


@pytest.mark.parametrize("codec", CODECS)
def test_limits_of_pixels_bytes_and_format(video, codec):
    images = video.moving(2)
    packets = video.encode(codec, images)
    (found, _) = outcomes(StreamDecoder(codec, max_pixels=160 * 96 - 1), packets)
    assert "megapixels or more" in found
    (found,) = outcomes(StreamDecoder(codec), [packets[0] + bytes(MAX_PACKET_BYTES)])
    assert "expected packets of up to 16 MB" in found
    (found, _) = outcomes(StreamDecoder(codec), video.encode(codec, images, pixels="yuv444p"))
    assert "expected 8 bits and 4:2:0" in found
    (found,) = outcomes(StreamDecoder(codec), [b"\0\0\1\x65" * 1001])
    assert "1 to 1000 units" in found


@pytest.mark.parametrize("codec", CODECS)
def test_size_may_change_at_a_key_frame(video, codec):
    small, large = video.moving(3), video.moving(3, (192, 128))
    packets = video.encode(codec, small) + video.encode(codec, large)
    assert are_images(outcomes(StreamDecoder(codec), packets), small + large)


@pytest.mark.parametrize("codec", CODECS)
def test_parameter_sets_may_come_in_a_packet_of_their_own(video, codec):
    images = video.moving(3)
    packets = video.encode(codec, images)
    first = packets[0]
    kind = (lambda b: b & 31 == 5) if codec == "h264" else (lambda b: 16 <= b >> 1 & 63 < 24)
    at = next(i for i in range(len(first)) if first[i : i + 3] == b"\0\0\1" and kind(first[i + 3]))
    found = outcomes(StreamDecoder(codec), [first[:at], first[at:], *packets[1:]])
    assert found[0] is None and are_images(found[1:], images)


@pytest.mark.parametrize("codec", CODECS)
def test_stream_joined_after_its_parameter_sets_names_them(video, codec):
    packets = video.encode(codec, video.moving(6), keys=3)
    kind = (lambda b: b & 31 == 5) if codec == "h264" else (lambda b: 16 <= b >> 1 & 63 < 24)
    key = packets[3]
    at = next(i for i in range(len(key)) if key[i : i + 3] == b"\0\0\1" and kind(key[i + 3]))
    reason = "parameter sets have not come; make the encoder repeat them"
    found = outcomes(StreamDecoder(codec), [key[at:], packets[4]])
    assert found == [reason, f"waiting for a key frame ({reason})"]
    joined = outcomes(StreamDecoder(codec), [*packets[:3], key[at:], *packets[4:]])
    assert are_images(joined, video.moving(6))


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
def test_hostile_packets_give_one_line_each(video, codec):
    random = np.random.default_rng(0)
    packets = video.encode(codec, video.moving(8))
    decoder = StreamDecoder(codec)
    for _ in range(300):
        data = bytearray(packets[int(random.integers(len(packets)))])
        for _ in range(int(random.integers(1, 20))):
            data[int(random.integers(len(data)))] = int(random.integers(256))
        (found,) = outcomes(decoder, [bytes(data[: int(random.integers(len(data) + 1))])])
        assert not isinstance(found, str) or found.isprintable()
