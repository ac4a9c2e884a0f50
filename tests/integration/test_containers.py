"""Containers: no root, a health check that reads a real detector's report."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from commands import PATIENCE_S

if TYPE_CHECKING:
    from node_process import NodeProcess

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted(ROOT.glob("docker/*.Dockerfile"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_container_runs_as_a_user_and_has_a_health_check(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["1000:1000"]
    assert "\nHEALTHCHECK " in text
    assert text.index("\nHEALTHCHECK ") > text.rindex("\nFROM ")


def test_dev_container_is_built_from_a_stage_that_exists() -> None:
    folder = ROOT / ".devcontainer"
    settings = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    dockerfile = folder / settings["build"]["dockerfile"]
    stage = settings["build"]["target"]
    assert f" AS {stage}\n" in dockerfile.read_text(encoding="utf-8")


def health() -> tuple[int, str]:
    """Run the health check; return its exit code and its last line."""
    done = subprocess.run(
        [sys.executable, ROOT / "docker/health.py"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("usable", [True, False])
def test_health_is_that_of_the_detector(
    usable: bool, model: Path, ros_domain_id: int, start: Callable[..., NodeProcess]
) -> None:
    pytest.importorskip("vision_msgs", reason="needs ROS 2: source one or `make setup`")
    if not usable:
        model.unlink()
    options = ["-p", f"model:={model}", "-p", "autostart:=true"]
    detector = start("drone_kd.ros.detector", "--ros-args", *options)
    detector.wait_for_line("(autostart)" if usable else model.name)
    code, line = health()
    if usable:
        assert (code, line) == (0, "")
    else:
        assert code == 1 and line.startswith("/detector: ") and model.name in line


def test_silent_camera_does_not_make_a_container_unhealthy() -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2: source one or `make setup`")
    from diagnostic_msgs.msg import DiagnosticStatus

    def status(message: str) -> DiagnosticStatus:
        return DiagnosticStatus(level=DiagnosticStatus.ERROR, name="x", message=message)

    judge = runpy.run_path(str(ROOT / "docker/health.py"))["judge"]
    assert judge([status("no image for 3.0 s: it has no publisher")]) == ""
    assert judge([status("9 of the last 9 inferences failed")]) != ""
