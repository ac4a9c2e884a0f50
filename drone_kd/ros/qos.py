"""Quality of service: subscribing to any camera, and reasons for silence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CompressedImage, Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

from drone_kd.dds import large_images_are_lost, remedy
from drone_kd.ros.videos import SUFFIXES, packet_type

LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
REPORT_QOS = QoSProfile(depth=1)
# Policies that users may set as parameters, qos_overrides.TOPIC.publisher.POLICY.
_OVERRIDES = QoSOverridingOptions(
    [
        QoSPolicyKind.HISTORY,
        QoSPolicyKind.DEPTH,
        QoSPolicyKind.RELIABILITY,
        QoSPolicyKind.DURABILITY,
    ]
)

# Of a video no packet may be left out: those that come while the executor is busy wait.
_VIDEO_DEPTH = 30

_RELIABLE, _BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


def create_output(node: LifecycleNode, message_type: type, topic: str) -> Any:
    """Return a lifecycle publisher of depth 1, whose quality of service users may override."""
    # A new profile: rclpy writes the overrides into it.
    return node.create_lifecycle_publisher(
        message_type, topic, QoSProfile(depth=1), qos_overriding_options=_OVERRIDES
    )


class ImageSubscription:
    """A subscription to a camera.

    Its depth is 1 with "raw", because stale frames are useless. The other transports may carry a
    video.

    Args:
        node: owner of the subscription.
        topic: base name of the topic; remapping applies. The attribute is the full name.
        transport: "raw", "compressed" for TOPIC/compressed, or "ffmpeg" for TOPIC/ffmpeg.
        reliability: "auto", "reliable" or "best_effort".
        callback: called with the full topic name and each message.
        is_open: False: receive nothing before `match` asks for it.

    Raises:
        SettingsError: the messages of that transport are not installed.
    """

    def __init__(
        self,
        node: LifecycleNode,
        topic: str,
        transport: str,
        reliability: str,
        callback: Callable[[str, Image | CompressedImage], None],
        is_open: bool = True,
    ) -> None:
        self._node = node
        self._base = topic
        # As in image_transport: remapping the base name moves the compressed topic, too.
        resolved = node.resolve_topic_name(topic)
        self._others = {name: f"{resolved}{suffix}" for name, suffix in SUFFIXES.items()}
        self._name = topic if transport == "raw" else self._others[transport]
        del self._others[transport]
        self._depth = 1 if transport == "raw" else _VIDEO_DEPTH
        self._type: type = Image if transport == "raw" else CompressedImage
        if transport == "ffmpeg":
            self._type = packet_type()
        self.topic = node.resolve_topic_name(self._name)
        self._callback = partial(callback, self.topic)
        self._subscription: Any = None  # rclpy's class has no type argument on Humble
        self._auto = reliability == "auto"
        fixed = _BEST_EFFORT if reliability == "best_effort" else _RELIABLE
        self._reliability = self._wanted() if self._auto else fixed
        if is_open:
            self._subscribe(self._reliability)

    def match(self, wanted: bool = True) -> None:
        """Unsubscribe while the images are not wanted; with "auto" follow the publishers."""
        if not wanted:
            self.destroy()
        elif self._subscription is None:
            self._subscribe(self._wanted() if self._auto else self._reliability)
        elif self._auto and self._offered() and self._wanted() != self._reliability:
            before = self._subscription
            self._subscribe(self._wanted())  # first: it may fail, and is tried again then
            self._node.destroy_subscription(before)

    def why_silent(self) -> str:
        """Return the likely reason why no image arrives, and the remedy."""
        offered = self._offered()
        if not offered:
            for transport, other in self._others.items():
                if self._node.count_publishers(other):
                    remedy_text = f"set image_transport to {transport}"
                    return f"it has no publisher, but {other} has: {remedy_text}"
            return f"it has no publisher; remap it with -r {self._base}:=/your/topic"
        wanted = f"{self._type.__module__.partition('.')[0]}/msg/{self._type.__name__}"
        found = self._node.get_publishers_info_by_topic(self.topic)
        types = {publisher.topic_type for publisher in found}
        if wanted not in types:
            return f"its publisher sends {' and '.join(sorted(types))}, expected {wanted}"
        if self._reliability == _RELIABLE and offered == {_BEST_EFFORT}:
            return "its publisher offers best-effort only: set the parameter reliability to auto"
        setting = "=".join(remedy())
        if "fastrtps" in get_rmw_implementation_identifier() and large_images_are_lost():
            return (
                "there is a publisher; unless it is idle, its images are too large for Fast DDS's "
                f"default shared memory: set {setting} for both processes"
            )
        return (
            "there is a publisher, but it is idle, or its images are lost on the way (with Fast "
            f"DDS its process, too, needs {setting})"
        )

    def destroy(self) -> None:
        """Unsubscribe."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._node.destroy_subscription(subscription)

    @property
    def is_open(self) -> bool:
        """Whether images are received; not while nobody wants them, see `match`."""
        return self._subscription is not None

    def _offered(self) -> set[ReliabilityPolicy]:
        publishers = self._node.get_publishers_info_by_topic(self.topic)
        return {publisher.qos_profile.reliability for publisher in publishers}

    def _wanted(self) -> ReliabilityPolicy:
        """Return reliable if all publishers offer it, else best-effort, which matches any.

        A large image is many packets; without retransmission one lost packet loses the image.
        """
        return _RELIABLE if self._offered() == {_RELIABLE} else _BEST_EFFORT

    def _subscribe(self, reliability: ReliabilityPolicy) -> None:
        qos = QoSProfile(depth=self._depth, reliability=reliability)
        arguments = (self._type, self._name, self._callback, qos)
        events = SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible)
        try:
            self._subscription = self._node.create_subscription(*arguments, event_callbacks=events)
        except UnsupportedEventTypeError:  # depends on the middleware
            self._subscription = self._node.create_subscription(*arguments)
        self._reliability = reliability

    def _on_incompatible(self, event: Any) -> None:
        # With "auto", a publisher that changed its reliability causes this until the next `match`.
        if not self._auto:
            self._node.get_logger().error(
                f"A publisher of {self.topic} offers an incompatible quality of service "
                f"(policy {event.last_policy_kind}), its images will not arrive: "
                "set the parameter reliability to auto"
            )
