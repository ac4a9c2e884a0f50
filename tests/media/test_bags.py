import sqlite3

import numpy as np
import pytest
import yaml

pytest.importorskip("rosbags", reason="needs rosbags: pip install drone_kd[simulation]")

from drone_kd.media.bags import inspect_bag, is_bag, message_to_bgr, read_messages
from drone_kd.media.image_files import SourceError
from recorded import cut, image, jpeg, scene, storage_file, write_bag

SECOND = 10**9
COUNT = 60


def fail(error):
    raise AssertionError(error)


@pytest.fixture(params=["MCAP", "SQLITE3"])
def bag(request, tmp_path):
    """Write a bag of two cameras with different sizes, one of them compressed, at 1 Hz."""
    messages = []
    for k in range(COUNT):
        messages.append(("/left", k * SECOND, image(scene(0, k), k * SECOND + 5)))
        messages.append(("/right", k * SECOND + 1, jpeg(scene(1, k, 64, 48), k * SECOND + 6)))
    # Noise does not compress, so it fills several chunks of an MCAP.
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    messages += [("/noise", COUNT * SECOND + k, image(noise, k)) for k in range(12)]
    return write_bag(tmp_path / "bag", messages, request.param)


def test_images_of_all_cameras_have_their_stamps(bag):
    assert is_bag(bag) and is_bag(storage_file(bag))
    (file,) = inspect_bag(bag, fail)
    assert [(t.name, t.messages) for t in file.topics] == [
        ("/left", COUNT),
        ("/noise", 12),
        ("/right", COUNT),
    ]
    messages = list(read_messages(file, {"/left", "/right"}, fail, 10 * SECOND, 20 * SECOND))
    assert len(messages) == 20
    left, stamp = message_to_bgr(messages[0])
    assert stamp == 10 * SECOND + 5
    np.testing.assert_array_equal(left, scene(0, 10))
    right, stamp = message_to_bgr(messages[1])
    assert stamp == 10 * SECOND + 6 and right.shape == (48, 64, 3)
    assert abs(right.astype(int) - scene(1, 10, 64, 48)).mean() < 6


def test_truncated_bag_is_read_up_to_the_cut(bag):
    cut(storage_file(bag), 0.7)
    errors: list[SourceError] = []
    (file,) = inspect_bag(bag, errors.append)
    assert "as far as it goes" in str(errors[0])
    assert any("metadata.yaml says" in str(line) for line in errors)
    assert file.broken and len(list(read_messages(file, {"/left"}, errors.append))) > 0
    assert "breaks off" in str(errors[-1]) and all("\n" not in str(line) for line in errors)


def test_unreadable_bag_is_rejected(bag):
    storage_file(bag).write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"not a whole bag .*reindex"):
        inspect_bag(bag, fail)


@pytest.mark.parametrize("change", ["count", "topic", "gone", "broken"])
def test_files_take_precedence_over_the_metadata(bag, change):
    path = bag / "metadata.yaml"
    content = yaml.safe_load(path.read_text())
    topics = content["rosbag2_bagfile_information"]["topics_with_message_count"]
    if change == "count":
        topics[0]["message_count"] += 7
    elif change == "topic":
        topics[0]["topic_metadata"]["name"] = "/other"
    path.write_text(yaml.safe_dump(content) if change != "broken" else "a: [")
    if change == "gone":
        path.unlink()
    errors: list[SourceError] = []
    (file,) = inspect_bag(bag, errors.append)
    assert errors and "metadata.yaml" in str(errors[0])
    assert len(list(read_messages(file, {"/left"}, fail))) == COUNT


def test_files_of_a_split_bag_are_in_the_order_of_recording(tmp_path):
    for number, first in enumerate((20, 0, 10)):
        part = write_bag(
            tmp_path / f"part{number}",
            [("/a", (first + k) * SECOND, image(scene(0), 0)) for k in range(10)],
        )
        (tmp_path / "whole").mkdir(exist_ok=True)
        storage_file(part).rename(tmp_path / "whole" / f"bag_{number}.mcap")
    files = inspect_bag(tmp_path / "whole", lambda error: None)
    assert [file.start_ns // SECOND for file in files] == [0, 10, 20]


def test_empty_bag_and_unusable_messages_are_rejected(tmp_path):
    empty = write_bag(tmp_path / "empty", [], "SQLITE3")
    with pytest.raises(SourceError, match="an empty bag"):
        inspect_bag(empty, fail)
    odd = write_bag(tmp_path / "odd", [("/a", 0, image(scene(0), 0, "rgb48"))])
    (file,) = inspect_bag(odd, fail)
    (message,) = read_messages(file, {"/a"}, fail)
    with pytest.raises(SourceError, match=r"/a: expected an image encoded as .*'rgb48'"):
        message_to_bgr(message)
    with pytest.raises(SourceError, match="/a: a damaged message"):
        message_to_bgr(message._replace(data=message.data[:20]))


def test_database_that_is_no_bag_is_rejected(tmp_path):
    with sqlite3.connect(tmp_path / "other.db3") as database:
        database.execute("CREATE TABLE things (id)")
    with pytest.raises(SourceError, match="not a whole bag"):
        inspect_bag(tmp_path / "other.db3", fail)
