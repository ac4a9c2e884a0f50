"""Bags of others: limits of size, time and memory, and nothing outside the bag is read."""

import contextlib
import itertools
import os
import re
import sqlite3
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags: pip install drone_kd[simulation]")

import lz4.frame
import yaml
import zstandard
from rosbags import rosbag2

from drone_kd.media import bags, mcap_files, sqlite_bags
from drone_kd.media.bags import inspect_bag, message_to_bgr, read_messages
from drone_kd.media.image_files import SourceError
from folder_contents import contents
from process_memory import memory
from recorded import MESSAGES, STORE, header, image, jpeg, scene, storage_file, write_bag

MAGIC = b"\x89MCAP0\r\n"
COMPRESS = {"": bytes, "zstd": zstandard.compress, "lz4": lz4.frame.compress}


def fail(error):
    raise AssertionError(error)


def text(value):
    return struct.pack("<I", len(value)) + value.encode()


def record(opcode, content):
    return struct.pack("<BQ", opcode, len(content)) + content


def message(data, logged_ns=0, channel=1):
    return record(5, struct.pack("<HIQQ", channel, 0, logged_ns, logged_ns) + data)


def chunk(content, compression="zstd", size=None, packed=None, span=(0, 0), checksum=0):
    packed = COMPRESS[compression](content) if packed is None else packed
    size = len(content) if size is None else size
    head = struct.pack("<QQQI", *span, size, checksum) + text(compression)
    return record(6, head + struct.pack("<Q", len(packed)) + packed), size


def write_mcap(path, chunks, *, repeat=1, whole=True, counts=None, spans=None):
    """Write chunks, as of `chunk`, with their index; `repeat`: how often it names each."""
    schema = record(3, struct.pack("<H", 1) + text("sensor_msgs/msg/Image") + text("") + text(""))
    channel = record(4, struct.pack("<HH", 1, 1) + text("/a") + text("cdr") + text(""))
    data = MAGIC + record(1, text("ros2") + text("")) + schema + channel
    index = b""
    for number, (content, size) in enumerate(chunks):
        span = spans[number] if spans else (0, 0)
        entry = struct.pack("<QQQQ", *span, len(data), len(content)) + text("") + bytes(8)
        index += record(8, entry + text("zstd") + struct.pack("<QQ", len(content), size)) * repeat
        data += content
    data += record(15, bytes(4))
    if whole:
        totals = struct.pack("<HQ", 1, counts or len(chunks))
        statistics = struct.pack("<QHIIIIQQ", 1, 1, 1, 0, 0, 1, 0, 10**9)
        statistics += struct.pack("<I", len(totals)) + totals
        start = len(data)
        data += schema + channel + index + record(11, statistics)
        data += record(2, struct.pack("<QQI", start, 0, 0)) + MAGIC
    path.write_bytes(data)
    return path


def read_all(path):
    """Return the number of messages, their bytes, and the errors."""
    errors = []
    try:
        files = inspect_bag(path, errors.append)
    except SourceError as error:
        return 0, 0, [*map(str, errors), str(error)]
    found = [len(m.data) for file in files for m in read_messages(file, {"/a"}, errors.append)]
    return len(found), sum(found), [*map(str, errors)]


def written_bytes():
    """Return how many bytes this process has written so far, to files of any kind."""
    return int(re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())[1])


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut off"])
@pytest.mark.parametrize(("compression", "number"), [("zstd", 1), ("zstd", 50), ("lz4", 1)])
def test_mcap_that_unpacks_to_400_mb_is_refused(tmp_path, compression, number, whole):
    size = 400_000_000 // number
    if number == 1:  # a declared size is enough
        chunks = [chunk(b"", compression, size, COMPRESS[compression](bytes(1000)))]
    else:
        chunks = [chunk(message(bytes(size - 31)), compression)] * number
    path = write_mcap(tmp_path / "a.mcap", chunks, whole=whole)
    with memory(60):
        count, _, errors = read_all(path)
    assert count == 0
    assert "MB" in errors[-1] and len(errors[-1]) < 300 and "\n" not in errors[-1]


