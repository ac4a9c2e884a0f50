"""From camera topics to detections: the executor's thread receives, a worker thread detects."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import NamedTuple

import numpy as np
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CompressedImage, Image

from drone_kd.backends import Backend
from drone_kd.core.detections import Detections
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.tiling import OFF, fit_budget
from drone_kd.detector import DecodedImage, Detector
from drone_kd.ros.drop_reasons import DISABLED, FAILED, OLD, SUPERSEDED, UNDECODABLE
from drone_kd.ros.image_conversion import ImageError, decode_message
from drone_kd.ros.inbox import Frame, Inbox, stamp_ns
from drone_kd.ros.memory import return_memory
from drone_kd.ros.model_loader import Model
from drone_kd.ros.params import Settings
from drone_kd.ros.qos import ImageSubscription
from drone_kd.ros.stats import CameraStats

_THROTTLE_SECONDS = 5.0
# A stamp that jumps back by less is an out-of-order frame; by more, a clock that was set back or
# a recording that restarted.
_CLOCK_RESET_NS = 1_000_000_000
# Weight of a new measurement in the running average of the time per call.
_COST_SHARE = 0.2


class Result(NamedTuple):
    """Detections of a frame, in pixels of the original image, with the model's class names."""

    frame: Frame
    decoded: DecodedImage
    detections: Detections
    classes: tuple[str, ...]

    def latency_ms(self) -> float:
        """Return the time since the stamp, or since reception if there is no stamp, in ms."""
        return (self.frame.transport_ms or 0.0) + (perf_counter() - self.frame.received) * 1e3


