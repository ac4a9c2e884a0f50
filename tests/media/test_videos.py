"""Videos of others: only the file is read, and no frame beyond the limit is decoded."""

import os
import struct

import cv2
import numpy as np
import pytest

from drone_kd.media import mp4_files, videos
from drone_kd.media.errors import SourceError
from drone_kd.media.image_files import read_frames, read_video
from drone_kd.media.live_streams import read_live
from drone_kd.media.videos import check_frame_size, checked_frame, open_stream, open_video
from http_video import file_server
from process_memory import memory

PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
SESSION = (
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 26\n"
)
LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {}\n",
    "playlist": PLAYLIST,
    "session": SESSION,
    "transport stream and list": "G" + "x" * 187 + "G\n" + SESSION,
    "MP4 and list": "xxxxftyp\n" + SESSION,
}


@pytest.mark.parametrize(
    ("shape", "kind", "got"),
    [
        ((64, 64), np.uint8, "(64, 64)"),
        ((64, 64, 1), np.uint8, "(64, 64, 1)"),
        ((64, 64, 4), np.uint8, "(64, 64, 4)"),
        ((64, 64, 3), np.uint16, "(64, 64, 3) uint16"),
    ],
)
def test_frames_that_are_not_bgr_are_refused(shape, kind, got):
    with pytest.raises(SourceError) as caught:
        checked_frame(np.zeros(shape, kind), "a")
    assert str(caught.value) == (
        f"a: expected BGR frames, got {got}; add videoconvert ! video/x-raw,format=BGR"
    )


def write_video(path, fourcc="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*fourcc), 10, (64, 48))
    assert writer.isOpened()
    for value in (0, 50, 100):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("suffix", [".avi", ".m4v", ".mkv", ".mov", ".mp4", ".ts"])
def test_container_is_found_by_its_first_bytes(tmp_path, suffix):
    fourcc = "MJPG" if suffix == ".avi" else "mp4v"
    path = write_video(tmp_path / f"a{suffix}", fourcc)
    assert len(list(read_frames(path, pytest.fail))) == 3
    other = path.rename(tmp_path / f"b{'.mp4' if suffix == '.avi' else '.avi'}")
    assert len(list(read_frames(other, pytest.fail))) == 3


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mpg"])
@pytest.mark.parametrize("kind", LISTS)
def test_list_of_other_files_and_hosts_is_refused(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "other.avi")
    path = tmp_path / f"list{suffix}"
    path.write_text(LISTS[kind].format("other.avi"))
    with pytest.raises(SourceError, match="not a video"):
        list(read_frames(path, pytest.fail))


def test_file_that_was_checked_is_opened_whatever_replaces_it(tmp_path, monkeypatch):
    """A named pipe in its place would be waited for."""
    path, other = write_video(tmp_path / "a.avi"), write_video(tmp_path / "b.mp4", "mp4v")
    open_checked = videos._open

    def replaced(*arguments):
        other.replace(path)
        return open_checked(*arguments)

    monkeypatch.setattr(videos, "_open", replaced)
    assert len(list(read_frames(path, pytest.fail))) == 3


def test_name_that_is_not_utf_8_is_opened(tmp_path):
    path = write_video(tmp_path / "a.avi").rename(tmp_path / os.fsdecode(b"\xff.avi"))
    assert len(list(read_frames(path, pytest.fail))) == 3


def test_address_that_is_not_utf_8_is_refused(never_opened):
    with pytest.raises(
        SourceError, match="a: expected an address in UTF-8 without control characters"
    ):
        open_stream(os.fsdecode(b"http://127.0.0.1:1/\xff"), "a", 1000)


def test_numbered_image_is_no_video(tmp_path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64, 3), np.uint8))
        (tmp_path / "a.png").rename(tmp_path / f"clip{number}.mp4")
    with pytest.raises(SourceError, match="not a video"):
        open_video(tmp_path / "clip0.mp4")


