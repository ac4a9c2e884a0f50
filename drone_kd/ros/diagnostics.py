"""Diagnostics: levels of the node and its cameras, and the figures behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from drone_kd.machine import host_name
from drone_kd.ros.drop_reasons import FAILED, OLD, UNDECODABLE
from drone_kd.ros.model_loader import Model
from drone_kd.ros.params import Settings
from drone_kd.ros.recording.frame_selection import REASONS
from drone_kd.ros.recording.recorder import RecordReport
from drone_kd.ros.stats import PROCESSED, CameraReport
from drone_kd.ros.survival import FailureReport
from drone_kd.text import one_line

OK, WARN = DiagnosticStatus.OK, DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR
Verdict = tuple[bytes, str]

# Of a text in a status: it may quote what others sent.
_SHOWN_CHARACTERS = 500
_NO_FAILURES = FailureReport(0, "", is_recent=False)

# Median of stamp to reception from which on the clocks differ: no camera takes that long, and a
# simulation's /clock may arrive after its image.
_CLOCK_BEHIND_S, _CLOCK_AHEAD_S = 60.0, 0.5

# Parts of the names of the processors' thermal zones (Jetson, x86, ARM boards).
_PROCESSORS = ("cpu", "gpu", "soc", "tj", "x86_pkg")


def processor_temperatures(zones: Mapping[str, float]) -> dict[str, float]:
    """Return the processors' share of all temperatures, in °C by thermal zone."""
    return {
        zone: value
        for zone, value in zones.items()
        if any(part in zone.lower() for part in _PROCESSORS)
    }


def judge_node(
    state: str,
    enabled: bool,
    problem: str,
    temperatures: Mapping[str, float],
    settings: Settings,
    failures: FailureReport = _NO_FAILURES,
    hanging: str = "",
    progress: str = "",
    ignored: Sequence[str] = (),
) -> Verdict:
    """Return the level of the node as a whole, and the reason.

    Args:
        state: name of the lifecycle state.
        enabled: as set by ~/enable.
        problem: what is wrong with the model; empty: nothing.
        temperatures: in °C by thermal zone.
        settings: hold the thresholds.
        failures: what the node has outlived; a recent one is named.
        hanging: which inference hangs, or which camera gets no results; empty: none.
        progress: of the transition; empty: there is none, or nothing is known.
        ignored: lines on parameters given at startup that have no effect.
    """
    if hanging:
        return ERROR, hanging
    hottest = max(temperatures.values(), default=0.0)
    if hottest >= settings.temperature_error_c:
        return ERROR, f"{hottest:.0f} degrees Celsius"
    if problem:
        # An active node has a model, though not the requested one.
        return (WARN if state == "active" else ERROR), problem
    if state != "active":
        return WARN, f"{state}: {progress or 'no detections'}"
    if not enabled:
        return WARN, "disabled by ~/enable: no detections"
    if failures.is_recent:
        return WARN, failures.last
    if hottest >= settings.temperature_warn_c:
        return WARN, f"{hottest:.0f} degrees Celsius"
    if ignored:
        return WARN, "; ".join(ignored)
    return OK, "detecting"


def stall(report: CameraReport, settings: Settings) -> str:
    """Return a line if frames come, but no result for too long; empty: all is well."""
    period_s = 1 / settings.max_rate if settings.max_rate else 0.0
    if report.pending_s <= settings.stall_s + period_s:
        return ""
    return f"frames are received, but there is no result for {report.pending_s:.1f} s"


def judge_camera(
    report: CameraReport, why_silent: str, settings: Settings, uses_sim_time: bool = False
) -> Verdict:
    """Return the level of a camera of an active node, and the reason."""
    if report.silent_s > settings.silence_s:
        # Not STALE: that is the aggregator's word for a status that it no longer gets (REP 107).
        return ERROR, f"no image for {report.silent_s:.1f} s: {why_silent}"
    if stalled := stall(report, settings):
        return ERROR, stalled
    recent = {name: report.recent.get(name, 0) for name in (PROCESSED, FAILED, OLD, UNDECODABLE)}
    tried = recent[PROCESSED] + recent[FAILED]
    failures = f"{recent[FAILED]} of the last {tried} inferences failed"
    if recent[FAILED] and recent[FAILED] >= settings.failed_error_share * tried:
        return ERROR, failures
    timing = _judge_timing(report, settings, uses_sim_time)
    if timing[0] == ERROR:
        return timing
    if recent[FAILED]:
        return WARN, failures
    if recent[UNDECODABLE]:
        return WARN, f"{recent[UNDECODABLE]} images could not be read"
    if recent[OLD] > recent[PROCESSED]:
        return WARN, (
            f"{recent[OLD]} images were too old: do the camera's clock and this one agree "
            "(use_sim_time)?"
        )
    if timing[0] == WARN:
        return timing
    level = WARN if report.rate_hz < settings.rate_warn_hz else OK
    return level, f"{report.rate_hz:.1f} detections per second"


