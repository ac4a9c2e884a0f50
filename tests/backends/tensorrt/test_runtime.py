"""The TensorRT backend on a simulated TensorRT and GPU (simulated_tensorrt.py), each version."""

import json

import numpy as np
import pytest

from drone_kd.backends import open_backend
from drone_kd.core.model_spec import ModelError
from drone_kd.core.postprocess import InferenceError
from simulated_tensorrt import VERSIONS
from tiny_model import tiny_spec, write_bright_cell_model

every_version = pytest.mark.parametrize("simulated_tensorrt", VERSIONS, indirect=True)


@pytest.fixture
def model(tmp_path):
    return write_bright_cell_model(tmp_path / "model.onnx")


def batch(seed=0, spec=None):
    shape = (spec or tiny_spec()).input_shape
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_the_simulation_has_four_versions():
    assert VERSIONS == ("8.6", "10.3", "10.13", "11.4")


@every_version
def test_it_computes_what_onnxruntime_computes(simulated_tensorrt, model):
    backend = open_backend(model)
    reference = open_backend(model, runtime="onnxruntime")
    assert backend.name.startswith(f"TensorRT {simulated_tensorrt.version} fp32, Orin, ")
    assert backend.spec == reference.spec and backend.fallback == ""
    for seed in range(3):
        first = backend.infer(batch(seed))
        np.testing.assert_array_equal(first, reference.infer(batch(seed)))
        backend.infer(batch(seed + 1))
        # What was returned is not overwritten by the next frame.
        np.testing.assert_array_equal(first, reference.infer(batch(seed)))


@every_version
def test_a_batch_of_several_frames(simulated_tensorrt, tmp_path):
    spec = tiny_spec(batch=3)
    model = write_bright_cell_model(tmp_path / "model.onnx", spec)
    frames = batch(spec=spec)
    np.testing.assert_array_equal(
        open_backend(model).infer(frames), open_backend(model, runtime="onnxruntime").infer(frames)
    )


@every_version
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_precision_is_what_the_model_says(simulated_tensorrt, tmp_path, precision):
    calibration = {"frames": 1, "data": "data.yaml", "names_sha256": "0" * 64}
    spec = tiny_spec(precision=precision, calibration=calibration if precision == "int8" else {})
    model = write_bright_cell_model(tmp_path / "model.onnx", spec)
    if simulated_tensorrt.version == "8.6":
        if precision == "int8":
            with pytest.raises(ModelError, match=r"fp32 and fp16 models only, got int8: export"):
                open_backend(model)
            return
        expected = "EXPLICIT_BATCH", {"FP16"} if precision == "fp16" else set()
    else:
        expected = "STRONGLY_TYPED", set()
    assert f" {precision}, " in open_backend(model).name
    assert (simulated_tensorrt.network_kind, simulated_tensorrt.flags) == expected


@pytest.mark.parametrize(
    ("integrated", "copy_seconds", "launch_seconds", "way"),
    [
        (True, 0.002, 0.0, "zero-copy"),
        (True, 0.002, 0.004, "zero-copy in a CUDA graph"),
        (False, 0.0, 0.004, "copies in a CUDA graph"),
    ],
)
def test_the_fastest_way_is_chosen(
    simulated_tensorrt, model, integrated, copy_seconds, launch_seconds, way
):
    gpu = simulated_tensorrt.gpu
    gpu.integrated = integrated
    gpu.copy_seconds, gpu.launch_seconds = copy_seconds, launch_seconds
    simulated_tensorrt.records = way.endswith("graph")  # or chance decides between the two
    backend = open_backend(model)
    assert backend.name.endswith(f"Orin, {way}")
    np.testing.assert_array_equal(
        backend.infer(batch()), open_backend(model, runtime="onnxruntime").infer(batch())
    )
    # The ways that lost have given their memory back.
    assert len(gpu.memory) == (2 if way.startswith("zero-copy") else 4)


def test_a_network_that_cannot_be_recorded_runs_without_a_graph(simulated_tensorrt, model):
    simulated_tensorrt.records = False
    backend = open_backend(model)
    assert "graph" not in backend.name
    assert backend.infer(batch()).shape == (1, 64, 6)


def test_memory_is_given_back(simulated_tensorrt, model):
    backend = open_backend(model)
    assert simulated_tensorrt.gpu.memory
    del backend  # and not only when the garbage is collected: the next model needs the memory
    assert simulated_tensorrt.gpu.memory == {}


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 32, 64, 3), np.uint8), np.zeros((1, 64, 64, 3), np.float32)]
)
def test_a_batch_of_the_wrong_shape_or_type_is_a_failed_inference(
    simulated_tensorrt, model, wrong
):
    with pytest.raises(InferenceError, match=r"expected a batch of uint8 \(1, 64, 64, 3\), got"):
        open_backend(model).infer(wrong)


