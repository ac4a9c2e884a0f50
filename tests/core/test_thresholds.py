import pytest

from drone_kd.core.thresholds import parse_thresholds


def test_entries_become_class_to_threshold():
    entries = ["car=0.4", "", "traffic light = 1", "a=b=0"]
    assert parse_thresholds(entries) == {"car": 0.4, "traffic light": 1.0, "a=b": 0.0}


@pytest.mark.parametrize(
    "entry", ["car", "car=", "=0.4", "car=1.1", "car=-0.1", "car=nan", "car=x"]
)
def test_other_entries_are_refused(entry):
    with pytest.raises(ValueError, match=f"expected NAME=THRESHOLD with 0 to 1, got '{entry}'"):
        parse_thresholds([entry])
