"""From camera topics to detections, while the node is active."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage, Image

from drone_kd.ros.inbox import Frame, Inbox
from drone_kd.ros.model_loader import Model
from drone_kd.ros.params import Settings
from drone_kd.ros.qos import ImageSubscription
from drone_kd.ros.stats import DISABLED, SUPERSEDED, CameraStats
from drone_kd.ros.worker import Result, Worker


class Pipeline:
    """Subscribes to the cameras and runs the worker until `stop`.

    Args:
        node: owner of the subscriptions.
        settings, model: the first ones; see `apply` and `use`.
        stats: per camera.
        enabled: False: drop all frames until `enable`.
        publish, show, wants_full_size: see `Worker`.

    Attributes:
        subscriptions: per camera.
    """

    def __init__(
        self,
        node: LifecycleNode,
        settings: Settings,
        model: Model,
        stats: Mapping[str, CameraStats],
        enabled: bool,
        publish: Callable[[Result], None],
        show: Callable[[Result], None],
        wants_full_size: Callable[[str], bool],
    ) -> None:
        self._node = node
        self._stats = stats
        self._enabled = enabled
        self._inbox = Inbox(settings.cameras)
        self._worker = Worker(
            self._inbox, stats, model, settings, publish, show, wants_full_size, node.get_logger()
        )
        self.subscriptions = {
            camera: ImageSubscription(
                node,
                f"{camera}/image" if camera else "image",
                settings.image_transport,
                settings.reliability,
                partial(self._receive, camera),
            )
            for camera in settings.cameras
        }

    def apply(self, settings: Settings) -> None:
        """Use other settings from the next frame on."""
        self._worker.settings = settings
        self._inbox.wake()

    def use(self, model: Model) -> None:
        """Use another model from the next frame on."""
        self._worker.model = model

    def enable(self, enabled: bool) -> None:
        """Process frames, or drop them, waiting ones included."""
        self._enabled = enabled
        if not enabled:
            for frame in self._inbox.clear():
                self._stats[frame.camera].count_drop(DISABLED)

    def match(self) -> None:
        """Follow the quality of service of the publishers; see `ImageSubscription.match`."""
        for subscription in self.subscriptions.values():
            subscription.match()

    def stop(self, timeout_s: float) -> bool:
        """Stop receiving and end the worker; False if its inference takes longer than this.

        An inference that ends later publishes nothing.
        """
        for subscription in self.subscriptions.values():
            subscription.destroy()
        return self._worker.stop(timeout_s)

    def _receive(self, camera: str, topic: str, message: Image | CompressedImage) -> None:
        received = perf_counter()
        stats = self._stats[camera]
        stats.count_received()
        if not self._enabled:
            stats.count_drop(DISABLED)
            return
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 10**9 + stamp.nanosec
        now_ns = self._node.get_clock().now().nanoseconds
        transport_ms = (now_ns - stamp_ns) / 1e6 if stamp_ns else None
        if self._inbox.put(Frame(camera, topic, message, transport_ms, received)):
            stats.count_drop(SUPERSEDED)
