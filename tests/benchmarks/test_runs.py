"""CSV files of the results and their provenance."""

import json

import pytest

from benchmarks.runs import Result, add, gaps, read_rows
from drone_kd.provenance import FIELDS, write_provenance

KNOWN = {"seeds": "0 1", "classes": "car", "image_sizes": "640"}


def test_a_benchmark_prints_and_keeps_its_rows(tmp_path, capsys):
    result = Result("node/speed", "speed", ["camera", "ms"], KNOWN, tmp_path)
    result.add("720p", "8.1")
    result.add("1080p", 9)
    assert "| 720p | 8.1 |" in capsys.readouterr().out
    assert read_rows(tmp_path / "node/speed.csv")[1] == {"camera": "1080p", "ms": "9"}
    (row,) = read_rows(tmp_path / "runs.csv")
    assert (row["run"], row["what"], row["classes"]) == ("node/speed", "speed", "car")
    assert row["machine"]
    assert list(gaps(tmp_path)) == []


def test_a_result_measured_again_replaces_the_old_one(tmp_path):
    for value in (1, 2):
        Result("a", "speed", ["ms"], KNOWN, tmp_path).add(value)
    assert read_rows(tmp_path / "a.csv") == [{"ms": "2"}]
    assert len(read_rows(tmp_path / "runs.csv")) == 1


def test_a_comparison_is_added_with_its_teacher(tmp_path):
    result, folder = tmp_path / "compare", tmp_path / "benchmarks"
    result.mkdir()
    folder.mkdir()
    (result / "compare.csv").write_text("arm,seed,map50_95\nplain,0,0.1\n", encoding="utf-8")
    metrics = {"teacher": {"map50_95": 0.5, "imgsz": 320}}
    (result / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    write_provenance(result, **KNOWN)
    add(result / "compare.csv", "distillation/new", "new arms", folder)
    assert read_rows(folder / "distillation/new.csv") == [
        {"arm": "teacher", "seed": "", "map50_95": "0.5"},
        {"arm": "plain", "seed": "0", "map50_95": "0.1"},
    ]
    assert list(gaps(folder)) == []


def test_what_is_not_known_is_named(tmp_path):
    Result("a", "speed", ["ms"], {**KNOWN, "classes": ""}, tmp_path).add(1)
    assert "classes" in read_rows(tmp_path / "runs.csv")[0]["unknown"].split()
    assert list(gaps(tmp_path)) == []


def test_gaps(tmp_path):
    header = ",".join(("run", "what", *FIELDS, "unknown", "notes"))
    row = f"gone,x{',y' * len(FIELDS)},commit,"
    (tmp_path / "runs.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    (tmp_path / "new.csv").write_text("a\n1\n", encoding="utf-8")
    assert [line.partition(": ")[2][:40] for line in gaps(tmp_path)] == [
        "expected a row in runs.csv, got none: ad",
        "expected one row per CSV file, got 'gone",
        "commit: expected a value, or its name un",
    ]


@pytest.mark.parametrize("text", ["", "a,b\n", "a,b\n1\n", "a\n1,2\n"])
def test_a_broken_csv_is_one_line(tmp_path, text):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.csv: expected a header and rows"):
        read_rows(tmp_path / "a.csv")
