import errno
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from drone_kd.media.image_files import SourceError, read_image
from drone_kd_training.data import flight_frames
from drone_kd_training.data.dataset import label_path
from drone_kd_training.data.flight_frames import MARKER, _shares, write_flight_frames
from drone_kd_training.data.names import DataError
from folder_contents import contents
from recorded import content, cut, header, image, jpeg, storage_file, write_bag

SECOND = 10**9


@pytest.fixture(autouse=True)
def log(caplog, monkeypatch):
    """Ultralytics' logger does not propagate."""
    monkeypatch.setattr(flight_frames.LOGGER, "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def place(number: int, width: int = 640, height: int = 480) -> np.ndarray:
    """Return an image of one place, unlike that of any other number."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(20, 230, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_images(folder: Path, count: int, suffix: str = ".jpg", first: int = 0, **size) -> Path:
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        cv2.imwrite(str(folder / f"{number:03d}{suffix}"), place(number, **size))
    return folder


def write_video(path: Path, count: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (640, 480))
    for number in range(count):
        writer.write(place(number))
    writer.release()
    return path


def warnings(log) -> list[str]:
    return [record.message for record in log.records if record.levelno >= logging.WARNING]


def test_uncut_images_of_nested_folders_are_used_in_place(tmp_path):
    """Each folder is a flight; a folder and a list of the same images count once."""
    write_images(tmp_path / "flights/a", 3)
    write_images(tmp_path / "flights/b/c", 2, first=3)
    (tmp_path / "list.txt").write_text("flights/a/000.jpg\n")
    given = [str(tmp_path / "flights"), str(tmp_path / "list.txt")]
    frames = write_flight_frames(given, tmp_path / "out", tile=640)
    found = [path.relative_to(tmp_path / "flights") for path, _ in frames]
    assert list(map(str, found)) == [
        *("a/000.jpg", "a/001.jpg", "a/002.jpg"),
        *("b/c/003.jpg", "b/c/004.jpg"),
    ]
    assert [flight.split("-")[0] for _, flight in frames] == ["a"] * 3 + ["c"] * 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == [MARKER]


@pytest.mark.parametrize(("suffix", "written"), [(".jpg", ".jpg"), (".png", ".png")])
def test_larger_images_are_cut(tmp_path, suffix, written):
    write_images(tmp_path / "flight", 2, suffix)
    frames = write_flight_frames([str(tmp_path / "flight")], tmp_path / "out", tile=320)
    assert len(frames) == len({path for path, _ in frames}) == 8
    assert {path.suffix for path, _ in frames} == {written}
    assert {read_image(path).shape for path, _ in frames} == {(320, 320, 3)}
    assert all(path.name.startswith(flight) for path, flight in frames)
    corner = read_image(frames[0].path).astype(int) - place(0)[:320, :320]
    assert np.abs(corner).mean() < (4 if suffix == ".jpg" else 1e-9)


def test_videos_and_bags_become_frames_by_camera(tmp_path):
    write_video(tmp_path / "video.avi", 12)
    write_bag(
        tmp_path / "bag",
        [
            (topic, k * SECOND, make(place(k + shift), k * SECOND))
            for k in range(8)
            for topic, make, shift in (("/left", image, 100), ("/right", jpeg, 200))
        ],
    )
    given = [str(tmp_path / "bag"), str(tmp_path / "video.avi")]
    frames = write_flight_frames(given, tmp_path / "out", tile=0, max_frames=15)
    flights = [flight for _, flight in frames]
    assert [flights.count(name) for name in dict.fromkeys(flights)] == [5, 5, 5]
    for (path, _), number in zip(frames[:10], [100, 101, 103, 104, 106], strict=False):
        assert np.abs(read_image(path).astype(int) - place(number)).mean() < 4
    assert {path.parent for path, _ in frames} == {tmp_path / "out"}


def test_near_duplicates_are_dropped(tmp_path):
    """A hovering drone: half of the frames show the same."""
    folder = write_images(tmp_path / "flight", 4)
    for number in range(10):
        cv2.imwrite(str(folder / f"003-{number}.jpg"), place(3), [cv2.IMWRITE_JPEG_QUALITY, 90])
    frames = write_flight_frames([str(folder)], tmp_path / "out", tile=0)
    assert len(frames) == 4


def test_short_flights_leave_their_share_to_long_ones():
    assert _shares([3, 100, 50], 60) == [3, 29, 28]
    assert _shares([3, 100, 50], 1000) == [3, 100, 50]
    assert sum(_shares([10] * 7, 5)) == 5


@pytest.mark.parametrize("tile", [0, 320])
def test_validation_images_in_a_flight_are_refused(tmp_path, tile):
    """Whole images of another quality; tiles of a flight's frames."""
    flight = write_images(tmp_path / "flight", 6, width=960, height=720)
    val = write_images(tmp_path / "val", 2, first=20, width=960, height=720)
    write_flight_frames([str(flight)], tmp_path / "out", 0, val=sorted(val.iterdir()))
    twin = place(4, 960, 720)[tile:, tile:]
    cv2.imwrite(str(val / "twin.jpg"), twin, [cv2.IMWRITE_JPEG_QUALITY, 80])
    said = r"1 of 6 frames are near duplicates .*004\.jpg of .*twin\.jpg; remove this flight"
    with pytest.raises(DataError, match=said):
        write_flight_frames([str(flight)], tmp_path / "new", tile, val=sorted(val.iterdir()))
    assert not (tmp_path / "new").exists()


def test_labels_beside_images_are_not_read(tmp_path, log):
    write_images(tmp_path / "set/images", 3)
    (tmp_path / "set/labels").mkdir()
    (tmp_path / "set/labels/001.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    frames = write_flight_frames([str(tmp_path / "set/images")], tmp_path / "out", tile=0)
    assert frames[0].path == tmp_path / "set/images/000.jpg"
    assert frames[1].path.is_relative_to(tmp_path / "out")
    assert not label_path(frames[1].path).is_file()
    # Stored predictions know an image by its name.
    assert frames[1].path.name == "001.jpg"
    assert frames[1].path.resolve() == tmp_path / "set/images/001.jpg"
    assert "labels beside 1 of the frames are ignored" in log.text


def test_complete_folder_is_kept_and_other_arguments_replace_it(tmp_path, monkeypatch):
    flight, out = write_images(tmp_path / "flight", 3), tmp_path / "out"
    frames = write_flight_frames([str(flight)], out, tile=320)
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(flight_frames, "_choose", None)
        assert write_flight_frames([str(flight)], out, tile=320) == frames
    assert contents(out) == before
    assert len(write_flight_frames([str(flight)], out, tile=320, max_frames=2)) == 8
    cv2.imwrite(str(flight / "9.jpg"), place(9))
    assert len(write_flight_frames([str(flight)], out, tile=320)) == 16
    (out / MARKER).write_text("{}")
    assert len(write_flight_frames([str(flight)], out, tile=320)) == 16
    frames = write_flight_frames([str(flight)], out, tile=320)
    frames[0].path.unlink()
    assert write_flight_frames([str(flight)], out, tile=320) == frames
    assert frames[0].path.is_file()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_nothing_stays_of_an_interrupted_run(tmp_path, monkeypatch, error):
    flight, out = write_images(tmp_path / "flight", 3), tmp_path / "out"
    write, calls = flight_frames.write_image, []

    def fail(path, *rest):
        calls.append(path)
        if len(calls) == 4:
            raise error
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(flight_frames, "write_image", fail)
        with pytest.raises(type(error)):
            write_flight_frames([str(flight)], out, tile=320)
    assert [p.name for p in tmp_path.rglob("*") if "000-" in p.name or ".tmp" in p.name] == []
    assert len(write_flight_frames([str(flight)], out, tile=320)) == 12


def test_unreadable_frames_are_left_out_with_one_warning(tmp_path, log):
    folder = write_images(tmp_path / "flight", 5)
    for name in ("001.jpg", "003.jpg"):
        cut(folder / name, 0.5)
    frames = write_flight_frames([str(folder)], tmp_path / "out", tile=0)
    assert [path.name for path, _ in frames] == ["000.jpg", "002.jpg", "004.jpg"]
    (line,) = warnings(log)
    assert "2 of 5 frames cannot be read, the others are used" in line and "001.jpg" in line


def test_frames_before_the_cut_of_a_video_are_used(tmp_path, log):
    path = write_video(tmp_path / "video.avi", 20)
    cut(path, 0.6)
    frames = write_flight_frames([str(path)], tmp_path / "out", tile=0)
    assert 5 < len(frames) < 15
    assert [line for line in warnings(log) if "frames cannot be read" in line]


def test_frames_before_the_cut_of_a_bag_are_used(tmp_path, log):
    messages = [("/a", k * SECOND, image(place(k), k * SECOND)) for k in range(8)]
    bag = write_bag(tmp_path / "bag", messages)
    cut(storage_file(bag), 0.6)
    frames = write_flight_frames([str(bag)], tmp_path / "out", tile=0)
    assert 0 < len(frames) < 8 and warnings(log)


@pytest.mark.parametrize("exists", [False, True])
def test_missing_and_empty_folders_are_refused(tmp_path, exists):
    if exists:
        (tmp_path / "flight").mkdir()
    said = "no image in" if exists else "no such bag, video or folder"
    with pytest.raises((DataError, SourceError), match=said) as error:
        write_flight_frames([str(tmp_path / "flight")], tmp_path / "out", tile=0)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_bag_without_images_is_refused(tmp_path):
    write_bag(tmp_path / "bag", [("/header", 0, header(0))])
    with pytest.raises(SourceError, match="no images in it; its topics: /header"):
        write_flight_frames([str(tmp_path / "bag")], tmp_path / "out", tile=0)


def test_damaged_video_no_flights_and_wrong_numbers_are_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match="not a video"):
        write_flight_frames([str(tmp_path / "a.mp4")], tmp_path / "out", tile=0)
    with pytest.raises(DataError, match="expected a flight"):
        write_flight_frames([], tmp_path / "out", tile=0)
    with pytest.raises(ValueError, match="expected at least 1 frame"):
        write_flight_frames(["x"], tmp_path / "out", tile=0, max_frames=0)
    with pytest.raises(ValueError, match="expected size ≥ 32"):
        write_flight_frames(["x"], tmp_path / "out", tile=8)


def test_flight_of_unreadable_images_is_refused(tmp_path):
    (tmp_path / "flight").mkdir()
    (tmp_path / "flight/a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"found none: .*a\.jpg"):
        write_flight_frames([str(tmp_path / "flight")], tmp_path / "out", tile=0)
    assert not (tmp_path / "out").exists()


def test_result_does_not_depend_on_the_folder(tmp_path):
    write_video(tmp_path / "video.avi", 30)
    given = [str(tmp_path / "video.avi")]
    for name in ("a", "b"):
        write_flight_frames(given, tmp_path / name, tile=320, max_frames=4)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_windows_of_lossless_images_have_no_jpeg_quality(tmp_path, monkeypatch):
    """OpenCV would warn of each."""
    found = []
    monkeypatch.setattr(
        flight_frames, "write_image", lambda path, _, quality: found.append(quality)
    )
    for suffix in (".png", ".jpg"):
        folder = write_images(tmp_path / suffix, 1, suffix)
        write_flight_frames([str(folder)], tmp_path / f"out{suffix}", tile=480)
    assert found == [None, None, 95, 95]
