"""Ring of bags: size limit, crashes, full disks."""

import errno
import resource
import shutil
from collections import namedtuple

import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install 'drone_kd[record]'")

from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import Reader
from std_msgs.msg import Header

from drone_kd.ros.recording import bag_ring as ring_module
from drone_kd.ros.recording.bag_ring import BagRing, Message
from drone_kd.ros.recording.message_definitions import message_type

MB = 10**6


@pytest.fixture
def kind():
    return message_type(Header)


def messages(kind, size=100_000, text="x"):
    return [Message("/a", kind, serialize_message(Header(frame_id=text * size)))]


def write_all(ring, kind, stamps):
    for stamp in stamps:
        ring.write(stamp, messages(kind))


def bags(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


def total(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def stamps(folder):
    found = []
    for bag in bags(folder):
        with Reader(bag) as reader:
            found += [stamp for _, stamp, _ in reader.messages()]
    return found


def test_oldest_bag_is_deleted_within_the_budget(tmp_path, kind):
    ring = BagRing(tmp_path, "node", 10 * MB)
    for stamp in range(1, 201):  # 20 MB
        ring.write(stamp, messages(kind))
        assert total(tmp_path) <= 10 * MB
    ring.finish()
    kept = stamps(tmp_path)
    assert kept == list(range(kept[0], 201))
    assert len(kept) >= 75 and len(bags(tmp_path)) >= 7


def test_crash_loses_only_the_newest_bag(tmp_path, kind):
    ring = BagRing(tmp_path, "node", 10 * MB)
    for stamp in range(1, 31):
        ring.write(stamp, messages(kind))
    # Nothing is closed: this is what a killed process leaves.
    *finished, newest = bags(tmp_path)
    assert len(finished) >= 2 and not (newest / "metadata.yaml").exists()
    shutil.copytree(tmp_path, tmp_path.with_name("after"), ignore=lambda *_: [newest.name])
    assert stamps(tmp_path.with_name("after")) == list(range(1, 11 * len(finished) + 1))


def test_next_flight_counts_the_unfinished_bag_of_a_crash(tmp_path, kind):
    crashed = BagRing(tmp_path, "node", 10 * MB)
    for stamp in range(1, 6):
        crashed.write(stamp, messages(kind))
    (left,) = bags(tmp_path)
    ring = BagRing(tmp_path, "node", 10 * MB)
    ring.write(6, messages(kind))
    ring.finish()
    assert bags(tmp_path)[0] == left
    for stamp in range(7, 150):
        ring.write(stamp, messages(kind))
    assert not left.exists() and total(tmp_path) <= 10 * MB


def test_bag_ends_after_a_minute(tmp_path, kind, monkeypatch):
    now = 0.0
    monkeypatch.setattr(ring_module, "monotonic", lambda: now)
    ring = BagRing(tmp_path, "node", 10 * MB)
    ring.write(1, messages(kind))
    ring.finish_old()
    assert not (bags(tmp_path)[0] / "metadata.yaml").exists()
    now = 61.0
    ring.finish_old()
    assert stamps(tmp_path) == [1]


def test_foreign_files_and_bags_are_kept(tmp_path, kind):
    BagRing(tmp_path, "other", 10 * MB).write(1, messages(kind, 5 * MB))
    (tmp_path / "notes.txt").write_text("mine")
    ring = BagRing(tmp_path, "node", 10 * MB)
    ring.write(1, messages(kind))
    ring.finish()
    (first,) = (bag for bag in bags(tmp_path) if bag.name.startswith("node"))
    (first / "notes.txt").write_text("mine")
    for stamp in range(2, 200):
        ring.write(stamp, messages(kind))
    assert [path.name for path in first.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").exists()
    assert any(bag.name.startswith("other") for bag in bags(tmp_path))


def test_bag_that_disappears_is_ignored(tmp_path, kind):
    ring = BagRing(tmp_path, "node", 10 * MB)
    for stamp in range(1, 200):
        ring.write(stamp, messages(kind))
        if stamp == 30:
            shutil.rmtree(bags(tmp_path)[0])
    ring.finish()
    assert stamps(tmp_path)[-1] == 199


def test_frame_larger_than_the_budget_is_rejected(tmp_path, kind):
    ring = BagRing(tmp_path, "node", 10 * MB)
    with pytest.raises(ValueError, match=r"fit into the budget of 10 MB, got one of 11\.0 MB"):
        ring.write(1, messages(kind, 11 * MB))
    ring.write(2, messages(kind, 9 * MB))
    ring.write(3, messages(kind, 9 * MB))
    ring.finish()
    assert stamps(tmp_path) == [3]


def test_free_disk_space_is_reserved(tmp_path, kind, monkeypatch):
    """A disk that reports little free space, in place of a full one."""
    ring = BagRing(tmp_path, "node", 10 * MB)
    ring.write(1, messages(kind))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(ring_module.shutil, "disk_usage", lambda folder: usage(20 * MB))
    with pytest.raises(OSError, match="only 20 MB are left on the disk") as error:
        ring.write(2, messages(kind))
    assert error.value.errno == errno.ENOSPC
    ring.finish()
    assert stamps(tmp_path) == [1]


def test_failed_write_leaves_other_bags_intact(tmp_path, kind):
    """A limit on the file size makes a real write fail."""
    ring = BagRing(tmp_path, "node", 100 * MB)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MB, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_all(ring, kind, range(1, 100))
        with pytest.raises(OSError, match="File too large"):
            ring.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (broken,) = bags(tmp_path)
    assert not (broken / "metadata.yaml").exists()
    ring.write(100, messages(kind))
    ring.finish()
    with Reader(bags(tmp_path)[1]) as reader:
        assert [stamp for _, stamp, _ in reader.messages()] == [100]


def test_messages_are_read_back(tmp_path, kind):
    ring = BagRing(tmp_path, "node", 10 * MB)
    ring.write(7, messages(kind, 3, "y"))
    ring.finish()
    with Reader(bags(tmp_path)[0]) as reader:
        ((connection, stamp, raw),) = reader.messages()
    assert (connection.topic, connection.msgtype, stamp) == ("/a", "std_msgs/msg/Header", 7)
    assert connection.digest == kind.digest and "string frame_id" in connection.msgdef.data
    assert deserialize_message(raw, Header).frame_id == "yyy"