def test_bytes_of_chunks_are_counted_whatever_the_index_says(tmp_path):
    record, _ = chunk(message(bytes(31_000_000)))
    path = write_mcap(tmp_path / "a.mcap", [(record, 0)] * 20)
    count, _, errors = read_all(path)
    assert count < 10 and "at most 256 MB unpacked" in errors[-1]


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_chunk_larger_than_its_declared_size_is_refused(tmp_path, compression):
    packed = COMPRESS[compression](bytes(300_000_000))
    path = write_mcap(tmp_path / "a.mcap", [chunk(b"", compression, 1000, packed)])
    with memory(60):
        assert read_all(path)[:2] == (0, 0)


def test_chunk_is_read_once_however_often_the_index_names_it(tmp_path):
    path = write_mcap(tmp_path / "a.mcap", [chunk(message(bytes(1000)))], repeat=1000)
    assert read_all(path) == (1, 1000, [])


def test_overlapping_chunks_are_merged_and_wait_in_limited_memory(tmp_path, monkeypatch):
    times = [(0, 4), (2, 6), (8, 8)]
    chunks = [
        chunk(b"".join(message(bytes([t]) * 9, t) for t in range(b, a - 1, -2)), span=(a, b))
        for a, b in times
    ]
    path = write_mcap(tmp_path / "a.mcap", chunks, counts=7, spans=times)
    rows = list(mcap_files.messages(path, {"/a"}, 0, 2**63))
    assert [row[2] for row in rows] == [0, 2, 2, 4, 4, 6, 8]
    assert [row[2] for row in mcap_files.messages(path, {"/a"}, 3, 8)] == [4, 4, 6]
    monkeypatch.setattr(mcap_files, "_MAX_WAITING_BYTES", 500)
    limited = [row[2] for row in mcap_files.messages(path, {"/a"}, 0, 2**63)]
    assert limited != sorted(limited) == [row[2] for row in rows]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut off"])
def test_chunk_that_differs_from_its_checksum_is_refused(tmp_path, whole):
    content = message(bytes(9))
    checksum = zlib.crc32(content)
    for number, count in ((checksum, 1), (checksum ^ 1, 0)):
        chunks = [chunk(content, checksum=number)]
        found, _, errors = read_all(write_mcap(tmp_path / "a.mcap", chunks, whole=whole))
        assert found == count
        if whole:
            assert ("a chunk differs from its checksum" in " ".join(errors)) == (count == 0)


def test_message_above_the_limit_is_refused(tmp_path, monkeypatch):
    path = write_mcap(tmp_path / "a.mcap", [chunk(message(bytes(2000)))])
    monkeypatch.setattr(mcap_files, "MAX_MESSAGE_BYTES", 1000)
    count, _, errors = read_all(path)
    assert count == 0 and "expected messages of at most 0.001 MB" in errors[-1]


@pytest.mark.parametrize("opcode", [3, 5, 6])
@pytest.mark.parametrize("whole", [True, False], ids=["summary", "cut off"])
def test_record_of_a_gigabyte_is_not_read(tmp_path, opcode, whole):
    """The file is sparse."""
    path = write_mcap(tmp_path / "a.mcap", [], whole=False)
    with path.open("r+b") as file:
        start = file.seek(-13, os.SEEK_END)  # the end of the data
        file.write(struct.pack("<BQ", opcode, 10**9))
        file.seek(10**9, os.SEEK_CUR)
        file.write(record(2, struct.pack("<QQI", start if whole else 0, 0, 0)) + MAGIC)
    with memory(30):
        assert read_all(path)[:2] == (0, 0)


def test_zeros_behind_the_records_are_not_read_one_by_one(tmp_path):
    """A disk may have them after a power failure."""
    path = write_mcap(tmp_path / "a.mcap", [chunk(message(b"data"))], whole=False)
    os.truncate(path, path.stat().st_size - 13)
    os.truncate(path, 10**12)
    assert read_all(path)[:2] == (1, 4)


