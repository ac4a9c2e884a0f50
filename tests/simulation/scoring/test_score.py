import numpy as np
import pytest

from drone_kd.simulation.scoring.flight_record import Flight, FlightError
from drone_kd.simulation.scoring.score import score
from drone_kd.simulation.scoring.text import summary

pytest.importorskip(
    "pycocotools", reason="pycocotools is not here: pip install drone_kd[simulation]"
)

MS = 10**6
STEP_MS = 100


def car(t_ms, speed_px_s=200.0, name="car"):
    """A box of 40 px that drives to the right."""
    x = 100 + speed_px_s * t_ms / 1000
    return [name, 0, x, 200.0, x + 40, 240.0]


def fly(latency_ms, steps=20, seen=car, delivered=lambda k: True, start_ms=0):
    """Events of a flight over one car with perfect predictions."""
    events = []
    for k in range(steps):
        t = start_ms + k * STEP_MS
        box = car(t)
        box[1] = "7"
        events.append((t, {"truth": t * MS, "at": t * MS, "boxes": [box]}))
        if delivered(k):
            events.append((t, {"frame": t * MS, "at": t * MS}))
            row = seen(t)
            row[1] = 0.9
            out = t + latency_ms
            events.append((out, {"result": t * MS, "at": out * MS, "boxes": [row]}))
    return [event for _, event in sorted(events, key=lambda e: e[0])]


def flight(events):
    made = Flight()
    for event in events:
        made.add(event)
    return made


def still(events):
    """The flight of a car that stands still."""
    for event in events:
        for row in event.get("boxes", ()):
            row[2:] = 100.0, 200.0, 140.0, 240.0
    return events


def test_without_latency_all_ways_agree():
    found = score(flight(still(fly(0))))
    assert found["offline"] == found["streaming"] == found["sap"]
    assert found["offline"]["map50_95"] == found["offline"]["recall"] == 1
    assert found["latency_ms"]["p99"] == 0 and found["age_ms"]["p99"] <= 90
    assert found["notes"] == []


def test_late_predictions_miss_their_object():
    # 90 ms late, so held for the next moment: 100 ms at 200 px/s are 20 of 40 px, IoU a third.
    found = score(flight(fly(90)))
    assert found["offline"]["map50"] == 1 and found["offline"]["recall"] == 1
    for way in ("streaming", "sap"):
        assert found[way]["map50"] == 0 and found[way]["recall"] == 0
        assert found[way]["first_detection_s"]["never"] == 1
        assert found[way]["first_detection_s"]["p50"] is None
        # The boxes are late, not invented.
        assert found[way]["false_alarms_per_minute"] == 0 and found[way]["stale_boxes"] == 1
    assert found["latency_ms"]["p50"] == 90
    # Between 90 and 180 ms; 90 again at the moment when the next ones arrive.
    assert found["age_ms"]["p50"] == pytest.approx(135, abs=5)


def test_false_alarms_count_once_per_message():
    found = score(flight(fly(0, steps=31, seen=lambda t: car(t + 10_000))))
    assert found["seconds"] == 3.0
    for way in ("offline", "streaming", "sap"):
        assert found[way]["recall"] == 0
        assert found[way]["false_alarms_per_minute"] == 31 * 20
        assert found[way]["stale_boxes"] == 0


def test_recall_by_size():
    found = score(flight(fly(0)))["offline"]
    assert found["recall_medium"] == 1
    assert found["recall_tiny"] is found["recall_small"] is found["recall_large"] is None


def test_camera_outage_becomes_a_note():
    found = score(flight(fly(10, steps=60, delivered=lambda k: not 20 <= k < 50)))
    assert any("delivered nothing for 3.1 s, from 1.9 s on" in note for note in found["notes"])
    assert found["frames"] == {
        "due": 60,
        "rate_hz": 10.0,
        "asked_hz": None,
        "not_made": None,
        "delay_ms": {"p50": 0.0, "p95": 0.0, "p99": 0.0},
        "real_time_factor": 1.0,
        "not_delivered": 30,
        "delivered": 30,
        "processed": 30,
        "unprocessed": 0,
        "results_without_truth": 0,
    }
    # Predictions that are this old match nothing.
    assert found["offline"]["recall"] == 1 and found["streaming"]["recall"] < 0.6


