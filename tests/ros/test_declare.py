"""The comments of config/detector.yaml say what the node declares."""

import re

import pytest

from drone_kd.paths import config_path, parameter_defaults
from drone_kd.ros.declare import declare_detector_parameters

LINES = re.findall(r"^ {4}(\w+): (.*)$", config_path("detector.yaml").read_text(), re.MULTILINE)


@pytest.fixture
def node(ground):
    node = ground().node
    declare_detector_parameters(node)
    return node


def test_comments_name_what_is_fixed_at_startup_and_the_ranges(node):
    assert {name for name, _ in LINES} == set(parameter_defaults("detector.yaml"))
    for name, text in LINES:
        descriptor = node.describe_parameter(name)
        assert descriptor.read_only == ("# start" in text), name
        limits = [*descriptor.floating_point_range, *descriptor.integer_range]
        if found := re.search(r"([\d.]+) to ([\d.]+)$", text):
            (limit,) = limits
            assert (limit.from_value, limit.to_value) == tuple(map(float, found.groups())), name
