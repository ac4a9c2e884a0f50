import hashlib
import json

import numpy as np
import onnx
import pytest
import torch
import yaml
from ultralytics.nn.tasks import ClassificationModel

from drone_kd.backends import open_backend
from drone_kd.cli import main
from drone_kd.lineage import descend, generations
from drone_kd_training.data.dataset import DataError
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.export.export import TOLERANCES, ExportError, Tolerance, export, gate_table
from drone_kd_training.export.graph_checks import problems
from drone_kd_training.models.checkpoints import UnusableModelError, load_model
from drone_kd_training.models.torch_backend import TorchBackend
from tiny_training import NAMES, SIZE, save_checkpoint

ROWS = ("box, px, 100 % of rows", "score, 100 % of rows")


def test_the_file_describes_itself_and_computes_the_same(tiny_data, tiny_teacher, tmp_path):
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes(tiny_teacher.read_bytes())
    output = tmp_path / "out" / "model.onnx"
    written, told = export(checkpoint, output, data=str(tiny_data), attribution="somebody")
    assert written == output
    assert [p.name for p in output.parent.iterdir()] == ["model.onnx"]
    spec = open_backend(output).spec
    assert spec == told and set(spec.gates) == {"graph problems", *ROWS}
    assert all(gate["measured"] <= gate["limit"] for gate in spec.gates.values())
    assert spec.metrics["map50_95"] == evaluate(output, tiny_data)["map50_95"]
    assert spec.classes == NAMES and (spec.input_width, spec.input_height) == (SIZE, SIZE)
    assert spec.head == "dense" and spec.attribution == "somebody" and spec.licence == "AGPL-3.0"
    assert spec.source_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert {"ultralytics", "torch", "onnx", "opset"} <= set(spec.tools)


def test_without_data_the_figures_are_those_of_the_run(tiny_teacher, tmp_path):
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes(tiny_teacher.read_bytes())
    (tmp_path / "metrics.json").write_text(
        json.dumps({"student": {"map50_95": 0.25, "map50": 0.5}})
    )
    _, spec = export(checkpoint, tmp_path / "model.onnx", precision="fp16")
    assert spec.metrics == {"map50_95": 0.25, "map50": 0.5} and spec.calibration == {}


