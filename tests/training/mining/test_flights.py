# SPDX-License-Identifier: AGPL-3.0-or-later
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest

from drone_kd.media.image_files import SourceError
from drone_kd_training.mining import remote_flights
from drone_kd_training.mining.flights import _plan_frames, local, plan, read
from drone_kd_training.mining.remote_flights import shown_flight
from recorded import STORE, TIME, cut, image, jpeg, scene, storage_file, write_bag

SECOND = 10**9


def refuse(error):
    raise AssertionError(error)


def write_video(path, count=40):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96))
    for k in range(count):
        writer.write(scene(0, 2 * k))
    writer.release()
    return path


def write_images(folder, count=20):
    folder.mkdir()
    for k in range(count):
        cv2.imwrite(str(folder / f"{k:03d}.png"), scene(0, k))
    return folder


@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
def test_segments_of_a_bag_hold_every_frame_once(tmp_path, storage):
    messages = [
        (topic, k * SECOND, make(scene(i, k, 64 * (i + 1)), k * SECOND))
        for k in range(45)
        for i, (topic, make) in enumerate((("/left", image), ("/right", jpeg)))
    ]
    bag = write_bag(tmp_path / "bag", messages, storage)
    segments = plan([str(bag)], [], refuse)
    assert len({s.key for s in segments}) == len(segments) > 10
    for topic, width in (("/left", 64), ("/right", 128)):
        frames = [f for s in segments if s.topic == topic for f in read(s, refuse)]
        assert [f.stamp_s for f in frames] == list(range(45))
        assert {f.image.shape for f in frames} == {(96, width, 3)}
        blocks = [f.block for f in frames]
        assert blocks == sorted(blocks) and set(blocks) == set(range(10))
    assert {s.topic for s in plan([str(bag)], ["/left"], refuse)} == {"/left"}


def test_videos_and_folders_yield_every_frame_once_and_only_wanted_ones(tmp_path):
    for path in (write_video(tmp_path / "v.avi"), write_images(tmp_path / "p", 40)):
        segments = plan([str(path)], [], refuse)
        frames = [f for s in segments for f in read(s, refuse)]
        assert len(frames) == 40 and frames[30].block == 30 // 5
        for k in (0, 17, 39):
            assert (
                abs(frames[k].image.astype(int) - scene(0, (k, 2 * k)["v." in str(path)])).mean()
                < 9
            )
        (one,) = read(segments[3], refuse, {2})
        assert one.number == 2
        np.testing.assert_array_equal(one.image, frames[segments[3].start + 2].image)


def test_truncated_bag_is_one_segment_with_the_time_blocks_of_its_frames(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    bag = write_bag(
        tmp_path / "bag", [("/a", k * SECOND, image(noise, k * SECOND)) for k in range(40)]
    )
    cut(storage_file(bag), 0.6)
    said = []
    (segment,) = plan([str(bag)], [], said.append)
    blocks = [f.block for f in read(segment, said.append)]
    assert 15 < len(blocks) < 25 and len(set(blocks)) > 5
    assert any("breaks off" in str(line) for line in said)


def test_unusable_flight_is_refused_with_what_was_expected(tmp_path):
    radio = write_bag(tmp_path / "radio", [("/radio", 0, jpeg(scene(0), 0))])
    with pytest.raises(SourceError, match="no images on /camera; there are some on /radio"):
        plan([str(radio)], ["/camera"], refuse)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SourceError, match="expected a bag or images in it, found neither"):
        plan([str(tmp_path / "nothing")], [], refuse)
    with pytest.raises(SourceError, match="no such bag"):
        plan([str(radio) + "-not"], [], refuse)
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(SourceError, match="expected a bag, a folder of images or a video"):
        plan([str(tmp_path / "notes.txt")], [], refuse)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match="not a video that OpenCV can read"):
        plan([str(tmp_path / "bad.mp4")], [], refuse)


def test_bag_without_images_is_refused_and_its_topics_are_named(tmp_path):
    clock = STORE.types["rosgraph_msgs/msg/Clock"]
    bag = write_bag(tmp_path / "bag", [("/clock", 0, clock(TIME(0, 0)))])
    with pytest.raises(SourceError, match=r"no images in it; its topics: /clock .rosgraph_msgs"):
        plan([str(bag)], [], refuse)


