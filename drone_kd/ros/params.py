"""The nodes' parameters. Their defaults are in config/, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from drone_kd.backends import RUNTIMES, Backend
from drone_kd.core.thresholds import parse_thresholds
from drone_kd.core.tiling import OFF, parse_tiling
from drone_kd.detector import Detector
from drone_kd.paths import parameter_defaults

TRANSPORTS = ("raw", "compressed")
RECORD_FORMATS = ("jpeg", "raw")
RELIABILITIES = ("auto", "reliable", "best_effort")


class SettingsError(ValueError):
    """A parameter's value cannot be used; the message is one line."""


@dataclass(frozen=True)
class Settings:
    """The detector's parameters of one moment, checked; see config/detector.yaml.

    Raises:
        SettingsError: a value cannot be used.
    """

    runtime: str
    allow_fallback: bool
    confidence: float
    class_confidence: Mapping[str, float]
    classes: tuple[str, ...]
    iou: float
    max_detections: int
    tiling: str
    tile_overlap: float
    budget_ms: float
    cameras: tuple[str, ...]
    image_transport: str
    reliability: str
    max_age: float
    max_rate: float
    record_directory: str
    record_budget_mb: float
    record_per_minute: float
    record_random: float
    record_format: str
    silence_s: float
    rate_warn_hz: float
    latency_warn_ms: float
    latency_error_ms: float
    failed_error_share: float
    temperature_warn_c: float
    temperature_error_c: float

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any]) -> Settings:
        """Read the parameters, as ROS gives them, by name; others are ignored."""
        values = {field.name: values[field.name] for field in fields(cls)}
        # An empty list has no type in ROS, so [""] stands for it.
        values["classes"] = tuple(name for name in values["classes"] if name)
        values["class_confidence"] = _read_thresholds(values["class_confidence"])
        # YAML, and with it the command line, reads a bare off as false.
        values["tiling"] = OFF if values["tiling"] is False else str(values["tiling"])
        # One camera may go without a name, several may not.
        values["cameras"] = tuple(values["cameras"]) or ("",)
        return cls(**values)

    def __post_init__(self) -> None:
        try:
            parse_tiling(self.tiling)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        for name, known in (
            ("runtime", RUNTIMES),
            ("image_transport", TRANSPORTS),
            ("reliability", RELIABILITIES),
            ("record_format", RECORD_FORMATS),
        ):
            if getattr(self, name) not in known:
                raise SettingsError(
                    f"{name}: expected {' or '.join(known)}, got {getattr(self, name)!r}"
                )
        if len(set(self.cameras)) != len(self.cameras) or not all(
            name.isidentifier() for name in self.cameras if len(self.cameras) > 1 or name
        ):
            raise SettingsError(
                "cameras: expected distinct names of letters, digits and underscores, got "
                f"{list(self.cameras)}"
            )

    def detector(self, backend: Backend) -> Detector:
        """Return a model with these settings.

        Raises:
            ValueError: they name a class that the model does not know.
        """
        return Detector(
            backend,
            confidence=self.confidence,
            iou=self.iou,
            max_detections=self.max_detections,
            class_confidence=self.class_confidence,
            only=self.classes,
            tiling=self.tiling,
            tile_overlap=self.tile_overlap,
        )


def _read_thresholds(entries: list[str]) -> dict[str, float]:
    try:
        return parse_thresholds(entries)
    except ValueError as error:
        raise SettingsError(f"class_confidence: {error}") from None


def declare_detector_parameters(node: Node) -> None:
    """Declare the detector's parameters.

    Raises:
        rclpy.exceptions.ParameterException: a value given at the start has the wrong type or is
            out of its range.
    """
    _declare(
        node,
        "detector.yaml",
        {
            "model": _text(
                "Path of a model file; empty: the model that comes with the package. In flight: "
                "loaded and tried in the background, then swapped, or refused and set back."
            ),
            "runtime": _text(
                "tensorrt, onnxruntime, or auto: TensorRT where it is installed; for the next "
                "model."
            ),
            "allow_fallback": ParameterDescriptor(
                description="ONNX Runtime serves where TensorRT fails; for the next model."
            ),
            "confidence": _number("A detection's score must be greater than this.", 0.0, 1.0),
            "class_confidence": _text('Other thresholds for some classes: ["car=0.4"].'),
            "classes": _text('Names of the classes to report; [""]: all.'),
            "iou": _number(
                "Boxes of one class that overlap more are one object (dense heads only).", 0.0, 1.0
            ),
            "max_detections": _integer("At most this many per image, best first.", 1, 1000),
            "tiling": ParameterDescriptor(
                description="off, auto or ROWSxCOLUMNS: large images in tiles.",
                dynamic_typing=True,
            ),
            "tile_overlap": _number("Of neighbouring tiles, as a share of a tile.", 0.0, 0.5),
            "budget_ms": _number(
                "Time for one image in milliseconds; tiles that do not fit take turns; 0: no "
                "limit.",
                0.0,
                60000.0,
            ),
            "cameras": _text(
                'Names of the cameras: topics NAME/image and ~/NAME/detections; [""]: one '
                "without a name.",
                read_only=True,
            ),
            "image_transport": _text("raw or compressed; takes effect when activated."),
            "reliability": _text("auto, reliable or best_effort; takes effect when activated."),
            "max_age": _number(
                "Seconds; an older frame is dropped before inference; 0: no limit.", 0.0, 60.0
            ),
            "max_rate": _number("Frames per second and camera at most; 0: no limit.", 0.0, 1000.0),
            "record_directory": _text("Folder of the bags; with the next ~/record."),
            "record_budget_mb": _number(
                "Megabytes for all bags of this node, the oldest are deleted; with the next "
                "~/record.",
                10.0,
                1e6,
            ),
            "record_per_minute": _number(
                "Frames per minute and camera at most; with the next ~/record.", 0.1, 600.0
            ),
            "record_random": _number(
                "Share of chance, hard or not; with the next ~/record.", 0.0, 1.0
            ),
            "record_format": _text("jpeg or raw; with the next ~/record."),
            "silence_s": _number("No frame for so many seconds is reported.", 0.1, 60.0),
            "rate_warn_hz": _number("Fewer detections per second: WARN; 0: never.", 0.0, 1000.0),
            "latency_warn_ms": _number("A greater p95 latency: WARN; 0: never.", 0.0, 60000.0),
            "latency_error_ms": _number("A greater p95 latency: ERROR; 0: never.", 0.0, 60000.0),
            "failed_error_share": _number(
                "Share of failed inferences from which on it is an ERROR.", 0.0, 1.0
            ),
            "temperature_warn_c": _number("Degrees Celsius: WARN.", 0.0, 200.0),
            "temperature_error_c": _number("Degrees Celsius: ERROR.", 0.0, 200.0),
            "autostart": ParameterDescriptor(
                description="The node configures and activates itself when it starts.",
                read_only=True,
            ),
        },
    )


