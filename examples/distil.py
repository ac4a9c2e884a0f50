"""Distil and export from Python: python examples/distil.py data.yaml teacher.pt yolo11n.pt out.

Requires the training part, which is AGPL-3.0.
"""

import sys
from pathlib import Path
from typing import Any

from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.export.export import export


def distil_and_export(
    data: str, teacher: str, student: str, output: Path, **settings: Any
) -> Path:
    """Return the exported student; `settings` are fields of `Config`, such as epochs."""
    config = Config(data=data, teacher=teacher, student=student, **settings)
    metrics = distill(config, output)
    for name in filter(metrics.get, ("teacher", "student")):  # predictions have no score
        print(f"{name}: mAP50-95 {100 * metrics[name]['map50_95']:.1f}")
    model = output / "model.onnx"
    export(output / "best.pt", model, data=data)  # raises if a gate does not hold
    return model


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    data, teacher, student, output = sys.argv[1:]
    try:
        print(distil_and_export(data, teacher, student, Path(output)))
    except (OSError, ValueError) as error:  # input that cannot work; the message says what to do
        sys.exit(str(error))
