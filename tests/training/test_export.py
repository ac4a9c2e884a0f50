import hashlib
import json

import numpy as np
import pytest
from tiny_training import NAMES, SIZE, save_checkpoint

import training.export
from drone_kd.backends import open_backend
from training.backend import TorchBackend
from training.export import ExportError, export
from training.models import load_model


def test_the_file_describes_itself_and_computes_the_same(tiny_data, tiny_teacher, tmp_path):
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes(tiny_teacher.read_bytes())
    (tmp_path / "metrics.json").write_text(
        json.dumps({"student": {"map50_95": 0.25, "map50": 0.5}})
    )
    output = tmp_path / "out" / "model.onnx"
    parity = export(checkpoint, output, data=str(tiny_data), attribution="somebody")
    assert parity.frames == 6 and parity.box_px.max() < 0.05 and parity.score.max() < 1e-3
    assert [p.name for p in output.parent.iterdir()] == ["model.onnx"]
    spec = open_backend(output).spec
    assert spec.classes == NAMES and (spec.input_width, spec.input_height) == (SIZE, SIZE)
    assert spec.head == "dense" and spec.attribution == "somebody" and spec.licence == "AGPL-3.0"
    assert spec.source_sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert spec.metrics == {"map50_95": 0.25, "map50": 0.5}
    assert {"ultralytics", "torch", "onnx", "opset"} <= set(spec.tools)


def test_end_to_end_head(tmp_path):
    checkpoint = save_checkpoint(tmp_path / "y26.pt", architecture="yolo26n.yaml")
    model, _ = load_model(str(checkpoint))
    parity = export(checkpoint, tmp_path / "model.onnx")
    backend = open_backend(tmp_path / "model.onnx")
    assert backend.spec.head == ("end2end" if model.model[-1].end2end else "dense")
    assert parity.box_px.max() < 0.05


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
    import torch

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
    monkeypatch.setattr(training.export, "SCORE_TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="not written"):
        export(tiny_teacher, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_output_must_be_onnx(tiny_teacher, tmp_path):
    with pytest.raises(ValueError, match="must end in .onnx"):
        export(tiny_teacher, tmp_path / "model.engine")