def declare_camera_parameters(node: Node) -> None:
    """Declare the camera's parameters, which are fixed once it runs.

    Raises:
        rclpy.exceptions.ParameterException: a value given at the start has the wrong type or is
            out of its range.
    """
    pair = "two numbers, in seconds"
    descriptors = {
        "source": ParameterDescriptor(
            description="A folder of pictures, a picture or a video; empty: a generated flight."
        ),
        "labels": ParameterDescriptor(
            description="Boxes of the source as JSON lines, published as ground truth."
        ),
        "loop": ParameterDescriptor(
            description="Start again at the end of the source; false: exit there."
        ),
        "rate": _number("Frames per second.", 0.1, 240.0),
        "seconds": _number("Exit after so long; 0: never.", 0.0, 86400.0),
        "frame_id": ParameterDescriptor(description="Frame of the images' headers."),
        "scene": ParameterDescriptor(description="Place of the generated flight; empty: any."),
        "seed": _integer("Seed of the generated flight.", 0, 2**31 - 1),
        "width": _integer("Width of the generated flight in pixels.", 64, 8192),
        "height": _integer("Height of the generated flight in pixels.", 64, 8192),
        "altitude": _number("Metres above the ground; 0: wanders.", 0.0, 150.0),
        "speed": _number("Metres per second over the ground.", 0.0, 100.0),
        "blur": _number("Motion blur in pixels; -1: the seed's weather.", -1.0, 64.0),
        "haze": _number("Share of the light; -1: the seed's weather.", -1.0, 0.95),
        "rolling_ms": _number("From the first row's exposure to the last's.", 0.0, 100.0),
        "drop": _number("Share of frames that never leave the camera.", 0.0, 1.0),
        "delay_ms": _number("From the exposure to the frame on its topic.", 0.0, 10000.0),
        "outage": ParameterDescriptor(description=f"Camera's silence: from, length; {pair}."),
        "clock_jump": ParameterDescriptor(description=f"Jump of the clock: at, by; {pair}."),
        "sim_time": ParameterDescriptor(description="Stamps from 0 on, published on /clock."),
        "listeners": _integer("Hold the first frame until so many subscribe.", 0, 100),
    }
    _declare_fixed(node, "camera.yaml", descriptors)


def declare_scorer_parameters(node: Node) -> None:
    """Declare the scorer's parameters, which are fixed once it runs.

    Raises:
        rclpy.exceptions.ParameterException: a value given at the start has the wrong type or is
            out of its range.
    """
    descriptors = {
        "output": ParameterDescriptor(description="Folder for the record and the pictures."),
        "confidence": _number("From which score on a detection counts.", 0.0, 1.0),
        "pictures": _integer("Frames of the worst misses to keep; 0: none.", 0, 100),
        "label_names": ParameterDescriptor(
            description="Names of the labels 0, 1, ... of a bounding-box camera."
        ),
    }
    _declare_fixed(node, "scorer.yaml", descriptors)


def declare_gazebo_truth_parameters(node: Node) -> None:
    """Declare the parameters of gazebo_truth, which are fixed once it runs.

    Raises:
        rclpy.exceptions.ParameterException: a value given at the start has the wrong type.
    """
    descriptors = {
        "shapes": ParameterDescriptor(description="File with the shapes of the world."),
        "camera": ParameterDescriptor(description="Which of its cameras: front or down."),
    }
    _declare_fixed(node, "gazebo_truth.yaml", descriptors)


def _declare_fixed(node: Node, file: str, descriptors: dict[str, ParameterDescriptor]) -> None:
    for descriptor in descriptors.values():
        descriptor.read_only = True
    _declare(node, file, descriptors)


def _declare(node: Node, file: str, descriptors: dict[str, ParameterDescriptor]) -> None:
    defaults = parameter_defaults(file)
    for name, descriptor in descriptors.items():
        node.declare_parameter(name, defaults[name], descriptor)


def _text(description: str, read_only: bool = False) -> ParameterDescriptor:
    return ParameterDescriptor(description=description, read_only=read_only)


def _number(description: str, low: float, high: float) -> ParameterDescriptor:
    limits = FloatingPointRange(from_value=low, to_value=high)
    return ParameterDescriptor(description=description, floating_point_range=[limits])


def _integer(description: str, low: int, high: int) -> ParameterDescriptor:
    # Step 0, the default, means any whole number on newer distributions only.
    limits = IntegerRange(from_value=low, to_value=high, step=1)
    return ParameterDescriptor(description=description, integer_range=[limits])
