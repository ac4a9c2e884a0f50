"""The self-test, with a simulated TensorRT and GPU (simulated_tensorrt.py) and without any."""

import json
from functools import partial

import cv2
import numpy as np
import pytest

from drone_kd import cli
from drone_kd.commands import selftest
from drone_kd.core.detections import Detections
from tiny_model import with_golden, write_bright_cell_model


@pytest.fixture
def run(model, tmp_path):
    """Run the command; return its exit code and its report."""

    def run_command(*options):
        output = tmp_path / "selftest.json"
        arguments = ["selftest", str(model), "--frames", "3", "--output", str(output), *options]
        code = cli.main(arguments)
        return code, json.loads(output.read_text())

    return run_command


def test_simulated_tensorrt_agrees_on_the_package_image(simulated_tensorrt, run, capfd):
    code, report = run()
    assert (code, report["verdict"]) == (0, "pass")
    assert report["tensorrt"]["name"].startswith("TensorRT 10.3 fp32, Orin")
    assert "onnxruntime" in report["onnxruntime"]["name"]
    for runtime in ("tensorrt", "onnxruntime"):
        for times in report[runtime]["times_ms"].values():
            assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    assert report["tensorrt"]["gpu_memory_mb"] >= 0
    agreement = report["agreement"]
    assert agreement["boxes"] > 10 and agreement["missing"] == 0
    assert agreement["drift_px"] == agreement["drift_score"] == 0
    page = capfd.readouterr().out
    assert "verdict      PASS" in page and len(page.splitlines()) < 40
    assert "bogota-niza" in page and "p99" in page


def test_different_tensorrt_output_fails(simulated_tensorrt, run, monkeypatch, capfd):
    load = simulated_tensorrt.module.ICudaEngine._run

    def worse(self, addresses):
        load(self, addresses)
        rows = simulated_tensorrt.gpu.array(addresses["output0"], np.float32, (1, 64, 6))
        rows[..., 4] *= 0.8

    monkeypatch.setattr(simulated_tensorrt.module.ICudaEngine, "_run", worse)
    code, report = run()
    assert (code, report["verdict"]) == (1, "fail")
    assert report["agreement"]["drift_score"] > 0.05
    assert "do not agree" in capfd.readouterr().out


def test_golden_images_are_part_of_the_report(simulated_tensorrt, model, run, capfd):
    _, report = run()
    assert report["tensorrt"]["golden"] is None
    assert "the model has no golden images to reproduce: export it again" in report["remarks"]
    with_golden(model)
    code, report = run()
    assert (code, report["verdict"]) == (0, "pass")
    for runtime in ("tensorrt", "onnxruntime"):
        golden = report[runtime]["golden"]
        assert golden["holds"] and golden["off"] == 0 and golden["rows"] >= 60
    assert "golden images    reproduced: 0 of " in capfd.readouterr().out


def test_onnxruntime_must_reproduce_the_golden_images(model, run, monkeypatch, tmp_path):
    monkeypatch.setattr(selftest, "tensorrt_is_installed", lambda: False)
    other = write_bright_cell_model(tmp_path / "other.onnx", cell=16)
    with_golden(model, rows_of=other)
    code, report = run()
    assert (code, report["verdict"]) == (1, "fail")
    assert "ONNX Runtime does not reproduce the golden images of the model" in report["remarks"]
    assert report["onnxruntime"]["golden"]["off"] > 20


def test_interrupted_selftest_writes_nothing(
    simulated_tensorrt, model, tmp_path, monkeypatch, capfd
):
    def interrupted(*_):
        if simulated_tensorrt.builds:
            raise KeyboardInterrupt
        return {"total": [1.0, 1.0, 1.0]}

    monkeypatch.setattr(selftest, "stage_percentiles", interrupted)
    output = tmp_path / "selftest.json"
    output.write_text("of an earlier run")
    assert cli.main(["selftest", str(model), "--output", str(output)]) == 130
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == f"drone-kd: interrupted; {selftest.INTERRUPTED}"
    assert output.read_text() == "of an earlier run"
    assert cli.main(["build", str(model)]) == 0 and simulated_tensorrt.builds == 1


