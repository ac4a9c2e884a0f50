"""Thresholds per class."""

import pytest

from drone_kd.core.class_thresholds import parse_class_thresholds


def test_thresholds_by_class_name() -> None:
    entries = ["car=0.4", "", "small=car=1", " person =0"]
    assert parse_class_thresholds(entries) == {"car": 0.4, "small=car": 1.0, "person": 0.0}


@pytest.mark.parametrize("entry", ["car", "car=", "=0.5", "car=1.1", "car=-1", "car=nan"])
def test_malformed_threshold_is_rejected(entry: str) -> None:
    with pytest.raises(ValueError, match=f"expected NAME=THRESHOLD with 0 to 1, got '{entry}'"):
        parse_class_thresholds([entry])
