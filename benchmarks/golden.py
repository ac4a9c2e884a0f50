"""Sensitivity of the golden images of the default model to faulty layers and to rounding.

    python -m benchmarks.golden

Changes the weights of drone_kd/models/default.onnx (FP16) and counts the files that are refused,
on ONNX Runtime. "Rounding" multiplies each weight by a random factor within 1 ± 2^-11 or 2^-10:
half of the distance between two FP16 numbers or all of it, as a stand-in for a runtime that rounds
differently. Takes three minutes on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.runs import Result
from drone_kd.backends.golden import Reproduction, read_golden, reproduce
from drone_kd.backends.model_file import ModelFile, read_model_file
from drone_kd.backends.onnx_runtime import OrtBackend
from drone_kd.core.arrays import Float32Array
from drone_kd.paths import default_model_path
from drone_kd.progress import track

Change = Callable[[Float32Array], Float32Array]

SEEDS = 4
FACTORS = (0.9, 0.97)
ROUNDINGS = (11, 10)


def main() -> None:
    """Measure and write benchmarks/export/golden.csv."""
    file = read_model_file(default_model_path())
    layers = convolutions(file)
    seeds, classes = map(str, range(SEEDS)), OrtBackend(file).spec.classes
    known = {"seeds": " ".join(seeds), "classes": " ".join(classes), "image_sizes": "640"}
    columns = ("change", "files", "refused", "largest box px", "largest score")
    result = Result("export/golden", "golden images: faulty layers", columns, known)
    for bits in ROUNDINGS:
        changes = [rounding(seed, bits) for seed in range(SEEDS)]
        found = [check(changed(file, change, layers)) for change in track(changes, "Rounding")]
        result.add(f"all layers, rounding 2^-{bits}", *summary(found))
    for factor in FACTORS:
        names = track(layers, f"Layers x {factor}", "file")
        found = [check(changed(file, lambda v: v * np.float32(factor), [n])) for n in names]  # noqa: B023  used at once
        result.add(f"one layer, weights x {factor}", *summary(found))


def convolutions(file: ModelFile) -> list[str]:
    """Return the names of the convolutions' weights."""
    graph = onnx.ModelProto.FromString(file.content).graph
    return [node.input[1] for node in graph.node if node.op_type == "Conv"]


def rounding(seed: int, bits: int) -> Change:
    """Return a change of each weight by a random factor within 1 ± 2^-bits."""
    rng = np.random.default_rng(seed)

    def change(values: Float32Array) -> Float32Array:
        return values * (1 + rng.uniform(-1, 1, values.shape) * 2.0**-bits).astype(np.float32)

    return change


def changed(file: ModelFile, change: Change, names: list[str]) -> ModelFile:
    """Return a model file with other weights."""
    proto = onnx.ModelProto.FromString(file.content)
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            values = numpy_helper.to_array(tensor)
            new = change(values.astype(np.float32)).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return replace(file, content=proto.SerializeToString())


def check(file: ModelFile) -> Reproduction:
    """Run a model file on its golden images."""
    backend = OrtBackend(file)
    return reproduce(backend, read_golden(file.metadata, backend.spec))


def summary(found: list[Reproduction]) -> tuple[str, ...]:
    """Return the cells of a row."""
    refused = sum(not one.holds for one in found)
    box, score = max(one.box_px for one in found), max(one.score for one in found)
    return str(len(found)), str(refused), f"{float(f'{box:.2g}'):g}", f"{score:.2g}"


if __name__ == "__main__":
    main()
