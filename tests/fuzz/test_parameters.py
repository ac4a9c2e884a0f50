"""Any values of the detector's parameters: accepted, or rejected with a short reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drone_kd.paths import parameter_defaults
from drone_kd.ros.params import Settings, SettingsError
from fuzzing import check_line, hostile_text, only

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from ground_station import Ground

DEFAULTS = parameter_defaults("detector.yaml")
# ROS has integers of 64 bits and no lists of mixed types.
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | hostile_text
entries = (
    hostile_text
    | st.sampled_from(["car=0.4", "car=nan", "car=2", "=1", "car=", "2x3", "0x0", "999x999"])
    | st.sampled_from(["off", "auto", "tensorrt", "raw", "compressed", "front", "front/x"])
)
lists = st.lists(entries, max_size=5) | st.lists(st.floats(), max_size=3)


def of_type(name: str) -> st.SearchStrategy[Any]:
    """Return values of a parameter's type, which ROS checks, and of every type for tiling."""
    kind = type(DEFAULTS[name])
    if name == "tiling":
        return scalars | entries | lists
    return {
        str: entries,
        bool: st.booleans(),
        int: st.integers(1, 1000),
        float: st.floats(),
        list: st.lists(entries, max_size=5),
    }[kind]


changes = st.dictionaries(st.sampled_from(sorted(DEFAULTS)), st.none(), max_size=3).flatmap(
    lambda chosen: st.fixed_dictionaries({name: of_type(name) for name in chosen})
)


@given(changes)
def test_settings_are_checked(changed: dict[str, Any]) -> None:
    with only(SettingsError):
        Settings.from_parameters(DEFAULTS | changed)


@given(data=st.data())
def test_parameters_of_the_node_are_set_or_rejected(
    data: st.DataObject, flying_once: Ground
) -> None:
    from rclpy.parameter import Parameter

    node = flying_once.detector
    assert node is not None
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(DEFAULTS)), st.none(), max_size=3))
    parameters = []
    for name in changed:
        value = data.draw(of_type(name) | scalars | lists)
        try:
            parameters.append(Parameter(name, value=value))
            parameters[-1].to_parameter_msg()
        except (ValueError, TypeError, AssertionError, OverflowError, UnicodeError):
            parameters = parameters[:-1]  # rclpy cannot send it
    for result in node.set_parameters(parameters):
        if not result.successful:
            check_line(result.reason)
    values = {name: node.get_parameter(name).value for name in DEFAULTS}
    assert Settings.from_parameters(values)


@pytest.fixture
def flying_once(ground: Callable[..., Ground], model: Path) -> Ground:
    """A configured detector in this process, that gets no frames."""
    site = ground(model=model, autostart=True)
    site.add_detector()
    return site
