# SPDX-License-Identifier: AGPL-3.0-or-later
"""Static checks of an exported graph against the rules of TensorRT.

A strongly typed TensorRT network (10.3 or later; for FP32 and FP16 also 8.6) accepts a graph
without problems and keeps its types.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

# FP32 and FP16: parsed by TensorRT ≥ 8.6. INT8: the first opset with float16 Q/DQ, parsed by
# TensorRT ≥ 10.0.
OPSETS = {"fp32": 17, "fp16": 17, "int8": 19}
MOST_ROWS = 3840  # TensorRT's TopK
_WEIGHTS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def problems(model: onnx.ModelProto, precision: str) -> list[str]:
    """Return the problems of a graph exported for "fp32", "fp16" or "int8", one line each."""
    return list(_problems(_Graph(model), precision))


class _Graph:
    """Graph with the type, the producer and the consumers of each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opsets = {opset.domain: opset.version for opset in model.opset_import}
        graph = onnx.shape_inference.infer_shapes(model).graph
        self.inputs, self.outputs, self.nodes = graph.input, graph.output, graph.node
        self.constants = {i.name: i for i in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.producers = {name: node for node in graph.node for name in node.output}
        self.types = {name: tensor.data_type for name, tensor in self.constants.items()}
        for value in (*graph.input, *graph.output, *graph.value_info):
            self.types[value.name] = value.type.tensor_type.elem_type

    def value(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.constants[name])

    def dequantizer(self, name: str) -> onnx.NodeProto | None:
        """Return the producer of a tensor if it is a DequantizeLinear."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None


def _problems(graph: _Graph, precision: str) -> Iterator[str]:
    if graph.opsets != {"": OPSETS[precision]}:
        yield f"opset: expected {OPSETS[precision]}, and of no other domain, got {graph.opsets}"
    for value in (*graph.inputs, *graph.outputs):
        yield from _value_problems(graph, value)
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield from _quantizer_problems(graph, node)
        if node.op_type == "TopK" and int(graph.value(node.input[1])[0]) > MOST_ROWS:
            yield f"{node.name}: more than {MOST_ROWS} rows"
    kept = _kept_in_float(graph)
    for node in kept:
        yield from _float_problems(graph, node)
    names = {node.name for node in kept}
    for node in graph.nodes:
        if node.op_type == "Conv" and node.name not in names:
            yield from _convolution_problems(graph, node, precision)


def _value_problems(graph: _Graph, value: onnx.ValueInfoProto) -> Iterator[str]:
    if not all(d.dim_value for d in value.type.tensor_type.shape.dim):
        yield f"{value.name}: the shape is not fixed"
    wrong = {n.op_type for n in graph.nodes if value.name in n.input} - {"Cast"}
    if graph.types[value.name] == TensorProto.UINT8 and wrong:
        yield f"{value.name}: uint8 can only be cast, but enters {', '.join(wrong)}"


def _quantizer_problems(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    if not all(name in graph.constants for name in node.input[1:]):
        yield f"{node.name}: scale and zero point must be constants"
        return
    scale, *zero_point = (graph.value(name).astype(np.float64) for name in node.input[1:])
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{node.name}: scales must be above 0"
    if zero_point and zero_point[0].any():
        yield f"{node.name}: zero points must be 0"
    if not zero_point or graph.types[node.input[2]] != TensorProto.INT8:
        yield f"{node.name}: must be signed 8-bit, with its zero point given"


def _kept_in_float(graph: _Graph) -> list[onnx.NodeProto]:
    """Return decoding, selection and the last convolutions of the head.

    These are the nodes between the outputs and the first convolutions on the way back from them.
    The convolution of DFL does not count: it computes a mean.
    """
    found: dict[str, onnx.NodeProto] = {}
    open_names = [value.name for value in graph.outputs]
    while open_names:
        node = graph.producers.get(open_names.pop())
        if node is None or node.name in found:
            continue
        found[node.name] = node
        if node.op_type != "Conv" or _is_mean(graph, node):
            open_names.extend(node.input)
    return list(found.values())


def _is_mean(graph: _Graph, node: onnx.NodeProto) -> bool:
    if node.input[1] not in graph.constants:
        return False
    weights = graph.value(node.input[1]).ravel()
    return len(weights) > 1 and np.array_equal(weights, np.arange(len(weights)))


def _float_problems(graph: _Graph, node: onnx.NodeProto) -> Iterator[str]:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield f"{node.name}: quantizes a node that must stay float32"
        return
    names = [*node.output, *(node.input if node.op_type == "Conv" else [])]
    if any(graph.types.get(name) == TensorProto.FLOAT16 for name in names):
        yield f"{node.name}: must stay float32, but is float16"
    if node.op_type == "Conv" and any(graph.dequantizer(name) for name in node.input):
        yield f"{node.name}: must stay float32, but is quantized"


def _convolution_problems(graph: _Graph, node: onnx.NodeProto, precision: str) -> Iterator[str]:
    sources = [graph.dequantizer(name) for name in node.input]
    weights = sources[1].input[0] if sources[1] is not None else node.input[1]
    if graph.types.get(weights) != _WEIGHTS[precision]:
        got = TensorProto.DataType.Name(graph.types.get(weights, 0))
        yield f"{node.name}: expected weights of {precision}, got {got}"
    if (sources[0] is not None) != (precision == "int8"):
        yield f"{node.name}: expected {'a' if precision == 'int8' else 'no'} quantized input"
    if sources[1] is not None:
        scales = graph.value(sources[1].input[1])
        axis = next((a.i for a in sources[1].attribute if a.name == "axis"), 1)
        channels = graph.constants[weights].dims[0] if weights in graph.constants else None
        if scales.shape != (channels,) or axis != 0:
            yield f"{node.name}: expected one scale per output channel, got {scales.shape}"
    for bias in node.input[2:]:
        if graph.dequantizer(bias) or graph.types.get(bias) not in _FLOATS:
            yield f"{node.name}: the bias is quantized"
