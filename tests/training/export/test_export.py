import hashlib
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from ultralytics.nn.tasks import ClassificationModel

import drone_kd_training.export.export
from drone_kd.backends import open_backend
from drone_kd.cli import main
from drone_kd.core.model_spec import INPUTS, PRECISIONS
from drone_kd.lineage import descend, generations, read_ancestry
from drone_kd_training.data.dataset import DataError, image_paths, load_data
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.export.export import ExportError, export, write
from drone_kd_training.export.flight_gates import INVALID
from drone_kd_training.export.gate_outcomes import FAILS, outcome
from drone_kd_training.export.gate_table import gate_table
from drone_kd_training.export.graph_checks import problems
from drone_kd_training.models.checkpoints import UnusableModelError, load_model
from drone_kd_training.models.torch_backend import TorchBackend
from onnx_mutants import affine, not_a_number_on_dark_frames, scores_times
from square_detector import draw_squares
from tiny_training import NAMES, SIZE, save_checkpoint

ROWS = ("box, px, 100 % of rows", "score, 100 % of rows")


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """A data set on which the square detector's mAP does not depend on rounding."""
    return draw_squares(tmp_path_factory.mktemp("squares"), side=14, val=12)


@pytest.mark.slow
def test_file_describes_itself_and_computes_the_same(tiny_data, square_detector, tmp_path):
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes(square_detector.read_bytes())
    output = tmp_path / "out" / "model.onnx"
    told = {"attribution": "somebody", "ancestry": "taught by a test"}
    written, returned = export(checkpoint, output, data=str(tiny_data), **told)
    assert written == output
    assert [p.name for p in output.parent.iterdir()] == ["model.onnx"]
    spec = open_backend(output).spec
    assert spec == returned
    assert {"graph problems", *ROWS, INVALID, "boxes lost, %", "recall lost, %"} <= set(spec.gates)
    assert failed(spec) == []
    assert spec.metrics["map50_95"] == evaluate(output, tiny_data)["map50_95"] > 0.05
    assert spec.classes == NAMES
    assert (spec.input_width, spec.input_height) == (SIZE, SIZE)
    assert (spec.head, spec.attribution, spec.licence) == ("dense", "somebody", "AGPL-3.0")
    assert read_ancestry(output) == "taught by a test"
    assert spec.source_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert {"ultralytics", "torch", "onnx", "opset"} <= set(spec.tools)


def test_without_data_the_metrics_are_those_of_the_training_run(square_detector, tmp_path):
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes(square_detector.read_bytes())
    (tmp_path / "metrics.json").write_text(
        json.dumps({"student": {"map50_95": 0.25, "map50": 0.5}})
    )
    _, spec = export(checkpoint, tmp_path / "model.onnx", precision="fp16")
    assert "detections in flight: not measured; give --data" in gate_table(spec)
    assert spec.metrics == {"map50_95": 0.25, "map50": 0.5}
    assert spec.calibration == {}


def failed(spec) -> list[str]:
    return [name for name, gate in spec.gates.items() if outcome(gate) == FAILS]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_gate_fails_for_a_sound_export(precision, squares, square_detector, tmp_path):
    _, spec = export(square_detector, tmp_path / "model.onnx", precision, str(squares))
    assert failed(spec) == []
    assert ("mAP50-95 lost, points" in spec.gates) == (precision != "fp32")
    assert spec.metrics["map50_95"] > 0.3
    if precision == "int8":
        assert spec.calibration["frames"] == 6
        assert spec.metrics["map50_95_fp32"] == pytest.approx(spec.metrics["map50_95"], abs=0.01)


