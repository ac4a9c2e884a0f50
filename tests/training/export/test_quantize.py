import numpy as np
import pytest
from onnx import numpy_helper

from drone_kd_training.export import graph_checks
from drone_kd_training.export.quantize import quantize


@pytest.mark.slow
def test_codes_and_scales(half):
    proto, graph, _ = half
    constants = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    first = constants["model.model.0.conv.weight"].astype(np.float32)
    names = [n for n, m in graph.named_modules() if type(m).__name__ == "Conv2d"]
    trained = np.full(len(first), 0.25, np.float32)
    inputs = {f"{n}.weight": 2.0 for n in names}
    quantized = quantize(proto, inputs, {"model.model.0.conv.weight": trained})
    constants = {i.name: numpy_helper.to_array(i) for i in quantized.graph.initializer}
    scale = constants["model.model.0.conv.weight_scale"]
    assert scale.dtype == np.float16
    assert scale == pytest.approx(trained / 127, rel=1e-3)
    codes = constants["model.model.0.conv.weight_quantized"]
    expected = np.clip(np.round(first / scale[0]), -128, 127)
    assert codes.dtype == np.int8
    assert np.abs(codes - expected).max() <= 1
    own = constants["model.model.1.conv.weight_quantized"]
    assert (np.abs(own.reshape(len(own), -1)).max(axis=1) == 127).all()
    assert graph_checks.problems(quantized, "int8") == []
