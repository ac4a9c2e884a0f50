"""Changes of an exported graph: faults that a gate must refuse, and harmless ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

Change = Callable[[onnx.ModelProto], None]


def change_output(
    proto: onnx.ModelProto, nodes: list[tuple[str, list[str], str]], **constants: object
) -> None:
    """Append nodes between a graph's rows, "before", and its output, "after".

    Args:
        proto: an exported graph.
        nodes: operator, inputs and output of each.
        constants: inputs of the nodes, by name.
    """
    output = proto.graph.output[0].name
    producer = next(node for node in proto.graph.node if output in node.output)
    producer.output[:] = ["before" if name == output else name for name in producer.output]
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for operator, inputs, result in nodes:
        name = output if result == "after" else result
        proto.graph.node.append(helper.make_node(operator, inputs, [name], f"mutant_{result}"))


def affine(scale: list[float], shift: list[float]) -> Change:
    """Multiply and shift the columns x1, y1, x2, y2, score, class."""

    def change(proto: onnx.ModelProto) -> None:
        nodes = [("Mul", ["before", "scale"], "scaled"), ("Add", ["scaled", "shift"], "after")]
        change_output(proto, nodes, scale=np.float32(scale), shift=np.float32(shift))

    return change


def scores_times(factor: float) -> Change:
    """Multiply the scores, and clip them at 1."""

    def change(proto: onnx.ModelProto) -> None:
        scale, most = np.float32([1, 1, 1, 1, factor, 1]), np.float32([1e9] * 4 + [1, 1e9])
        nodes = [("Mul", ["before", "scale"], "scaled"), ("Min", ["scaled", "most"], "after")]
        change_output(proto, nodes, scale=scale, most=most)

    return change


def silence_class(class_id: int) -> Change:
    """Give each box of a class the score 0."""

    def change(proto: onnx.ModelProto) -> None:
        nodes = [
            ("MatMul", ["before", "pick_class"], "class_ids"),
            ("Equal", ["class_ids", "silent"], "is_silent"),
            ("Mul", ["before", "without_score"], "silenced"),
            ("Where", ["is_silent", "silenced", "before"], "after"),
        ]
        pick, without = np.eye(6, dtype=np.float32)[:, 5:], np.float32([1, 1, 1, 1, 0, 1])
        silent = np.float32(class_id)
        change_output(proto, nodes, pick_class=pick, without_score=without, silent=silent)

    return change


def swap_two_classes(proto: onnx.ModelProto) -> None:
    """Swap the classes 0 and 1 of a model that has no others."""
    affine([1, 1, 1, 1, 1, -1], [0, 0, 0, 0, 0, 1])(proto)


def not_a_number_on_dark_frames(proto: onnx.ModelProto, level: float = 90) -> None:
    """Return NaN for frames whose mean value is below ``level``."""
    nodes = [
        ("Cast", ["frames"], "frames_float"),
        ("ReduceMean", ["frames_float"], "brightness"),
        ("Less", ["brightness", "dark"], "is_dark"),
        ("Where", ["is_dark", "nan", "zero"], "offset"),
        ("Reshape", ["offset", "one"], "flat_offset"),
        ("Add", ["before", "flat_offset"], "after"),
    ]
    constants = {"dark": np.float32(level), "nan": np.float32(np.nan), "zero": np.float32(0)}
    change_output(proto, nodes, one=np.int64([1]), **constants)
    cast = next(node for node in proto.graph.node if node.name == "mutant_frames_float")
    cast.attribute.append(helper.make_attribute("to", onnx.TensorProto.FLOAT))


def zero_class_channel(proto: onnx.ModelProto) -> None:
    """Set the last convolution's output channel of class 0 to zero."""
    names = [node.input[1:3] for node in proto.graph.node if node.op_type == "Conv"]
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for weights, bias in [pair for pair in names if len(pair) == 2 and pair[0] in tensors]:
        if tensors[weights].dims[0] == 2:  # classes of the tiny detectors
            for name in (weights, bias):
                values = numpy_helper.to_array(tensors[name]).copy()
                values[0] = 0
                tensors[name].CopyFrom(numpy_helper.from_array(values, name))
            return
    raise AssertionError("the graph has no convolution with an output channel per class")


def reverse_rows(proto: onnx.ModelProto) -> None:
    """Return the rows in reverse order."""
    rows = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    nodes = [("Gather", ["before", "backwards"], "after")]
    change_output(proto, nodes, backwards=np.arange(rows, dtype=np.int64)[::-1].copy())
    proto.graph.node[-1].attribute.append(helper.make_attribute("axis", 1))


def noise_in_scores(proto: onnx.ModelProto, size: float = 0.002) -> None:
    """Add up to ``size`` to each score or subtract it, by the box's place; keep 0 to 1."""
    nodes = [
        ("MatMul", ["before", "place"], "phase"),
        ("Sin", ["phase"], "wave"),
        ("Mul", ["wave", "size"], "noise"),
        ("Add", ["before", "noise"], "noisy"),
        ("Max", ["noisy", "least"], "positive"),
        ("Min", ["positive", "most"], "after"),
    ]
    place = np.float32([[7919], [104729], [0], [0], [0], [0]]) / 997
    bounds = {"least": np.float32([-1e9] * 4 + [0, 0]), "most": np.float32([1e9] * 4 + [1, 1e9])}
    change_output(proto, nodes, place=place, size=np.float32([0, 0, 0, 0, size, 0]), **bounds)
