import time

import numpy as np
import pytest

from drone_kd.simulation.scoring.flight_record import (
    Flight,
    FlightError,
    FlightWriter,
    read_flight,
)

TRUTH = {"truth": 10, "at": 12, "boxes": [["car", "3", 1, 2, 3.5, 4]]}
RESULT = {"result": 10, "at": 15, "boxes": [["car", 0.5, 1, 2, 3, 4], ["bus", 0.25, 0, 0, 1, 1]]}


def write(path, *events):
    writer = FlightWriter(path)
    for event in events:
        writer.write(event)
    writer.close()
    return path


def test_record_is_read_as_written(tmp_path):
    path = write(
        tmp_path / "f.jsonl", {"classes": ["car"]}, TRUTH, {"frame": 10, "at": 11}, RESULT
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
    path = write(tmp_path / "f.jsonl", TRUTH, RESULT)
    path.write_text(path.read_text()[:-20])
    flight = read_flight(path)
    assert list(flight.legs[0].truths) == [10] and flight.legs[0].predictions == []
    assert flight.notes == ["the record breaks off in the middle of a line"]


def test_predictions_after_a_clock_jump_belong_to_the_leg_of_their_stamp(tmp_path):
    second = 10**9
    late = {**RESULT, "result": 9 * second}
    times = (8, 1), (9, 2), (4, 3), (5, 4)
    truths = [{**TRUTH, "truth": t * second, "at": at * second} for t, at in times]
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
        ('{"flight":1}\n{"result":1,"at":1,"boxes":[["car",1,0,0,"1",1]]}\n', "not an event"),
        ('{"flight":1}\n{"frame":1e999,"at":1}\n', "line 2: not an event"),
        ('{"flight":1}\n{"frame":1' + "0" * 30 + ',"at":1}\n', "line 2: not an event"),
        ('{"flight":1}\n' + "[" * 100_000 + "\n", "line 2: not an event"),
        ('{"flight":1}\n' + "x" * 17_000_000, "line 2: expected at most 16 MB"),
        ('{"flight":1}\n{"\x1b]0;evil\x07":1}\n', "line 2: not an event"),
        ('{"flight":1}\n[]\n', "line 2: not an event"),
    ],
)
def test_malformed_record_is_rejected(tmp_path, text, says):
    path = tmp_path / "f.jsonl"
    path.write_text(text)
    with pytest.raises(FlightError, match=says) as error:
        read_flight(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FlightError, match=r"none\.jsonl: No such file"):
        read_flight(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "box", ["NaN,0,9,9", "0,0,Infinity,9", "9,0,0,9", "0,9,9,0", "0,0,1e30,9", "-1e7,0,9,9"]
)
def test_unusable_box_is_dropped_and_counted(tmp_path, box):
    path = write(
        tmp_path / "f.jsonl",
        {"truth": 1, "at": 2, "boxes": [["car", "a", 0, 0, 9, 9]]},
        {"result": 1, "at": 3, "boxes": [["car", 0.9, 0, 0, 9, 9]]},
    )
    text = path.read_text()
    for good, bad in (('["car","a",', '["car","b",'), ('["car",0.9,', '["car",0.8,')):
        text = text.replace(good, f"{bad}{box}],{good}")
    path.write_text(text.replace('["car",0.9,', '["car",NaN,0,0,9,9],["car",0.9,'))
    flight = read_flight(path)
    (truth,) = flight.legs[0].truths.values()
    (found,) = flight.legs[0].predictions
    assert truth.ids == ("a",) and found.scores.tolist() == pytest.approx([0.9])
    assert flight.dropped == 3 and flight.notes == ["3 unusable boxes were dropped"]


def test_boxes_beyond_the_limit_are_dropped(tmp_path):
    boxes = [["car", 0.9, 0, 0, 9, 9]] * 100_000
    path = write(tmp_path / "f.jsonl", {"result": 1, "at": 3, "boxes": boxes})
    flight = read_flight(path)
    assert len(flight.legs[0].predictions[0].names) == 3000 and flight.dropped == 97_000


def test_class_name_is_one_short_printable_line(tmp_path):
    names = ["\x1b]0;evil\x07", "a\nb", "x" * 1_000_000]
    boxes = [[name, "", 0, 0, 9, 9] for name in names]
    path = write(tmp_path / "f.jsonl", {"truth": 1, "at": 1, "boxes": boxes}, {"classes": names})
    flight = read_flight(path)
    (truth,) = flight.legs[0].truths.values()
    assert truth.names == flight.classes
    assert all(name.isprintable() and len(name) <= 100 for name in truth.names)


