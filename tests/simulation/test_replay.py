import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")
pytest.importorskip("rosbags", reason="rosbags is not here: pip install 'drone_kd[record]'")

from rclpy.serialization import serialize_message
from rosbags import rosbag2
from std_msgs.msg import Header

from drone_kd.media.bags import is_bag
from drone_kd.media.image_files import SourceError
from drone_kd.ros.detection_messages import bgr_to_image
from drone_kd.simulation.replay import read_bag
from drone_kd.simulation.scoring.flight_record import Truth
from drone_kd.simulation.truth_messages import truth_to_message

FRAMES = 40


@pytest.fixture(params=["MCAP", "SQLITE3"])
def bag(request, tmp_path):
    """A bag whose images count up, every second one with a box."""
    path = tmp_path / "bag"
    storage = getattr(rosbag2.StoragePlugin, request.param)
    with rosbag2.Writer(path, version=9, storage_plugin=storage) as writer:
        images, truths = (
            writer.add_connection(topic, kind, msgdef="unknown", rihs01="RIHS01_unknown")
            for topic, kind in (
                ("/front/image", "sensor_msgs/msg/Image"),
                ("/truth", "vision_msgs/msg/Detection2DArray"),
            )
        )
        for k in range(FRAMES):
            header = Header()
            header.stamp.sec = k
            image = np.full((60, 80, 3), k, np.uint8)
            writer.write(images, k * 10**9, serialize_message(bgr_to_image(image, header)))
            if k % 2 == 0:
                box = Truth(np.array([[1, 2, 3, 4 + k]], np.float32), ("car",), ("7",))
                message = truth_to_message(box, header)
                writer.write(truths, k * 10**9, serialize_message(message))
    return path


def refuse(error):
    raise AssertionError(error)


def test_frames_come_with_the_truth_of_their_stamp(bag):
    assert is_bag(bag)
    frames = list(read_bag(bag, refuse))
    assert [frame.image[0, 0, 0] for frame in frames] == list(range(FRAMES))
    truths = [frame.truth for frame in frames if frame.truth is not None]
    assert len(truths) == FRAMES
    assert all(truth.names == ("car",) for truth in truths[::2])
    assert all(truth.names == () for truth in truths[1::2])
    np.testing.assert_array_equal(truths[4].xyxy, [[1, 2, 3, 8]])


def test_truncated_bag_is_played_up_to_the_cut(bag):
    (data,) = [path for path in bag.iterdir() if path.name != "metadata.yaml"]
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    errors: list[SourceError] = []
    if data.suffix == ".mcap":  # one chunk, of which half is there
        with pytest.raises(SourceError, match=r"not a whole bag .*reindex"):
            list(read_bag(bag, errors.append))
        return
    frames = list(read_bag(bag, errors.append))
    assert 0 < len(frames) < FRAMES and any("breaks off" in str(line) for line in errors)


def test_bag_without_metadata_is_played_with_a_warning(bag):
    (bag / "metadata.yaml").unlink()
    errors: list[SourceError] = []
    assert is_bag(bag) and len(list(read_bag(bag, errors.append))) == FRAMES
    assert "no metadata.yaml" in str(errors[0])


@pytest.mark.parametrize("change", ["many", "long", "cut"])
def test_message_of_absurd_length_is_not_deserialised(tmp_path, change):
    """A sequence of 10 million objects, all zero, would take gigabytes."""
    header = Header()
    content = serialize_message(truth_to_message(Truth(np.zeros((0, 4)), (), ()), header))
    at = 20  # number of objects: behind the stamp and an empty frame_id
    if change == "many":
        content = content[:at] + (3001).to_bytes(4, "little") + bytes(400_000)
    else:
        content = content[:18] if change == "cut" else content + bytes(1_500_000)
    with rosbag2.Writer(tmp_path / "bag", version=9) as writer:
        images, truths = (
            writer.add_connection(topic, kind, msgdef="unknown", rihs01="RIHS01_unknown")
            for topic, kind in (
                ("/image", "sensor_msgs/msg/Image"),
                ("/truth", "vision_msgs/msg/Detection2DArray"),
            )
        )
        image = bgr_to_image(np.zeros((60, 80, 3), np.uint8), header)
        writer.write(images, 1, serialize_message(image))
        writer.write(truths, 1, content)
    errors: list[SourceError] = []
    (frame,) = read_bag(tmp_path / "bag", errors.append)
    assert frame.truth.names == () and len(errors) == 1
    expected = {"many": "at most 3000 objects, got 3001", "long": "at most 1.5 MB", "cut": ""}
    assert expected[change] in str(errors[0]) and "a damaged message on /truth" in str(errors[0])
