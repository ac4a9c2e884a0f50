"""Declaration of ROS parameters: ranges and descriptions; the defaults come from config/."""

from __future__ import annotations

from collections.abc import Mapping

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from drone_kd.paths import parameter_defaults
from drone_kd.ros.ignored_parameters import ignored_parameters
from drone_kd.text import one_line

_AT_RECORD = "applies to the next ~/record."


def declare(node: Node, file: str, descriptors: Mapping[str, ParameterDescriptor]) -> list[str]:
    """Declare parameters by name, with their defaults from a file in config/.

    Returns and logs a line for each name given at startup that has no effect.

    Raises:
        rclpy.exceptions.ParameterException: a value given at startup has the wrong type or is out
            of range.
    """
    defaults = parameter_defaults(file)
    for name, descriptor in descriptors.items():
        node.declare_parameter(name, defaults[name], descriptor)
    ignored = ignored_parameters(node, descriptors)
    for line in ignored:
        node.get_logger().warning(one_line(line, 500))
    return ignored


def declare_read_only(
    node: Node, file: str, descriptors: Mapping[str, ParameterDescriptor]
) -> None:
    """Declare parameters that cannot change after startup; see `declare`."""
    for descriptor in descriptors.values():
        descriptor.read_only = True
    declare(node, file, descriptors)


def other(description: str, **options: bool) -> ParameterDescriptor:
    """Return the descriptor of a parameter without a range; `options` are its other fields."""
    return ParameterDescriptor(description=description, **options)


def number(description: str, low: float, high: float, **options: bool) -> ParameterDescriptor:
    """Return the descriptor of a float in [low, high]; `options` are its other fields."""
    limits = FloatingPointRange(from_value=low, to_value=high)
    return ParameterDescriptor(description=description, floating_point_range=[limits], **options)


def integer(description: str, low: int, high: int) -> ParameterDescriptor:
    """Return the descriptor of an integer in [low, high]."""
    # Step 0, the default, allows every integer on newer distributions only.
    limits = IntegerRange(from_value=low, to_value=high, step=1)
    return ParameterDescriptor(description=description, integer_range=[limits])


def declare_detector_parameters(node: Node) -> list[str]:
    """Declare the detector's parameters; see `declare`."""
    descriptors = {
        "model": other(
            "Path of a model file; empty: the default model of the package. While active: loaded "
            "and tested in the background, then swapped in, or rejected and set back."
        ),
        "model_directories": other(
            'Folders from which `model` may be loaded; [""]: that of the model given at startup, '
            "and that of the default model.",
            read_only=True,
        ),
        "swap_timeout_s": number(
            "Maximum time for the trial of a new model, in s; it is ended then.",
            1.0,
            3600.0,
            read_only=True,
        ),
        "runtime": other(
            "tensorrt, onnxruntime, or auto: TensorRT if installed; applies to the next model."
        ),
        "allow_fallback": other(
            "Run the model with ONNX Runtime if TensorRT fails; applies to the next model."
        ),
        "may_build": other(
            "Build a missing TensorRT engine while configuring; false: only drone-kd build does."
        ),
        "confidence": number("Minimum score of a detection (exclusive).", 0.0, 1.0),
        "class_confidence": other('Thresholds per class instead of confidence: ["car=0.4"].'),
        "classes": other('Names of the classes to publish; [""]: all.'),
        "iou": number("NMS threshold within a class (dense heads only).", 0.0, 1.0),
        "max_detections": integer("Maximum per image, best first.", 1, 1000),
        "tiling": other("off, auto or ROWSxCOLUMNS: split large images.", dynamic_typing=True),
        "tile_overlap": number("Overlap of neighbouring tiles, fraction of a tile.", 0.0, 0.5),
        "budget_ms": number(
            "Time budget per image in ms; tiles beyond it take turns; 0: no limit.", 0.0, 60000.0
        ),
        "cameras": other(
            'Camera names: topics NAME/image and ~/NAME/detections; [""]: one without a name.',
            read_only=True,
        ),
        "camera_settings": other(
            "Values of single cameras for confidence, classes and tiling: "
            '["front.confidence=0.4", "front.classes=car,person", "down.tiling=2x3"].'
        ),
        "camera": other(
            "Device, URL, GStreamer pipeline or file that this process reads; empty: topics.",
            read_only=True,
        ),
        "image_transport": other("raw, compressed or ffmpeg."),
        "reliability": other("auto, reliable or best_effort."),
        "max_megapixels": number(
            "Drop compressed images of this size or larger without decoding them.", 1.0, 1000.0
        ),
        "max_age": number("Drop frames older than this, in s; 0: no limit.", 0.0, 60.0),
        "max_rate": number("Maximum frames per second per camera; 0: no limit.", 0.0, 1000.0),
        "record_directory": other("Folder of the bags.", read_only=True),
        "record_budget_mb": number(
            "Size limit of the node's bags in MB, the oldest are deleted.",
            10.0,
            1e6,
            read_only=True,
        ),
        "record_per_minute": number(
            f"Maximum frames per minute per camera; {_AT_RECORD}", 0.1, 600.0
        ),
        "record_random": number(f"Fraction of randomly chosen frames; {_AT_RECORD}", 0.0, 1.0),
        "record_format": other(f"jpeg or raw; {_AT_RECORD}"),
        "record_private": other("Only the node's user can read the bags.", read_only=True),
        "silence_s": number("Report a camera without frames for this long, in s.", 0.1, 60.0),
        "stall_s": number(
            "ERROR if frames are received, but none has a result for this long, in s.", 0.1, 600.0
        ),
        "rate_warn_hz": number("WARN below this detection rate, in Hz; 0: never.", 0.0, 1000.0),
        "latency_warn_ms": number("WARN above this p95 latency, in ms; 0: never.", 0.0, 60000.0),
        "latency_error_ms": number("ERROR above this p95 latency, in ms; 0: never.", 0.0, 60000.0),
        "failed_error_share": number("ERROR at this fraction of failed inferences.", 0.0, 1.0),
        "temperature_warn_c": number("WARN at this temperature, in °C.", 0.0, 200.0),
        "temperature_error_c": number("ERROR at this temperature, in °C.", 0.0, 200.0),
        "autostart": other("Configure and activate at startup.", read_only=True),
    }
    return declare(node, "detector.yaml", descriptors)
