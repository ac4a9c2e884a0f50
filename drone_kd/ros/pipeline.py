"""From camera topics to detections: the executor's thread receives, a worker thread detects."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rclpy.lifecycle import LifecycleNode

from drone_kd.backends import Backend
from drone_kd.core.detections import Detections
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.tiling import OFF, fit_budget
from drone_kd.detector import DecodedImage, Detector
from drone_kd.ros.drop_reasons import DISABLED, FAILED, OLD, SUPERSEDED, UNDECODABLE
from drone_kd.ros.image_conversion import ImageError, decode_message
from drone_kd.ros.inbox import Frame, ImageMessage, Inbox, stamp_ns
from drone_kd.ros.local_camera import LocalCamera
from drone_kd.ros.memory import return_memory
from drone_kd.ros.model_loader import Model
from drone_kd.ros.params import Settings
from drone_kd.ros.qos import ImageSubscription
from drone_kd.ros.survival import Failures, describe, log_failure
from drone_kd.ros.videos import Videos, is_video
from drone_kd.ros.work import AbandonedError, Work
from drone_kd.text import one_line

if TYPE_CHECKING:
    from drone_kd.ros.camera import Camera

_THROTTLE_SECONDS = 5.0
# Time without a subscriber after which a camera's images are no longer received: a subscriber may
# start again, and one that is being discovered does not count yet.
IDLE_SECONDS = 5.0
# A stamp that jumps back by less is an out-of-order frame; by more, a clock that was set back or
# a recording that restarted.
_CLOCK_RESET_NS = 1_000_000_000
# Settings of the subscriptions.
_TRANSPORT = "image_transport", "reliability"
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
        return self.frame.age_ms() + (perf_counter() - self.frame.received) * 1e3


class _Attempt(NamedTuple):
    """Outcome of frames with one model; frames that were dropped for another reason are absent."""

    published: int
    failed: list[tuple[Frame, Exception]]


class Pipeline:
    """Subscribes to the cameras and detects in their newest frames, batch by batch, until `stop`.

    Args:
        node: owner of the subscriptions.
        settings, model, former: the first ones; later `apply` and `swap` replace them.
        cameras: by name.
        enabled: False: drop all frames until `enable`.
        record: called by the worker with each published result; returns at once.
        failures: of the node.
        on_first_result: called by the worker with a swapped-in model and None after it has
            published its first result, or the exception after it was swapped out for it.
    """

    def __init__(
        self,
        node: LifecycleNode,
        settings: Settings,
        model: Model,
        former: Model | None,
        cameras: Mapping[str, Camera],
        enabled: bool,
        record: Callable[[Result], None],
        failures: Failures,
        on_first_result: Callable[[Model, Exception | None], None],
    ) -> None:
        self.model = model
        # Used again if `model` fails; None once `model` has published its first result.
        self._former = former
        self._lock = threading.Lock()  # for the models, the worker and its work
        self._work: Work | None = None
        self._failures = failures
        self._on_first_result = on_first_result
        self._node = node
        self._settings = settings
        self._cameras = cameras
        # Those of this activation: a worker may outlast it.
        self._stats = {name: camera.stats for name, camera in cameras.items()}
        self._enabled = enabled
        self._record = record
        self._inbox = Inbox(settings.cameras)
        self._videos = Videos(self._offer, self._drop_unreadable, self._leave, self._max_pixels)
        self._last_stamp_ns: dict[str, int] = {}
        self._next_tile: dict[str, int] = {}
        self._wanted_at = dict.fromkeys(settings.cameras, monotonic())
        # Time per call of this backend, pre- and postprocessing included.
        self._measured: Backend | None = None
        self._call_ms = 0.0
        self._thread = self._new_worker()
        self.subscriptions: dict[str, ImageSubscription | LocalCamera] = {}
        self.subscriptions = self._subscribe(settings)
        self._thread.start()

    # Called by the executor

    def apply(self, settings: Settings) -> None:
        """Use other settings from the next frame on."""
        before = self._settings
        changed = any(getattr(settings, name) != getattr(before, name) for name in _TRANSPORT)
        if changed and not settings.camera:
            new = self._subscribe(settings)
            self._unsubscribe()
            self.subscriptions = new
            for camera in settings.cameras:
                self._videos.skip(camera, "subscribed anew")
        self._settings = settings
        self._inbox.wake()

    def swap(self, model: Model, former: Model | None) -> None:
        """Use another model from the next frame on, at once if an inference hangs.

        Args:
            model: the other model.
            former: used again if `model` fails with its first frame, and this one does not; None:
                `model` stays.
        """
        with self._lock:
            self.model, self._former = model, former
            work = self._work
            is_stuck = work is not None and work.hangs and work.is_in_inference()
            if is_stuck:
                self._work, self._thread = None, self._new_worker()
                self._thread.start()
        if work is not None and is_stuck:
            for frame in work.frames:
                self._fail(frame, InferenceError(str(work)))

    def check_inference(self) -> Work | None:
        """Cancel an inference that takes too long; return its work if it hangs nevertheless."""
        work = self._work
        return work if work is not None and work.check() else None

    def enable(self, enabled: bool) -> None:
        """Process frames, or drop them, waiting ones included."""
        self._enabled = enabled
        if not enabled:
            self._drop_disabled([*self._videos.clear("disabled before"), *self._inbox.clear()])

    def match(self, is_recording: bool = False) -> None:
        """Follow the publishers; receive no images of a camera that nobody needs.

        That is one without a subscriber for a few seconds, while nothing is recorded.
        """
        now = monotonic()
        for name, subscription in self.subscriptions.items():
            camera = self._cameras[name]
            if self._enabled and (is_recording or camera.wanted()):
                self._wanted_at[name] = now
                if not subscription.is_open:
                    self._stats[name].resume()
                    self._videos.skip(name, "idle before")
            subscription.match(now - self._wanted_at[name] <= IDLE_SECONDS)

    def stop(self, timeout_s: float) -> Work | None:
        """Stop receiving and end the worker; return its work if it takes longer than this.

        The inference is cancelled then. If it ends later, nothing is published.
        """
        try:
            self._unsubscribe()
        finally:
            self._inbox.close()
            self._videos.close()
            self._thread.join(timeout_s)
        with self._lock:
            work = self._work
        if work is not None:
            work.cancel()
        return work

    def _subscribe(self, settings: Settings) -> dict[str, ImageSubscription | LocalCamera]:
        """Return a subscription per camera, closed if it was; none is left after an exception."""
        if settings.camera:
            receive = partial(self._receive, "")
            return {"": LocalCamera(self._node, "image", settings.camera, receive)}
        subscriptions: dict[str, ImageSubscription | LocalCamera] = {}
        with contextlib.ExitStack() as stack:
            for camera in settings.cameras:
                subscriptions[camera] = ImageSubscription(
                    self._node,
                    f"{camera}/image" if camera else "image",
                    settings.image_transport,
                    settings.reliability,
                    partial(self._receive, camera),
                    camera not in self.subscriptions or self.subscriptions[camera].is_open,
                )
                stack.callback(subscriptions[camera].destroy)
            stack.pop_all()
        return subscriptions

    def _unsubscribe(self) -> None:
        # Their callbacks refer to the pipeline: cleared, or it would wait for the cycle collector.
        subscriptions = list(self.subscriptions.values())
        self.subscriptions.clear()
        with contextlib.ExitStack() as stack:  # all of them, whatever one raises
            for subscription in subscriptions:
                stack.callback(subscription.destroy)

    def _receive(self, camera: str, topic: str, message: ImageMessage) -> None:
        received = perf_counter()
        stats = self._stats[camera]
        stats.count_received()
        if not self._enabled:
            stats.count_drop(DISABLED)
            self._videos.skip(camera, "disabled before")
            return
        sent_ns, now_ns = stamp_ns(message.header), self._node.get_clock().now().nanoseconds
        transport_ms = (now_ns - sent_ns) / 1e6 if sent_ns else None
        frame = Frame(camera, topic, message, transport_ms, received)
        if is_video(message):
            self._videos.put(frame)
        else:
            self._offer(frame)

    def _offer(self, frame: Frame) -> None:
        """Put a frame into the inbox; called by the executor, or a thread that decodes video."""
        if not self._enabled:
            self._drop_disabled([frame])
            return
        if self._inbox.put(frame):
            self._stats[frame.camera].count_drop(SUPERSEDED)
        if not self._enabled:  # by now
            self._drop_disabled(self._inbox.clear())

    def _drop_disabled(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            self._stats[frame.camera].count_drop(DISABLED)

    def _leave(self, packet: Frame) -> None:
        self._stats[packet.camera].discount()

    def _drop_unreadable(self, frame: Frame, error: Exception) -> None:
        """Count a frame without pixels; ValueError: its line says why."""
        line = one_line(error, 500) if isinstance(error, ValueError) else describe(error)
        count = self._stats[frame.camera].count_drop(UNDECODABLE, line)
        self._node.get_logger().warning(
            f"Image dropped: {line} ({count} dropped so far)",
            throttle_duration_sec=_THROTTLE_SECONDS,
        )

    def _max_pixels(self) -> int:
        return int(self._settings.max_megapixels * 1e6)

    # The worker

    def _new_worker(self) -> threading.Thread:
        return threading.Thread(target=self._detect_frames, name="detector", daemon=True)

    def _detect_frames(self) -> None:
        while True:
            try:
                # A batch holds the tiles of one frame, or, without tiling, frames of cameras.
                limit = self.model.backend.spec.batch if self._is_batched() else 1
                frames = self._inbox.take(limit, self._settings.max_rate)
                if frames is None:
                    break
                if frames:
                    self._process(frames)
            except AbandonedError:
                break
            except Exception as error:  # of any kind: continue with the next frame
                log_failure(self._node.get_logger(), self._failures, "Detection", error)
        if threading.current_thread() is self._thread:
            # rclpy may hold a destroyed subscription, and with it the pipeline, for longer.
            del self.model
            self._former = self._measured = None

    def _is_batched(self) -> bool:
        return self._settings.tiling == OFF and not self._settings.camera_settings

    def _process(self, frames: list[Frame]) -> None:
        with self._begun(frames) as work:
            model, former = self.model, self._former
            published, failed = self._attempt(frames, model, work)
            if failed and former is not None:
                again, still_failed = self._attempt([frame for frame, _ in failed], former, work)
                # The frame is not to blame, or has become too old to try it again.
                if again or not still_failed:
                    self._settle(model, failed[0][1])
                failed = still_failed
            elif published and former is not None:
                self._settle(model, None)
            for frame, error in failed:
                self._fail(frame, error)

    @contextlib.contextmanager
    def _begun(self, frames: list[Frame]) -> Iterator[Work]:
        """Make the work on frames known to the executor's thread."""
        work = Work(frames)
        with self._lock:
            if self._inbox.closed:
                raise AbandonedError
            self._work = work
        try:
            yield work
        finally:
            work.ended = True
            with self._lock:
                if self._work is work:
                    self._work = None

    def _check_worker(self, work: Work) -> None:
        """Raise AbandonedError if another worker has replaced this one, or all have to end."""
        with self._lock:
            if self._work is not work or self._inbox.closed:
                raise AbandonedError

    def _settle(self, model: Model, error: Exception | None) -> None:
        """Keep a swapped-in model, or after an error return to the one before."""
        with self._lock:
            if self.model is not model or self._former is None:  # swapped again meanwhile
                return
            self.model, self._former = (model if error is None else self._former), None
        self._on_first_result(model, error)

    def _attempt(self, frames: list[Frame], model: Model, work: Work) -> _Attempt:
        """Detect in frames with a model, and publish the results."""
        failed: list[tuple[Frame, Exception]] = []
        opened: list[tuple[Frame, DecodedImage, float]] = []
        taken = perf_counter()
        try:
            # With settings of single cameras there is one frame.
            detector = self._settings.of(frames[0].camera).detector(work.use(model))
        except ValueError as error:  # they have changed, and name a class that it does not know
            return _Attempt(0, [(frame, _bare(error)) for frame in frames])
        for frame in frames:
            try:
                decoded = self._open(frame, detector, taken)
            except Exception as error:  # of any kind, for this camera only
                failed.append((frame, _bare(error)))
                continue
            if decoded is not None:
                opened.append((frame, decoded, (perf_counter() - taken) * 1e3))
        if not opened:
            return _Attempt(0, failed)
        try:
            published, more = self._detect(detector, opened, taken, work)
        except Exception as error:
            published, more = 0, [(frame, _bare(error)) for frame, _, _ in opened]
            if len(opened) > 1:  # one of several cameras may be to blame
                single = [self._attempt([frame], model, work) for frame, _, _ in opened]
                published = sum(attempt.published for attempt in single)
                more = [pair for attempt in single for pair in attempt.failed]
        return _Attempt(published, failed + more)

    def _detect(
        self,
        detector: Detector,
        opened: list[tuple[Frame, DecodedImage, float]],
        taken: float,
        work: Work,
    ) -> _Attempt:
        """Detect in decoded frames, and publish the results."""
        published = 0
        failed: list[tuple[Frame, Exception]] = []
        seen = [
            self._windows(detector, frame.camera, decoded, work) for frame, decoded, _ in opened
        ]
        try:
            found, times = detector.batch([decoded for _, decoded, _ in opened], seen)
        finally:
            self._check_worker(work)
        for (frame, decoded, decode_ms), detections in zip(opened, found, strict=True):
            if self._inbox.closed:
                break
            if isinstance(detections, InferenceError):
                failed.append((frame, _bare(detections)))
                continue
            started = perf_counter()
            result = Result(frame, decoded, detections, detector.backend.spec.classes)
            try:
                self._cameras[frame.camera].publish(result)
            except Exception as error:  # e.g. of a message that cannot be written
                failed.append((frame, _bare(error)))
                continue
            published += 1
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
            try:
                self._record(result)
                self._cameras[frame.camera].debug.offer(result)
            except Exception as error:  # the detections are out
                log = self._node.get_logger()
                log_failure(log, self._failures, "Offering the frame", error)
        self._measure(work.backend, sum(map(len, seen)), times.total_ms)
        return _Attempt(published, failed)

    def _open(self, frame: Frame, detector: Detector, taken: float) -> DecodedImage | None:
        """Return a frame's pixels; None if the frame is dropped."""
        stats = self._stats[frame.camera]
        age_s = frame.age_ms() / 1e3 + taken - frame.received
        if 0 < self._settings.max_age < age_s or self._is_out_of_order(frame):
            stats.count_drop(OLD)
            return None
        spec = detector.backend.spec
        full = detector.tiling != OFF or self._cameras[frame.camera].debug.wanted()
        size = (0, 0) if full else (spec.input_width, spec.input_height)
        try:
            return decode_message(frame.message, *size, self._max_pixels())
        except ImageError as error:
            self._drop_unreadable(frame, error)
            return None

    def _is_out_of_order(self, frame: Frame) -> bool:
        """Return whether a later frame of this camera was processed before."""
        sent_ns = stamp_ns(frame.message.header)
        before_ns = self._last_stamp_ns.get(frame.camera, 0)
        if sent_ns and 0 < before_ns - sent_ns < _CLOCK_RESET_NS:
            return True
        self._last_stamp_ns[frame.camera] = sent_ns
        return False

    def _windows(
        self, detector: Detector, camera: str, decoded: DecodedImage, work: Work
    ) -> np.ndarray:
        """Return the windows of this frame that fit the time budget."""
        windows = detector.windows(decoded.width, decoded.height)
        budget_ms, backend = self._settings.budget_ms, work.backend
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
        line = describe(error)
        count = self._stats[frame.camera].count_drop(FAILED, line)
        self._node.get_logger().error(
            f"Inference failed, nothing is published for this image: {line} "
            f"({count} failed so far)",
            throttle_duration_sec=_THROTTLE_SECONDS,
        )


def _bare(error: Exception) -> Exception:
    """Return an exception without its traceback, which would keep the model in memory."""
    return error.with_traceback(None)
