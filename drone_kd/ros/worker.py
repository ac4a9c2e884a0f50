"""Thread that turns frames into detections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple

import numpy as np
from rclpy.impl.rcutils_logger import RcutilsLogger

from drone_kd.backends import Backend
from drone_kd.core.detections import Detections
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.tiling import OFF, fit_budget
from drone_kd.detector import DecodedImage, Detector
from drone_kd.ros.image_conversion import ImageError, decode_message
from drone_kd.ros.inbox import Frame, Inbox
from drone_kd.ros.memory import return_memory
from drone_kd.ros.model_loader import Model
from drone_kd.ros.params import Settings
from drone_kd.ros.stats import FAILED, OLD, UNDECODABLE, CameraStats

_THROTTLE_SECONDS = 5.0
# A stamp that jumps back by less is an out-of-order frame; by more, a clock that was set back or
# a recording that restarted.
_CLOCK_RESET_NS = 1_000_000_000
# Weight of a new measurement in the running average of the time per call.
_COST_SHARE = 0.2


class Result(NamedTuple):
    """Detections of a frame.

    Attributes:
        frame: the frame.
        decoded: its pixels.
        detections: in pixels of the original image.
        classes: names of the model's classes.
    """

    frame: Frame
    decoded: DecodedImage
    detections: Detections
    classes: tuple[str, ...]

    def latency_ms(self) -> float:
        """Return the time since the stamp, or since reception if there is no stamp, in ms."""
        return (self.frame.transport_ms or 0.0) + (perf_counter() - self.frame.received) * 1e3


class Worker:
    """Runs inference on the newest frames, batch by batch.

    `model` and `settings` may be replaced at any time; the next batch uses them.

    Args:
        inbox: holds the frames.
        stats: per camera.
        model: the first one.
        settings: the first ones.
        publish: called with each result.
        show: called with it afterwards, for consumers that can wait.
        wants_full_size: returns whether a camera's images are needed at full size.
        logger: gets failures.
    """

    def __init__(
        self,
        inbox: Inbox,
        stats: Mapping[str, CameraStats],
        model: Model,
        settings: Settings,
        publish: Callable[[Result], None],
        show: Callable[[Result], None],
        wants_full_size: Callable[[str], bool],
        logger: RcutilsLogger,
    ) -> None:
        self.model, self.settings = model, settings
        self._inbox = inbox
        self._stats = stats
        self._publish = publish
        self._show = show
        self._wants_full_size = wants_full_size
        self._logger = logger
        self._last_stamp_ns: dict[str, int] = {}
        self._next_tile: dict[str, int] = {}
        # Time per call of this backend, pre- and postprocessing included.
        self._measured: Backend | None = None
        self._call_ms = 0.0
        self._thread = threading.Thread(target=self._run, name="detector", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Finish the current batch; False if that takes longer than `timeout` seconds.

        A batch that ends later publishes nothing.
        """
        self._inbox.close()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            # A batch holds the tiles of one frame, or without tiling frames of several cameras.
            limit = self.model.backend.spec.batch if self.settings.tiling == OFF else 1
            frames = self._inbox.take(limit, self.settings.max_rate)
            if frames is None:
                return
            if not frames:
                continue
            try:
                self._process(frames)
            except Exception as error:  # of any kind: continue with the next frame
                for frame in frames:
                    self._fail(frame, error)

    def _process(self, frames: list[Frame]) -> None:
        detector = self.settings.detector(self.model.backend)
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
        if 0 < self.settings.max_age < age_s or self._is_out_of_order(frame):
            stats.count_drop(OLD)
            return None
        spec = detector.backend.spec
        full = detector.tiling != OFF or self._wants_full_size(frame.camera)
        size = (0, 0) if full else (spec.input_width, spec.input_height)
        try:
            return decode_message(frame.message, *size)
        except ImageError as error:
            count = stats.count_drop(UNDECODABLE)
            line = f"Image dropped: {error} ({count} dropped so far)"
            self._logger.warning(line, throttle_duration_sec=_THROTTLE_SECONDS)
            return None

    def _is_out_of_order(self, frame: Frame) -> bool:
        """Return whether a later frame of this camera was processed before."""
        stamp = frame.message.header.stamp
        stamp_ns = stamp.sec * 10**9 + stamp.nanosec
        before_ns = self._last_stamp_ns.get(frame.camera, 0)
        if stamp_ns and 0 < before_ns - stamp_ns < _CLOCK_RESET_NS:
            return True
        self._last_stamp_ns[frame.camera] = stamp_ns
        return False

    def _windows(self, detector: Detector, camera: str, decoded: DecodedImage) -> np.ndarray:
        """Return the windows of this frame that fit the time budget."""
        windows = detector.windows(decoded.width, decoded.height)
        budget_ms, backend = self.settings.budget_ms, detector.backend
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
        line = (
            "Inference failed, nothing is published for this image: "
            f"{type(error).__name__}: {error} ({count} failed so far)"
        )
        self._logger.error(line, throttle_duration_sec=_THROTTLE_SECONDS)
