import json

import cv2
import numpy as np
import pytest

from command_line import only_message
from drone_kd import cli
from drone_kd.simulation.scoring.flight_record import FlightWriter

pytest.importorskip(
    "pycocotools", reason="pycocotools is not here: pip install drone_kd[simulation]"
)
pytest.importorskip("jinja2", reason="jinja2 is not here: pip install drone_kd[simulation]")

MS = 10**6


@pytest.fixture
def folder(tmp_path):
    """The record of a car whose detections are late, with the frame of one moment."""
    writer = FlightWriter(tmp_path / "flight.jsonl")
    for k in range(20):
        t, x = 100 * k, 15 * k
        writer.write({"truth": t * MS, "at": t * MS, "boxes": [["car", "1", x, 50, x + 30, 80]]})
        writer.write({"frame": t * MS, "at": t * MS})
        row = ["car", 0.9, x, 50, x + 30, 80]
        writer.write({"result": t * MS, "at": (t + 40) * MS, "boxes": [row]})
    writer.close()
    (tmp_path / "misses").mkdir()
    cv2.imwrite(str(tmp_path / "misses" / f"{700 * MS}.jpg"), np.zeros((120, 300, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize("name", ["", "flight.jsonl"])
def test_score_prints_and_writes_both_ways(folder, name, capfd):
    assert cli.main(["score", str(folder / name)]) == 0
    out = capfd.readouterr().out
    assert out.split("\n")[2].split()[:3] == ["mAP50", "(%)", "100.0"]
    assert str(folder / "report.html") in out
    scored = json.loads((folder / "score.json").read_text())
    assert scored["offline"]["map50_95"] == 1 and scored["streaming"]["map50_95"] < 0.5
    page = (folder / "report.html").read_text()
    for part in ("mAP50-95", "<polyline", "<rect", "0.7 s: 1 missed", "data:image/jpeg;base64,"):
        assert part in page
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ('{"flight":1}\n', "the flight is empty: no ground truth was recorded"),
        (
            '{"flight":1}\n{"classes":["dog"]}\n{"truth":1,"at":1,"boxes":[["car","",0,0,9,9]]}\n',
            "no class in common: the ground truth has car; the detector knows dog",
        ),
    ],
)
def test_unusable_record_is_one_line_and_2(tmp_path, content, says, capfd):
    if content is not None:
        (tmp_path / "flight.jsonl").write_text(content)
    assert cli.main(["score", str(tmp_path)]) == 2
    error = only_message(capfd)
    assert error.startswith("drone-kd: error: ") and says in error
    assert not (tmp_path / "score.json").exists()


def test_missing_flight_is_one_line_and_2(tmp_path, capfd):
    assert cli.main(["score", str(tmp_path / "none")]) == 2
    assert only_message(capfd) == f"drone-kd: error: {tmp_path / 'none'}: no such flight"


def test_name_of_a_flight_is_printed_without_control_characters(folder, capfd):
    other = folder.rename(folder.with_name("a\x1b[31m\udcff"))
    assert cli.main(["score", str(other)]) == 0
    assert "\\x1b[31m" in (out := capfd.readouterr().out) and "\x1b" not in out


@pytest.mark.parametrize("shape", [(1, 3000, 3), (70_000, 8, 3)])
def test_misshapen_picture_does_not_end_the_score(folder, shape):
    """A JPEG holds no 70,000 rows; the file is a PNG."""
    content = cv2.imencode(".png", np.zeros(shape, np.uint8))[1].tobytes()
    (folder / "misses" / f"{700 * MS}.jpg").write_bytes(content)
    assert cli.main(["score", str(folder)]) == 0
    assert ("<figure>" in (folder / "report.html").read_text()) == (shape[0] == 1)


def test_several_flights_have_means_and_intervals(folder, tmp_path, capfd):
    copies = [tmp_path / name for name in ("a", "b", "c")]
    for k, copy in enumerate(copies):
        copy.mkdir()
        text = (folder / "flight.jsonl").read_text()
        # Flight k has no detections in its first k tenths of the time.
        rows = [row for row in text.splitlines() if '"result"' not in row]
        rows += [row for row in text.splitlines() if '"result"' in row][2 * k :]
        (copy / "flight.jsonl").write_text("\n".join(rows) + "\n")
    assert cli.main(["score", *map(str, copies)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-2].startswith("stale boxes") and lines[-1].startswith("± half of the 95 %")
    (recall,) = (line for line in lines if line.startswith("recall (%)") and "±" in line)
    recalls = [json.loads((c / "score.json").read_text())["sap"]["recall"] for c in copies]
    half = 4.30 * np.std(recalls, ddof=1) / np.sqrt(3)
    assert recall.split()[2:5] == ["100.0", "±", "0.0"]
    assert recall.endswith(f"{100 * np.mean(recalls):.1f} ± {100 * half:.1f}")
    assert cli.main(["score", str(copies[0]), str(copies[0] / "flight.jsonl")]) == 2
    assert "got one twice" in only_message(capfd)
