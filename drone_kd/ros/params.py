"""The nodes' parameters. Their defaults are in config/, and nowhere else."""

from __future__ import annotations

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from drone_kd.config import parameter_defaults


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
            "model": ParameterDescriptor(
                description="Path of a model.onnx; empty: the model that comes with the package. "
                "Takes effect when the node is configured."
            ),
            "confidence": _number(
                "A detection's score must be greater than this; from the next frame on.", 0.0, 1.0
            ),
            "iou": _number(
                "Boxes of one class that overlap more are one object (dense heads only); "
                "from the next frame on.",
                0.0,
                1.0,
            ),
            "max_detections": _integer(
                "At most this many per image, best first; from the next frame on.", 1, 1000
            ),
            "runtime": ParameterDescriptor(
                description="tensorrt, onnxruntime, or auto: TensorRT where it is installed. "
                "Takes effect when the node is configured."
            ),
            "allow_fallback": ParameterDescriptor(
                description="ONNX Runtime serves where TensorRT fails. "
                "Takes effect when the node is configured."
            ),
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
    descriptors = {
        "source": ParameterDescriptor(
            description="A folder of pictures, a picture or a video; empty: a generated flight."
        ),
        "rate": _number("Frames per second.", 0.1, 240.0),
        "loop": ParameterDescriptor(
            description="Start again at the end of the source; false: exit there."
        ),
        "frame_id": ParameterDescriptor(description="Frame of the images' headers."),
        "width": _integer("Width of the generated flight in pixels.", 16, 8192),
        "height": _integer("Height of the generated flight in pixels.", 16, 8192),
        "seed": _integer("Seed of the generated flight.", 0, 2**31 - 1),
    }
    for descriptor in descriptors.values():
        descriptor.read_only = True
    _declare(node, "camera.yaml", descriptors)


def _declare(node: Node, file: str, descriptors: dict[str, ParameterDescriptor]) -> None:
    defaults = parameter_defaults(file)
    for name, descriptor in descriptors.items():
        node.declare_parameter(name, defaults[name], descriptor)


def _number(description: str, low: float, high: float) -> ParameterDescriptor:
    limits = FloatingPointRange(from_value=low, to_value=high)
    return ParameterDescriptor(description=description, floating_point_range=[limits])


def _integer(description: str, low: int, high: int) -> ParameterDescriptor:
    # Step 0, the default, means any whole number on newer distributions only.
    limits = IntegerRange(from_value=low, to_value=high, step=1)
    return ParameterDescriptor(description=description, integer_range=[limits])
