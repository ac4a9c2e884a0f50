import numpy as np
import pytest

from drone_kd.simulation.scoring.flight_record import FlightError, FlightWriter, read_flight

TRUTH = {"truth": 10, "at": 12, "boxes": [["car", "3", 1, 2, 3.5, 4]]}
ANSWER = {"answer": 10, "at": 15, "boxes": [["car", 0.5, 1, 2, 3, 4], ["bus", 0.25, 0, 0, 1, 1]]}


def write(path, *events):
    writer = FlightWriter(path)
    for event in events:
        writer.write(event)
    writer.close()
    return path


def test_record_is_read_as_written(tmp_path):
    path = write(
        tmp_path / "f.jsonl", {"classes": ["car"]}, TRUTH, {"frame": 10, "at": 11}, ANSWER
    )
    flight = read_flight(path)
    (leg,) = flight.legs
    assert flight.classes == ("car",) and flight.notes == []
    assert leg.truths[10].names == ("car",) and leg.truths[10].ids == ("3",)
    np.testing.assert_array_equal(leg.truths[10].xyxy, np.array([[1, 2, 3.5, 4]], np.float32))
    assert leg.frames == {10} and leg.truths_at == {10: 12}
    (found,) = leg.predictions
    assert (found.stamp_ns, found.at_ns, found.names) == (10, 15, ("car", "bus"))
    np.testing.assert_array_equal(found.scores, np.array([0.5, 0.25], np.float32))


def test_truncated_record_is_read_up_to_the_cut(tmp_path):
    path = write(tmp_path / "f.jsonl", TRUTH, ANSWER)
    path.write_text(path.read_text()[:-20])
    flight = read_flight(path)
    assert list(flight.legs[0].truths) == [10] and flight.legs[0].predictions == []
    assert flight.notes == ["the record breaks off in the middle of a line"]


def test_predictions_after_a_clock_jump_belong_to_the_leg_of_their_stamp(tmp_path):
    second = 10**9
    late = {**ANSWER, "answer": 9 * second}
    truths = [{**TRUTH, "truth": t * second} for t in (8, 9, 4, 5)]
    flight = read_flight(write(tmp_path / "f.jsonl", *truths, late))
    assert [sorted(leg.truths) for leg in flight.legs] == [
        [8 * second, 9 * second],
        [4 * second, 5 * second],
    ]
    assert len(flight.legs[0].predictions) == 1 and flight.legs[1].predictions == []
    assert flight.notes == ["the camera's clock went back by 5.0 s, 1.0 s after the start"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected the record of a flight"),
        ('{"image": "a.jpg"}\n', "expected the record of a flight"),
        ('{"flight":1}\nnonsense\n{"frame":1,"at":1}\n', "line 2: not an event"),
        ('{"flight":1}\n{"what":1}\n', "line 2: not an event"),
        ('{"flight":1}\n{"truth":1,"at":1,"boxes":[["car"]]}\n', "line 2: not an event"),
        ('{"flight":1}\n{"answer":1,"at":1,"boxes":[["car",1,0,0,NaN,1]]}\n', "not an event"),
    ],
)
def test_malformed_record_is_rejected(tmp_path, text, says):
    path = tmp_path / "f.jsonl"
    path.write_text(text)
    with pytest.raises(FlightError, match=says):
        read_flight(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FlightError, match=r"none\.jsonl: No such file"):
        read_flight(tmp_path / "none.jsonl")
