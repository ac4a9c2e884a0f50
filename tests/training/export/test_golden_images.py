"""Golden images of exported detectors, and engines with faults (simulated TensorRT)."""

from functools import partial

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from drone_kd.backends import open_backend
from drone_kd.backends.golden import GOLDEN_KEY, read_golden, reproduce
from drone_kd.backends.model_file import read_model_file
from drone_kd.backends.onnx_runtime import OrtBackend
from drone_kd.cli import main
from drone_kd.core.model_spec import ModelError
from drone_kd_training.export import golden_images
from drone_kd_training.export.export import export
from onnx_mutants import affine, change_output, not_a_number_on_dark_frames
from square_detector import draw_squares
from tiny_training import save_checkpoint

MAX_METADATA_BYTES = 100_000


def golden_of(path):
    file = read_model_file(path)
    return read_golden(file.metadata, OrtBackend(file).spec)


def metadata_bytes(path):
    return sum(map(len, read_model_file(path).metadata.values()))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return draw_squares(tmp_path_factory.mktemp("squares"), side=14, val=12)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_export_stores_parts_of_validation_images(precision, squares, square_detector, tmp_path):
    output, _ = export(square_detector, tmp_path / "model.onnx", precision, str(squares))
    images = golden_of(output)
    assert [image.zoom for image in images] == [1, 2, 4]
    scores = np.concatenate([image.rows[:, 4] for image in images])
    assert scores.max() > 0.5 and ((scores > 0.05) & (scores < 0.25)).any()
    assert reproduce(OrtBackend(output), images).holds
    assert metadata_bytes(output) < MAX_METADATA_BYTES


def test_export_without_data_uses_the_image_of_the_package(square_detector, tmp_path):
    output, _ = export(square_detector, tmp_path / "model.onnx")
    assert len(golden_of(output)) == 3


def test_no_golden_stores_nothing_of_the_validation_images(square_detector, tmp_path):
    command = ["export", str(square_detector), "--output", str(tmp_path / "m.onnx")]
    assert main([*command, "--no-golden"]) == 0
    assert GOLDEN_KEY not in read_model_file(tmp_path / "m.onnx").metadata


def test_large_input_stays_below_the_limit_of_the_metadata(square_detector, tmp_path):
    output, _ = export(square_detector, tmp_path / "model.onnx", imgsz=(384, 640), batch=2)
    assert [image.levels.shape for image in golden_of(output)] == [(96, 96, 3)] * 3
    assert metadata_bytes(output) < MAX_METADATA_BYTES


@pytest.mark.slow
def test_file_whose_output_is_not_a_number_has_no_golden_images(
    squares, square_detector, tmp_path, monkeypatch
):
    def write_and_change(*arguments):
        write(*arguments)
        proto = onnx.load(arguments[-1])
        not_a_number_on_dark_frames(proto, level=255)
        onnx.save(proto, arguments[-1])

    module = export.__module__
    write = __import__(module, fromlist=["write"]).write
    monkeypatch.setattr(f"{module}.write", write_and_change)
    output, _ = export(square_detector, tmp_path / "m.onnx", data=str(squares), force=True)
    assert GOLDEN_KEY not in read_model_file(output).metadata


def test_command_adds_golden_images_and_keeps_the_rest(
    square_detector, squares, tmp_path, monkeypatch, capsys
):
    export(square_detector, tmp_path / "model.onnx", golden=False)
    path = tmp_path / "model.onnx"
    before = path.read_bytes()
    frame = next((squares.parent / "images" / "val").iterdir())
    monkeypatch.setattr("sys.argv", ["golden_images", str(path), str(frame)])
    assert golden_images.main() == 0
    assert "3 golden images" in capsys.readouterr().out
    assert path.read_bytes().startswith(before)
    assert onnx.load(path).graph == onnx.load_from_string(before).graph
    assert reproduce(OrtBackend(path), golden_of(path)).holds
    assert golden_images.main() == 2
    assert "expected a file without golden images, got some" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["golden_images", str(path), str(tmp_path / "none.png")])
    assert golden_images.main() == 2


def scale_layer(number, proto):
    """Multiply the weights of one convolution by 0.9."""
    names = [node.input[1] for node in proto.graph.node if node.op_type == "Conv"]
    tensor = next(t for t in proto.graph.initializer if t.name == names[number])
    values = numpy_helper.to_array(tensor)
    changed = (values * 0.9).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def stale(proto):
    """Return the same rows for every image."""
    nodes = [("Mul", ["before", "nothing"], "none"), ("Add", ["none", "rows"], "after")]
    shape = [d.dim_value for d in proto.graph.output[0].type.tensor_type.shape.dim]
    rows = np.random.default_rng(0).random(shape, dtype=np.float32)
    change_output(proto, nodes, nothing=np.float32(0), rows=rows)


MUTANTS = {
    "scores off": affine([1, 1, 1, 1, 0.97, 1], [0] * 6),
    "boxes off": affine([1] * 6, [1, 0, 0, 0, 0, 0]),
    "NaN": affine([1] * 6, [0, 0, 0, 0, float("nan"), 0]),
    "stale": stale,
    **{f"layer {number}": partial(scale_layer, number) for number in (0, 1, 4, 12, 30, 55, -1)},
}


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """An FP16 file of a real architecture with golden images."""
    folder = tmp_path_factory.mktemp("nano")
    checkpoint = save_checkpoint(folder / "best.pt", architecture="yolo11n.yaml")
    return export(checkpoint, folder / "model.onnx", "fp16", imgsz=128)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_engine_with_a_fault_is_refused(name, nano, simulated_tensorrt, monkeypatch):
    """TensorRT builds another graph than that of the file."""
    from drone_kd.backends.tensorrt import build

    proto = onnx.load(nano)
    MUTANTS[name](proto)
    plan = simulated_tensorrt.plan(proto.SerializeToString())
    monkeypatch.setattr(build, "_build_plan", lambda *arguments: (plan, b""))
    with pytest.raises(ModelError, match="does not reproduce the golden images"):
        open_backend(nano, runtime="tensorrt")


@pytest.mark.slow
def test_engine_that_rounds_elsewhere_is_accepted(nano, simulated_tensorrt):
    """The simulated GPU runs ONNX Runtime, here without its fusions: it rounds after each node."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    backend = open_backend(nano, runtime="tensorrt")
    backend._engine._session = onnxruntime.InferenceSession(nano.read_bytes(), options)
    found = reproduce(backend, golden_of(nano))
    # Rows of an untrained network are more sensitive than those of a trained one.
    assert found.holds and found.off < 0.05 * found.rows


@pytest.mark.slow
def test_other_precision_is_refused(tmp_path, nano, simulated_tensorrt, monkeypatch):
    from drone_kd.backends.tensorrt import build

    data = tmp_path / "images"
    data.mkdir()
    cv2.imwrite(str(data / "0.png"), np.random.default_rng(0).integers(0, 255, (128, 128, 3)))
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [car, person]\n")
    other, _ = export(
        nano.with_name("best.pt"),
        tmp_path / "int8.onnx",
        "int8",
        str(tmp_path / "data.yaml"),
        imgsz=128,
        force=True,
    )
    plan = simulated_tensorrt.plan(other.read_bytes())
    monkeypatch.setattr(build, "_build_plan", lambda *arguments: (plan, b""))
    with pytest.raises(ModelError, match="does not reproduce the golden images"):
        open_backend(nano, runtime="tensorrt")
