r"""ROS 2 node `scorer`: records predictions and ground truth, and scores them.

    ros2 run drone_kd scorer --ros-args -p output:=runs/flight \
        -r detections:=/detector/detections -r ground_truth:=/camera/ground_truth

During the flight, `~/score` has the figures of the last seconds as JSON. At the end, `output`
holds the record, flight.jsonl, and the frames of the worst misses; `drone-kd score` scores them.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from vision_msgs.msg import Detection2DArray, LabelInfo

from drone_kd.files import write_bytes
from drone_kd.media.compressed_images import EncodedError, encode
from drone_kd.media.image_files import SourceError
from drone_kd.ros.image_conversion import ImageError, image_to_bgr
from drone_kd.ros.run import run_node
from drone_kd.ros.survival import Surviving
from drone_kd.simulation.declare import declare_scorer_parameters
from drone_kd.simulation.scoring.flight_record import (
    MAX_BOXES,
    FlightWriter,
    Predictions,
    Truth,
    class_name,
    columns,
    truth_of,
)
from drone_kd.simulation.scoring.matching import match
from drone_kd.simulation.scoring.report import MISSES_FOLDER
from drone_kd.simulation.truth_messages import boxes_of, stamp_ns
from drone_kd.text import one_line

_RELIABLE = QoSProfile(depth=100)
_ONE_IMAGE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# Least time between two frames of misses.
_APART_NS = 2 * 10**9
# Largest number of images that wait for their ground truth.
_IMAGES = 8
_WINDOW = 50
# Humble's rclpy does not tell the arrival time of a message.
_TELLS_ARRIVAL = hasattr(Subscription, "CallbackType")


class ScorerNode(Surviving, Node):  # type: ignore[misc]  # the mixin's signatures
    """Records a flight; see the module's docstring.

    Raises:
        SourceError: the output folder is missing or not writable.
    """

    def __init__(self) -> None:
        super().__init__("scorer")
        declare_scorer_parameters(self)
        output = self.get_parameter("output").value
        if not output:
            raise SourceError("output: expected a folder for the record of the flight")
        self._folder = Path(output)
        self._pictures = self.get_parameter("pictures").value
        self._confidence = self.get_parameter("confidence").value
        names = self.get_parameter("label_names").value
        self._label_names = names if any(names) else []
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._record = FlightWriter(self._folder / "flight.jsonl")
        except OSError as error:
            raise SourceError(f"output {output}: {error.strerror}") from None
        if rate_hz := self.get_parameter("rate").value:
            self._record.write({"rate": rate_hz})
        self._numbered: dict[str, str] = {}  # class names of ~/label_info by number
        self._latest: Predictions | None = None
        self._truths: OrderedDict[int, Truth] = OrderedDict()
        # Topics are not ordered: predictions that arrived before their ground truth.
        self._early: OrderedDict[int, Predictions] = OrderedDict()
        self._waiting: OrderedDict[int, Image] = OrderedDict()
        self._worst: dict[int, tuple[int, Image]] = {}  # missed objects and frame by stamp
        self._recent: dict[str, list[float]] = {"latency_ms": [], "offline": [], "streaming": []}
        self._count = {"truth": 0, "frame": 0, "result": 0}
        self._dropped = 0  # unusable boxes
        self._subscribe(Detection2DArray, "ground_truth", self._on_truth)
        self._subscribe(Detection2DArray, "detections", self._on_predictions)
        self._subscribe(CameraInfo, "camera_info", self._on_frame)
        self.create_subscription(LabelInfo, "label_info", self._on_labels, _LATCHED)
        if self._pictures:
            self.create_subscription(Image, "image", self._on_image, _ONE_IMAGE)
        self._score = self.create_publisher(String, "~/score", 1)
        self.create_timer(1.0, self._publish_score)

    def stop(self) -> bool:
        """Close the record and write the frames of the worst misses, as far as the disk allows."""
        try:
            self._record.close()
        except OSError as error:
            self.get_logger().error(f"The record may lack lines: {one_line(error)}")
        try:
            self._write_pictures(self._folder / MISSES_FOLDER)
        except OSError as error:
            self.get_logger().warning(f"No frames of misses: {one_line(error)}")
        count = self._count
        self.get_logger().info(
            f"Recorded {count['truth']} ground truths, {count['frame']} frames, "
            f"{count['result']} results in {self._folder / 'flight.jsonl'}; "
            f"{self.failures.report().count} messages failed"
        )
        return True

    def _write_pictures(self, folder: Path) -> None:
        if folder.is_symlink():
            self.get_logger().warning(f"No frames of misses: {folder} is a link")
            return
        folder.mkdir(exist_ok=True, mode=0o700)
        for old in folder.glob("*.jpg"):  # from an earlier flight
            old.unlink()
        for stamp, (_, message) in self._worst.items():
            try:
                write_bytes(folder / f"{stamp}.jpg", encode(image_to_bgr(message), ".jpg"))
            except (ImageError, EncodedError, OSError) as error:
                self.get_logger().warning(f"Frame of a miss skipped: {one_line(error)}")

    def _subscribe(self, kind: type, topic: str, callback: Callable[..., None]) -> None:
        """Subscribe with a callback that also gets the arrival time in nanoseconds.

        The middleware's arrival time does not depend on how busy this node is. It is system time,
        so it cannot be used with simulated time.
        """
        if _TELLS_ARRIVAL and not self.get_parameter("use_sim_time").value:
            self.create_subscription(
                kind, topic, lambda m, info: callback(m, info["received_timestamp"]), _RELIABLE
            )
        else:
            self.create_subscription(
                kind, topic, lambda m: callback(m, self.get_clock().now().nanoseconds), _RELIABLE
            )

    def _event(
        self, kind: str, message: Detection2DArray | CameraInfo, at: int, **more: list | int
    ) -> int:
        """Record a message; returns its stamp."""
        stamp = stamp_ns(message.header)
        self._record.write({kind: stamp, "at": at, **more})
        self._count[kind] += 1
        return stamp

    def _on_truth(self, message: Detection2DArray, at: int) -> None:
        boxes, dropped = self._boxes(message, "id")
        boxes = [[self._named(name), *rest] for name, *rest in boxes]
        stamp = self._event("truth", message, at, boxes=boxes, **dropped)
        self._truths[stamp] = truth_of(boxes)
        while len(self._truths) > _WINDOW:
            self._truths.popitem(last=False)
        if stamp in self._early:
            self._remember("offline", self._truths[stamp], self._early.pop(stamp))
        if self._latest is not None:
            self._remember("streaming", self._truths[stamp], self._latest)
        self._judge_images()

    def _boxes(self, message: Detection2DArray, number: str) -> tuple[list[list], dict[str, int]]:
        """Return the usable boxes of a message; the others are counted, for the record, too."""
        boxes = boxes_of(message, number)
        dropped = len(message.detections) - len(boxes)
        if not dropped:
            return boxes, {}
        self._dropped += dropped
        self.get_logger().warning(
            f"Dropped {self._dropped} boxes so far: expected finite boxes with a class, at most "
            f"{MAX_BOXES} per message",
            throttle_duration_sec=5.0,
        )
        return boxes, {"dropped": dropped}

    def _named(self, class_id: str) -> str:
        """Return the name of a class; Gazebo's bounding-box cameras publish label numbers."""
        # Python refuses to convert thousands of digits.
        known = class_id.isdecimal() and len(class_id) < 10
        number = int(class_id) if known else len(self._label_names)
        return self._label_names[number] if number < len(self._label_names) else class_id

    def _on_frame(self, message: CameraInfo, at: int) -> None:
        self._event("frame", message, at)

    def _on_labels(self, message: LabelInfo) -> None:
        entries = message.class_map[:MAX_BOXES]
        classes = [class_name(entry.class_name) for entry in entries]
        self._numbered = {str(e.class_id): name for e, name in zip(entries, classes, strict=True)}
        self._record.write({"classes": classes})

    def _on_predictions(self, message: Detection2DArray, at: int) -> None:
        boxes, dropped = self._boxes(message, "score")
        # Other detectors publish the number of a class; a class may be called "7".
        known = set(self._numbered.values())
        for row in boxes:
            if row[0] not in known:
                row[0] = self._numbered.get(row[0], row[0])
        stamp = self._event("result", message, at, boxes=boxes, **dropped)
        names, scores, xyxy = columns(boxes)
        self._latest = Predictions(stamp, at, xyxy, np.array(scores, np.float32), names)
        self._keep("latency_ms", (at - stamp) / 1e6)
        if stamp in self._truths:
            self._remember("offline", self._truths[stamp], self._latest)
        else:
            self._early[stamp] = self._latest
            while len(self._early) > _WINDOW:
                self._early.popitem(last=False)

    def _remember(self, way: str, truth: Truth, predictions: Predictions) -> None:
        found = match(truth, predictions, self._confidence).found[~truth.ignored]
        self._recent[way] = [*self._recent[way], *found.tolist()][-20 * _WINDOW :]

    def _keep(self, what: str, value: float) -> None:
        self._recent[what] = [*self._recent[what], value][-_WINDOW:]

    def _on_image(self, message: Image) -> None:
        self._waiting[stamp_ns(message.header)] = message
        while len(self._waiting) > _IMAGES:
            self._waiting.popitem(last=False)
        self._judge_images()

    def _judge_images(self) -> None:
        """Keep the frames with the most objects that the latest predictions missed."""
        for stamp in [s for s in self._waiting if s in self._truths]:
            message = self._waiting.pop(stamp)
            if self._latest is None:
                continue
            truth = self._truths[stamp]
            found = match(truth, self._latest, self._confidence).found
            missed = int((~found & ~truth.ignored).sum())
            near = [s for s in self._worst if abs(s - stamp) < _APART_NS]
            if not missed or any(self._worst[s][0] >= missed for s in near):
                continue
            for s in near:
                del self._worst[s]
            self._worst[stamp] = missed, message
            if len(self._worst) > self._pictures:
                del self._worst[min(self._worst, key=lambda s: self._worst[s][0])]

    def _publish_score(self) -> None:
        latest = self._recent["latency_ms"]
        score: dict[str, float | None] = {f"{k}s": n for k, n in self._count.items()}
        score["dropped_boxes"] = self._dropped
        score["latency_p50_ms"] = round(float(np.median(latest)), 1) if latest else None
        for way in ("offline", "streaming"):
            hits = self._recent[way]
            score[f"recall_{way}"] = round(float(np.mean(hits)), 3) if hits else None
        self._score.publish(String(data=json.dumps(score)))


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; see `run_node`."""
    return run_node("scorer", lambda _finished: ScorerNode(), args, survives=True)


if __name__ == "__main__":
    sys.exit(main())