class Pipeline:
    """Subscribes to the cameras and detects in their newest frames, batch by batch, until `stop`.

    Args:
        node: owner of the subscriptions.
        settings, model: the first ones; later `apply` and an assignment to `model` replace them.
        stats: per camera.
        enabled: False: drop all frames until `enable`.
        publish: called by the worker with each result.
        show: called with it afterwards, for consumers that can wait.
        wants_full_size: returns whether a camera's images are needed at full size.
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
        self.model = model
        self._node = node
        self._settings = settings
        self._stats = stats
        self._enabled = enabled
        self._publish = publish
        self._show = show
        self._wants_full_size = wants_full_size
        self._inbox = Inbox(settings.cameras)
        self._last_stamp_ns: dict[str, int] = {}
        self._next_tile: dict[str, int] = {}
        # Time per call of this backend, pre- and postprocessing included.
        self._measured: Backend | None = None
        self._call_ms = 0.0
        self._thread = threading.Thread(target=self._work, name="detector", daemon=True)
        self.subscriptions: dict[str, ImageSubscription] = {}
        try:
            for camera in settings.cameras:
                self.subscriptions[camera] = ImageSubscription(
                    node,
                    f"{camera}/image" if camera else "image",
                    settings.image_transport,
                    settings.reliability,
                    partial(self._receive, camera),
                )
        except BaseException:
            self._unsubscribe()
            raise
        self._thread.start()

    # Called by the executor

    def apply(self, settings: Settings) -> None:
        """Use other settings from the next frame on."""
        self._settings = settings
        self._inbox.wake()

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
        self._unsubscribe()
        self._inbox.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _unsubscribe(self) -> None:
        # Their callbacks refer to the pipeline: cleared, or it would wait for the cycle collector.
        for subscription in self.subscriptions.values():
            subscription.destroy()
        self.subscriptions.clear()

    def _receive(self, camera: str, topic: str, message: Image | CompressedImage) -> None:
        received = perf_counter()
        stats = self._stats[camera]
        stats.count_received()
        if not self._enabled:
            stats.count_drop(DISABLED)
            return
        sent_ns, now_ns = stamp_ns(message.header), self._node.get_clock().now().nanoseconds
        transport_ms = (now_ns - sent_ns) / 1e6 if sent_ns else None
        if self._inbox.put(Frame(camera, topic, message, transport_ms, received)):
            stats.count_drop(SUPERSEDED)

    # The worker

    def _work(self) -> None:
        while True:
            # A batch holds the tiles of one frame, or without tiling frames of several cameras.
            limit = self.model.backend.spec.batch if self._settings.tiling == OFF else 1
            frames = self._inbox.take(limit, self._settings.max_rate)
            if frames is None:
                # rclpy may hold a destroyed subscription, and with it the pipeline, for longer.
                del self.model
                self._measured = None
                return
            if not frames:
                continue
            try:
                self._process(frames)
            except Exception as error:  # of any kind: continue with the next frame
                for frame in frames:
                    self._fail(frame, error)

    def _process(self, frames: list[Frame]) -> None:
        detector = self._settings.detector(self.model.backend)
        taken = perf_counter()
        opened: list[tuple[Frame, DecodedImage, float]] = []
        for frame in frames:
            decoded = self._open(frame, detector, taken)
            if decoded is not None:
                opened.append((frame, decoded, (perf_counter() - taken) * 1e3))
        if not opened:
            return
        seen = [self._windows(detector, frame.camera, decoded) for frame, decoded, _ in opened]
        found, times = detector.batch([decoded for _, decoded, _ in opened], seen)
        for (frame, decoded, decode_ms), detections in zip(opened, found, strict=True):
            if self._inbox.closed:
                return
            if isinstance(detections, InferenceError):
                self._fail(frame, detections)
                continue
            started = perf_counter()
            result = Result(frame, decoded, detections, detector.backend.spec.classes)
            self._publish(result)
            stages = {
                "wait": (taken - frame.received) * 1e3,
                "decode": decode_ms,
                "prepare": times.letterbox_ms,
                "infer": times.infer_ms,
                "post": times.decode_ms,
                "publish": (perf_counter() - started) * 1e3,
                "total": result.latency_ms(),
            }
            if frame.transport_ms is not None:
                stages["transport"] = frame.transport_ms
            self._stats[frame.camera].count_processed(stages)
            self._show(result)
        self._measure(detector.backend, sum(map(len, seen)), times.total_ms)

    def _open(self, frame: Frame, detector: Detector, taken: float) -> DecodedImage | None:
        """Return a frame's pixels; None if the frame is dropped."""
        stats = self._stats[frame.camera]
        age_s = (frame.transport_ms or 0.0) / 1e3 + taken - frame.received
        if 0 < self._settings.max_age < age_s or self._is_out_of_order(frame):
            stats.count_drop(OLD)
            return None
        spec = detector.backend.spec
        full = detector.tiling != OFF or self._wants_full_size(frame.camera)
        size = (0, 0) if full else (spec.input_width, spec.input_height)
        try:
            max_pixels = int(self._settings.max_megapixels * 1e6)
            return decode_message(frame.message, *size, max_pixels)
        except ImageError as error:
            count = stats.count_drop(UNDECODABLE)
            self._node.get_logger().warning(
                f"Image dropped: {error} ({count} dropped so far)",
                throttle_duration_sec=_THROTTLE_SECONDS,
            )
            return None

    def _is_out_of_order(self, frame: Frame) -> bool:
        """Return whether a later frame of this camera was processed before."""
        sent_ns = stamp_ns(frame.message.header)
        before_ns = self._last_stamp_ns.get(frame.camera, 0)
        if sent_ns and 0 < before_ns - sent_ns < _CLOCK_RESET_NS:
            return True
        self._last_stamp_ns[frame.camera] = sent_ns
        return False

    def _windows(self, detector: Detector, camera: str, decoded: DecodedImage) -> np.ndarray:
        """Return the windows of this frame that fit the time budget."""
        windows = detector.windows(decoded.width, decoded.height)
        budget_ms, backend = self._settings.budget_ms, detector.backend
        if not budget_ms or len(windows) == 1:
            return windows
        # Before the first measurement only the whole image is affordable.
        calls = int(budget_ms / self._call_ms) if self._measured is backend else 1
        chosen, self._next_tile[camera] = fit_budget(
            len(windows), max(calls, 1) * backend.spec.batch, self._next_tile.get(camera, 0)
        )
        return windows[chosen]

    def _measure(self, backend: Backend, windows: int, total_ms: float) -> None:
        call_ms = total_ms / -(-windows // backend.spec.batch)
        if self._measured is not backend:
            # After a swap the model before the previous one has been freed.
            self._measured, self._call_ms = backend, call_ms
            return_memory()
        self._call_ms += _COST_SHARE * (call_ms - self._call_ms)

    def _fail(self, frame: Frame, error: Exception) -> None:
        count = self._stats[frame.camera].count_drop(FAILED)
        self._node.get_logger().error(
            "Inference failed, nothing is published for this image: "
            f"{type(error).__name__}: {error} ({count} failed so far)",
            throttle_duration_sec=_THROTTLE_SECONDS,
        )
