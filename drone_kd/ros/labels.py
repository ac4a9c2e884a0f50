"""Publishers of the class list and of its description: ~/label_info and ~/vision_info."""

from __future__ import annotations

import contextlib

from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header
from vision_msgs.msg import LabelInfo, VisionInfo

from drone_kd.ros.detection_messages import to_label_info, to_vision_info
from drone_kd.ros.model_loader import Model
from drone_kd.ros.qos import LATCHED_QOS


class Labels:
    """Publishes the class list of the model in use for present and later subscribers."""

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        self._topic = node.resolve_topic_name("~/label_info")
        self._version, self._announced = 0, ""
        with contextlib.ExitStack() as stack:
            self._labels = node.create_lifecycle_publisher(LabelInfo, "~/label_info", LATCHED_QOS)
            stack.callback(node.destroy_lifecycle_publisher, self._labels)
            self._info = node.create_lifecycle_publisher(VisionInfo, "~/vision_info", LATCHED_QOS)
            stack.callback(node.destroy_lifecycle_publisher, self._info)
            self._publishers = stack.pop_all()

    def publish(self, model: Model, threshold: float) -> None:
        """Publish both; a new model increments the version."""
        header = Header(stamp=self._node.get_clock().now().to_msg())
        if model.sha256 != self._announced:
            self._version += 1
        self._labels.publish(to_label_info(model.backend.spec.classes, threshold, header))
        self._info.publish(to_vision_info(str(model), self._topic, self._version, header))
        self._announced = model.sha256

    def destroy(self) -> None:
        """Destroy the publishers."""
        self._publishers.close()
