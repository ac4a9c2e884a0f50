"""Faulty graphs that TensorRT refuses or computes differently, made from a sound one."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from drone_kd_training.export.graph_checks import problems
from tiny_model import quantize_bias


@pytest.fixture(scope="module")
def sound(int8_model):
    return onnx.load(int8_model)


@pytest.fixture
def graph(sound):
    copy = onnx.ModelProto()
    copy.CopyFrom(sound)
    return copy


def constant(model, end):
    """Return the first initializer whose name ends in ``end``."""
    return next(i for i in model.graph.initializer if i.name.endswith(end))


def change(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def first(model, op_type):
    return next(n for n in model.graph.node if n.op_type == op_type)


def test_sound_graph_has_no_problems(graph):
    assert problems(graph, "int8") == []


def test_other_precision_is_reported(graph):
    assert any("expected weights of fp16, got INT8" in p for p in problems(graph, "fp16"))
    assert any("opset: expected 17" in p for p in problems(graph, "fp16"))


def test_asymmetric_zero_point_is_reported(graph):
    change(constant(graph, "_zero_point"), np.array(3, np.int8))
    assert any("zero points must be 0" in p for p in problems(graph, "int8"))


def test_one_scale_for_all_channels_is_reported(graph):
    scale = constant(graph, "weight_scale")
    zero = next(i for i in graph.graph.initializer if i.name == scale.name[:-5] + "zero_point")
    change(scale, np.array(0.1, np.float16))
    change(zero, np.array(0, np.int8))
    assert any("one scale per output channel" in p for p in problems(graph, "int8"))


def test_scale_of_zero_is_reported(graph):
    scale = constant(graph, "weight_scale")
    change(scale, numpy_helper.to_array(scale) * 0)
    assert any("scales must be above 0" in p for p in problems(graph, "int8"))


def test_quantized_bias_is_reported(graph):
    quantize_bias(graph)
    assert any("the bias is quantized" in p for p in problems(graph, "int8"))


def test_float16_in_the_decoding_is_reported(graph):
    concat = graph.graph.node[-1]
    assert concat.op_type == "Concat"
    graph.graph.node.insert(
        len(graph.graph.node) - 1,
        onnx.helper.make_node("Cast", [concat.input[0]], ["half"], "c", to=TensorProto.FLOAT16),
    )
    graph.graph.node.insert(
        len(graph.graph.node) - 1,
        onnx.helper.make_node("Cast", ["half"], ["back"], "d", to=TensorProto.FLOAT),
    )
    concat.input[0] = "back"
    assert "c: must stay float32, but is float16" in problems(graph, "int8")


def test_uint8_that_is_not_cast_first_is_reported(graph):
    cast = first(graph, "Cast")
    assert list(cast.input) == ["frames"]
    graph.graph.node.insert(0, onnx.helper.make_node("Identity", ["frames"], ["same"], "i"))
    cast.input[0] = "same"
    assert "frames: uint8 can only be cast, but enters Identity" in problems(graph, "int8")


def test_dynamic_shape_is_reported(graph):
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    assert "frames: the shape is not fixed" in problems(graph, "int8")
