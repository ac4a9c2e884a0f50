# SPDX-License-Identifier: AGPL-3.0-or-later
"""Export after quantization-aware distillation: the calibrated and the trained INT8 file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from drone_kd.core.model_spec import ModelSpec
from drone_kd_training.distillation.config import Config
from drone_kd_training.export.export import export
from drone_kd_training.export.flight_gates import LIMITS
from drone_kd_training.export.gate_table import gate_table
from drone_kd_training.tables import format_score

CALIBRATED, TRAINED = "calibrated.onnx", "model.onnx"


def export_both(config: Config, output: Path) -> str:
    """Export the student that a run started from, calibrated, and the student it ended with.

    ``config``: a finished run with ``quantize``; ``output``: its folder, gets both files. Returns
    both tables of gates, the mAP of both files, and which of the two to fly. The reference of the
    trained student is itself with its quantizers off: what its further training changed does not
    hide what INT8 costs. Raises ExportError if it fails a gate.
    """
    before = Path(config.student)
    int8 = partial(export, precision="int8", data=str(output / "data.yaml"), imgsz=config.imgsz)
    # Forced: it is the baseline of training, whatever it lost.
    calibrated_file, calibrated = int8(before, output / CALIBRATED, force=True)
    trained_file, trained = int8(output / "best.pt", output / TRAINED)
    scores = {
        "FP32": calibrated.metrics.get("map50_95_fp32"),
        "INT8, calibrated": calibrated.metrics.get("map50_95"),
        "FP32, trained": trained.metrics.get("map50_95_fp32"),
        "INT8, trained": trained.metrics.get("map50_95"),
    }
    table = "\n".join(f"{name:<28}{format_score(ap):>12}" for name, ap in scores.items())
    return (
        f"calibrated: {calibrated_file}\n{gate_table(calibrated)}\n"
        f"trained: {trained_file}\n{gate_table(trained)}\n"
        f"{'mAP50-95':<28}{'':>12}\n{table}\n{_verdict(calibrated, trained)}"
    )


def _verdict(calibrated: ModelSpec, trained: ModelSpec) -> str:
    if "map50_95" not in calibrated.metrics:
        return "no labels in val: which file is better was not measured"
    limit = 100 * LIMITS["int8 aware"].mean_ap
    lost = 100 * (calibrated.metrics["map50_95_fp32"] - calibrated.metrics["map50_95"])
    better = trained.metrics["map50_95"] > calibrated.metrics["map50_95"]
    if lost > limit:
        fly = TRAINED if better else CALIBRATED
        return f"calibration alone lost {lost:.2f} points, more than {limit}: fly {fly}"
    return (
        f"calibration alone holds ({lost:.2f} points lost, at most {limit}): training was not "
        f"needed, and its file is {'better' if better else 'no better'} here"
    )