def test_failing_tensorrt_build_fails(simulated_tensorrt, run):
    simulated_tensorrt.build_error = "Error Code 10"
    code, report = run()
    assert (code, report["verdict"], report["tensorrt"]) == (1, "fail", None)
    assert [remark for remark in report["remarks"] if "Error Code 10" in remark]
    assert report["onnxruntime"]["times_ms"]["total"]["p50"] > 0


def test_without_tensorrt_the_report_is_incomplete(run, monkeypatch, capfd):
    monkeypatch.setattr(selftest, "tensorrt_is_installed", lambda: False)
    code, report = run()
    assert (code, report["verdict"], report["tensorrt"]) == (0, "incomplete", None)
    page = capfd.readouterr().out
    assert "TensorRT is not installed" in page and "tensorrt: not done" in page


def test_image_without_detections_is_incomplete(simulated_tensorrt, run, tmp_path):
    black = tmp_path / "black.png"
    cv2.imwrite(str(black), np.zeros((64, 64, 3), np.uint8))
    code, report = run("--image", str(black))
    assert (code, report["verdict"]) == (0, "incomplete")
    assert [remark for remark in report["remarks"] if "nothing was compared" in remark]


def test_power_mode_and_temperatures_are_reported(run, monkeypatch, tmp_path):
    monkeypatch.setattr(selftest, "tensorrt_is_installed", lambda: False)
    monkeypatch.setattr(selftest.machine, "power_mode", lambda: "MAXN")
    monkeypatch.setattr(selftest.machine, "temperatures_c", lambda: {"cpu": 50.0, "gpu": 61.5})
    _, report = run()
    assert report["machine"]["power_mode"] == "MAXN"
    assert "hottest      61.5 °C (gpu) before" in selftest.summary(report)


def test_missing_output_folder_is_reported_before_the_work(model, tmp_path, capfd):
    assert cli.main(["selftest", str(model), "--output", str(tmp_path / "no" / "x.json")]) == 2
    assert "there is no folder" in capfd.readouterr().err


def detections(*rows):
    array = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(array[:, :4], array[:, 4], array[:, 5].astype(np.int64))


def test_drift_is_in_network_pixels_and_both_sides_count_as_missing():
    one = detections((10, 10, 30, 30, 0.9, 0), (50, 50, 70, 70, 0.8, 1))
    moved = detections((10, 10, 32, 30, 0.88, 0), (50, 50, 70, 70, 0.8, 1))
    result = selftest.compare(one, moved, 0.5, 0.25, (1.0, 0.03))
    assert (result["boxes"], result["missing"], result["drift_px"]) == (4, 0, 1.0)
    assert result["drift_score"] == pytest.approx(0.02) and result["within_limits"]
    assert not selftest.compare(one, moved, 1.0, 0.25, (1.0, 0.03))["within_limits"]
    fewer = detections((10, 10, 30, 30, 0.9, 0))
    for pair in ((one, fewer), (fewer, one)):
        result = selftest.compare(*pair, 1.0, 0.25, (1.0, 0.03))
        assert result["missing"] == 1 and not result["within_limits"]


def test_boxes_barely_above_the_threshold_may_be_missing():
    barely = detections((10, 10, 30, 30, 0.26, 0))
    result = selftest.compare(barely, detections(), 1.0, 0.25, (1.0, 0.02))
    assert result["boxes"] == 0 and result["within_limits"]


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("{tmp_path}", "expected a file to replace, or none, got another kind"),
        ("{tmp_path}/no/x.json", "there is no folder"),
        ("{tmp_path}/" + "x" * 300, "File name too long"),
        ("a\0b", "null byte"),
        ("{tmp_path}/closed/x.json", "a folder that can be written, got /"),
    ],
)
def test_unusable_output_is_refused_before_the_test(tmp_path, monkeypatch, capfd, output, problem):
    monkeypatch.setattr(selftest, "run_selftest", partial(pytest.fail, "run"))
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: path.name != "closed")
    assert cli.main(["selftest", "--output", output.format(tmp_path=tmp_path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("drone-kd: error: --output ") and problem in line
    assert line.isprintable() and len(line) < 500
