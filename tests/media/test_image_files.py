import os
import struct

import cv2
import numpy as np
import pytest

from drone_kd.media.image_files import SourceError, read_frames, read_image
from process_memory import memory


def noise_image(value=90, shape=(48, 64, 3)):
    noise = np.random.default_rng(0).integers(0, 60, shape, dtype=np.uint8)
    return noise + np.uint8(value)


def write_video(path, frames=3):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 50 * number, np.uint8))
    writer.release()
    return path


def all_frames(source):
    errors = []
    return list(read_frames(source, errors.append)), [str(error) for error in errors]


def test_jpeg_with_megabytes_of_measurements_before_its_size_is_read(tmp_path):
    data = cv2.imencode(".jpg", noise_image())[1].tobytes()
    segments = (b"\xff\xe1\xff\xff" + bytes(65533)) * 100  # 6.5 MB
    (tmp_path / "thermal.jpg").write_bytes(data[:2] + segments + data[2:])
    assert read_image(tmp_path / "thermal.jpg").shape == (48, 64, 3)


def test_folder_is_read_in_order_and_continues_after_a_bad_image(tmp_path):
    for name in ("b.png", "a.jpg", "c.PNG"):
        cv2.imwrite(str(tmp_path / name), noise_image())
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("ignored")

    frames, errors = all_frames(tmp_path)

    assert [name for name, _ in frames] == [str(tmp_path / "a.jpg"), str(tmp_path / "c.PNG")]
    assert len(errors) == 1 and "b.png" in errors[0]


def test_video_is_read_frame_by_frame(tmp_path):
    path = write_video(tmp_path / "flight.avi")
    frames, errors = all_frames(path)
    assert [name for name, _ in frames] == [f"{path}#{number}" for number in range(3)]
    assert [round(float(image.mean()) / 50) for _, image in frames] == [0, 1, 2]
    assert errors == []


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.95])
def test_truncated_image_is_never_returned(tmp_path, suffix, part):
    path = tmp_path / f"cut{suffix}"
    cv2.imwrite(str(path), noise_image())
    assert read_image(path).shape == (48, 64, 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(SourceError, match="cut"):
        read_image(path)


def test_truncated_jpeg_with_a_complete_thumbnail(tmp_path):
    data = cv2.imencode(".jpg", noise_image())[1].tobytes()
    thumbnail = cv2.imencode(".jpg", noise_image(shape=(8, 8, 3)))[1].tobytes()
    header = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "camera.jpg"
    path.write_bytes(data[:2] + header + data[2:])
    assert read_image(path).shape == (48, 64, 3)
    path.write_bytes(data[:2] + header + data[2:-50])
    with pytest.raises(SourceError, match="incomplete"):
        read_image(path)


def test_bytes_after_the_end_of_a_jpeg_are_ignored(tmp_path):
    path = tmp_path / "motion.jpg"
    path.write_bytes(cv2.imencode(".jpg", noise_image())[1].tobytes() + b"\xff\xda trailing video")
    assert read_image(path).shape == (48, 64, 3)


def test_unusable_source_is_one_line(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "model.txt").write_text("text")
    for name, says in (
        ("empty", "expected images"),
        ("missing.jpg", "no such image, folder or video"),
        ("bad.mp4", "not a video"),
        ("model.txt", "expected a folder or a file that ends in"),
    ):
        with pytest.raises(SourceError, match=says) as error:
            all_frames(tmp_path / name)
        assert name in str(error.value)
    assert capfd.readouterr().err == ""


def test_huge_image_in_a_folder_is_named_and_the_next_is_read(tmp_path):
    cv2.imwrite(str(tmp_path / "b.png"), noise_image())
    data = bytearray(cv2.imencode(".jpg", noise_image())[1].tobytes())
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = b"\x7f\xff\x7f\xff"
    (tmp_path / "a.jpg").write_bytes(data)
    frames, errors = all_frames(tmp_path)
    assert [name for name, _ in frames] == [str(tmp_path / "b.png")]
    (line,) = errors
    assert "a.jpg: expected less than 64 megapixels, got 32767x32767 pixels" in line


@pytest.mark.parametrize("at", [8, 90_000_000])
def test_image_is_refused_before_the_file_is_read(tmp_path, at):
    """The file is sparse."""
    path = tmp_path / "map.tif"
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, 32767) for tag in (256, 257))
    with path.open("wb") as file:
        file.write(b"II*\0" + struct.pack("<I", at))
        file.seek(at)
        file.write(struct.pack("<H", 2) + tags)
        file.truncate(200_000_000)
    with path.open("rb") as file:
        with memory(20), pytest.raises(SourceError, match="got 32767x32767 pixels"):
            read_image(path)
        assert file.read(2) == b"II"


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".png", ".webp"])
def test_megabytes_behind_an_image_are_not_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), noise_image())
    os.truncate(path, 399_000_000)
    with memory(60):
        assert read_image(path).shape == (48, 64, 3)


@pytest.mark.parametrize("segments", [0, 700])
def test_jpeg_of_megabytes_without_a_size_takes_limited_memory(tmp_path, segments):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8" + (b"\xff\xe1\xff\xff" + bytes(65533)) * segments)
    os.truncate(path, 399_000_000)
    with memory(60), pytest.raises(SourceError, match=r"a\.jpg: expected a BMP, JPEG"):
        read_image(path)


def test_file_above_the_limit_is_refused(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), noise_image())
    size = path.stat().st_size
    assert read_image(path, max_bytes=size).shape == (48, 64, 3)
    with pytest.raises(SourceError, match=r"a\.png: expected at most .* MB, got more"):
        read_image(path, max_bytes=size - 1)


def test_pipe_device_and_folder_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "folder.jpg", "zero.jpg"):
        with pytest.raises(SourceError, match=f"{name}: expected a file, got another kind"):
            read_image(tmp_path / name)


def test_name_of_an_image_is_printable(tmp_path):
    with pytest.raises(SourceError) as error:
        read_image(tmp_path / "a\n\x1b]0;evil\x07.jpg")
    assert str(error.value).isprintable()
