"""Model files that a careless or hostile sender might offer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from drone_kd.core.model_spec import METADATA_KEY
from tiny_model import tiny_spec, write_bright_cell_model, write_slow_model

# As good as endless.
_ENDLESS = 2**40
# Mean brightness above which an image counts as white.
_WHITE = 250.0


def write_endless_model(path: Path) -> Path:
    """Write a model that never answers for an image that is not black."""
    return write_slow_model(path, products=_ENDLESS)


def write_model_endless_for_white(path: Path) -> Path:
    """Write a model that detects every bright cell, and never answers for a white image."""
    return _write_partly_endless(path, [], "is_white")


def write_model_slow_unless_white(path: Path) -> Path:
    """Write a model that takes some ten seconds for an image that is not white."""
    negation = helper.make_node("Not", ["is_white"], ["is_other"])
    return _write_partly_endless(path, [negation], "is_other", loops=1_000_000)


def _write_partly_endless(
    path: Path, nodes: list[onnx.NodeProto], condition: str, loops: int = _ENDLESS
) -> Path:
    """Write a model that hangs where a condition, the output of the nodes, is true."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "matrix"], ["after"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [64, 64]),
        ],
    )
    nodes = [
        *nodes,
        helper.make_node("Cast", [condition], ["number_of_loops"], to=TensorProto.INT64),
        helper.make_node("Mul", ["number_of_loops", "endless"], ["times"]),
        helper.make_node("Loop", ["times", "true", "matrix"], ["product"], body=body),
        helper.make_node("ReduceSum", ["product"], ["nothing"], keepdims=0),
    ]
    constants = {"endless": np.int64(loops), "true": np.bool_(True)}
    return _write_extended(path, nodes, constants | {"matrix": np.zeros((64, 64), np.float32)})


def write_model_not_finite_for_white(path: Path) -> Path:
    """Write a model that detects every bright cell, and returns NaN for a white image."""
    nodes = [helper.make_node("Where", ["is_white", "nan", "null"], ["nothing"])]
    return _write_extended(path, nodes, {"nan": np.float32("nan"), "null": np.float32(0)})


def write_greedy_model(path: Path, gigabytes: int = 4000) -> Path:
    """Write a model that asks for that much memory."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["large"]),
        helper.make_node("Add", ["large", "mean"], ["sums"]),
        helper.make_node("ReduceMin", ["sums"], ["lowest"], keepdims=0),
        helper.make_node("Mul", ["lowest", "null"], ["nothing"]),
    ]
    constants = {"shape": np.array([1000, 1000, 250 * gigabytes], np.int64), "null": np.float32(0)}
    return _write_extended(path, nodes, constants)


def _write_extended(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], **spec: Any
) -> Path:
    """Write the bright-cell model with a number "nothing" added to its output.

    `nodes` compute it from "mean", the brightness of the image, and "is_white".
    """
    model = onnx.load(write_bright_cell_model(path, tiny_spec(**spec)))
    graph = model.graph
    graph.node[-1].output[0] = "cells_found"
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["float"], ["mean"], keepdims=0),
            helper.make_node("Greater", ["mean", "limit"], ["is_white"]),
            *nodes,
            helper.make_node("Add", ["cells_found", "nothing"], ["output0"]),
        ]
    )
    constants = {"limit": np.float32(_WHITE), **constants}
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def write_with_metadata(path: Path, **changes: Any) -> Path:
    """Write the bright-cell model with changed entries of its metadata, which nothing checks."""
    record = json.loads(tiny_spec().to_metadata()[METADATA_KEY]) | changes
    return write_with_raw_metadata(path, json.dumps(record))


def write_with_raw_metadata(path: Path, text: str) -> Path:
    """Write the bright-cell model with a text as its metadata."""
    model = onnx.load(write_bright_cell_model(path))
    del model.metadata_props[:]
    helper.set_model_props(model, {METADATA_KEY: text})
    onnx.save(model, str(path))
    return path


def write_external_model(path: Path) -> Path:
    """Write a model whose weights are in a file beside it."""
    model = onnx.load(write_bright_cell_model(path))
    onnx.save(
        model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


def write_hostile_models(folder: Path) -> dict[str, Path]:
    """Write one model of each kind that must be refused; return them by name."""

    def path(name: str) -> Path:
        return folder / f"{name}.onnx"

    names = {
        "escapes": ["car\x1b[2J\x1b]0;owned\x07", "person"],
        "surrogate": ["car\ud800", "person"],
        "empty name": ["", "person"],
        "megabyte": ["c" * 1_000_000, "person"],
        "reversed": ["\u202erac", "person"],
        "many": [f"class {number}" for number in range(100_000)],
    }
    models = {
        name: write_with_metadata(path(name), classes=value) for name, value in names.items()
    }
    models["endless"] = write_endless_model(path("endless"))
    models["greedy"] = write_greedy_model(path("greedy"))
    models["external"] = write_external_model(path("external"))
    models["nested"] = write_with_raw_metadata(path("nested"), "[" * 100_000)
    models["huge input"] = write_with_metadata(
        path("huge input"), input_width=8000, input_height=8000
    )
    models["huge number"] = write_with_raw_metadata(path("huge number"), "9" * 10_000)
    whole = write_bright_cell_model(path("truncated")).read_bytes()
    path("truncated").write_bytes(whole[: len(whole) // 2])
    path("empty").write_bytes(b"")
    path("noise").write_bytes(np.random.default_rng(0).bytes(10_000))
    models |= {name: path(name) for name in ("truncated", "empty", "noise")}
    return models


def write_unreadable_files(folder: Path) -> list[Path]:
    """Make things that are no model files, though their names say so."""
    (folder / "folder.onnx").mkdir()
    os.mkfifo(folder / "pipe.onnx")
    (folder / "zero.onnx").symlink_to("/dev/zero")
    (folder / "outside.onnx").symlink_to(__file__)
    (folder / "loop.onnx").symlink_to("loop.onnx")
    names = ("folder.onnx", "pipe.onnx", "zero.onnx", "outside.onnx", "loop.onnx", "missing.onnx")
    return [folder / name for name in names]