def insert_identity_after_input(proto: onnx.ModelProto) -> None:
    cast = next(node for node in proto.graph.node if "frames" in node.input)
    cast.input[0] = "same"
    identity = onnx.helper.make_node("Identity", ["frames"], ["same"], "identity")
    proto.graph.node.insert(0, identity)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "change", "precision"),
    [
        ("graph problems", insert_identity_after_input, "fp16"),
        ("score, 99 % of rows", affine([1, 1, 1, 1, 0.985, 1], [0] * 6), "fp16"),
        ("box, px, 100 % of rows", affine([1] * 6, [0.2] * 4 + [0, 0]), "fp32"),
        ("mAP50-95 lost, points", affine([1] * 6, [1.9] * 4 + [0, 0]), "int8"),
        ("boxes lost, %", scores_times(0.3), "int8"),
        (INVALID, partial(not_a_number_on_dark_frames, level=130), "fp32"),
    ],
)
def test_gate_refuses_a_faulty_graph(
    gate, change, precision, squares, square_detector, tmp_path, monkeypatch
):
    def write_and_change(*arguments) -> None:
        write(*arguments)
        proto = onnx.load(arguments[-1])
        change(proto)
        onnx.save(proto, arguments[-1])

    monkeypatch.setattr(drone_kd_training.export.export, "write", write_and_change)
    output = tmp_path / "out" / "model.onnx"
    with pytest.raises(ExportError, match=f"not written: .*{re.escape(gate)}"):
        export(square_detector, output, precision, str(squares))
    assert list(output.parent.iterdir()) == []
    written, spec = export(square_detector, output, precision, str(squares), force=True)
    assert written.name == "model.failed.onnx"
    assert list(output.parent.iterdir()) == [written]
    assert gate in failed(spec)
    if "rows" in gate or gate == "graph problems":  # nothing that flies has changed
        assert failed(spec) == [gate]
    lines = [line for line in gate_table(spec).splitlines() if "FAILS" in line]
    assert [line.startswith(name) for line, name in zip(lines, failed(spec), strict=True)]
    assert failed(open_backend(written).spec) == failed(spec)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["aerial-student.yaml", "yolo11n.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_of_real_architectures(architecture, precision, tiny_data, tmp_path):
    path = tmp_path / "low.onnx"
    model, _ = load_model(str(save_checkpoint(tmp_path / "best.pt", architecture=architecture)))
    calibration = {"frames": 2, "data": "", "names_sha256": ""} if precision == "int8" else {}
    full = TorchBackend(model, SIZE)
    spec = replace(full.spec, precision=precision, calibration=calibration)
    write(model, spec, image_paths(load_data(tiny_data).train)[:2], path)
    assert problems(onnx.load(path), precision) == []
    weights = sum(p.numel() for p in model.parameters())
    assert path.stat().st_size < {"fp16": 2.8, "int8": 2.4}[precision] * weights
    frames = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    a, b = (backend.infer(frames)[0, :, 4].mean() for backend in (full, open_backend(path)))
    assert a == pytest.approx(b, abs=0.05)


def test_wide_input_equals_ultralytics_forward_pass(tiny_data, square_detector, tmp_path):
    output = tmp_path / "wide.onnx"
    command = ["export", str(square_detector), "--data", str(tiny_data), "--output", str(output)]
    assert main([*command, "--imgsz", f"{SIZE}x{2 * SIZE}"]) == 0
    backend = open_backend(output)
    assert backend.spec.input_shape == (1, SIZE, 2 * SIZE, 3)
    frames = np.random.default_rng(0).integers(0, 256, backend.spec.input_shape, dtype=np.uint8)
    rows = backend.infer(frames)[0]
    model, _ = load_model(str(square_detector))
    with torch.inference_mode():
        images = torch.tensor(frames[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
        output = model(images)[0][0]  # (x, y, w, h and the classes' scores, anchors)
    scores, order = output[4:].max(dim=0).values.sort(descending=True)
    x, y, w, h = output[:4, order]
    wanted = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, scores], dim=1)
    np.testing.assert_allclose(rows[:10, 4], wanted[:10, 4], atol=1e-4)
    np.testing.assert_allclose(rows[0, :4], wanted[0, :4], atol=0.05)
    assert rows[:, 2].max() > SIZE


def test_bad_image_size_is_refused(square_detector, tmp_path, capsys):
    command = ["export", str(square_detector), "--output", str(tmp_path / "model.onnx")]
    assert main([*command, "--imgsz", "64x"]) == 2
    assert "64x" in capsys.readouterr().err
    assert main([*command, "--imgsz", "64x101"]) == 2
    assert "--imgsz must be a multiple of the stride 4, got (64, 101)" in capsys.readouterr().err


def test_int8_needs_frames(tiny_data, square_detector, tmp_path):
    with pytest.raises(ValueError, match="give --data"):
        export(square_detector, tmp_path / "model.onnx", "int8")
    content = yaml.safe_load(tiny_data.read_text())
    (tmp_path / "none").mkdir()
    content.update(path=str(tiny_data.parent), train=str(tmp_path / "none"))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match="no image in"):
        export(square_detector, tmp_path / "model.onnx", "int8", data=str(tmp_path / "data.yaml"))
    assert not list(tmp_path.glob("*.onnx"))


