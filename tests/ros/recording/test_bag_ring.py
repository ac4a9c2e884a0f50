"""Ring of bags: size limit, crashes, full disks."""

import errno
import os
import resource
import shutil
import stat
from collections import namedtuple
from datetime import datetime, timezone

import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed: pip install 'drone_kd[record]'")

from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import Reader, Writer
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


def stamps_of(bag):
    with Reader(bag) as reader:
        return [stamp for _, stamp, _ in reader.messages()]


def stamps(folder):
    return [stamp for bag in bags(folder) for stamp in stamps_of(bag)]


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


def test_bag_that_cannot_be_finished_is_closed(tmp_path, kind, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    closed, abort = [], Writer.abort
    monkeypatch.setattr(Writer, "close", fail)
    monkeypatch.setattr(Writer, "abort", lambda writer: closed.append(abort(writer)))
    ring = BagRing(tmp_path, "node", 10 * MB)
    write_all(ring, kind, [1])
    with pytest.raises(OSError, match="Input/output error"):
        ring.finish()
    assert closed == [None]


def test_messages_are_read_back(tmp_path, kind):
    ring = BagRing(tmp_path, "node", 10 * MB)
    ring.write(7, messages(kind, 3, "y"))
    ring.finish()
    with Reader(bags(tmp_path)[0]) as reader:
        ((connection, stamp, raw),) = reader.messages()
    assert (connection.topic, connection.msgtype, stamp) == ("/a", "std_msgs/msg/Header", 7)
    assert connection.digest == kind.digest and "string frame_id" in connection.msgdef.data
    assert deserialize_message(raw, Header).frame_id == "yyy"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("private", "folder_mode", "file_mode"), [(True, 0o700, 0o600), (False, 0o755, 0o644)]
)
def test_modes_of_a_bag(tmp_path, kind, private, folder_mode, file_mode):
    umask = os.umask(0o022)
    try:
        ring = BagRing(tmp_path, "node", 10 * MB, private=private)
        ring.write(1, messages(kind))
        (bag,) = bags(tmp_path)
        assert [mode(bag), *map(mode, bag.iterdir())] == [folder_mode, file_mode]
        ring.finish()
        assert [mode(bag), *map(mode, bag.iterdir())] == [folder_mode, file_mode, file_mode]
    finally:
        assert os.umask(umask) == 0o022


def fill(ring, kind):
    """Write more than the budget, so that the oldest bags have to go."""
    write_all(ring, kind, range(10, 200))
    ring.finish()


def test_bag_replaced_by_a_link_is_left_alone(tmp_path, kind):
    folder, archive = tmp_path / "bags", tmp_path / "archive"
    folder.mkdir()
    ring = BagRing(folder, "node", 10 * MB)
    ring.write(1, messages(kind))
    ring.finish()
    (bag,) = bags(folder)
    bag.rename(archive)
    before = {path: path.read_bytes() for path in archive.iterdir()}
    bag.symlink_to(archive)
    (folder / "node-000000-20200101T000000Z").symlink_to(tmp_path / "nowhere")
    fill(ring, kind)
    assert {path: path.read_bytes() for path in archive.iterdir()} == before
    assert bag.is_symlink() and total(folder) <= 10 * MB


def test_bag_replaced_by_a_link_after_the_check_is_left_alone(tmp_path, kind, monkeypatch):
    folder, archive = tmp_path / "bags", tmp_path / "archive"
    folder.mkdir()
    ring = BagRing(folder, "node", 10 * MB)
    ring.write(1, messages(kind))
    ring.finish()
    (bag,) = bags(folder)
    check = ring_module._is_of

    def replace_after_the_check(owner, opened, name, is_kind):
        checked = check(owner, opened, name, is_kind)
        if name == bag.name and not bag.is_symlink():
            bag.rename(archive)
            bag.symlink_to(archive)
        return checked

    monkeypatch.setattr(ring_module, "_is_of", replace_after_the_check)
    ring._make_room(10 * MB)
    assert bag.is_symlink() and len(list(archive.iterdir())) == 2


def test_linked_files_in_a_bag_are_left_alone(tmp_path, kind):
    folder, precious = tmp_path / "bags", tmp_path / "precious"
    precious.write_text("mine")
    bag = folder / "node-000001-20200101T000000Z"
    bag.mkdir(parents=True)
    (bag / "a.mcap").symlink_to(precious)
    (bag / "metadata.yaml").mkdir()
    fill(BagRing(folder, "node", 10 * MB), kind)
    assert precious.read_text() == "mine" and (bag / "a.mcap").is_symlink()


def test_bags_of_another_owner_are_neither_counted_nor_deleted(tmp_path, kind):
    foreign = BagRing(tmp_path, "node", 10 * MB)
    foreign.write(1, messages(kind, 5 * MB))
    foreign.finish()
    (bag,) = bags(tmp_path)
    size = total(bag)
    # What is there belongs to this user, and the ring to another one.
    ring = BagRing(tmp_path, "node", 10 * MB, owner=os.geteuid() + 1)
    assert ring._make_room(9 * MB) == 0
    assert total(bag) == size
    assert BagRing(tmp_path, "node", 10 * MB)._make_room(9 * MB) == 1
    assert not bag.exists()


def test_names_that_are_taken_are_passed_over(tmp_path, kind):
    ring = BagRing(tmp_path, "node", 10 * MB)
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    planted = tmp_path / "node-000001-20260101T000000Z"
    planted.symlink_to(tmp_path / "nowhere")
    (tmp_path / "node-000002-20260101T000000Z").write_text("a file")
    (tmp_path / f"node-{'9' * 100}-20260101T000000Z").mkdir()
    clock = namedtuple("clock", "now")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_module, "datetime", clock(lambda zone: now))
        ring.write(1, messages(kind))
    ring.finish()
    assert stamps_of(tmp_path / "node-000003-20260101T000000Z") == [1]
    assert planted.is_symlink() and not (tmp_path / "nowhere").exists()
