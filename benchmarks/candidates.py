"""mAP50-95 of a dense head over the number of output rows.

    python -m benchmarks.candidates MODEL.pt --data data.yaml [--imgsz 640]

Rows are sorted by score, so a shorter output is the beginning of a longer one: the network runs
once per frame.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.runs import Result
from drone_kd_training.data.dataset import load_data
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import ExportGraph, TorchBackend

# 3840 is the limit of TensorRT's TopK.
ROWS = (100, 300, 500, 1000, 2000, 3840)


class FirstRows:
    """Backend that returns the first rows of another one, which runs once per frame."""

    def __init__(self, backend: TorchBackend) -> None:
        self.backend, self.spec, self.name = backend, backend.spec, backend.name
        self.fallback = ""
        self.rows: int | None = None
        self.seen: list[np.ndarray] = []
        self.position = 0

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Return all rows in the first pass over the frames, the first `rows` afterwards."""
        if self.rows is None:
            self.seen.append(self.backend.infer(batch))
            return self.seen[-1]
        self.position += 1
        return self.seen[self.position - 1][:, : self.rows]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--imgsz", type=int, default=640)
    a = parser.parse_args()
    model, _ = load_model(a.model)
    backend = TorchBackend(model, a.imgsz)
    backend.graph = ExportGraph(model, candidates=10**6)
    first = FirstRows(backend)
    whole = evaluate(first, a.data)["map50_95"]
    known = {"classes": " ".join(load_data(a.data).names), "image_sizes": str(a.imgsz)}
    result = Result(
        f"export/candidates-{Path(a.model).stem}",
        "rows returned by a dense head",
        ["rows", "mAP50-95", "minus all"],
        {"seeds": "none", **known},
    )
    result.add(f"all {first.seen[0].shape[1]}", f"{100 * whole:.3f}", "")
    for first.rows in ROWS:
        first.position = 0
        score = evaluate(first, a.data)["map50_95"]
        result.add(first.rows, f"{100 * score:.3f}", f"{100 * (score - whole):+.3f}")


if __name__ == "__main__":
    main()
