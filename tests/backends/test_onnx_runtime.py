import os

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from drone_kd.backends import open_backend
from drone_kd.core.model_spec import ModelError
from drone_kd.core.postprocess import InferenceError
from tiny_model import tiny_spec, write_bright_cell_model, write_fixed_model


@pytest.fixture
def model(tmp_path):
    return write_bright_cell_model(tmp_path / "model.onnx")


def refused(path, capfd):
    """Open a bad file; return the message after checking that it is the only line."""
    with pytest.raises(ModelError) as error:
        open_backend(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", ""), "the runtime printed something of its own"
    return str(error.value)


def test_runs_a_model_that_describes_itself(model):
    backend = open_backend(model)
    assert backend.spec == tiny_spec()
    assert "onnxruntime" in backend.name
    output = backend.infer(np.full((1, 64, 64, 3), 255, np.uint8))
    assert output.shape == (1, 64, 6)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output[0, :, 4], 1.0, rtol=1e-5)


def test_a_batch_of_frames(tmp_path):
    path = write_bright_cell_model(tmp_path / "model.onnx", tiny_spec(batch=3))
    frames = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (255, 0, 51)])
    output = open_backend(path).infer(frames)
    np.testing.assert_allclose(output[:, 0, 4], [1, 0, 0.2], rtol=1e-5)


def test_a_batch_of_the_wrong_shape_is_a_failed_inference(model):
    with pytest.raises(InferenceError, match="ONNX Runtime"):
        open_backend(model).infer(np.zeros((1, 32, 64, 3), np.uint8))


def test_missing_folder_and_other_suffix(tmp_path, capfd):
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    assert "does not exist" in refused(tmp_path / "no.onnx", capfd)
    assert "is a folder" in refused(folder, capfd)
    assert "expected a file that ends in .onnx" in refused(tmp_path / "best.pt", capfd)


@pytest.mark.parametrize("content", [b"", b"hello\nworld\n"])
def test_not_a_model(tmp_path, capfd, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "cannot load it" in refused(path, capfd)


def test_truncated(model, capfd):
    model.write_bytes(model.read_bytes()[:-200])
    assert "truncated" in refused(model, capfd)


def test_without_metadata(model, capfd):
    proto = onnx.load(model)
    del proto.metadata_props[:]
    onnx.save(proto, model)
    assert "python -m training export" in refused(model, capfd)


@pytest.mark.parametrize(
    ("promise", "says"),
    [
        ({"input_width": 32}, "graph input: expected one tensor(uint8) [1, 64, 32, 3]"),
        ({"batch": 2}, "graph input: expected one tensor(uint8) [2, 64, 64, 3]"),
    ],
)
def test_graph_that_differs_from_its_metadata(model, capfd, promise, says):
    proto = onnx.load(model)
    onnx.helper.set_model_props(proto, tiny_spec(**promise).to_metadata())
    onnx.save(proto, model)
    assert says in refused(model, capfd)


def test_graph_whose_output_differs_from_the_contract(tmp_path, capfd):
    path = write_fixed_model(tmp_path / "model.onnx", np.zeros((1, 6, 9)))
    assert "graph output: expected one tensor(float) [1, any, 6]" in refused(path, capfd)


def test_wrong_input_type(tmp_path, capfd):
    path = write_fixed_model(tmp_path / "model.onnx", np.zeros((1, 1, 6)))
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(proto, path)
    assert "got tensor(float) [1, 64, 64, 3]" in refused(path, capfd)


def test_threads_are_set_and_do_not_spin(model):
    options = open_backend(model)._session.get_session_options()
    assert options.intra_op_num_threads == len(os.sched_getaffinity(0))
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not:UserWarning")
def test_a_gpu_is_used_where_there_is_one_and_the_name_says_which(model, monkeypatch):
    assert "CPU, " in open_backend(model).name
    # No GPU is here: what ONNX Runtime says of its providers is simulated.
    wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: wanted)
    assert "CPU, " in open_backend(model).name
    assert open_backend(model).name.endswith("(its CUDA provider does not start)")
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda session: wanted)
    assert open_backend(model).name.endswith(" CUDA")