def _judge_timing(report: CameraReport, settings: Settings, uses_sim_time: bool) -> Verdict:
    """Return the level of the latency and of the clocks that it is measured with, and why."""
    p95 = report.stages["total"][1] if "total" in report.stages else 0.0
    shift_s = report.stages["transport"][0] / 1e3 if "transport" in report.stages else 0.0
    if shift_s < -_CLOCK_AHEAD_S:
        return WARN, _clock_problem(shift_s, uses_sim_time)
    late = f"latency p95 {p95:.0f} ms"
    if shift_s > _CLOCK_BEHIND_S:
        late = _clock_problem(shift_s, uses_sim_time)
    if 0 < settings.latency_error_ms < p95:
        return ERROR, late
    return (WARN if 0 < settings.latency_warn_ms < p95 else OK), late


def _clock_problem(shift_s: float, uses_sim_time: bool) -> str:
    """Return a line on stamps that lie far before (shift > 0) or after the node's own time."""
    span = str(timedelta(seconds=round(abs(shift_s))))
    where = "behind" if shift_s > 0 else "ahead of"
    if uses_sim_time:
        clock, remedy = "/clock", "is it published, by the same source as the images?"
    else:
        clock = "this computer's clock"
        remedy = (
            "synchronize it with the camera's; for a recording or a simulation start the node "
            "with use_sim_time:=true (ros2 bag play --clock)"
        )
    return f"the images' stamps are {span} {where} {clock}: {remedy}"


def node_status(
    name: str,
    verdict: Verdict,
    state: str,
    model: Model | None,
    temperatures: Mapping[str, float],
    failures: FailureReport = _NO_FAILURES,
) -> DiagnosticStatus:
    """Return the node's status as a message."""
    values = {"state": state, "failures": str(failures.count), "last failure": failures.last}
    if model is not None:
        spec = model.backend.spec
        values |= {
            "model": model.path.name,
            "model sha256": model.sha256,
            "model input": f"{spec.input_width}x{spec.input_height}",
            "model batch": str(spec.batch),
            "backend": model.backend.name,
            "precision": spec.precision,
        }
    values |= {f"temperature {zone} (C)": f"{value:.1f}" for zone, value in temperatures.items()}
    return _status(name, verdict, values)


def camera_status(
    name: str, verdict: Verdict, topic: str, report: CameraReport
) -> DiagnosticStatus:
    """Return a camera's status as a message."""
    values = {
        "topic": topic,
        "frames in": str(report.received),
        "frames processed": str(report.processed),
        **{f"dropped {reason}": str(count) for reason, count in report.dropped.items()},
        "last problem": report.last_problem,
        "rate (Hz)": f"{report.rate_hz:.2f}",
        "age of last frame (s)": f"{report.silent_s:.3f}",
    }
    for stage, times in report.stages.items():
        for percentile, time_ms in zip((50, 95, 99), times, strict=True):
            values[f"{stage} p{percentile} (ms)"] = f"{time_ms:.2f}"
    return _status(name, verdict, values)


def record_status(name: str, folder: Path, report: RecordReport) -> DiagnosticStatus:
    """Return the recorder's status as a message."""
    verdict = (WARN, report.problem) if report.problem else (OK, f"recording {report.state}")
    values = {
        "state": report.state,
        "folder": str(folder),
        "frames looked at": str(report.seen),
        "frames dropped": str(report.dropped),
        "frames kept": str(report.kept),
        **{f"kept for {reason}": str(report.reasons.get(reason, 0)) for reason in REASONS},
        "written (MB)": f"{report.written_bytes / 1e6:.1f}",
    }
    return _status(name, verdict, values)


def _status(name: str, verdict: Verdict, values: Mapping[str, str]) -> DiagnosticStatus:
    level, message = verdict
    pairs = [
        KeyValue(key=one_line(key), value=one_line(value, _SHOWN_CHARACTERS))
        for key, value in values.items()
    ]
    line = one_line(message, _SHOWN_CHARACTERS)
    return DiagnosticStatus(
        level=level, name=name, message=line, hardware_id=host_name(), values=pairs
    )
