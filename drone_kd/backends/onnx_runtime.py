"""ONNX Runtime backend: on the CPU, or on an NVIDIA GPU if it was built with CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from drone_kd.core.arrays import Float32Array, UInt8Array
from drone_kd.core.model_spec import ModelError, ModelSpec, shape_matches
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.preprocess import network_input

_FATAL_ONLY = 4
_TENSOR = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


class OrtBackend:
    """Model run by ONNX Runtime; see `Backend`.

    ModelError: the file is unreadable, has no spec, or its graph differs from its spec.
    """

    def __init__(self, path: str | Path, fallback: str = "") -> None:
        threads = len(os.sched_getaffinity(0))
        options = _quiet_options(threads)
        providers = [name for name in (_CUDA, _CPU) if name in ort.get_available_providers()]
        self._session, self.spec = _open(Path(path), options, providers)
        active = self._session.get_providers()
        device = "CUDA" if active[0] == _CUDA else f"CPU, {threads} threads"
        if _CUDA in providers and _CUDA not in active:
            device += " (its CUDA provider does not start)"
        if fallback:
            device += ", instead of TensorRT"
        self.name = f"onnxruntime {ort.__version__} {device}"
        self.fallback = fallback
        self._input_name = self._session.get_inputs()[0].name

    def infer(self, batch: UInt8Array) -> Float32Array:
        """Run a batch; see `Backend.infer`."""
        try:
            feed = {self._input_name: network_input(batch, self.spec)}
            rows: Float32Array = self._session.run(None, feed)[0]
        except Exception as error:  # the runtime's exceptions share no other base class
            raise InferenceError(f"ONNX Runtime: {' '.join(str(error).split())[:200]}") from error
        return rows


def read_spec(path: Path) -> ModelSpec:
    """Return the spec of a model file; ModelError: see `OrtBackend`."""
    return ModelSpec.from_metadata(read_metadata(path))


def read_metadata(path: Path) -> Mapping[str, str]:
    """Return the metadata of a model file, checked against its graph as in `OrtBackend`."""
    options = _quiet_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    metadata: Mapping[str, str] = (
        _open(path, options, [_CPU])[0].get_modelmeta().custom_metadata_map
    )
    return metadata


def _quiet_options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # this module reports errors, in one line
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A memory pattern is allocated in addition to the memory of the first run: 25 MB for a nano
    # model, without a gain in speed.
    options.enable_mem_pattern = False
    # Spinning threads would keep the cores busy between two frames.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _open(
    path: Path, options: ort.SessionOptions, providers: list[str]
) -> tuple[ort.InferenceSession, ModelSpec]:
    """Load a model file and check its graph against its spec."""
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise ModelError(f"{path}: expected a model file, but it {problem}")
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=providers)
    except Exception as error:  # the runtime's exceptions share no other base class
        reason = " ".join(str(error).split())[:200]
        problem = "cannot load it (truncated, or not an ONNX model?)"
        raise ModelError(f"{path}: ONNX Runtime {ort.__version__} {problem}: {reason}") from error
    try:
        spec = ModelSpec.from_metadata(session.get_modelmeta().custom_metadata_map)
        _check_graph(session, spec)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return session, spec


def _check_graph(session: ort.InferenceSession, spec: ModelSpec) -> None:
    """Raise ModelError unless the graph's input and output match the spec."""
    for kind, nodes, dtype, shape in (
        ("input", session.get_inputs(), _TENSOR[spec.dtype], spec.input_shape),
        ("output", session.get_outputs(), "tensor(float)", spec.output_shape),
    ):
        if len(nodes) != 1 or nodes[0].type != dtype or not shape_matches(nodes[0].shape, shape):
            expected = f"one {dtype} {list(shape)}".replace("None", "any")
            got = ", ".join(f"{node.type} {node.shape}" for node in nodes)
            raise ModelError(f"graph {kind}: expected {expected} from its metadata, got {got}")