def test_errors_while_running_carry_the_reason(simulated_tensorrt, model):
    simulated_tensorrt.records = False  # or nothing asks TensorRT any more
    backend = open_backend(model)
    simulated_tensorrt.execute_error = "[executionContext]\n  Error Code 1: Cuda Runtime"
    with pytest.raises(InferenceError, match=r"^TensorRT: \[executionContext\] Error Code 1"):
        backend.infer(batch())
    simulated_tensorrt.execute_error = ""
    simulated_tensorrt.gpu.fault = 700
    with pytest.raises(InferenceError, match=r"illegal memory access .*\(CUDA error 700\)"):
        backend.infer(batch())


def test_an_error_while_opening_is_one_line(simulated_tensorrt, model):
    simulated_tensorrt.gpu.errors["cudaHostAlloc"] = 2
    with pytest.raises(ModelError) as error:
        open_backend(model)
    assert str(error.value).startswith(f"{model}: cudaHostAlloc: out of memory (CUDA error 2)")
    simulated_tensorrt.gpu.errors.clear()
    simulated_tensorrt.execute_error = "no kernel image"
    with pytest.raises(ModelError, match="TensorRT: no kernel image"):
        open_backend(model)


def test_without_a_driver(simulated_tensorrt, model):
    simulated_tensorrt.gpu.errors["cudaGetDeviceProperties"] = 35
    with pytest.raises(ModelError) as error:
        open_backend(model)
    assert "no GPU can be used" in str(error.value) and "CUDA error 35" in str(error.value)
    assert "\n" not in str(error.value)
    assert simulated_tensorrt.builds == 0


def test_an_engine_with_other_tensors_than_the_model_promises(simulated_tensorrt, model, tmp_path):
    # Only a damaged cache could bring it, and its SHA-256 would not fit; asked here directly.
    from drone_kd.backends.tensorrt.runtime import TrtBackend

    spec = tiny_spec(input_width=32)
    other = write_bright_cell_model(tmp_path / "other.onnx", spec)
    with pytest.raises(ModelError, match=r"expected one uint8 input \[1, 64, 64, 3\] .* got"):
        TrtBackend(tiny_spec(), simulated_tensorrt.plan(other.read_bytes()))


def test_fallback_only_where_it_is_allowed_and_never_silently(simulated_tensorrt, model):
    simulated_tensorrt.build_error = "Error Code 10: no implementation"
    with pytest.raises(ModelError, match="no implementation; runtime onnxruntime, or allow_fall"):
        open_backend(model)
    with pytest.raises(ModelError, match="no implementation$"):
        open_backend(model, runtime="tensorrt")
    said = []
    backend = open_backend(model, allow_fallback=True, progress=said.append)
    assert "onnxruntime" in backend.name and "instead of TensorRT" in backend.name
    assert "no implementation" in backend.fallback
    assert [line for line in said if line.startswith("TensorRT does not serve")]
    assert backend.infer(batch()).shape == (1, 64, 6)


def test_onnxruntime_where_it_is_asked_for(simulated_tensorrt, model):
    backend = open_backend(model, runtime="onnxruntime")
    assert "onnxruntime" in backend.name and backend.fallback == ""
    assert simulated_tensorrt.builds == 0


def test_a_damaged_model_is_not_blamed_on_tensorrt(simulated_tensorrt, tmp_path):
    with pytest.raises(ModelError) as error:
        open_backend(tmp_path / "no.onnx", allow_fallback=True)
    assert "does not exist" in str(error.value) and "TensorRT" not in str(error.value)


def test_what_tensorrt_refuses_to_read(simulated_tensorrt, tmp_path):
    from tiny_model import write_fixed_model

    # Its first step on the uint8 picture is not a cast.
    model = write_fixed_model(tmp_path / "model.onnx", np.zeros((1, 4, 6)))
    with pytest.raises(ModelError, match="cannot read the model: Invalid Node ReduceMax"):
        open_backend(model)


def test_the_record_beside_an_engine_says_what_it_is(simulated_tensorrt, model, tmp_path):
    open_backend(model)
    (record,) = (tmp_path / "cache" / "drone_kd" / "engines").glob("*.json")
    key = json.loads(record.read_text())["key"]
    assert key["tensorrt"] == "10.3" and key["precision"] == "fp32"
    assert (key["device"], key["compute_capability"], key["multiprocessors"]) == ("Orin", "8.7", 8)
