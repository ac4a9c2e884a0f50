"""Frame statistics and diagnostic levels."""

import re
from dataclasses import replace

import pytest

from drone_kd.paths import parameter_defaults
from drone_kd.ros import stats
from drone_kd.ros.diagnostics import (
    ERROR,
    OK,
    WARN,
    judge_camera,
    judge_node,
    processor_temperatures,
)
from drone_kd.ros.drop_reasons import FAILED, OLD, SUPERSEDED, UNDECODABLE
from drone_kd.ros.params import Settings
from drone_kd.ros.stats import PROCESSED, CameraStats

SETTINGS = Settings.from_parameters(parameter_defaults("detector.yaml"))


def settings(**changes):
    return Settings.from_parameters({**parameter_defaults("detector.yaml"), **changes})


def report(processed=10, total_ms=50.0, **drops):
    camera = CameraStats()
    for _ in range(processed + sum(drops.values())):
        camera.count_received()
    for _ in range(processed):
        camera.count_processed({"total": total_ms, "infer": 20.0})
    for reason, count in drops.items():
        for _ in range(count):
            camera.count_drop(reason)
    return camera.report()


def test_frames_are_counted_by_outcome():
    counted = report(8, superseded=3, failed=1)
    assert (counted.received, counted.processed) == (12, 8)
    assert counted.dropped == {
        "old": 0,
        "superseded": 3,
        "undecodable": 0,
        "failed": 1,
        "disabled": 0,
    }
    assert counted.stages == {"infer": (20.0, 20.0, 20.0), "total": (50.0, 50.0, 50.0)}
    assert str(counted) == "12 images received, 8 published, 3 superseded, 1 failed"
    assert counted.silent_s >= 0


def test_rate_and_percentiles_cover_the_last_seconds(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(stats, "monotonic", lambda: now)
    camera = CameraStats()
    for now in (1000.0, 1001.0, 1020.0, 1020.5):
        camera.count_received()
        camera.count_processed({"total": now})
    now = 1022.5
    counted = camera.report()
    assert counted.processed == 4
    assert counted.recent == {PROCESSED: 2}
    assert counted.rate_hz == pytest.approx(0.2)
    assert counted.silent_s == pytest.approx(2.0)
    assert counted.stages["total"][0] == pytest.approx(1020.25)


@pytest.mark.parametrize(
    ("counted", "changes", "level", "says"),
    [
        (report(), {}, OK, "detections per second"),
        (report(0), {}, OK, "0.0 detections per second"),
        (report(total_ms=600.0), {}, WARN, "latency p95 600 ms"),
        (report(total_ms=600.0), {"latency_warn_ms": 0.0}, OK, ""),
        (report(total_ms=3000.0), {}, ERROR, "latency p95 3000 ms"),
        (report(**{FAILED: 1}), {}, WARN, "1 of the last 11 inferences failed"),
        (report(10, **{FAILED: 10}), {}, ERROR, "10 of the last 20 inferences failed"),
        (report(10, **{FAILED: 10}), {"failed_error_share": 0.6}, WARN, "failed"),
        (report(0, **{FAILED: 1}), {}, ERROR, "failed"),
        (report(**{UNDECODABLE: 1}), {}, WARN, "could not be read"),
        (report(0, **{OLD: 5}), {}, WARN, "use_sim_time"),
        (report(), {"rate_warn_hz": 100.0}, WARN, "detections per second"),
    ],
)
def test_levels_of_a_camera(counted, changes, level, says):
    got, message = judge_camera(counted, "", settings(**changes))
    assert (got, says in message) == (level, True), message


def test_frames_without_a_result_are_an_error_after_the_limit(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(stats, "monotonic", lambda: now)
    camera = CameraStats()
    limited = settings(max_rate=0.5)  # a frame may wait for 2 s more

    def level():
        camera.count_received()
        return judge_camera(camera.report(), "", limited)

    assert level()[0] == OK
    now += 6.0
    camera.count_drop(SUPERSEDED)
    assert level()[0] == OK
    now += 1.5
    assert level() == (ERROR, "frames are received, but there is no result for 7.5 s")
    camera.count_drop(UNDECODABLE)  # the worker works
    assert "no result" not in level()[1]
    for _ in range(3):
        camera.count_processed({})
    assert camera.report().pending_s == 0.0


@pytest.mark.parametrize(
    ("transport_s", "simulated", "level", "says"),
    [
        (
            30 * 86400,
            False,
            ERROR,
            "30 days, 0:00:00 behind this computer's clock: .* use_sim_time",
        ),
        (30 * 86400, True, ERROR, "behind /clock: is it published"),
        (-3600, False, WARN, "1:00:00 ahead of this computer's clock: synchronize"),
        (-1.7e9, True, WARN, "ahead of /clock: is it published"),
        (-0.1, False, OK, "detections per second"),
    ],
)
def test_clocks_that_differ_are_named(transport_s, simulated, level, says):
    camera = CameraStats()
    camera.count_received()
    camera.count_processed({"transport": transport_s * 1e3, "total": max(transport_s, 0) * 1e3})
    got, message = judge_camera(camera.report(), "", SETTINGS, simulated)
    assert got == level
    assert re.search(says, message), message


def test_silent_camera_is_an_error():
    level, message = judge_camera(replace(report(), silent_s=2.5), "it has no publisher", SETTINGS)
    assert level == ERROR
    assert message == "no image for 2.5 s: it has no publisher"


@pytest.mark.parametrize(
    ("state", "enabled", "problem", "temperature", "level", "says"),
    [
        ("active", True, "", 50.0, OK, "detecting"),
        ("active", False, "", 50.0, WARN, "disabled"),
        ("inactive", True, "", 50.0, WARN, "inactive"),
        ("unconfigured", True, "", 50.0, WARN, "unconfigured"),
        ("unconfigured", True, "cannot configure", 50.0, ERROR, "cannot configure"),
        ("active", True, "cannot load x", 50.0, WARN, "cannot load x"),
        ("active", True, "", 90.0, WARN, "90 degrees"),
        ("active", True, "", 99.0, ERROR, "99 degrees"),
    ],
)
def test_levels_of_the_node(state, enabled, problem, temperature, level, says):
    got, message = judge_node(state, enabled, problem, {"cpu-thermal": temperature}, SETTINGS)
    assert (got, says in message) == (level, True), message


def test_only_processor_temperatures_are_used():
    zones = {"cpu-thermal": 45.5, "GPU-therm": 51.0, "iwlwifi_1": 70.0}
    assert processor_temperatures(zones) == {"cpu-thermal": 45.5, "GPU-therm": 51.0}