def test_copies_of_a_flight_count_once_and_names_cannot_leave_the_folder(tmp_path):
    folder = write_images(tmp_path / "..p")
    copy = tmp_path / "copy"
    folder_copy = copy / "..p"
    copy.mkdir()
    shutil.copytree(folder, folder_copy)
    said = []
    segments = plan([str(folder), str(folder) + "/", str(folder_copy)], [], said.append)
    assert len(said) == 2 and all("the same flight as" in str(line) for line in said)
    assert len({s.name for s in segments}) == 1
    bag = write_bag(tmp_path / "bag", [("/../../a b/ü", 0, image(scene(0), 0))])
    for segment in segments + plan([str(bag)], [], refuse):
        assert "/" not in segment.key and ".." not in segment.key and segment.key.isascii()


def test_url_is_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_images(tmp_path / "p", 5)
    segments = plan([folder.as_uri()], [], refuse)
    assert segments[0].name == plan([str(folder)], [], refuse)[0].name
    folder.rename(tmp_path / "elsewhere")
    assert len([f for s in segments for f in read(s, refuse)]) == 5
    with pytest.raises(SourceError, match="cannot be fetched"):
        plan([(tmp_path / "not").as_uri()], [], refuse)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "drone_kd" / "flights"


@pytest.mark.parametrize("planted", ["link", "writable by others", "other user"])
def test_frames_that_another_user_planted_in_the_cache_are_not_used(
    tmp_path, cache, monkeypatch, planted
):
    folder = write_images(tmp_path / "p", 5)
    plan([folder.as_uri()], [], refuse)  # the cache is filled
    if planted == "link":
        cache.rename(tmp_path / "elsewhere")
        cache.symlink_to(tmp_path / "elsewhere")
    elif planted == "other user":
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    else:
        cache.chmod(0o777)
    with pytest.raises(SourceError, match=r"cannot be fetched .*expected a folder"):
        plan([folder.as_uri()], [], refuse)


def test_relative_cache_folder_of_the_environment_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = write_images(tmp_path / "p", 1)
    assert local(folder.as_uri()).is_relative_to(tmp_path / ".cache" / "drone_kd" / "flights")


def test_downloads_are_private_and_small_enough(tmp_path, cache, monkeypatch):
    folder = write_images(tmp_path / "p", 5)
    path = local(folder.as_uri())
    assert path.is_relative_to(cache) and path.name == "p"
    assert {p.stat().st_mode & 0o777 for p in (cache, path.parent)} == {0o700}
    monkeypatch.setattr(remote_flights, "MAX_BYTES", 1000)
    with pytest.raises(SourceError, match="expected at most"):
        local(write_images(tmp_path / "q", 5).as_uri())
    monkeypatch.setattr(remote_flights, "MAX_FILES", 4)
    with pytest.raises(SourceError, match="more than 4 files"):
        local(write_images(tmp_path / "r", 5).as_uri())
    assert [p.name for p in cache.rglob("*") if p.is_dir()] == [path.parent.name, "p"]


@pytest.mark.parametrize(
    "url",
    [
        "memory://a.mp4", "reference://a.json", "data://a", "github://o:r@main/a.mp4", "data:///x",
        "simplecache::file:///a.mp4", "zip://a.mp4::https://host.invalid/a.zip",
        "file:///a.mp4::https://host.invalid/", "\x1b[31m://a", "://a.mp4",
    ],
)  # fmt: skip
def test_other_schemes_and_chained_urls_are_refused(cache, url):
    with pytest.raises(SourceError) as error:
        plan([url], [], refuse)
    message = str(error.value)
    assert ("expected a single URL of" in message) == ("://" in url) and message.isprintable()
    assert not cache.exists()