def test_a_clock_that_jumps_back_starts_a_new_leg():
    found = score(flight(fly(0, steps=40) + fly(0, steps=20, start_ms=500)))
    assert any("clock went back by 3.4 s, 3.9 s after the start" in n for n in found["notes"])
    assert found["moments"] == 391 + 191 and found["offline"]["map50_95"] == 1
    assert found["seconds"] == pytest.approx(3.9 + 1.9)


def test_stamps_of_another_clock_are_shifted():
    events = fly(40)
    for event in events:
        event["at"] += 10**18
    found = score(flight(events))
    assert any("another clock" in note for note in found["notes"])
    assert found["latency_ms"]["p50"] == 40


def test_detector_that_dies_is_scored_up_to_its_last_predictions():
    events = [e for e in fly(0, steps=60) if e.get("result", 0) < 3000 * MS]
    found = score(flight(events))
    assert any("fell silent 2.9 s after the start, 3.0 s before" in n for n in found["notes"])
    assert found["offline"]["recall"] == 1 and found["frames"]["unprocessed"] == 30


def test_detector_without_predictions():
    found = score(flight([e for e in fly(0) if "result" not in e]))
    assert "the detector published nothing" in found["notes"]
    assert found["streaming"]["recall"] == found["streaming"]["map50"] == 0
    assert found["offline"]["recall"] is None and found["latency_ms"]["p50"] is None


def test_without_camera_info_delivered_frames_are_unknown():
    found = score(flight([e for e in fly(0) if "frame" not in e]))
    assert found["notes"] == [
        "no camera_info was recorded: what the camera delivered is not known"
    ]
    assert found["frames"]["not_delivered"] is None and found["frames"]["unprocessed"] == 0
    assert "- not delivered by the camera" in summary(found)


def test_no_common_stamp_becomes_a_note():
    events = still(fly(0))
    for event in events:
        if "result" in event:
            event["result"] += 3 * MS
    found = score(flight(events))
    assert any("no detection has a stamp of the ground truth" in n for n in found["notes"])
    assert found["offline"]["map50"] is None and found["streaming"]["recall"] == 1


def test_classes_are_compared_by_name():
    found = score(flight(fly(0, seen=lambda t: car(t, name=" Car"))))
    assert found["offline"]["map50_95"] == 1
    with pytest.raises(FlightError, match=r"no class in common: .* has car; .* knows vehicle"):
        score(flight(fly(0, seen=lambda t: car(t, name="vehicle"))))
    events = fly(0)
    for event in events:
        if "truth" in event:
            event["boxes"].append(["boat", "8", 0, 0, 50, 50])
    found = score(flight(events))
    assert found["classes_not_in_detector"] == ["boat"] and found["offline"]["recall"] == 1
    made = flight(events)
    made.add({"classes": ["car", "boat"]})
    assert score(made)["offline"]["recall"] == 0.5


def test_empty_flight_is_rejected_but_a_flight_without_objects_is_not():
    with pytest.raises(FlightError, match="the flight is empty"):
        score(Flight())
    found = score(flight([{"truth": k * STEP_MS * MS, "at": 0, "boxes": []} for k in range(9)]))
    assert found["offline"]["map50_95"] is found["streaming"]["recall"] is None
    assert "published nothing" in summary(found)


def test_confidence_affects_recall_but_not_average_precision():
    found = score(flight(fly(0)), confidence=0.95)["offline"]
    assert found["recall"] == 0 and found["map50"] == 1 and found["false_alarms_per_minute"] == 0


def test_summary_shows_the_scores_side_by_side():
    lines = summary(score(flight(fly(90)))).splitlines()
    assert lines[0].split() == ["offline", "streaming", "sap"]
    assert lines[2].split() == ["mAP50", "(%)", "100.0", "0.0", "0.0"]
    assert np.any([line.startswith("latency p50, p95, p99: 90.0") for line in lines])


def test_classes_are_limited():
    boxes = [[f"class {k}", str(k), 0, 0, 9, 9] for k in range(1001)]
    with pytest.raises(FlightError, match="expected at most 1000 classes, got 1001"):
        score(flight([{"truth": 0, "at": 0, "boxes": boxes}]))
