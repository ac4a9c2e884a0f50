"""TensorRT backend on a simulated TensorRT and GPU (simulated_tensorrt.py), for each version.

The simulated GPU runs ONNX Runtime: equal numbers hold by construction, and only show that frames
and rows pass through the buffers unchanged.
"""

import json

import numpy as np
import pytest

from drone_kd.backends import open_backend
from drone_kd.core.model_spec import ModelError
from drone_kd.core.postprocess import InferenceError
from simulated_tensorrt import VERSIONS
from tiny_model import tiny_spec, write_bright_cell_model, write_fixed_model

every_version = pytest.mark.parametrize("simulated_tensorrt", VERSIONS, indirect=True)


def batch(seed=0, spec=None):
    shape = (spec or tiny_spec()).input_shape
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_simulated_versions():
    assert VERSIONS == ("8.6", "10.3", "10.13", "11.4")


@every_version
def test_frames_and_rows_pass_through_the_buffers_unchanged(simulated_tensorrt, model):
    backend = open_backend(model)
    reference = open_backend(model, runtime="onnxruntime")
    assert backend.name.startswith(f"TensorRT {simulated_tensorrt.version} fp32, Orin, ")
    assert backend.spec == reference.spec and backend.fallback == ""
    for seed in range(3):
        first = backend.infer(batch(seed))
        np.testing.assert_array_equal(first, reference.infer(batch(seed)))
        backend.infer(batch(seed + 1))
        # The next frame does not overwrite the returned array.
        np.testing.assert_array_equal(first, reference.infer(batch(seed)))


@every_version
def test_batch_passes_through_the_buffers_unchanged(simulated_tensorrt, tmp_path):
    spec = tiny_spec(batch=3)
    model = write_bright_cell_model(tmp_path / "model.onnx", spec)
    frames = batch(spec=spec)
    np.testing.assert_array_equal(
        open_backend(model).infer(frames), open_backend(model, runtime="onnxruntime").infer(frames)
    )


@every_version
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_network_has_the_precision_of_the_spec(simulated_tensorrt, tmp_path, precision):
    calibration = {"frames": 1, "data": "data.yaml", "names_sha256": "0" * 64}
    spec = tiny_spec(precision=precision, calibration=calibration if precision == "int8" else {})
    model = write_bright_cell_model(tmp_path / "model.onnx", spec)
    if simulated_tensorrt.version == "8.6":
        if precision == "int8":
            with pytest.raises(
                ModelError, match=r"expected an fp32 or fp16 model, got int8: export"
            ):
                open_backend(model)
            return
        expected = "EXPLICIT_BATCH", {"FP16"} if precision == "fp16" else set()
    else:
        expected = "STRONGLY_TYPED", set()
    assert f" {precision}, " in open_backend(model).name
    assert (simulated_tensorrt.network_kind, simulated_tensorrt.flags) == expected


@pytest.mark.parametrize(
    ("integrated", "copy_seconds", "launch_seconds", "mode"),
    [
        (True, 0.002, 0.0, "zero-copy"),
        (True, 0.002, 0.004, "zero-copy in a CUDA graph"),
        (False, 0.0, 0.004, "copies in a CUDA graph"),
    ],
)
def test_fastest_execution_mode_is_chosen(
    simulated_tensorrt, model, monkeypatch, integrated, copy_seconds, launch_seconds, mode
):
    from drone_kd.backends.tensorrt import runtime

    gpu = simulated_tensorrt.gpu
    monkeypatch.setattr(runtime, "perf_counter", lambda: gpu.seconds)
    gpu.integrated = integrated
    gpu.copy_seconds, gpu.launch_seconds = copy_seconds, launch_seconds
    backend = open_backend(model)
    assert backend.name.endswith(f"Orin, {mode}")
    np.testing.assert_array_equal(
        backend.infer(batch()), open_backend(model, runtime="onnxruntime").infer(batch())
    )
    # The other modes have freed their memory.
    assert len(gpu.memory) == (2 if mode.startswith("zero-copy") else 4)


def test_mode_is_measured_once_per_engine(simulated_tensorrt, model, monkeypatch):
    from drone_kd.backends.tensorrt import runtime

    gpu = simulated_tensorrt.gpu
    monkeypatch.setattr(runtime, "perf_counter", lambda: gpu.seconds)
    gpu.copy_seconds = gpu.launch_seconds = 0.002
    first = open_backend(model).name
    assert first.endswith("Orin, zero-copy in a CUDA graph")
    monkeypatch.setattr(runtime, "_fastest", lambda *_: pytest.fail("measured again"))
    runs = []
    engine = simulated_tensorrt.module.ICudaEngine
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda self, a: (runs.append(1), run(self, a)))
    backend = open_backend(model, may_build=False)
    assert backend.name == first and len(runs) == 1 and len(gpu.memory) == 2
    np.testing.assert_array_equal(
        backend.infer(batch()), open_backend(model, runtime="onnxruntime").infer(batch())
    )


@pytest.mark.parametrize("stored", ["copies", "unknown"])
def test_stored_mode_that_cannot_be_had_is_measured_again(
    simulated_tensorrt, model, tmp_path, stored
):
    open_backend(model)
    (record,) = (tmp_path / "cache").rglob("*.json")
    content = json.loads(record.read_text())
    assert content["mode"]
    record.write_text(json.dumps(content | {"mode": stored}))
    mode = open_backend(model).name.rpartition(", ")[2]
    assert (mode == "copies") is (stored == "copies")
    assert json.loads(record.read_text())["mode"] == mode


