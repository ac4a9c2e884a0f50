"""Tiny models with a spec, so that tests run a real runtime on real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from drone_kd.backends.golden import GoldenImage, write_golden
from drone_kd.backends.model_file import read_model_file
from drone_kd.backends.onnx_runtime import OrtBackend
from drone_kd.core.model_spec import ModelSpec

CLASSES = ("car", "person")


def tiny_spec(**changes: Any) -> ModelSpec:
    """Return the spec of a tiny model, with some fields changed."""
    values: dict[str, Any] = {
        "classes": CLASSES,
        "input_width": 64,
        "input_height": 64,
        "head": "dense",
        "source_sha256": "0" * 64,
        "tools": {"onnx": onnx.__version__},
        "metrics": {"map50": 0.5},
        "licence": "Apache-2.0",
    }
    return ModelSpec(**{**values, **changes})


def write_bright_cell_model(path: Path, spec: ModelSpec | None = None, cell: int = 8) -> Path:
    """Write a dense model that detects every bright cell of a grid as a "car".

    The canvas is divided into cells of `cell` px. Each cell is one output row: its box is the
    cell, its score the cell's mean brightness / 255, so a white cell scores 1.0 and the grey
    padding 0.447. Brightest first.
    """
    spec = spec or tiny_spec()
    rows, columns = spec.input_height // cell, spec.input_width // cell
    y, x = np.mgrid[:rows, :columns].reshape(2, -1) * cell
    constants = {
        "boxes": np.stack([x, y, x + cell, y + cell], axis=1).astype(np.float32),
        "scale": np.float32(1 / 255),
        "one_row": np.array([spec.batch, x.size], np.int64),
        "all": np.array([x.size], np.int64),
        "channel_axis": np.array([1], np.int64),
        "last_axis": np.array([2], np.int64),
        "zero": np.float32(0),
        "one": np.float32(1),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("ReduceMean", ["unit"], ["grey"], axes=[3], keepdims=0),
        helper.make_node("Unsqueeze", ["grey", "channel_axis"], ["plane"]),
        helper.make_node(
            "AveragePool", ["plane"], ["cells"], kernel_shape=[cell] * 2, strides=[cell] * 2
        ),
        helper.make_node("Reshape", ["cells", "one_row"], ["flat"]),
        helper.make_node("Clip", ["flat", "zero", "one"], ["scores"]),
        helper.make_node("TopK", ["scores", "all"], ["sorted", "order"]),
        helper.make_node("Gather", ["boxes", "order"], ["xyxy"]),
        helper.make_node("Unsqueeze", ["sorted", "last_axis"], ["score"]),
        helper.make_node("Mul", ["score", "zero"], ["car"]),
        helper.make_node("Concat", ["xyxy", "score", "car"], ["output0"], axis=2),
    ]
    return _save(path, spec, nodes, constants, (spec.batch, x.size, 6))


def write_fixed_model(path: Path, output: np.ndarray, spec: ModelSpec | None = None) -> Path:
    """Write a model that returns the float32 `output` for every image."""
    nodes = [
        # The output must depend on the input, or the runtime removes the input.
        helper.make_node("ReduceMax", ["images"], ["peak"], keepdims=0),
        helper.make_node("Cast", ["peak"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "zero"], ["nothing"]),
        helper.make_node("Add", ["fixed", "nothing"], ["output0"]),
    ]
    constants = {"fixed": output.astype(np.float32), "zero": np.float32(0)}
    return _save(path, spec or tiny_spec(), nodes, constants, output.shape)


def write_slow_model(path: Path, spec: ModelSpec | None = None, products: int = 10) -> Path:
    """Write a model that detects nothing and takes longer for a brighter image.

    It multiplies 512 x 512 matrices, `products` times the brightest value (0 to 255).
    """
    spec = spec or tiny_spec()
    matrix = [512, 512]
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "matrix"], ["after"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, matrix),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, matrix),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["peak"], keepdims=0),
        helper.make_node("Cast", ["peak"], ["value"], to=TensorProto.INT64),
        helper.make_node("Mul", ["value", "products"], ["times"]),
        helper.make_node("Loop", ["times", "go", "matrix"], ["product"], body=body),
        helper.make_node("ReduceSum", ["product"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["fixed", "nothing"], ["output0"]),
    ]
    shape = (spec.batch, 1, 6)
    constants = {
        "products": np.int64(products),
        "go": np.bool_(True),
        "matrix": np.zeros(matrix, np.float32),
        "zero": np.float32(0),
        "fixed": np.zeros(shape, np.float32),
    }
    return _save(path, spec, nodes, constants, shape)


def with_golden(path: Path, rows_of: Path | None = None) -> Path:
    """Add golden images of noise to a tiny model; `rows_of`: the rows of another model."""
    file = read_model_file(path)
    backend = OrtBackend(rows_of or path)
    rng = np.random.default_rng(0)
    images = []
    for zoom in (1, 2, 4):
        levels = rng.integers(0, 16, (32 // zoom, 32 // zoom, 3), dtype=np.uint8)
        image = GoldenImage(8, 16, zoom, levels, np.zeros((0, 6), np.float32))
        batch = np.stack([image.canvas(backend.spec)] * backend.spec.batch)
        images.append(replace(image, rows=backend.infer(batch)[0, :20]))
    extra = onnx.ModelProto()
    helper.set_model_props(extra, write_golden(images))
    path.write_bytes(file.content + extra.SerializeToString())  # joined, the two are one message
    return path


def _save(
    path: Path,
    spec: ModelSpec,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    output_shape: tuple[int, ...],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, list(spec.input_shape))],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(output_shape))],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, spec.to_metadata())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def quantize_bias(model: onnx.ModelProto) -> None:
    """Give the first convolution of a model an int32 bias behind a DequantizeLinear."""
    conv = next(n for n in model.graph.node if n.op_type == "Conv" and len(n.input) > 2)
    channels = next(i.dims[0] for i in model.graph.initializer if i.name == conv.input[2])
    for name, array in (
        ("bias_codes", np.ones(channels, np.int32)),
        ("bias_scale", np.full(channels, 0.01, np.float16)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    inputs = ["bias_codes", "bias_scale"]
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", inputs, ["bias"], "dequantize_bias", axis=0)
    )
    conv.input[2] = "bias"