def test_whole_mcap_without_a_summary_is_read(tmp_path):
    path = write_mcap(tmp_path / "a.mcap", [chunk(message(b"data"))], whole=False)
    path.write_bytes(path.read_bytes() + record(2, bytes(20)) + MAGIC)
    assert read_all(path) == (1, 4, [])


def test_raw_image_above_the_limit_of_pixels_is_refused(tmp_path):
    """As BGR it would take 192 MB."""
    large = MESSAGES["Image"](
        header(0), 8000, 8000, "mono8", 0, 8000, np.zeros(64_000_000, np.uint8)
    )
    raw = bytes(STORE.serialize_cdr(large, "sensor_msgs/msg/Image"))
    found = bags.Message("/a", "sensor_msgs/msg/Image", 0, raw)
    with memory(100), pytest.raises(SourceError, match="less than 64 megapixels, got 8000x8000"):
        message_to_bgr(found)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<BQ", 5, 2**63) + bytes(99),
        struct.pack("<BQ", 5, 3) + bytes(3),
        struct.pack("<BQ", 6, 2**40),
        record(3, struct.pack("<HI", 1, 2**32 - 1)),
        message(bytes(9), channel=77),
        record(6, bytes(28) + text("rar\x1b[2J") + bytes(8)),
    ],
    ids=["long", "short", "chunk", "schema", "channel", "compression"],
)
def test_damaged_record_is_one_short_line(tmp_path, content):
    for number, data in enumerate((content, None)):
        chunks = [(content, 0)] if data else [chunk(content)]
        for whole in (True, False):
            path = write_mcap(tmp_path / f"{number}{whole}.mcap", chunks, whole=whole)
            count, _, errors = read_all(path)
            assert count == 0 and all(e.isprintable() and len(e) < 400 for e in errors)


