"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort

from drone_kd.core.decode import InferenceError
from drone_kd.core.preprocess import network_input
from drone_kd.core.spec import ModelError, ModelSpec, shape_matches

_FATAL_ONLY = 4
_TENSOR = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


class OrtBackend:
    """A model run by ONNX Runtime on the CPU; see `Backend`.

    Args:
        path: a model.onnx that describes itself.

    Raises:
        ModelError: the file is missing or unreadable, does not describe itself, or its graph
            differs from its description.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise ModelError(f"{path}: expected a model file, but it {problem}")
        threads = len(os.sched_getaffinity(0))
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY  # this class reports, in one line
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would burn a flight computer's cores between two frames.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's exceptions share no other base class
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{path}: ONNX Runtime {ort.__version__} cannot load it (truncated, or not an "
                f"ONNX model?): {reason}"
            ) from error
        try:
            self.spec = ModelSpec.from_metadata(session.get_modelmeta().custom_metadata_map)
            _check_graph(session, self.spec)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        self.name = f"onnxruntime {ort.__version__} CPU, {threads} threads"
        self._session = session
        self._input_name = session.get_inputs()[0].name

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run uint8 (batch, H, W, 3) BGR; returns float32 (batch, K, 6).

        Raises:
            InferenceError: the runtime failed.
        """
        try:
            feed = {self._input_name: network_input(batch, self.spec)}
            return self._session.run(None, feed)[0]
        except Exception as error:  # the runtime's exceptions share no other base class
            raise InferenceError(f"ONNX Runtime: {' '.join(str(error).split())[:200]}") from error


def _check_graph(session: ort.InferenceSession, spec: ModelSpec) -> None:
    """Raise ModelError unless the graph's input and output are the ones the spec promises."""
    for kind, nodes, dtype, shape in (
        ("input", session.get_inputs(), _TENSOR[spec.dtype], spec.input_shape),
        ("output", session.get_outputs(), "tensor(float)", spec.output_shape),
    ):
        if len(nodes) != 1 or nodes[0].type != dtype or not shape_matches(nodes[0].shape, shape):
            expected = f"one {dtype} {list(shape)}".replace("None", "any")
            got = ", ".join(f"{node.type} {node.shape}" for node in nodes)
            raise ModelError(f"graph {kind}: expected {expected} from its metadata, got {got}")