def test_classes_beyond_the_limit_are_left_out(tmp_path):
    path = write(tmp_path / "f.jsonl", {"classes": [f"c{k}" for k in range(10_000)]})
    assert read_flight(path).classes == tuple(f"c{k}" for k in range(3000))


def test_number_of_dropped_boxes_is_never_negative(tmp_path):
    path = write(tmp_path / "f.jsonl", {**TRUTH, "dropped": 2}, {**RESULT, "dropped": -5})
    assert read_flight(path).dropped == 2


def test_record_is_private_and_replaces_no_link(tmp_path):
    FlightWriter(tmp_path / "f.jsonl").close()
    assert (tmp_path / "f.jsonl").stat().st_mode & 0o077 == 0
    (tmp_path / "other").write_text("kept")
    (tmp_path / "link.jsonl").symlink_to("other")
    with pytest.raises(OSError, match="symbolic"):
        FlightWriter(tmp_path / "link.jsonl")
    assert (tmp_path / "other").read_text() == "kept"


def test_long_record_is_read_in_linear_time(tmp_path):
    """Each event once took a pass over all earlier ones."""
    lines = "".join(
        f'{{"truth":{k},"at":{k},"boxes":[]}}\n{{"frame":{k},"at":{k}}}\n' for k in range(20_000)
    )
    (tmp_path / "f.jsonl").write_text('{"flight":1}\n' + lines)
    started = time.process_time()
    assert len(read_flight(tmp_path / "f.jsonl").legs[0].frames) == 20_000
    assert time.process_time() - started < 5


def test_legs_are_limited(tmp_path):
    truths = [{**TRUTH, "truth": 2000 - k} for k in range(1001)]
    assert len(read_flight(write(tmp_path / "a.jsonl", *truths[:-1])).legs) == 1000
    with pytest.raises(FlightError, match=r"line 1002: .* jumped more than 999 times"):
        read_flight(write(tmp_path / "b.jsonl", *truths))


def test_late_message_is_looked_up_in_the_newest_legs(tmp_path):
    second = 10**9
    truths = [{**TRUTH, "truth": (1000 - 10 * k) * second} for k in range(30)]
    frames = [{"frame": (1000 - 10 * k) * second, "at": 0} for k in range(30)]
    legs = read_flight(write(tmp_path / "a.jsonl", *truths, *frames)).legs
    assert [len(leg.frames) for leg in legs] == [0] * 10 + [1] * 19 + [11]


@pytest.mark.parametrize(("step", "says"), [(5.0, "forward by 5.0 s"), (-0.7, "back by 0.7 s")])
def test_a_jump_of_the_clock_in_either_direction_begins_a_leg(step, says):
    flight, ms = Flight(), 10**6
    for k in range(20):
        at = 1000 * k * ms
        stamp = at + (int(step * 1e9) if k >= 10 else 0)
        flight.add({"truth": stamp, "at": at + 3 * ms, "boxes": []})
        flight.add({"result": stamp, "at": at + 40 * ms, "boxes": []})
    assert [len(leg.truths) for leg in flight.legs] == [10, 10]
    assert [len(leg.predictions) for leg in flight.legs] == [10, 10]
    assert flight.notes == [f"the camera's clock went {says}, 9.0 s after the start"]


def test_a_late_message_is_no_jump():
    flight = Flight()
    for k in range(9):
        flight.add({"truth": k * 10**8, "at": k * 10**8 + 4 * 10**8 * (k == 5), "boxes": []})
    assert len(flight.legs) == 1 and flight.notes == []


def test_rate_and_objects_to_ignore_are_read(tmp_path):
    boxes = [["car", "a", 0, 0, 9, 9, True], ["car", "b", 9, 0, 18, 9]]
    flight = read_flight(
        write(tmp_path / "f.jsonl", {"rate": 12.5}, {"truth": 1, "at": 2, "boxes": boxes})
    )
    (truth,) = flight.legs[0].truths.values()
    assert flight.rate_hz == 12.5 and truth.ignored.tolist() == [True, False]
    for rate in ("-1", "NaN", '"x"'):
        (tmp_path / "bad.jsonl").write_text(f'{{"flight":1}}\n{{"rate":{rate}}}\n')
        with pytest.raises(FlightError, match="line 2: not an event"):
            read_flight(tmp_path / "bad.jsonl")