@pytest.mark.parametrize("architecture", ["aerial-student.yaml", "yolo11n.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions(architecture, precision, tiny_data, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "best.pt", architecture=architecture)
    full, _ = export(checkpoint, tmp_path / "full.onnx")
    # Forced: the answers of an untrained network hang on the last digit.
    written, spec = export(
        checkpoint, tmp_path / "low.onnx", precision, data=str(tiny_data), force=True
    )
    assert spec.gates["graph problems"]["measured"] == 0
    assert problems(onnx.load(written), precision) == []
    assert written.stat().st_size < {"fp16": 0.7, "int8": 0.6}[precision] * full.stat().st_size
    frames = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    a, b = (open_backend(path).infer(frames)[0, :, 4].mean() for path in (full, written))
    assert a == pytest.approx(b, abs=0.05)
    if precision == "int8":
        assert spec.calibration["frames"] == 12 and len(spec.calibration["names_sha256"]) == 64
        assert "map50_95_fp32" in spec.metrics


def test_a_wide_input(tiny_data, tiny_teacher, tmp_path):
    """For wide frames: what Ultralytics' own forward pass says of the same pixels."""
    output = tmp_path / "wide.onnx"
    command = ["export", str(tiny_teacher), "--data", str(tiny_data), "--output", str(output)]
    assert main([*command, "--imgsz", f"{SIZE}x{2 * SIZE}"]) == 0
    backend = open_backend(output)
    assert backend.spec.input_shape == (1, SIZE, 2 * SIZE, 3)
    frames = np.random.default_rng(0).integers(0, 256, backend.spec.input_shape, dtype=np.uint8)
    rows = backend.infer(frames)[0]
    model, _ = load_model(str(tiny_teacher))
    with torch.inference_mode():
        pictures = torch.tensor(frames[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
        answer = model(pictures)[0][0]  # (x, y, w, h and the classes' scores, anchors)
    scores, order = answer[4:].max(dim=0).values.sort(descending=True)
    x, y, w, h = answer[:4, order]
    wanted = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, scores], dim=1)
    np.testing.assert_allclose(rows[:10, 4], wanted[:10, 4], atol=1e-4)
    np.testing.assert_allclose(rows[0, :4], wanted[0, :4], atol=0.05)
    assert rows[:, 2].max() > SIZE
    with pytest.raises(SystemExit):
        main([*command, "--imgsz", "64x"])
    assert main([*command, "--imgsz", "64x100"]) == 2


def test_int8_needs_frames(tiny_data, tiny_teacher, tmp_path):
    with pytest.raises(ValueError, match="give --data"):
        export(tiny_teacher, tmp_path / "model.onnx", "int8")
    content = yaml.safe_load(tiny_data.read_text())
    (tmp_path / "none").mkdir()
    content.update(path=str(tiny_data.parent), train=str(tmp_path / "none"))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match="no picture in"):
        export(tiny_teacher, tmp_path / "model.onnx", "int8", data=str(tmp_path / "data.yaml"))
    assert not list(tmp_path.glob("*.onnx"))


def test_a_checkpoint_with_another_head(tmp_path):
    model = ClassificationModel("yolo11n-cls.yaml", verbose=False)
    torch.save({"model": model, "train_args": {}}, tmp_path / "best.pt")
    with pytest.raises(UnusableModelError, match="must be a detector with a Detect head"):
        export(tmp_path / "best.pt", tmp_path / "model.onnx")


def test_end_to_end_head(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "y26.pt", architecture="yolo26n.yaml")
    model, _ = load_model(str(checkpoint))
    _, spec = export(checkpoint, tmp_path / "model.onnx")
    backend = open_backend(tmp_path / "model.onnx")
    assert backend.spec.head == ("end2end" if model.model[-1].end2end else "dense")
    assert spec.gates["box, px, 100 % of rows"]["measured"] < 0.05


@pytest.mark.parametrize("architecture", ["aerial-student.yaml", "yolo26n.yaml"])
def test_several_frames_and_float_input(architecture, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "best.pt", architecture=architecture)
    export(checkpoint, tmp_path / "one.onnx")
    export(checkpoint, tmp_path / "many.onnx", batch=3, input_="float32-nchw")
    one, many = (open_backend(tmp_path / f"{name}.onnx") for name in ("one", "many"))
    assert many.spec.input_shape == (3, 3, SIZE, SIZE)
    frames = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    together = many.infer(frames)
    for frame, rows in zip(frames, together, strict=True):
        np.testing.assert_allclose(rows, one.infer(frame[None])[0], atol=0.05)


def test_colour_order_is_part_of_the_graph(tiny_teacher):
    """The graph takes BGR: the same picture as RGB floats through the plain model gives the
    same answer.
    """
    frame = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    model, _ = load_model(str(tiny_teacher))
    rgb = torch.from_numpy(frame[..., ::-1].transpose(0, 3, 1, 2).copy()).float() / 255
    expected = model(rgb)[0][0].detach().numpy()  # (cx, cy, w, h, scores) x anchors
    best = expected[:, expected[4:].max(axis=0).argmax()]
    row = TorchBackend(model, SIZE).infer(frame)[0, 0]
    assert row[4] == pytest.approx(best[4:].max(), abs=1e-4) and row[5] == best[4:].argmax()
    centre, size = best[:2], best[2:4]
    np.testing.assert_allclose(row[:4], [*centre - size / 2, *centre + size / 2], atol=0.01)


def test_a_graph_that_differs_is_not_written(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCES, "fp32", Tolerance(1.0, 0.05, -1.0, 0.1))
    output = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match="not written: score, 100 % of rows: .*, at most -1"):
        export(tiny_teacher, output)
    assert list(tmp_path.iterdir()) == []
    written, spec = export(tiny_teacher, output, force=True)
    assert written.name == "model.failed.onnx" and list(tmp_path.iterdir()) == [written]
    assert "FAILS" in gate_table(spec)


def test_a_file_says_what_it_comes_from(tiny_teacher, tmp_path):
    parent, _ = export(tiny_teacher, tmp_path / "parent.onnx")
    lineage = descend(parent, "python -m training retrain", {"night": "e" * 64})
    child, spec = export(tiny_teacher, tmp_path / "child.onnx", lineage=lineage)
    itself, ancestor = generations(child)
    assert open_backend(child).spec == spec
    assert itself.command == "python -m training retrain" and itself.data == {"night": "e" * 64}
    assert ancestor.sha256 == hashlib.sha256(parent.read_bytes()).hexdigest()


def test_output_must_be_onnx(tiny_teacher, tmp_path):
    with pytest.raises(ValueError, match="must end in .onnx"):
        export(tiny_teacher, tmp_path / "model.engine")
