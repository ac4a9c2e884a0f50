"""Damaged records of flights and footage: values that can be scored, or one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="needs pycocotools: pip install 'drone_kd[simulation]'")

from hypothesis import given
from hypothesis import strategies as st

from drone_kd.media.image_files import SourceError
from drone_kd.simulation.scoring.flight_record import FlightError, read_flight
from drone_kd.simulation.scoring.score import score
from fuzzing import as_json, damaged_record, only

pytestmark = pytest.mark.slow

BOX = ["car", "7", 1.0, 2.0, 30.0, 40.0]
EVENTS = [
    {"flight": 1},
    {"classes": ["car", "person"]},
    {"truth": 1_000_000_000, "at": 1_010_000_000, "boxes": [BOX, BOX]},
    {"frame": 1_000_000_000},
    {"result": 1_000_000_000, "at": 1_100_000_000, "boxes": [["car", 0.9, 1.0, 2.0, 30.0, 40.0]]},
    {"truth": 2_000_000_000, "at": 2_010_000_000, "boxes": [BOX]},
    {"frame": 2_000_000_000},
    {"result": 2_000_000_000, "at": 2_100_000_000, "boxes": []},
]


@given(events=damaged_record(EVENTS), joined=st.booleans())
def test_flight_record_is_scored_or_refused(events: Any, joined: bool, tmp_path: Path) -> None:
    path = tmp_path / "flight.jsonl"
    lines = [as_json(e).replace(": ", ":") for e in (events if isinstance(events, list) else [])]
    path.write_text("\n".join(lines) + "\n" * joined, encoding="utf-8", errors="replace")
    with only(FlightError):
        score(read_flight(path))


LABELS = [
    {"frame": 0, "boxes": [["car", 1, 2, 30, 40], ["car", 1, 2, 30, 40, "7"]]},
    {"frame": 1, "boxes": []},
]


@given(rows=damaged_record(LABELS))
def test_labels_of_footage_are_read_or_refused(rows: Any, tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="the module replays bags with ROS")
    from drone_kd.simulation.replay import read_labels

    path = tmp_path / "labels.jsonl"
    lines = [as_json(row) for row in (rows if isinstance(rows, list) else [rows])]
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    with only(SourceError):
        for truth in read_labels(path).values():
            assert np.isfinite(truth.xyxy).all()
