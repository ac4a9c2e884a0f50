# SPDX-License-Identifier: AGPL-3.0-or-later
import shutil

import cv2
import numpy as np
import pytest

from drone_kd.media.image_files import SourceError
from drone_kd_training.mining.flights import plan, read
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
    with pytest.raises(SourceError, match="cannot read it as a video"):
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
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    folder = write_images(tmp_path / "p", 5)
    segments = plan([folder.as_uri()], [], refuse)
    assert segments[0].name == plan([str(folder)], [], refuse)[0].name
    folder.rename(tmp_path / "elsewhere")
    assert len([f for s in segments for f in read(s, refuse)]) == 5
    with pytest.raises(SourceError, match="cannot be fetched"):
        plan([(tmp_path / "not").as_uri()], [], refuse)
