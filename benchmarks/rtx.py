"""Build check with TensorRT-RTX, which needs no GPU.

It is strong evidence that TensorRT accepts a file, but no proof: it does not know a Jetson's GPU
and cannot run its plan here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import tensorrt_rtx_bindings as trt


class Verdict(NamedTuple):
    """Result of a build."""

    errors: list[str]  # of the parser
    convolutions: list[tuple[str, str, bool]]  # input and output type, input is quantized
    plan: int  # size of the plan in bytes; 0: no plan


class _Silent(trt.ILogger):
    def log(self, severity: object, message: str) -> None:
        pass


_LOGGER = _Silent()


def build(model: Path) -> Verdict:
    """Parse a file into a strongly typed network and build it for an Ampere GPU (SM 8.6)."""
    builder = trt.Builder(_LOGGER)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, _LOGGER)
    if not parser.parse(model.read_bytes()):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return Verdict(errors, [], 0)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {
        layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)
    }
    convolutions = []
    for layer in layers:
        if layer.type == trt.LayerType.CONVOLUTION:
            maker = makers.get(layer.get_input(0).name)
            quantized = maker is not None and maker.type == trt.LayerType.DEQUANTIZE
            types = (layer.get_input(0).dtype.name, layer.get_output(0).dtype.name)
            convolutions.append((*types, quantized))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    plan = builder.build_serialized_network(network, config)
    return Verdict([], convolutions, 0 if plan is None else plan.nbytes)