def bag_database(path, *statements):
    """Write a bag of one message, and change it."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE topics (id INTEGER, name TEXT, type TEXT)")
        database.execute("CREATE TABLE messages (topic_id INTEGER, timestamp INTEGER, data BLOB)")
        database.execute("INSERT INTO topics VALUES (1, '/a', 'sensor_msgs/msg/Image')")
        database.execute("INSERT INTO messages VALUES (1, 5, x'00112233')")
        for statement in statements:
            database.execute(statement)
    database.close()
    return path


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
VIEWS = {
    "topics": f"CREATE VIEW topics AS {ENDLESS} SELECT i AS id, 'a' AS name, 'b' AS type FROM n",
    "messages": (
        f"CREATE VIEW messages AS {ENDLESS}"
        " SELECT 1 AS topic_id, i AS timestamp, zeroblob(100000000) AS data FROM n"
    ),
    "virtual": "CREATE VIRTUAL TABLE messages USING fts5(topic_id, timestamp, data)",
    "computed": (
        "CREATE TABLE messages (topic_id INTEGER, timestamp INTEGER,"
        " data BLOB AS (zeroblob(timestamp)))"
    ),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_bag_whose_tables_are_computed_is_refused(tmp_path, kind):
    name = "topics" if kind == "topics" else "messages"
    path = bag_database(tmp_path / "a.db3", f"DROP TABLE {name}", VIEWS[kind])
    if kind == "computed":
        with sqlite3.connect(path) as database:
            database.execute("INSERT INTO messages (topic_id, timestamp) VALUES (1, 900000000)")
        database.close()
    with memory(60):
        count, _, errors = read_all(path)
    assert count == 0 and f"table {name}" in errors[-1]


def test_bag_with_a_view_elsewhere_is_read(tmp_path):
    path = bag_database(tmp_path / "a.db3", f"CREATE VIEW other AS {ENDLESS} SELECT i FROM n")
    assert read_all(path) == (1, 4, [])


def test_page_that_is_its_own_child_ends(tmp_path):
    path = bag_database(tmp_path / "a.db3")
    with sqlite3.connect(path) as database:
        database.executemany(
            "INSERT INTO messages VALUES (1, ?, x'00')", ((i,) for i in range(9999))
        )
        (root,) = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'messages'"
        ).fetchone()
        (page,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    data = bytearray(path.read_bytes())
    start = (root - 1) * page
    assert data[start] == 5  # a page of children
    (cells,) = struct.unpack_from(">H", data, start + 3)
    children = [struct.unpack_from(">H", data, start + 12 + 2 * k)[0] for k in range(cells)]
    first = struct.unpack_from(">I", data, start + children[0])
    for child in children:
        struct.pack_into(">I", data, start + child, *first)
    path.write_bytes(data)
    count, size, errors = read_all(path)
    assert size <= len(data) and count <= len(data) and all("\n" not in e for e in errors)


@pytest.mark.parametrize(
    "row", ["'1', 5, x'00'", "1, 'a', x'00'", "1, 5, 'text'", "1, NULL, x'00'", "1, 5, NULL"]
)
def test_value_of_another_type_is_one_line(tmp_path, row):
    path = bag_database(tmp_path / "a.db3", f"INSERT INTO messages VALUES ({row})")
    count, _, errors = read_all(path)
    assert count <= 2 and all(error.isprintable() for error in errors)


def test_database_is_opened_with_its_guards(tmp_path):
    with sqlite_bags._open(bag_database(tmp_path / "a.db3")) as database:
        assert database.execute("PRAGMA trusted_schema").fetchone() == (0,)
        assert database.execute("PRAGMA cell_size_check").fetchone() == (1,)
        if sys.version_info >= (3, 11):
            limit = database.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
            assert limit == mcap_files.MAX_MESSAGE_BYTES


def test_more_bytes_than_the_file_are_refused(tmp_path):
    """Messages of a damaged file can share their pages."""
    path = bag_database(tmp_path / "a.db3")
    rows = itertools.repeat((1, 5, bytes(1000)), 1000)
    with pytest.raises(sqlite_bags.SqliteError, match="more messages than the file can hold"):
        list(sqlite_bags._rows(rows, {1: ("/a", "b")}, path))


def test_bag_with_a_write_ahead_log_is_read_without_writing(tmp_path):
    folder = tmp_path / "bag"
    folder.mkdir()
    path = bag_database(folder / "a.db3")
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    database.close()
    before = contents(folder)
    assert read_all(path) == (1, 4, [])
    assert contents(folder) == before


def test_steps_of_a_query_are_limited(tmp_path, monkeypatch):
    path = bag_database(tmp_path / "a.db3")
    monkeypatch.setattr(sqlite_bags, "_STEPS", 1)
    monkeypatch.setattr(sqlite_bags, "_CALLS", 0)
    monkeypatch.setattr(sqlite_bags, "_BYTES_PER_CALL", 2**60)
    assert "interrupted" in read_all(path)[2][-1]


@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
@pytest.mark.parametrize("mode", ["FILE", "MESSAGE", "STORAGE"])
def test_compressed_bag_is_read(tmp_path, mode, storage):
    if (mode, storage) == ("STORAGE", "SQLITE3"):
        pytest.skip("SQLite has no compression of its own")
    bag = compressed_bag(tmp_path / "bag", mode, storage, [scene(0, k) for k in range(5)])
    (file,) = inspect_bag(bag, fail)
    assert [(t.name, t.messages) for t in file.topics] == [("/a", 5)]
    pixels = [message_to_bgr(m)[0] for m in read_messages(file, {"/a"}, fail, 1, 4)]
    np.testing.assert_array_equal(pixels, [scene(0, k) for k in range(1, 4)])


def compressed_bag(path, mode, storage, images):
    writer = rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin[storage])
    writer.set_compression(rosbag2.CompressionMode[mode], rosbag2.CompressionFormat.ZSTD)
    with writer:
        kind = "sensor_msgs/msg/Image"
        connection = writer.add_connection("/a", kind, typestore=STORE)
        for k, pixels in enumerate(images):
            writer.write(connection, k, STORE.serialize_cdr(image(pixels, k), kind))
    return path


@pytest.mark.parametrize("mode", ["FILE", "MESSAGE"])
def test_compressed_bag_that_unpacks_to_300_mb_is_refused(tmp_path, mode):
    bag = compressed_bag(tmp_path / "bag", mode, "SQLITE3", [scene(0)])
    packed = zstandard.compress(bytes(30_000_000)) * 10
    (path,) = [file for file in bag.iterdir() if file.suffix != ".yaml"]
    if mode == "FILE":
        path.write_bytes(packed)
    else:
        with sqlite3.connect(path) as database:
            database.execute("UPDATE messages SET data = ?", (packed,))
        database.close()
    with memory(60):
        count, _, errors = read_all(bag)
    says = {"FILE": "expected at most 100 times", "MESSAGE": "of at most 32 MB"}
    assert count == 0 and says[mode] in errors[-1]


@pytest.mark.parametrize("mode", ["FILE", "MESSAGE"])
def test_link_out_of_a_compressed_bag_is_not_read(tmp_path, mode):
    bag = compressed_bag(tmp_path / "bag", mode, "SQLITE3", [scene(0)])
    (path,) = [file for file in bag.iterdir() if file.suffix != ".yaml"]
    other = path.with_name(f"other{''.join(path.suffixes)}")
    other.write_bytes(path.read_bytes())
    (file,) = inspect_bag(bag, lambda _: None)
    assert len(list(read_messages(file, {"/a"}, fail))) == 2
    other.rename(tmp_path / other.name)
    other.symlink_to(tmp_path / other.name)
    (file,) = inspect_bag(bag, fail)
    assert len(list(read_messages(file, {"/a"}, fail))) == 1


def test_messages_that_unpack_to_600_mb_are_refused(tmp_path):
    bag = compressed_bag(tmp_path / "bag", "MESSAGE", "SQLITE3", [scene(0)] * 20)
    with sqlite3.connect(storage_file(bag)) as database:
        database.execute("UPDATE messages SET data = ?", (zstandard.compress(bytes(31_000_000)),))
    database.close()
    count, _, errors = read_all(bag)
    assert count < 10 and "at most 256 MB unpacked" in errors[-1]


@pytest.mark.parametrize(("files", "count"), [(3, 3), (4, 0)])
def test_compressed_files_share_a_limit_and_are_unpacked_one_at_a_time(
    tmp_path, monkeypatch, files, count
):
    bag = compressed_bag(tmp_path / "bag", "FILE", "SQLITE3", [scene(0)])
    (path,) = bag.glob("*.zstd")
    for number in range(files - 1):
        (bag / f"b{number}.db3.zstd").write_bytes(path.read_bytes())
    size = len(zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()))
    monkeypatch.setattr(bags, "_FILE_BYTES", 3 * size)
    monkeypatch.setattr(bags, "_FILE_RATIO", 0)
    unpack_file = bags._unpack_file

    def only_file(path, unpacked, limit):
        assert not list(unpacked.parent.iterdir())
        return unpack_file(path, unpacked, limit)

    monkeypatch.setattr(bags, "_unpack_file", only_file)
    found, _, errors = read_all(bag)
    assert found == count
    assert ("unpacked" in errors[-1]) == (count == 0)


def test_data_of_messages_are_not_sorted(tmp_path):
    """SQLite would write them to a temporary file."""
    path = bag_database(tmp_path / "a.db3", "DELETE FROM messages")
    with sqlite3.connect(path) as database:
        rows = ((9 - k,) for k in range(10))
        database.executemany("INSERT INTO messages VALUES (1, ?, zeroblob(10000000))", rows)
    database.close()
    before = written_bytes()
    times = [row[2] for row in sqlite_bags.messages(path, {"/a"}, 0, 2**63)]
    assert times == [*range(10)]
    assert written_bytes() - before < 1_000_000


@pytest.mark.parametrize("change", ["list", "huge", "inf", "nul", "names", "aliases", "deep"])
def test_hostile_metadata_is_one_short_line(tmp_path, change):
    bag = write_bag(tmp_path / "bag", [("/a", 0, image(scene(0), 0))])
    path = bag / "metadata.yaml"
    content = yaml.safe_load(path.read_text())
    info = content["rosbag2_bagfile_information"]
    topic = info["topics_with_message_count"][0]
    info["relative_file_paths"] = ["../../other/a.mcap", "/etc/passwd"]
    if change == "list":
        topic["topic_metadata"]["name"] = ["a"]
    elif change == "huge":
        topic["message_count"] = 10**400
    elif change == "inf":
        topic["message_count"] = float("inf")
    elif change == "nul":
        topic["topic_metadata"]["name"] = "/a\0\x1b]0;evil\x07\n/b"
    elif change == "names":
        info["topics_with_message_count"] = [
            {"topic_metadata": {"name": f"/{k}"}, "message_count": 1} for k in range(300)
        ]
    path.write_text(yaml.safe_dump(content))
    if change == "aliases":
        levels = "".join(f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 9)}]\n" for k in range(1, 12))
        path.write_text(f"l0: &l0 [a]\n{levels}")
    elif change == "deep":
        path.write_text("[" * 200 + "]" * 200)
    count, _, errors = read_all(bag)
    assert count == 1 and len(errors) <= 11
    assert all(error.isprintable() and len(error) < 500 for error in errors)


def test_link_out_of_a_bag_and_a_pipe_are_not_read(tmp_path):
    bag = write_bag(tmp_path / "bag", [("/a", 0, image(scene(0), 0))])
    other = write_bag(tmp_path / "other", [("/a", k, image(scene(0), 0)) for k in range(7)])
    (bag / "inside.mcap").symlink_to(storage_file(bag).name)
    (bag / "other.mcap").symlink_to(storage_file(other))
    count, _, errors = read_all(bag)
    assert count == 2 and "other.mcap: a link out of the bag is not read" in errors[0]
    os.mkfifo(tmp_path / "pipe.db3")
    os.mkfifo(tmp_path / "pipe.mcap")
    for name in ("pipe.db3", "pipe.mcap"):
        with pytest.raises(SourceError, match="expected a file, got another kind"):
            inspect_bag(tmp_path / name, fail)


@pytest.mark.parametrize("make", [image, jpeg])
def test_absurd_lengths_in_a_message_are_one_line(tmp_path, make):
    bag = write_bag(tmp_path / "bag", [("/a", 0, make(scene(0), 0))])
    (file,) = inspect_bag(bag, fail)
    (stored,) = read_messages(file, {"/a"}, fail)
    with memory(60):
        for at, value in itertools.product(range(4, 60, 4), (2**32 - 1, 2**31, 10**9)):
            data = stored.data[:at] + struct.pack("<I", value) + stored.data[at + 4 :]
            with contextlib.suppress(SourceError):
                message_to_bgr(stored._replace(data=data))


def test_record_that_is_shorter_than_its_fields_is_refused():
    content = mcap_files._Content(b"abc")
    assert content.take(2) == b"ab"
    with pytest.raises(mcap_files.McapError, match="shorter than its fields"):
        content.take(2)


def test_sqlite_message_above_the_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.db3"
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(sqlite_bags, "MAX_MESSAGE_BYTES", 100)
    topics = {1: ("/a", "b")}
    assert list(sqlite_bags._rows(iter([(1, 0, bytes(100))]), topics, path))
    with pytest.raises(sqlite_bags.SqliteError, match="expected messages of"):
        list(sqlite_bags._rows(iter([(1, 0, bytes(101))]), topics, path))
