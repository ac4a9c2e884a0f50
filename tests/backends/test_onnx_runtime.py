import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from drone_kd.backends import open_backend
from drone_kd.backends.onnx_runtime import OrtBackend
from drone_kd.core.model_spec import ModelError
from drone_kd.core.postprocess import InferenceError
from tiny_model import tiny_spec, write_bright_cell_model, write_fixed_model


def rejected(path, capfd):
    """Open a bad file; return the one-line message. ONNX Runtime's own error log must stay off."""
    with pytest.raises(ModelError) as error:
        open_backend(path, runtime="onnxruntime")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    # ONNX Runtime may print unrelated warnings, for example about the machine's GPUs.
    assert "[E:onnxruntime" not in capfd.readouterr().err
    return str(error.value)


def test_model_runs(model):
    backend = open_backend(model)
    assert backend.spec == tiny_spec()
    assert "onnxruntime" in backend.name
    output = backend.infer(np.full((1, 64, 64, 3), 255, np.uint8))
    assert output.shape == (1, 64, 6)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output[0, :, 4], 1.0, rtol=1e-5)


def test_batch_of_frames(tmp_path):
    path = write_bright_cell_model(tmp_path / "model.onnx", tiny_spec(batch=3))
    frames = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (255, 0, 51)])
    output = open_backend(path).infer(frames)
    np.testing.assert_allclose(output[:, 0, 4], [1, 0, 0.2], rtol=1e-5)


def test_batch_of_the_wrong_shape_is_an_inference_error(model):
    with pytest.raises(InferenceError, match="ONNX Runtime"):
        open_backend(model).infer(np.zeros((1, 32, 64, 3), np.uint8))


def test_failing_node_is_an_inference_error_and_not_logged(tmp_path, capfd):
    path = write_fixed_model(tmp_path / "model.onnx", np.zeros((1, 1, 6)))
    proto = onnx.load(path)
    # A table with one entry, indexed by the brightest pixel: any bright image is out of bounds.
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "table"))
    cast, multiply = proto.graph.node[1], proto.graph.node[2]
    cast.attribute[0].i = onnx.TensorProto.INT64
    multiply.CopyFrom(onnx.helper.make_node("Gather", ["table", "float"], ["nothing"]))
    onnx.save(proto, path)
    backend = open_backend(path, runtime="onnxruntime")
    backend.infer(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(InferenceError, match=r"ONNX Runtime: .*Gather"):
        backend.infer(np.full((1, 64, 64, 3), 255, np.uint8))
    assert "[E:onnxruntime" not in capfd.readouterr().err


def test_path_that_is_no_model_file_is_rejected(tmp_path, capfd):
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    assert "No such file" in rejected(tmp_path / "no.onnx", capfd)
    assert "expected a file, got another kind" in rejected(folder, capfd)
    assert "expected a file that ends in .onnx" in rejected(tmp_path / "best.pt", capfd)


@pytest.mark.parametrize("content", [b"", b"hello\nworld\n"])
def test_file_that_is_no_model_is_rejected(tmp_path, capfd, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "cannot load it" in rejected(path, capfd)


@pytest.mark.parametrize("name", [b"images", b"HEIGHT"], ids=["input", "size"])
def test_name_that_is_not_utf_8_is_rejected(model, capfd, name):
    graph = onnx.load(model)
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "HEIGHT"
    content = graph.SerializeToString()
    assert name in content
    model.write_bytes(content.replace(name, b"\xff" + name[1:]))
    assert "expected names in UTF-8 in its graph" in rejected(model, capfd)


def test_truncated_model_is_rejected(model, capfd):
    model.write_bytes(model.read_bytes()[:-200])
    assert "truncated" in rejected(model, capfd)


def test_model_without_metadata_is_rejected(model, capfd):
    proto = onnx.load(model)
    del proto.metadata_props[:]
    onnx.save(proto, model)
    assert "drone-kd export" in rejected(model, capfd)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"input_width": 32}, "graph input: expected one tensor(uint8) [1, 64, 32, 3]"),
        ({"batch": 2}, "graph input: expected one tensor(uint8) [2, 64, 64, 3]"),
    ],
)
def test_graph_that_differs_from_its_spec_is_rejected(model, capfd, spec, message):
    proto = onnx.load(model)
    onnx.helper.set_model_props(proto, tiny_spec(**spec).to_metadata())
    onnx.save(proto, model)
    assert message in rejected(model, capfd)


def test_graph_with_another_output_is_rejected(tmp_path, capfd):
    path = write_fixed_model(tmp_path / "model.onnx", np.zeros((1, 6, 9)))
    assert "graph output: expected one tensor(float) [1, any, 6]" in rejected(path, capfd)


def write_with_computed_rows(path, rows):
    """Write a model whose number of rows ONNX Runtime cannot tell; it declares `rows`."""
    proto = onnx.load(write_bright_cell_model(path))
    make = onnx.helper.make_node
    proto.graph.node[-1].output[0] = "found"
    proto.graph.node.extend(
        [
            make("ReduceMax", ["car"], ["nothing"], keepdims=0),
            make("Cast", ["nothing"], ["first"], to=onnx.TensorProto.INT64),
            make("Unsqueeze", ["first", "first_axis"], ["start"]),
            make("Slice", ["found", "start", "all", "channel_axis"], ["output0"]),
        ]
    )
    axis = onnx.numpy_helper.from_array(np.array([0], np.int64), "first_axis")
    proto.graph.initializer.append(axis)
    declared = proto.graph.output[0].type.tensor_type.shape.dim[1]
    if isinstance(rows, str):
        declared.dim_param = rows
    else:
        declared.dim_value = rows
    onnx.save(proto, path)
    return path


def test_graph_with_any_number_of_rows_is_rejected(tmp_path, capfd):
    path = write_with_computed_rows(tmp_path / "model.onnx", "k")
    assert "graph output: expected a fixed number of rows, got 'k'" in rejected(path, capfd)


def test_other_number_of_rows_than_declared_is_an_inference_error(tmp_path):
    """ONNX Runtime itself only warns."""
    backend = open_backend(write_with_computed_rows(tmp_path / "model.onnx", 2))
    with pytest.raises(InferenceError, match=r"expected rows of \(1, 2, 6\), got \(1, 64, 6\)"):
        backend.infer(np.full((1, 64, 64, 3), 255, np.uint8))


def test_graph_with_another_input_dtype_is_rejected(tmp_path, capfd):
    path = write_fixed_model(tmp_path / "model.onnx", np.zeros((1, 1, 6)))
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(proto, path)
    assert "got tensor(float) [1, 64, 64, 3]" in rejected(path, capfd)


def test_threads_are_set_and_do_not_spin(model):
    options = OrtBackend(model)._session.get_session_options()
    assert options.intra_op_num_threads == len(os.sched_getaffinity(0))
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not:UserWarning")
def test_cuda_provider_is_used_and_named(model, monkeypatch):
    assert "CPU, " in open_backend(model).name
    # Without a GPU: the lists of ONNX Runtime's providers are simulated.
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: providers)
    assert "CPU, " in open_backend(model).name
    assert open_backend(model).name.endswith("(its CUDA provider does not start)")
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda session: providers)
    assert open_backend(model).name.endswith(" CUDA")
