"""Quantization-aware distillation with Ultralytics' own quantizers."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import polars
import pytest
import torch
from onnx import numpy_helper
from ultralytics.utils.torch_utils import is_qat, prepare_qat

from drone_kd.backends import open_backend
from drone_kd.cli import main
from drone_kd_training.distillation.config import Config
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.export.export import export, write
from drone_kd_training.export.gate_outcomes import FAILS, outcome
from drone_kd_training.export.graph_checks import problems
from drone_kd_training.export.qat import _verdict
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import (
    ExportGraph,
    TorchBackend,
    without_quantizers,
)
from square_detector import draw_squares, save_square_detector
from tiny_training import SIZE, save_checkpoint

pytest.importorskip("modelopt", reason="no nvidia-modelopt (training/requirements.txt)")


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """A data set on which the square detector's mAP does not depend on rounding."""
    return draw_squares(tmp_path_factory.mktemp("squares"), side=14, train=12, val=8)


@pytest.fixture(scope="module")
def command(squares, square_detector, tmp_path_factory) -> list[str]:
    before = save_square_detector(tmp_path_factory.mktemp("before") / "before.pt", (12, 12))
    arguments = ["distill", "--data", str(squares), "--teacher", str(square_detector)]
    arguments += ["--from", str(before), "--quantize", "int8", "--epochs", "1", "--batch", "6"]
    return [*arguments, "--imgsz", str(SIZE), "--no-val", "--terms", "class,box,assign"]


@pytest.fixture(scope="module")
def run(command, tmp_path_factory) -> tuple[Path, Path]:
    """The folder of a finished run, and the student it started from."""
    folder = tmp_path_factory.mktemp("qat") / "run"
    assert main([*command, "--output", str(folder)]) == 0
    return folder, Path(command[command.index("--from") + 1])


@pytest.mark.slow
def test_both_teachers_contribute_to_the_loss(run):
    table = polars.read_csv(run[0] / "results.csv")
    for name in ("kd_cls_loss", "kd_dfl_loss", "kd_float_cls_loss"):
        assert table[f"train/{name}"][0] > 0, name
    # The detector's boxes do not depend on the image, so quantization does not change them.
    assert table["train/kd_float_dfl_loss"][0] >= 0


@pytest.mark.slow
def test_both_files_are_written_and_pass(run):
    folder, _ = run
    for name in ("model.onnx", "calibrated.onnx"):
        spec = open_backend(folder / name).spec
        assert spec.precision == "int8"
        assert spec.gates["graph problems"]["measured"] == 0
        assert FAILS not in map(outcome, spec.gates.values())
        assert spec.metrics["map50_95"] > 0.3
    assert spec.calibration["frames"] == 12
    assert open_backend(folder / "model.onnx").spec.calibration["frames"] == 48  # 8 batches of 6


@pytest.mark.slow
def test_file_computes_what_was_trained(run):
    """Scales are those of training, and scores those of the simulated INT8."""
    model, _ = load_model(str(run[0] / "best.pt"))
    assert is_qat(model)
    graph = ExportGraph(model, half=True)
    inputs, weights = graph.ranges
    assert not is_qat(graph)
    assert inputs.keys() == weights.keys()
    proto = onnx.load(run[0] / "model.onnx")
    constants = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    for name, largest in weights.items():
        scale = constants[f"{name}_scale"]
        np.testing.assert_allclose(scale, largest / 127, rtol=2e-3, atol=1e-7)
    frames = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    backends = TorchBackend(model, SIZE), open_backend(run[0] / "model.onnx")
    a, b = (backend.infer(frames)[0, :, 4] for backend in backends)
    np.testing.assert_allclose(a, b, atol=0.02)


@pytest.mark.slow
def test_ranges_of_a_real_architecture(tiny_data, tmp_path):
    """Without training: Ultralytics prepares the packaged student, and the graph is sound."""
    model, _ = load_model(str(save_checkpoint(tmp_path / "best.pt")))
    frames = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    prepare_qat(model, [frames], lambda batch: batch, batches=1)
    spec = TorchBackend(model, SIZE).spec
    calibration = {"frames": 2, "data": "", "names_sha256": ""}
    write(
        model,
        replace(spec, precision="int8", calibration=calibration),
        [],
        tmp_path / "model.onnx",
    )
    assert problems(onnx.load(tmp_path / "model.onnx"), "int8") == []


@pytest.mark.slow
def test_qat_checkpoint_is_exported_as_int8_only(run, squares, tmp_path):
    with pytest.raises(ValueError, match="was trained for INT8: export it with --precision int8"):
        export(run[0] / "best.pt", tmp_path / "model.onnx", "fp16", str(squares))
    command = ["export", str(run[0] / "best.pt"), "--precision", "int8"]
    command += ["--data", str(squares), "--output", str(tmp_path / "model.onnx")]
    assert main(command) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student", "yolo11n.yaml", "--quantize", "int8"], "--from best.pt"),
        (["--from", "yolo11n.yaml", "--quantize", "int8"], "needs a trained checkpoint"),
        (["--from", "best.pt", "--quantize", "int8"], "quantize needs a teacher"),
        (["--from", "best.pt"], "--quantize int8 goes with --from"),
    ],
)
def test_bad_input(options, message, tiny_data, tmp_path, capsys):
    command = ["distill", "--data", str(tiny_data), "--teacher", "none", *options]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_quantize_does_not_go_with_unlabelled_frames():
    with pytest.raises(ValueError, match="does not go with unlabelled frames"):
        Config("d", "t.pt", "s.pt", quantize="int8", unlabelled="frames")


@pytest.mark.slow
def test_resumed_run_only_exports(run, command, tmp_path):
    folder, _ = run
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.onnx"))
    assert main([*command, "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert (tmp_path / "run" / "model.onnx").is_file()
    trained = (tmp_path / "run" / "results.csv").read_bytes()
    assert trained == (folder / "results.csv").read_bytes()


@pytest.mark.slow
def test_verdict(run):
    spec = open_backend(run[0] / "model.onnx").spec

    def scored(score):
        return replace(spec, metrics={"map50_95": score, "map50_95_fp32": 0.5})

    assert "calibration alone holds (0.10 points lost" in _verdict(scored(0.499), scored(0.495))
    assert "no better" in _verdict(scored(0.499), scored(0.495))
    assert "lost 2.00 points, more than 0.5: fly model.onnx" in _verdict(scored(0.48), scored(0.5))
    assert "more than 0.5: fly calibrated.onnx" in _verdict(scored(0.48), scored(0.47))
    assert "not measured" in _verdict(replace(spec, metrics={}), spec)


@pytest.mark.slow
def test_reference_is_the_trained_model_with_its_quantizers_off(run, squares):
    """What further training changed is no loss of the file, and what INT8 costs is."""
    model, _ = load_model(str(run[0] / "best.pt"))
    plain = without_quantizers(model)
    assert is_qat(model) and not is_qat(plain)
    assert without_quantizers(plain) is plain
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name])
    frames = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    a, b = (TorchBackend(m, SIZE).infer(frames)[0, :, 4] for m in (model, plain))
    assert np.abs(a - b).max() > 1e-4
    spec = open_backend(run[0] / "model.onnx").spec
    expected = evaluate(plain, squares, imgsz=SIZE)["map50_95"]
    assert spec.metrics["map50_95_fp32"] == pytest.approx(expected, abs=1e-4)
