"""Steps of the report within this process, on a simulated TensorRT and GPU."""

import json

import numpy as np
import pytest

from drone_kd import machine
from drone_kd.backends import open_backend
from drone_kd.core.postprocess import InferenceError
from drone_kd.device_report import measure
from drone_kd.device_report.measure import Sampler
from tiny_model import tiny_spec, with_golden, write_bright_cell_model


@pytest.fixture
def outcome(simulated_tensorrt, model, tmp_path):
    """Run a step on one or more models; return what it writes."""
    with_golden(model)

    def run(step, *models, runtime="tensorrt"):
        paths = [str(path) for path in models or (model,)]
        task = {"models": paths, "runtime": runtime, "frames": 3, "soak_seconds": 0.05}
        path = tmp_path / "result.json"
        assert measure.main([step, str(path), json.dumps(task)]) == 0
        return json.loads(path.read_text())

    return run


def passed(outcome):
    assert (outcome["status"], outcome["error"]) == ("pass", "")
    return outcome["result"]


def test_build_says_whether_the_engine_was_in_the_cache(outcome):
    first, second = passed(outcome("build")), passed(outcome("build"))
    assert first["built"] and first["name"].startswith("TensorRT 10.3 fp32, Orin")
    assert not second["built"]


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_speed_has_stages_and_golden_rows(outcome, runtime):
    passed(outcome("build"))
    result = passed(outcome("speed", runtime=runtime))
    assert result["golden"]["holds"] and result["golden"]["rows"] >= 60
    assert list(result["times_ms"]) == ["letterbox", "infer", "decode", "total"]
    assert 0 < result["times_ms"]["total"]["p50"] <= result["times_ms"]["total"]["p99"]


def test_speed_builds_no_engine(outcome, simulated_tensorrt):
    found = outcome("speed")
    assert found["status"] == "fail" and "run: drone-kd build" in found["error"]
    assert simulated_tensorrt.builds == 0


def test_agreement_is_of_five_views(outcome):
    passed(outcome("build"))
    result = passed(outcome("agreement"))
    assert result["images"] == 5 and result["boxes"] > 10
    assert result["missing"] == result["drift_px"] == result["drift_score"] == 0


def test_other_detections_fail_the_agreement(outcome, simulated_tensorrt, monkeypatch):
    passed(outcome("build"))
    engine = simulated_tensorrt.module.ICudaEngine
    run = engine._run

    def worse(self, addresses):
        run(self, addresses)
        rows = simulated_tensorrt.gpu.array(addresses["output0"], np.float32, (1, 64, 6))
        rows[..., 4] *= 0.9

    monkeypatch.setattr(engine, "_run", worse)
    monkeypatch.setattr("drone_kd.backends.tensorrt.build.require_golden", lambda *_: None)
    found = outcome("agreement")
    assert found["status"] == "fail" and found["result"]["drift_score"] > 0.05


def test_layers_are_of_the_engine(outcome):
    passed(outcome("build"))
    assert passed(outcome("layers"))["layers"] == {"Layers": ["simulated"]}


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime"])
def test_swap_measures_frames_while_another_model_loads(outcome, model, tmp_path, runtime):
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(), cell=16)
    if runtime == "tensorrt":
        open_backend(model)
        open_backend(other)
    result = passed(outcome("swap", model, other, runtime=runtime))
    assert result["before_ms"] > 0 and result["errors"] == []
    assert result["frames_during"] == 0 or result["worst_during_ms"] >= result["during_ms"]


def test_model_that_does_not_load_fails_the_swap(outcome, model, monkeypatch):
    passed(outcome("build"))

    first, load = [], measure._detector

    def second_fails(path, runtime):
        if first:
            raise InferenceError("no")
        first.append(path)
        return load(path, runtime)

    monkeypatch.setattr(measure, "_detector", second_fails)
    found = outcome("swap")
    assert (found["status"], found["error"]) == ("fail", "no")


def test_soak_compares_its_first_and_last_part(outcome):
    result = passed(outcome("soak", runtime="onnxruntime"))
    assert result["frames"] >= 5 and result["first_ms"] > 0 and result["last_ms"] > 0


def test_foreign_engines_are_refused(outcome, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # set back: the step changes it
    passed(outcome("build"))
    result = passed(outcome("foreign"))
    assert list(result) == ["made elsewhere", "altered", "of another board"]


def test_foreign_engine_that_is_accepted_fails(outcome, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    passed(outcome("build"))
    monkeypatch.setattr("drone_kd.backends.tensorrt.engine_cache.sha256", lambda content: "0" * 64)
    assert outcome("foreign")["status"] == "fail"


def test_sampler_summarises_what_can_be_read(monkeypatch):
    monkeypatch.setattr(machine, "power_w", lambda: {"VDD_IN": 5.0})
    monkeypatch.setattr(machine, "gpu_clocks_mhz", lambda: {"current": 306, "highest": 1020})
    monkeypatch.setattr(machine, "temperatures_c", dict)
    with Sampler() as sampler:
        pass
    summary = sampler.summary()
    assert summary["power_w"] == {"VDD_IN": {"lowest": 5.0, "mean": 5.0, "highest": 5.0}}
    assert list(summary["gpu_mhz"]) == ["current"] and "temperature_c" not in summary