@every_version
def test_layers_are_json(simulated_tensorrt, model):
    assert json.loads(open_backend(model).layers())["Layers"]


def test_network_that_cannot_be_recorded_runs_without_a_graph(simulated_tensorrt, model):
    simulated_tensorrt.records = False
    backend = open_backend(model)
    assert "graph" not in backend.name
    assert backend.infer(batch()).shape == (1, 64, 6)


def test_memory_is_freed_with_the_backend(simulated_tensorrt, model):
    backend = open_backend(model)
    assert simulated_tensorrt.gpu.memory
    del backend  # at once, without garbage collection: the next model needs the memory
    assert simulated_tensorrt.gpu.memory == {}


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 32, 64, 3), np.uint8), np.zeros((1, 64, 64, 3), np.float32)]
)
def test_batch_of_the_wrong_shape_or_dtype_is_rejected(simulated_tensorrt, model, wrong):
    with pytest.raises(InferenceError, match=r"expected a batch of uint8 \(1, 64, 64, 3\), got"):
        open_backend(model).infer(wrong)


def test_inference_error_has_the_reason(simulated_tensorrt, model):
    simulated_tensorrt.records = False  # a recorded graph does not call TensorRT
    backend = open_backend(model)
    simulated_tensorrt.execute_error = "[executionContext]\n  Error Code 1: Cuda Runtime"
    with pytest.raises(InferenceError, match=r"^TensorRT: \[executionContext\] Error Code 1"):
        backend.infer(batch())
    simulated_tensorrt.execute_error = ""
    simulated_tensorrt.gpu.fault = 700
    with pytest.raises(InferenceError, match=r"illegal memory access .*\(CUDA error 700\)"):
        backend.infer(batch())


def test_error_while_opening_is_one_line(simulated_tensorrt, model):
    simulated_tensorrt.gpu.errors["cudaHostAlloc"] = 2
    with pytest.raises(ModelError) as error:
        open_backend(model)
    assert str(error.value).startswith(f"{model}: cudaHostAlloc: out of memory (CUDA error 2)")
    simulated_tensorrt.gpu.errors.clear()
    simulated_tensorrt.execute_error = "no kernel image"
    with pytest.raises(ModelError, match="TensorRT: no kernel image"):
        open_backend(model)


def test_missing_driver_is_one_line(simulated_tensorrt, model):
    simulated_tensorrt.gpu.errors["cudaGetDeviceProperties"] = 35
    with pytest.raises(ModelError) as error:
        open_backend(model)
    assert "no usable GPU" in str(error.value) and "CUDA error 35" in str(error.value)
    assert "\n" not in str(error.value)
    assert simulated_tensorrt.builds == 0


def test_engine_whose_tensors_differ_from_the_spec_is_rejected(
    simulated_tensorrt, model, tmp_path
):
    # Called directly: the cache's checks would reject such an engine.
    from drone_kd.backends.tensorrt.runtime import TrtBackend

    spec = tiny_spec(input_width=32)
    other = write_bright_cell_model(tmp_path / "other.onnx", spec)
    with pytest.raises(ModelError, match=r"expected one uint8 input \[1, 64, 64, 3\] .* got"):
        TrtBackend(tiny_spec(), simulated_tensorrt.plan(other.read_bytes()))


def test_fallback_must_be_allowed_and_is_reported(simulated_tensorrt, model):
    simulated_tensorrt.build_error = "Error Code 10: no implementation"
    with pytest.raises(ModelError, match="no implementation; runtime onnxruntime or allow_fall"):
        open_backend(model)
    with pytest.raises(ModelError, match=r"no implementation$"):
        open_backend(model, runtime="tensorrt")
    lines: list[str] = []
    backend = open_backend(model, allow_fallback=True, progress=lines.append)
    assert "onnxruntime" in backend.name and "instead of TensorRT" in backend.name
    assert "no implementation" in backend.fallback
    assert [line for line in lines if line.startswith("TensorRT failed, using ONNX Runtime")]
    assert backend.infer(batch()).shape == (1, 64, 6)


def test_onnxruntime_can_be_selected(simulated_tensorrt, model):
    backend = open_backend(model, runtime="onnxruntime")
    assert "onnxruntime" in backend.name and backend.fallback == ""
    assert simulated_tensorrt.builds == 0


def test_missing_model_is_not_reported_as_a_tensorrt_error(simulated_tensorrt, tmp_path):
    with pytest.raises(ModelError) as error:
        open_backend(tmp_path / "no.onnx", allow_fallback=True)
    assert "No such file" in str(error.value) and "TensorRT" not in str(error.value)


def test_parser_error_is_reported(simulated_tensorrt, tmp_path):
    # The first node on the uint8 input is not a Cast.
    model = write_fixed_model(tmp_path / "model.onnx", np.zeros((1, 4, 6)))
    with pytest.raises(ModelError, match="cannot read the model: Invalid Node ReduceMax"):
        open_backend(model)


def test_record_of_an_engine_has_its_key(simulated_tensorrt, model, tmp_path):
    open_backend(model)
    (record,) = (tmp_path / "cache" / "drone_kd" / "engines").glob("*.json")
    key = json.loads(record.read_text())["key"]
    assert key["tensorrt"] == "10.3" and key["precision"] == "fp32"
    assert (key["device"], key["compute_capability"], key["multiprocessors"]) == ("Orin", "8.7", 8)
