"""Quantization-aware distillation, on real parts: Ultralytics' own quantizers under our losses."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import polars
import pytest
from onnx import numpy_helper
from ultralytics.utils.torch_utils import is_qat

from drone_kd.backends import open_backend
from drone_kd.cli import main
from drone_kd_training.distillation.config import Config
from drone_kd_training.export.export import export
from drone_kd_training.export.qat import _verdict
from drone_kd_training.models.checkpoints import load_model
from drone_kd_training.models.torch_backend import FlightGraph, TorchBackend
from tiny_training import SIZE, save_checkpoint

pytest.importorskip("modelopt", reason="no nvidia-modelopt (training/requirements.txt)")


@pytest.fixture(scope="module")
def run(tiny_data, tiny_teacher, tmp_path_factory):
    """The folder of a finished run, and the student it started from."""
    folder = tmp_path_factory.mktemp("qad")
    before = save_checkpoint(folder / "before.pt")
    command = ["distill", "--data", str(tiny_data), "--teacher", str(tiny_teacher)]
    command += ["--from", str(before), "--quantize", "int8", "--output", str(folder / "run")]
    command += ["--epochs", "1", "--imgsz", str(SIZE), "--batch", "6", "--no-val"]
    command += ["--terms", "class,box,assign"]
    assert main(command) == 0
    return folder / "run", before


def test_both_teachers_are_learnt_from(run):
    table = polars.read_csv(run[0] / "results.csv")
    for name in ("kd_cls_loss", "kd_dfl_loss", "kd_float_cls_loss", "kd_float_dfl_loss"):
        assert table[f"train/{name}"][0] > 0, name


def test_both_files_are_written_and_pass(run):
    folder, before = run
    for name in ("model.onnx", "calibrated.onnx"):
        spec = open_backend(folder / name).spec
        assert spec.precision == "int8" and spec.gates["graph problems"]["measured"] == 0
        assert all(gate["measured"] <= gate["limit"] for gate in spec.gates.values())
    assert spec.calibration["frames"] == 12
    assert open_backend(folder / "model.onnx").spec.calibration["frames"] == 48  # 8 batches of 6


def test_the_file_computes_what_was_trained(run, tiny_data):
    """Its scales are those of training, and its answers those of the simulated INT8."""
    model, _ = load_model(str(run[0] / "best.pt"))
    assert is_qat(model)
    graph = FlightGraph(model, half=True)
    inputs, weights = graph.ranges
    assert not is_qat(graph) and inputs.keys() == weights.keys()
    proto = onnx.load(run[0] / "model.onnx")
    constants = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    for name, largest in weights.items():
        scale = constants[f"{name}_scale"]
        np.testing.assert_allclose(scale, largest / 127, rtol=2e-3, atol=1e-7)
    frames = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    backends = TorchBackend(model, SIZE), open_backend(run[0] / "model.onnx")
    a, b = (backend.infer(frames)[0, :, 4] for backend in backends)
    np.testing.assert_allclose(a, b, atol=0.02)


def test_it_is_exported_as_int8_alone(run, tiny_data, tmp_path):
    with pytest.raises(ValueError, match="was trained for INT8: export it with --precision int8"):
        export(run[0] / "best.pt", tmp_path / "model.onnx", "fp16", str(tiny_data))
    with pytest.raises(ValueError, match="name the float one with --from"):
        export(run[0] / "best.pt", tmp_path / "model.onnx", "int8", str(tiny_data))
    command = ["export", str(run[0] / "best.pt"), "--precision", "int8", "--from", str(run[1])]
    command += ["--data", str(tiny_data), "--output", str(tmp_path / "model.onnx")]
    assert main(command) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--student", "yolo11n.yaml", "--quantize", "int8"], "--from best.pt"),
        (["--from", "yolo11n.yaml", "--quantize", "int8"], "needs a trained checkpoint"),
        (["--from", "best.pt", "--quantize", "int8"], "quantize needs a teacher"),
        (["--from", "best.pt"], "--quantize int8 goes with --from"),
    ],
)
def test_bad_input(options, says, tiny_data, tmp_path, capsys):
    command = ["distill", "--data", str(tiny_data), "--teacher", "none", *options]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert says in message and len(message.strip().splitlines()) == 1


def test_what_quantize_does_not_go_with(tmp_path):
    with pytest.raises(ValueError, match="does not go with unlabelled frames"):
        Config("d", "t.pt", "s.pt", quantize="int8", unlabelled="frames")


def test_a_resumed_run_only_exports(run, tiny_data, tiny_teacher, tmp_path):
    folder, before = run
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.onnx"))
    command = ["distill", "--data", str(tiny_data), "--teacher", str(tiny_teacher), "--resume"]
    command += ["--from", str(before), "--quantize", "int8", "--output", str(tmp_path / "run")]
    assert main([*command, "--imgsz", str(SIZE)]) == 0
    assert (tmp_path / "run" / "model.onnx").is_file()


def test_verdict(run):
    spec = open_backend(run[0] / "model.onnx").spec

    def scored(score):
        return replace(spec, metrics={"map50_95": score, "map50_95_fp32": 0.5})

    assert "calibration alone holds (0.10 points lost" in _verdict(scored(0.499), scored(0.495))
    assert "no better" in _verdict(scored(0.499), scored(0.495))
    assert "lost 2.00 points, more than 0.5: fly model.onnx" in _verdict(scored(0.48), scored(0.5))
