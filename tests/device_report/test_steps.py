import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from drone_kd.device_report import steps
from drone_kd.device_report.measure import Task
from drone_kd.device_report.steps import Report, outcome_of, plan_steps
from drone_kd.parsing import ParseError

TASK = Task((), "tensorrt", 3, 1.0)
PASSED = {"status": "pass", "result": {"name": "TensorRT"}, "error": "", "seconds": 1.0}


@pytest.fixture
def plan():
    models = {"a.onnx": Path("/m/a.onnx"), "b.onnx": Path("/m/b.onnx")}
    return {step.name: step for step in plan_steps(models, {"a.onnx": "A", "b.onnx": "B"}, TASK)}


def test_each_model_is_built_before_it_is_used(plan):
    names = list(plan)
    for label in ("a.onnx", "b.onnx"):
        for name in ("tensorrt", "agreement", "layers", "swap", "soak"):
            if f"{name}: {label}" in plan:
                assert names.index(f"build: {label}") < names.index(f"{name}: {label}")
    assert plan["swap: a.onnx"].task.models == ("/m/a.onnx", "/m/b.onnx")
    assert plan["onnxruntime: b.onnx"].task.runtime == "onnxruntime"


def test_finished_steps_are_kept_while_nothing_has_changed(plan, tmp_path):
    step = plan["build: a.onnx"]
    report = Report(tmp_path, restart=False)
    assert not report.is_done(step)
    report.add(step, dict(PASSED))
    assert Report(tmp_path, restart=False).is_done(step)
    assert not Report(tmp_path, restart=False).is_done(replace(step, key="other power mode"))
    assert not Report(tmp_path, restart=True).is_done(step)


def test_build_is_repeated_and_keeps_its_time(plan, tmp_path):
    """Its engine may have gone; one that is still there is loaded."""
    step = plan["build: a.onnx"]
    Report(tmp_path, restart=False).add(step, PASSED | {"result": {"built": True, "seconds": 9}})
    report = Report(tmp_path, restart=False)
    assert report.must_run(step) and report.is_done(step)
    report.add(step, PASSED | {"result": {"built": False, "seconds": 1}})
    assert report.content["steps"][step.name]["result"] == {"built": True, "seconds": 9}
    report.add(step, PASSED | {"status": "fail"})
    assert report.status(step.name) == "fail"
    speed = plan["tensorrt: a.onnx"]
    report.add(speed, dict(PASSED))
    assert not report.must_run(speed)


@pytest.mark.parametrize("status", ["fail", "not done"])
def test_other_steps_are_repeated(plan, tmp_path, status):
    step = plan["build: a.onnx"]
    report = Report(tmp_path, restart=False)
    report.add(step, PASSED | {"status": status})
    assert not Report(tmp_path, restart=False).is_done(step)


def test_steps_of_models_that_are_not_tested_now_are_left_out(plan, tmp_path):
    report = Report(tmp_path, restart=False)
    for name in ("build: a.onnx", "build: b.onnx"):
        report.add(plan[name], dict(PASSED))
    report.forget(["build: b.onnx", "soak: b.onnx"])
    assert list(report.content["steps"]) == ["build: b.onnx"]


def test_layers_get_a_file_of_their_own(plan, tmp_path):
    report = Report(tmp_path, restart=False)
    layers = {"Layers": ["/model.0/conv", "/model.1/conv"]}
    report.add(plan["layers: a.onnx"], PASSED | {"result": {"layers": layers}})
    assert json.loads((tmp_path / "layers-a.onnx.json").read_text()) == layers
    written = json.loads((tmp_path / "report.json").read_text())["steps"]["layers: a.onnx"]
    assert written["result"] == {"file": "layers-a.onnx.json", "layers": 2}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"schema": 0}',
        "{",
        '{"schema": 1}',
        '{"schema": 1, "steps": {"a": {"status": "pass"}}}',
    ],
)
def test_other_file_is_refused(tmp_path, content):
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ParseError) as error:
        Report(tmp_path, restart=False)
    assert str(error.value).isprintable() and "report.json" in str(error.value)
    assert Report(tmp_path, restart=True).content["steps"] == {}


def outcome(step, report, seconds=60.0, has_tensorrt=True):
    return outcome_of(step, report, time.monotonic() + seconds, has_tensorrt)


def test_what_cannot_be_done_says_why(plan, tmp_path):
    report = Report(tmp_path, restart=False)
    for step, options, reason in (
        (plan["build: a.onnx"], {"has_tensorrt": False}, "TensorRT is not installed"),
        (plan["tensorrt: a.onnx"], {}, "its engine was not built"),
        (plan["onnxruntime: a.onnx"], {"seconds": 0}, "no time was left: run the command again"),
    ):
        found = outcome(step, report, **options)
        assert (found["status"], found["error"]) == ("not done", reason)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was killed, probably because memory ran out"),
        ("import os; os.kill(os.getpid(), 11)", "crashed (segmentation fault)"),
        ("raise SystemExit(3)", "ended with code 3 and no result"),
    ],
)
def test_process_that_crashes_fails_its_step(plan, tmp_path, monkeypatch, code, error):
    running = steps.running
    monkeypatch.setattr(
        steps, "running", lambda _, **o: running([sys.executable, "-c", code], **o)
    )
    found = outcome(plan["onnxruntime: a.onnx"], Report(tmp_path, restart=False))
    assert found["status"] == "fail" and f"the process {error}" in found["error"]


def test_step_that_takes_too_long_is_ended(plan, tmp_path, monkeypatch):
    running = steps.running
    waits = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(steps, "running", lambda _, **options: running(waits, **options))
    found = outcome(plan["onnxruntime: a.onnx"], Report(tmp_path, restart=False), seconds=0.1)
    assert found["status"] == "not done" and "took longer than the time left" in found["error"]