def test_checkpoint_with_another_head_is_refused(tmp_path):
    model = ClassificationModel("yolo11n-cls.yaml", verbose=False)
    torch.save({"model": model, "train_args": {}}, tmp_path / "best.pt")
    with pytest.raises(UnusableModelError, match="must be a detector with a Detect head"):
        export(tmp_path / "best.pt", tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_to_one_branch_is_exported_without_nms(precision, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "best.pt", architecture="yolo26n.yaml")
    saved = torch.load(checkpoint, weights_only=False)
    head = saved["model"].model[-1]
    with torch.no_grad():  # an untrained head has two equal branches
        for branch in head.cv3:
            branch[-1].bias.add_(2.0)
    torch.save(saved, checkpoint)
    output, spec = export(checkpoint, tmp_path / "model.onnx", precision)
    backend = open_backend(output)
    assert (spec.head, backend.spec.head) == ("end2end", "end2end")
    proto = onnx.load(output)
    assert "NonMaxSuppression" not in {node.op_type for node in proto.graph.node}
    anchors = sum((SIZE // stride) ** 2 for stride in (8, 16, 32))
    assert [d.dim_value for d in proto.graph.output[0].type.tensor_type.shape.dim] == [
        1,
        min(head.max_det, anchors),
        6,
    ]
    frame = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    rows = backend.infer(frame)[0]
    model, _ = load_model(str(checkpoint))
    with torch.inference_mode():
        model.model[-1].end2end = False
        images = torch.tensor(frame[..., ::-1].copy()).permute(0, 3, 1, 2) / 255
        dense, raw = model(images)
        one_to_one = model.model[-1]._inference(raw["one2one"])[0]  # (x, y, w, h, scores)
    wanted = one_to_one[4:].flatten().sort(descending=True).values
    tolerance = {"fp32": 1e-4, "fp16": 0.01}[precision]
    np.testing.assert_allclose(rows[:20, 4], wanted[:20], atol=tolerance)
    best = one_to_one[:, one_to_one[4:].max(dim=0).values.argmax()]
    corners = torch.cat([best[:2] - best[2:4] / 2, best[:2] + best[2:4] / 2])
    nearest = np.abs(rows[:, :4] - corners.numpy()).max(axis=1).min()
    assert nearest < {"fp32": 0.05, "fp16": 1.0}[precision]
    assert dense[0, 4:].max() > rows[0, 4] + 0.1  # the branch that is left out


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["aerial-student.yaml", "yolo26n.yaml"])
def test_several_frames_and_float_input(architecture, tmp_path):
    """One (3, 3, H, W) batch equals three batches of one uint8 frame."""
    model, _ = load_model(str(save_checkpoint(tmp_path / "best.pt", architecture=architecture)))
    one = TorchBackend(model, SIZE)
    layout, dtype, colour = INPUTS["float32-nchw"]
    spec = replace(one.spec, batch=3, layout=layout, dtype=dtype, colour=colour)
    write(model, spec, [], tmp_path / "many.onnx")
    many = open_backend(tmp_path / "many.onnx")
    assert many.spec.input_shape == (3, 3, SIZE, SIZE)
    frames = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    together = many.infer(frames)
    for frame, rows in zip(frames, together, strict=True):
        np.testing.assert_allclose(rows, one.infer(frame[None])[0], atol=0.05)


def test_input_name_is_part_of_the_metadata(square_detector, tmp_path):
    _, spec = export(square_detector, tmp_path / "m.onnx", batch=2, input_="float32-nchw")
    assert spec.input_shape == (2, 3, SIZE, SIZE)
    assert spec.normalisation == "by the caller: /255"


def test_colour_order_is_part_of_the_graph(square_detector):
    """BGR frames through the graph equal RGB floats through the plain model."""
    frame = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    model, _ = load_model(str(square_detector))
    rgb = torch.from_numpy(frame[..., ::-1].transpose(0, 3, 1, 2).copy()).float() / 255
    expected = model(rgb)[0][0].detach().numpy()  # (cx, cy, w, h, scores) x anchors
    best = expected[:, expected[4:].max(axis=0).argmax()]
    row = TorchBackend(model, SIZE).infer(frame)[0, 0]
    assert row[4] == pytest.approx(best[4:].max(), abs=1e-4) and row[5] == best[4:].argmax()
    centre, size = best[:2], best[2:4]
    np.testing.assert_allclose(row[:4], [*centre - size / 2, *centre + size / 2], atol=0.01)


def test_lineage_is_part_of_the_metadata(square_detector, tmp_path):
    parent, _ = export(square_detector, tmp_path / "parent.onnx")
    lineage = descend(parent, "drone-kd retrain", {"night": "e" * 64})
    child, spec = export(square_detector, tmp_path / "child.onnx", lineage=lineage)
    itself, ancestor = generations(child)
    assert open_backend(child).spec == spec
    assert itself.command == "drone-kd retrain"
    assert itself.data == {"night": "e" * 64}
    assert ancestor.sha256 == hashlib.sha256(parent.read_bytes()).hexdigest()


def test_output_that_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(OSError, match="expected a file to replace"):
        export(tmp_path / "missing.pt", tmp_path / "model.onnx")


def test_output_must_be_onnx(square_detector, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.onnx"):
        export(square_detector, tmp_path / "model.engine")