class Listing:
    """A remote folder with a file of any name."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def isdir(self, path: str) -> bool:
        return True

    def walk(self, path: str, **_: object) -> Iterator[tuple]:
        yield path, {}, {name: {"name": f"bucket/flight/{name}"} for name in self.names}

    def size(self, path: str) -> int:
        return 1

    def get_file(self, remote: str, local: str, callback: object) -> None:
        Path(local).write_text("x")


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "a//b", "a\0b"])
def test_remote_names_cannot_leave_the_cache(cache, tmp_path, monkeypatch, name):
    listing = Listing("000.png", name)
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (listing, "bucket/flight"))
    with pytest.raises(SourceError, match="outside the flight's folder"):
        local("s3://bucket/flight")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


class Endless(fsspec.AbstractFileSystem):
    """A server whose folders all have folders, until a limit far beyond any flight."""

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict]:
        names = range(10) if path.count("/") < 30 else ()
        return [{"name": f"{path}/{i}", "size": 0, "type": "directory"} for i in names]

    def isdir(self, path: str) -> bool:
        return True


def test_endless_folders_of_a_server_are_refused(cache, monkeypatch):
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (Endless(), "flight"))
    monkeypatch.setattr(remote_flights, "MAX_FILES", 1000)
    with pytest.raises(SourceError, match="more than 1000 files and folders"):
        local("ftp://host.invalid/flight")


class Server(Listing):
    """A remote file of a size that is not told."""

    def isdir(self, path: str) -> bool:
        return False

    def size(self, path: str) -> None:
        return None

    def get_file(self, remote: str, local: str, callback: fsspec.Callback) -> None:
        with Path(local).open("wb") as file:
            for _ in range(10):
                file.write(bytes(1000))
                callback.relative_update(1000)


@pytest.mark.parametrize("limit", [9999, 10_000])
def test_download_of_unknown_size_ends_at_the_limit(cache, monkeypatch, limit):
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (Server(), "host/a.png"))
    monkeypatch.setattr(remote_flights, "MAX_BYTES", limit)
    if limit == 10_000:
        assert local("https://host.invalid/a.png").stat().st_size == 10_000
        return
    with pytest.raises(SourceError, match="expected at most"):
        local("https://host.invalid/a.png")
    assert not list(cache.iterdir())


def test_urls_are_shown_without_credentials(monkeypatch):
    shown = shown_flight("https://me:secret@host.invalid/a/b.mp4?token=secret#secret")
    assert shown == "https://host.invalid/a/b.mp4"
    assert shown_flight("flights/a?b@c.mp4") == "flights/a?b@c.mp4"
    monkeypatch.setattr(remote_flights, "cache_folder", no_folder)
    with pytest.raises(
        SourceError, match=r"host.invalid/b.mp4: cannot be fetched \(no folder"
    ) as error:
        local("https://me:secret@host.invalid/b.mp4?token=secret")
    assert "secret" not in str(error.value)


class Failing(Listing):
    """A remote folder whose errors hold its URL."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def walk(self, path: str, **_: object) -> Iterator[tuple]:
        raise self.error


class StatusError(Exception):
    """As HTTP clients raise them: no OSError."""

    status = 403


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("https://me:secret@host.invalid/f?token=secret"),
        StatusError("403, url='https://me:secret@host.invalid/f'"),
        ValueError("secret"),
        PermissionError(13, "Permission denied", "https://me:secret@host.invalid/f"),
        ModuleNotFoundError("secret", name="s3fs"),
        ImportError("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_downloads_are_shown_without_credentials(error, cache, monkeypatch):
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (Failing(error), "f"))
    with pytest.raises(SourceError, match=type(error).__name__) as shown:
        local("https://me:secret@host.invalid/f?token=secret")
    assert "secret" not in str(shown.value)


def no_folder(warn):
    raise OSError("no folder")


def test_bag_whose_clock_jumps_has_few_segments(tmp_path):
    """One message before the clock was set: a block of 30 s would make millions of segments."""
    messages = [
        ("/a", t * SECOND, image(scene(0, t % 90), t * SECOND)) for t in (0, 2_000_000_000)
    ]
    said = []
    segments = plan([str(write_bag(tmp_path / "bag", messages))], [], said.append)
    assert len(segments) <= 10_002 and "its clock jumped" in str(said[0])
    assert sum(len(list(read(s, refuse))) for s in (segments[0], segments[-1])) == 2


def test_frames_that_a_video_only_declares_are_not_waited_for(tmp_path):
    path = write_video(tmp_path / "v.avi", 5)
    (segment,) = plan([str(path)], [], refuse)
    beyond = replace(segment, start=2**31 - 10, stop=2**31 - 1)
    assert list(read(beyond, refuse)) == []


def test_pipe_and_playlist_are_no_videos(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(SourceError, match=r"got another kind|not a video"):
            plan([str(tmp_path / name)], [], refuse)


def test_video_that_declares_billions_of_frames_has_few_segments():
    assert len(_plan_frames("flight", "name", 2**31 - 1)) <= 10_002
