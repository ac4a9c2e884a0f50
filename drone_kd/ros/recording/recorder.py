"""Recorder: selects hard frames in flight and writes them to bags for the next training."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import secrets
import stat
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, time_ns

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from drone_kd.machine import host_name
from drone_kd.media.raw_images import is_8_bit
from drone_kd.paths import expanded
from drone_kd.ros.detection_messages import bgr_to_image, bgr_to_jpeg, to_detection_array
from drone_kd.ros.inbox import stamp_ns
from drone_kd.ros.local_image import LocalImage
from drone_kd.ros.params import Settings, SettingsError
from drone_kd.ros.pipeline import Result
from drone_kd.ros.recording.bag_ring import BagRing, Message
from drone_kd.ros.recording.frame_selection import Choice, Selector
from drone_kd.ros.recording.message_definitions import message_type
from drone_kd.ros.survival import Failures, log_failure
from drone_kd.text import one_line

# Waiting frames; each may take several megabytes.
_QUEUE = 4
# Small objects do not survive stronger compression.
_JPEG_QUALITY = 95
_IDLE_SECONDS = 0.5
# Too slow: more than half of the frames in this window were dropped.
_WINDOW_SECONDS = 10.0
_THROTTLE_SECONDS = 10.0


@dataclass(frozen=True)
class RecordReport:
    """State and counts of the recorder."""

    # "on", "finishing" (switched off, but still writing), "off", or "stopped" by a problem
    state: str
    problem: str  # why it stopped, or cannot keep up; empty: no problem
    seen: int  # frames that were considered
    dropped: int  # frames that were not, because the disk or the processor is too slow
    kept: int  # frames written
    reasons: Mapping[str, int]  # frames written by reason; a frame may have several
    written_bytes: int


class Recorder:
    """Selects and writes hard frames in its own thread; never delays detection.

    Raises:
        SettingsError: the folder is not writable, or rosbags is missing; the message is one line.
    """

    def __init__(self, node: Node, settings: Settings, failures: Failures) -> None:
        if importlib.util.find_spec("rosbags") is None:
            raise SettingsError(
                "recording needs rosbags, which is not installed: pip install 'drone_kd[record]'"
            )
        try:
            self.folder = expanded(settings.record_directory)
            self._owner, warning = _prepare(self.folder, settings.record_private)
        except (OSError, ValueError) as error:  # ValueError: no path
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise SettingsError(
                "record_directory: expected a folder that can be written, got "
                f"{one_line(settings.record_directory)} ({one_line(reason)})"
            ) from None
        self._settings = settings
        self._failures = failures
        self._prefix = node.get_fully_qualified_name().strip("/").replace("/", "_")
        self._topics = {
            camera: tuple(
                node.resolve_topic_name(f"~/{camera}/{name}" if camera else f"~/{name}")
                for name in ("detections", "record/reasons")
            )
            for camera in settings.cameras
        }
        self._log = node.get_logger()
        if warning:
            self._log.warning(warning)
        self._queue: queue.Queue[Result] = queue.Queue(_QUEUE)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._problem = ""
        self._seen = self._dropped = self._kept = self._written = 0
        self._reasons: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def offer(self, result: Result) -> None:
        """Consider a frame, unless the queue is full; return at once."""
        if self._closing.is_set():
            return
        try:
            self._queue.put_nowait(result)
            dropped = False
        except queue.Full:
            dropped = True
        now = monotonic()
        with self._lock:
            self._dropped += dropped
            self._outcomes.append((now, dropped))
            while self._outcomes[0][0] < now - _WINDOW_SECONDS:
                self._outcomes.popleft()
        if dropped and (slow := self._slow()):
            self._log.warning(slow, throttle_duration_sec=_THROTTLE_SECONDS)

    def close(self) -> None:
        """Switch recording off: the thread writes selected frames, finishes the bag and ends."""
        self._problem = ""
        self._closing.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end of the thread; False if it takes longer than `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def report(self) -> RecordReport:
        """Return the current state and counts."""
        if self._thread.is_alive():
            state = "finishing" if self._closing.is_set() else "on"
        else:
            state = "stopped" if self._problem else "off"
        problem = self._problem or (self._slow() if state == "on" else "")
        with self._lock:
            reasons = dict(self._reasons)
        return RecordReport(
            state, problem, self._seen, self._dropped, self._kept, reasons, self._written
        )

    def _slow(self) -> str:
        """Return a line if it cannot keep up; empty: it can."""
        with self._lock:
            dropped, total = sum(drop for _, drop in self._outcomes), len(self._outcomes)
        if 2 * dropped <= total:
            return ""
        frames = f"{dropped} of the last {total} frames"
        return f"Recording cannot keep up: {frames} were skipped (is the disk too slow?)"

    def _run(self) -> None:
        budget_bytes = int(self._settings.record_budget_mb * 1_000_000)
        private = self._settings.record_private
        ring = BagRing(self.folder, self._prefix, budget_bytes, private=private, owner=self._owner)
        try:
            self._work(ring)
            ring.finish()
        except Exception as error:  # of any kind: detection continues
            reason = one_line(error) or type(error).__name__
            self._problem = f"Recording stopped: {reason}"
            self._log.warning(f"{self._problem}; detection continues")
            self._closing.set()
            try:  # to save the open bag
                ring.finish()
            except Exception as second:
                self._log.warning(f"The newest bag could not be finished: {one_line(second)}")
        finally:
            while not self._queue.empty():  # images are large
                self._queue.get_nowait()

    def _work(self, ring: BagRing) -> None:
        kinds = Image, CompressedImage, Detection2DArray, DiagnosticArray
        types = {kind: message_type(kind) for kind in kinds}
        settings = self._settings
        selectors = {
            camera: Selector(settings.record_per_minute, settings.record_random, seed)
            for seed, camera in enumerate(settings.cameras)
        }
        while True:
            try:
                result = self._queue.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                ended = float("inf") if self._closing.is_set() else perf_counter()
                for selector in selectors.values():
                    self._keep(ring, selector.take(ended), types)
                if self._closing.is_set():
                    return
            else:
                self._consider(ring, result, selectors[result.frame.camera], types)
            ring.finish_old()

    def _consider(self, ring: BagRing, result: Result, selector: Selector, types: Mapping) -> None:
        now = result.frame.received
        self._keep(ring, selector.take(now), types)
        try:
            selector.see(now, result, result.decoded, result.detections)
            self._seen += 1
        except Exception as error:  # of this frame only
            log_failure(self._log, self._failures, "Recording a frame", error)

    def _keep(self, ring: BagRing, choice: Choice | None, types: Mapping) -> None:
        """Write a selected frame; OSError: the disk fails, which ends the recording."""
        if choice is None:
            return
        try:
            self._write(ring, choice, types)
        except OSError:
            raise
        except Exception as error:  # of this frame only
            log_failure(self._log, self._failures, "Recording a frame", error)

    def _write(self, ring: BagRing, choice: Choice, types: Mapping) -> None:
        """Write a frame with its detections and the reasons."""
        result = choice.frame
        header = result.frame.message.header
        detections_topic, reasons_topic = self._topics[result.frame.camera]
        messages = [
            _image(result, self._settings.record_format),
            (detections_topic, to_detection_array(result.detections, result.classes, header)),
            (reasons_topic, _reasons(choice, header)),
        ]
        self._written += ring.write(
            max(stamp_ns(header), 0) or time_ns(),  # a camera without a clock has no stamp
            [Message(topic, types[type(m)], serialize_message(m)) for topic, m in messages],
        )
        self._kept += 1
        with self._lock:
            self._reasons.update(choice.reasons)


def _prepare(folder: Path, private: bool) -> tuple[int, str]:
    """Make the folder of the bags and check it; return the owner of new files and a warning.

    OSError: it cannot be written, or is that of another user, who can replace private bags.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700 if private else 0o777)
    descriptor = os.open(folder, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        owner = _owner_of_new_files(descriptor)
    finally:
        os.close(descriptor)
    if private and status.st_uid not in (owner, os.geteuid(), 0):
        raise PermissionError(
            f"it belongs to user {status.st_uid}, who can replace bags; choose another folder, or "
            "start with record_private: false"
        )
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if private and writable and not status.st_mode & stat.S_ISVTX:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        return owner, f"Others can replace bags in {one_line(folder)}, whose mode is {mode}"
    return owner, ""


def _owner_of_new_files(folder: int) -> int:
    """Return the user id of a file made in an open folder: not ours on some file systems."""
    name = f".{secrets.token_hex(8)}"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    probe = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        return os.fstat(probe).st_uid
    finally:
        os.close(probe)
        os.unlink(name, dir_fd=folder)


def _image(result: Result, record_format: str) -> tuple[str, Image | CompressedImage]:
    """Return the topic and the message to write: unchanged, or as JPEG if it has 8 bits."""
    topic, message = result.frame.topic, result.frame.message
    if isinstance(message, LocalImage):
        if record_format == "raw":
            return topic, bgr_to_image(result.decoded.image, message.header)
        jpeg = bgr_to_jpeg(result.decoded.image, _JPEG_QUALITY, message.header)
        return f"{topic}/compressed", jpeg
    if record_format == "raw" or isinstance(message, CompressedImage) or not is_8_bit(message):
        return topic, message
    jpeg = bgr_to_jpeg(result.decoded.image, _JPEG_QUALITY, message.header)
    return f"{topic}/compressed", jpeg


def _reasons(choice: Choice, header: Header) -> DiagnosticArray:
    """Return the reasons for a selected frame and its measures, with the frame's header."""
    status = DiagnosticStatus(level=DiagnosticStatus.OK, hardware_id=host_name())
    status.name = choice.frame.frame.camera or "image"
    status.message = ", ".join(choice.reasons)
    status.values = [KeyValue(key=k, value=f"{v:.3f}") for k, v in choice.measures.items()]
    return DiagnosticArray(header=header, status=[status])
