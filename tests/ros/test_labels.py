"""Class list and its description, for present and later subscribers."""

import queue

import numpy as np
from vision_msgs.msg import VisionInfo

from drone_kd.ros.qos import LATCHED_QOS
from ground_station import WAIT_SECONDS
from tiny_model import tiny_spec, write_bright_cell_model

ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255


def test_vision_info_leads_to_the_names_in_the_detections(flying, tmp_path):
    infos = queue.Queue()
    flying.node.create_subscription(VisionInfo, "/detector/vision_info", infos.put, LATCHED_QOS)
    info, labels = infos.get(timeout=WAIT_SECONDS), flying.labels()
    assert info.method.startswith("model.onnx (")
    assert (info.database_location, info.database_version) == ("/detector/label_info", 1)
    flying.set_parameter("confidence", 0.5)
    assert infos.get(timeout=WAIT_SECONDS).database_version == 1, "the classes are the same"
    path = write_bright_cell_model(tmp_path / "bus.onnx", tiny_spec(classes=("bus", "dog")))
    flying.set_parameter("model", str(path))
    assert infos.get(timeout=WAIT_SECONDS).database_version == 2
    flying.send(ONE)
    (hypothesis,) = (r.hypothesis for r in flying.receive().detections[0].results)
    info = flying.receive_until(labels, lambda m: m.class_map[0].class_name == "bus", "classes")
    assert hypothesis.class_id in [entry.class_name for entry in info.class_map]
