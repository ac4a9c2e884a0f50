"""Misspelt names in parameter files and on the command line are named, others are not."""

import json
import sys

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from drone_kd.ros.declare import declare_detector_parameters

PREFIX = "qos_overrides./detector/detections.publisher"


def test_unknown_names_are_logged_and_in_the_diagnostics(ground, model):
    allowed = {"use_sim_time": False, f"{PREFIX}.depth": 5}
    site = ground(model=model, autostart=True, confidance=0.9, zz=1, **allowed)
    site.add_detector()
    line = "Unknown parameter confidance has no effect: did you mean confidence?"
    site.wait_for_log(line)
    site.wait_for_log("Unknown parameter zz has no effect: see ros2 param list")
    assert site.log().count("has no effect") == 2
    found = site.receive_until(
        site.collect(DiagnosticArray, "/diagnostics"),
        lambda message: line in message.status[0].message,
        "the node's status says so",
    )
    assert found.status[0].level == DiagnosticStatus.WARN


def test_known_names_are_not_reported(ground, model):
    node = ground(model=model, confidence=0.5, use_sim_time=False).node
    assert declare_detector_parameters(node) == []


@pytest.mark.parametrize(
    ("section", "is_matched"),
    [
        ("/**", True),
        ("ground", True),
        ("/*", True),
        ("/**/ground", True),
        ("grounds", False),
        ("drone1/ground", False),
        ("/*/ground", False),
    ],
)
def test_file_without_a_section_for_the_node_is_named(
    ground, monkeypatch, tmp_path, section, is_matched
):
    file = tmp_path / "my.yaml"
    namespace, _, name = section.strip("/").rpartition("/")
    content = {name: {"ros__parameters": {"confidence": 0.5}}}
    file.write_text(json.dumps({namespace: content} if namespace else content))
    monkeypatch.setattr(sys, "argv", ["detector", "--ros-args", "--params-file", str(file)])
    lines = declare_detector_parameters(ground().node)
    expected = f"no effect: expected a section /ground or /**, got /{section.strip('/')}"
    assert [expected in line for line in lines] == ([] if is_matched else [True])


def test_many_unknown_names_are_counted(ground):
    lines = declare_detector_parameters(ground(**{f"zz{n}": n for n in range(15)}).node)
    assert len(lines) == 11 and lines[-1] == "5 more names have no effect"