@pytest.mark.parametrize(
    "name", ["-i.avi", "concat:a.avi", "http:a.avi", "subfile,,start,0,,:a.avi"]
)
def test_name_is_neither_an_option_nor_a_protocol(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.avi").rename(tmp_path / name)
    assert len(list(read_frames(name, pytest.fail))) == 3


def avi_of_size(path, width, height):
    """Write an AVI of 64 x 48 whose only frame, a JPEG, declares another size."""
    data = write_video(path).read_bytes()
    frames = data.index(b"movi") + 4
    jpeg = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg = jpeg[:size] + struct.pack(">HH", height, width) + jpeg[size + 4 :]
    # FFmpeg wants a bit per block of 8 x 8.
    jpeg += bytes(width * height // 200)
    path.write_bytes(data[:frames] + b"00dc" + struct.pack("<I", len(jpeg)) + jpeg)
    return path


def test_huge_frame_is_refused_before_it_is_decoded(tmp_path):
    path = avi_of_size(tmp_path / "a.avi", 16000, 16000)
    with pytest.raises(SourceError, match="less than 64 megapixels, got 16000x16000"):
        open_video(path)
    assert len(list(read_frames(write_video(path), pytest.fail))) == 3
    with pytest.raises(SourceError, match=r"less than 0\.003 megapixels, got 64x48"):
        open_video(path, max_pixels=3000)
    check_frame_size(8000, 7999, "a")
    for size in ((8000, 8000), (float("nan"), 1)):
        with pytest.raises(SourceError, match="a: expected frames of less than 64"):
            check_frame_size(*size, "a")


@pytest.mark.parametrize("fourcc", ["MPNG", "png ", "tiff", "MJ2C"])
def test_video_of_still_images_is_refused_before_one_is_decoded(tmp_path, fourcc):
    """A PNG of some kilobytes, of any size, may come at any time in the stream."""
    path = write_video(tmp_path / "a.avi")
    content = path.read_bytes().replace(b"MJPG", fourcc.encode())
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.avi: expected a video codec such as H\.264"):
        open_video(path)


@pytest.mark.parametrize("codec", ["MPNG", "FFV1", "HFYU"])
def test_codecs_of_avi(tmp_path, codec):
    path = write_video(tmp_path / "a.avi", codec)
    if codec == "MPNG":
        with pytest.raises(SourceError, match="expected a video codec"):
            open_video(path)
    else:
        assert len(list(read_frames(path, pytest.fail))) == 3


@pytest.fixture
def never_opened(monkeypatch):
    """OpenCV is not asked."""
    monkeypatch.setattr(videos, "_open", lambda *_: pytest.fail("it was opened"))


@pytest.mark.parametrize("name", ["stsz", "stz2"])
def test_mp4_of_more_samples_than_bytes_is_refused(tmp_path, name, never_opened):
    """FFmpeg takes 720 MB for 20 million samples of a byte, in a file of 1 kB."""
    data = bytearray(write_video(tmp_path / "a.mp4", "mp4v").read_bytes())
    samples = 20_000_000
    struct.pack_into(">II", data, data.index(b"stsz") + 8, 1, samples)
    struct.pack_into(">II", data, data.index(b"stts") + 12, samples, 1024)
    struct.pack_into(">III", data, data.index(b"stsc") + 12, 1, samples, 1)
    (tmp_path / "a.mp4").write_bytes(data.replace(b"stsz", name.encode()))
    with memory(20), pytest.raises(SourceError, match="not a video"):
        open_video(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "boxes",
    [
        b"\0\0\0\x10moov\0\0\0\x08cmov",
        b"\0\0\0\x18moof\0\0\0\x10trun\0\0\0\0\xff\xff\xff\xff",
        b"\0\0\0\x04moov",
        b"\0\0\0\x01moov" + b"\xff" * 8,
        b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x10\0\0\0\x10moov\0\0\0\x08cmov",
    ],
    ids=["compressed", "samples", "short", "long", "after 64 bits"],
)
def test_mp4_of_a_damaged_structure_is_refused(tmp_path, boxes, never_opened):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0" + boxes)
    with pytest.raises(SourceError, match="not a video"):
        open_video(tmp_path / "a.mp4")


def box(kind, *content):
    content = b"".join(content)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def table(kind, *numbers):
    """Return a table of an MP4: version and flags, then numbers of 32 bits."""
    return box(kind, struct.pack(f">I{len(numbers)}I", 0, *numbers))


def track(handler, *tables):
    handlers = (box(b"hdlr", bytes(8), name, bytes(12)) for name in (handler, b"alis"))
    return box(b"moov", box(b"trak", *handlers, *tables))


# An hour of stereo at 48 kHz in chunks of half a second.
HOUR = (
    table(b"stts", 1, 172_800_000, 1),
    table(b"stsc", 1, 1, 24_000, 1),
    table(b"stsz", 4, 172_800_000),
    table(b"stco", 7200, *range(7200)),
)


@pytest.mark.parametrize(
    "tables",
    [
        (b"vide", table(b"stsz", 1, 20_000), table(b"elst", 1000, *range(3000))),
        (b"soun", HOUR[0], table(b"stsc", 1, 1, 2**31, 1), table(b"stco", 100, *range(100))),
        (b"soun", table(b"stts", 1, 9_000_000, 2), table(b"stsz", 1, 9_000_000)),
        (b"vide", HOUR[0], table(b"stsz", 1, 9_000_000)),
        (b"vide", struct.pack(">I4sQIII", 1, b"stsz", 28, 0, 1, 9_000_000)),
        (b"vide", table(b"keys", 1 << 27)),
        (b"vide", table(b"iinf", 1 << 27)),
        (b"vide", box(b"sgpd", struct.pack(">B3x4sI", 0, b"sync", 1 << 30))),
        (b"vide", box(b"sgpd", struct.pack(">B3x4sII", 1, b"sync", 1, 1 << 30))),
    ],
    ids=[
        *("edits", "chunks of sound", "packed sound", "frames", "64 bits", "keys", "items"),
        *("groups 0", "groups 1"),
    ],
)
def test_mp4_of_too_many_entries_is_refused(tmp_path, tables, never_opened):
    """FFmpeg takes 460 MB for the first one, and more for each of the others."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0" + track(*tables) + box(b"free"))
    with path.open("r+b") as file:  # more bytes than samples
        file.seek(0, os.SEEK_END)
        file.write(bytes(2_000_000))
        file.truncate(10_000_000)
    with memory(30), pytest.raises(SourceError, match="not a video"):
        open_video(path)


@pytest.mark.parametrize(
    "tables",
    [
        (b"soun", *HOUR),
        (b"vide", table(b"stsz", 0, 90_000, *[9] * 90_000), table(b"elst", 2, *range(6))),
        (b"vide", box(b"data", b"the keys of a text"), table(b"keys", 1, 9, 9)),
    ],
    ids=["sound", "frames", "texts"],
)
def test_mp4_of_an_hour_is_opened(tmp_path, monkeypatch, tables):
    """Of the sound FFmpeg makes an entry for each block only."""
    opened = []
    monkeypatch.setattr(videos, "_open", lambda *_: opened.append(1) or cv2.VideoCapture())
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0" + track(*tables) + box(b"mdat", bytes(10**7)))
    with pytest.raises(SourceError):
        open_video(path)
    assert opened


def test_file_of_holes_is_refused(tmp_path, never_opened):
    """FFmpeg takes 3 GB for four attachments of 250 MB in a Matroska of 12 kB on the disk."""
    path = write_video(tmp_path / "a.mkv", "mp4v")
    with path.open("r+b") as file:
        file.truncate(1_000_000_000)
    if not 0 < path.stat().st_blocks < 10**5:
        pytest.skip("this file system has no holes")
    with pytest.raises(SourceError, match="not a video"):
        open_video(path)


def test_mp4_with_a_length_of_64_bits_is_read(tmp_path):
    path = write_video(tmp_path / "a.mp4", "mp4v")
    path.write_bytes(path.read_bytes() + b"\0\0\0\x01free" + struct.pack(">Q", 16))
    assert len(list(read_frames(path, pytest.fail))) == 3


def test_mp4_of_a_large_box_is_refused(tmp_path, monkeypatch, never_opened):
    write_video(tmp_path / "a.mp4", "mp4v")
    monkeypatch.setattr(mp4_files, "_MAX_BOX_BYTES", 100)
    with pytest.raises(SourceError, match="not a video"):
        open_video(tmp_path / "a.mp4")


def test_frame_that_grows_within_a_video_is_refused():
    class Capture:
        def __init__(self):
            large = np.broadcast_to(np.uint8(0), (8000, 8000, 3))
            self.frames = [np.zeros((48, 64, 3), np.uint8), large]

        def read(self):
            return True, self.frames.pop(0)

        def release(self):
            self.frames = None

    capture = Capture()
    frames = read_video(capture, "a")
    assert next(frames)[0] == "a#0"
    with pytest.raises(SourceError, match="a: expected frames of less than 64 megapixels, got"):
        next(frames)
    assert capture.frames is None


def test_protocols_are_those_of_files_or_of_the_network(tmp_path, monkeypatch):
    path, seen = write_video(tmp_path / "a.avi"), []

    def capture(*_):
        options = os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"].split("|")
        seen.append(dict(option.split(";", 1) for option in options))
        return closed

    closed = cv2.VideoCapture()
    monkeypatch.setattr(videos.cv2, "VideoCapture", capture)
    with pytest.raises(SourceError):
        open_video(path)
    with pytest.raises(SourceError):
        open_stream("rtsp://127.0.0.1:1/a", "camera", 1000)
    of_file, of_stream = seen
    assert (of_file["protocol_whitelist"], of_file["input_format"]) == ("file", "avi")
    protocols = of_stream["protocol_whitelist"].split(",")
    assert "rtsp" in protocols
    assert not {"file", "pipe", "fd", "concat", "subfile", "unix"} & set(protocols)


def test_huge_frame_of_a_stream_is_refused(tmp_path):
    path = avi_of_size(tmp_path / "a.avi", 16000, 16000)
    with file_server(path) as url, pytest.raises(SourceError, match="got 16000x16000"):
        list(read_live(url))


@pytest.mark.parametrize("content", ["ffconcat", "playlist"])
def test_stream_cannot_name_a_file_of_this_machine(tmp_path, content):
    local = write_video(tmp_path / "local.avi")
    path = tmp_path / "camera"
    path.write_text(LISTS[content].format(local.as_uri()))
    with file_server(path) as url, pytest.raises(SourceError):
        list(read_live(url))


def test_options_of_the_user_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;udp")
    assert open_video(write_video(tmp_path / "a.avi")).read()[0]
    assert os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "rtsp_transport;udp"


def test_pipe_and_file_are_no_video_and_no_camera(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match=r"a\.mp4: expected a file, got another kind"):
        open_video(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="no such camera"):
        next(read_live(f"/dev/video/../..{tmp_path / 'a.mp4'}"))
