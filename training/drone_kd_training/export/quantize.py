# SPDX-License-Identifier: AGPL-3.0-or-later
"""INT8 quantization of an ONNX graph: symmetric Q/DQ around every convolution not kept in float.

TensorRT's rules for explicit quantization: zero points 0, one scale per tensor for the input of a
convolution and one per output channel for its weights, no quantized bias. The rest of the graph
does not change.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

# The largest code; -128 is not used.
CODES = 127
# Scale of an all-zero channel: the smallest positive float16.
_SMALLEST_SCALE = 2.0**-24


def quantize(
    model: onnx.ModelProto, inputs: dict[str, float], weights: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """Insert Q/DQ around every convolution whose weights are float16; float32 ones stay float.

    ``model``: an FP16 graph of opset 19 or later. ``inputs``: largest input magnitude of each such
    convolution, by the name of its weights. ``weights``: weight magnitudes of quantization-aware
    training, float32 (output channels,), by the same name (default: taken from the weights).
    """
    initializers = {i.name: i for i in model.graph.initializer}
    half = [
        node
        for node in model.graph.node
        if node.op_type == "Conv"
        and initializers[node.input[1]].data_type == onnx.TensorProto.FLOAT16
    ]
    ranges, overrides = {}, {}
    for node in half:
        name = node.input[1]
        bound = np.float16(inputs[name])
        ranges[node.input[0]] = TensorData(lowest=-bound, highest=bound)
        overrides[name] = [
            {"axis": 0, "quant_type": QuantType.QInt8, "scale": scale, "zero_point": 0}
            for scale in _weight_scales(initializers[name], weights or {})
        ]
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[node.name for node in half],
        nodes_to_exclude=[],
        op_types_to_quantize=["Conv"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "DedicatedQDQPair": True,
            # TensorRT fuses the activation that follows, unless a Q/DQ stands between them.
            "OpTypesToExcludeOutputQuantization": ["Conv"],
            "TensorQuantOverrides": overrides,
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _weight_scales(tensor: onnx.TensorProto, trained: dict[str, np.ndarray]) -> np.ndarray:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    largest = trained.get(tensor.name)
    if largest is None:
        largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    return np.maximum(largest / CODES, _SMALLEST_SCALE).astype(np.float16)
