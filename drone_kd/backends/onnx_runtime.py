"""ONNX Runtime backend: on the CPU, or on an NVIDIA GPU if it was built with CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from drone_kd.backends.model_file import ModelFile, read_model_file
from drone_kd.core.arrays import Float32Array, UInt8Array
from drone_kd.core.model_spec import ModelError, ModelSpec, shape_matches
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.preprocess import network_input
from drone_kd.text import one_line

_FATAL_ONLY = 4
_MAX_ROWS = 1_000_000
_TENSOR = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


class OrtBackend:
    """Model run by ONNX Runtime; see `Backend`. A fallback from TensorRT runs on the CPU.

    ModelError: the file is unreadable, has no spec, or its graph differs from its spec.
    """

    def __init__(self, model: str | Path | ModelFile, fallback: str = "") -> None:
        threads = len(os.sched_getaffinity(0))
        options = _quiet_options(threads)
        wanted = (_CPU,) if fallback else (_CUDA, _CPU)
        providers = [name for name in wanted if name in ort.get_available_providers()]
        self._session, self.spec = _open(_read(model), options, providers)
        active = self._session.get_providers()
        device = "CUDA" if active[0] == _CUDA else f"CPU, {threads} threads"
        if _CUDA in providers and _CUDA not in active:
            device += " (its CUDA provider does not start)"
        if fallback:
            device += ", instead of TensorRT"
        self.name = f"onnxruntime {ort.__version__} {device}"
        self.fallback = fallback
        self._rows: int = self._session.get_outputs()[0].shape[1]
        self._input_name = self._session.get_inputs()[0].name
        self._run = ort.RunOptions()
        self._run.log_severity_level = _FATAL_ONLY

    def infer(self, batch: UInt8Array) -> Float32Array:
        """Run a batch; see `Backend.infer`."""
        self._run.terminate = False
        try:
            feed = {self._input_name: network_input(batch, self.spec)}
            rows: Float32Array = self._session.run(None, feed, self._run)[0]
        except Exception as error:  # the runtime's exceptions share no other base class
            raise InferenceError(f"ONNX Runtime: {one_line(error)}") from error
        shape = self.spec.batch, self._rows, 6
        if rows.shape != shape:
            raise InferenceError(f"ONNX Runtime: expected rows of {shape}, got {rows.shape}")
        return rows

    def cancel(self) -> None:
        """End an inference of another thread after its current operator: InferenceError."""
        self._run.terminate = True


def read_spec(model: str | Path | ModelFile) -> ModelSpec:
    """Return the spec of a model file; ModelError: see `OrtBackend`."""
    return _open_unoptimised(_read(model))


def read_metadata(model: str | Path | ModelFile) -> Mapping[str, str]:
    """Return the metadata of a model file, checked against its graph as in `OrtBackend`."""
    file = _read(model)
    _open_unoptimised(file)
    return file.metadata


def _read(model: str | Path | ModelFile) -> ModelFile:
    return model if isinstance(model, ModelFile) else read_model_file(model)


def _open_unoptimised(file: ModelFile) -> ModelSpec:
    options = _quiet_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _open(file, options, [_CPU])[1]


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
    file: ModelFile, options: ort.SessionOptions, providers: list[str]
) -> tuple[ort.InferenceSession, ModelSpec]:
    """Load a model and check its graph against its spec."""
    try:
        # First: a spec with an absurd size is refused before the runtime allocates anything.
        spec = ModelSpec.from_metadata(file.metadata)
        session = _session(file.content, options, providers)
        _check_graph(session, spec)
    except ModelError as error:
        raise ModelError(f"{one_line(file.path)}: {error}") from None
    except UnicodeDecodeError:  # of the runtime, for a name of the graph
        problem = "expected names in UTF-8 in its graph, got other bytes"
        raise ModelError(f"{one_line(file.path)}: {problem}") from None
    return session, spec


def _session(
    content: bytes, options: ort.SessionOptions, providers: list[str]
) -> ort.InferenceSession:
    # Not the runtime's own format, which `read_model_file` does not check.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        session = ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # the runtime's exceptions share no other base class
        problem = f"ONNX Runtime {ort.__version__} cannot load it: {one_line(error)}"
        raise ModelError(problem) from error
    session._model_bytes = b""  # kept for a change of providers, which is never made
    return session


def _check_graph(session: ort.InferenceSession, spec: ModelSpec) -> None:
    """Raise ModelError unless the graph's input and output match the spec."""
    for kind, nodes, dtype, shape in (
        ("input", session.get_inputs(), _TENSOR[spec.dtype], spec.input_shape),
        ("output", session.get_outputs(), "tensor(float)", spec.output_shape),
    ):
        names = [node.name for node in nodes]
        if len(names) != 1 or nodes[0].type != dtype or not shape_matches(nodes[0].shape, shape):
            expected = f"one {dtype} {list(shape)}".replace("None", "any")
            got = one_line(", ".join(f"{node.type} {node.shape}" for node in nodes))
            raise ModelError(f"graph {kind}: expected {expected} from its metadata, got {got}")
    rows = session.get_outputs()[0].shape[1]
    if not isinstance(rows, int):
        got = one_line(rows, 50)
        raise ModelError(f"graph output: expected a fixed number of rows, got {got!r}")
    if rows * spec.batch > _MAX_ROWS:
        raise ModelError(f"graph output: expected at most {_MAX_ROWS} rows, got {rows}")
