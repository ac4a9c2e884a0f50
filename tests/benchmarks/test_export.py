# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables of the export benchmark."""

import sys
from functools import partial

import pytest

from benchmarks import export
from benchmarks.runs import Result, gaps, read_rows
from tiny_training import draw_set, save_checkpoint


@pytest.mark.slow
def test_files_gates_and_times_are_kept(tmp_path, monkeypatch):
    """A tiny model is exported in each precision, and every gate is a row."""
    data = draw_set(tmp_path / "data")
    checkpoint = save_checkpoint(tmp_path / "best.pt")
    folder = tmp_path / "benchmarks"
    monkeypatch.setattr(export, "Result", partial(Result, folder=folder))
    monkeypatch.setattr(export, "rtx_verdict", lambda path: "not built")
    monkeypatch.setattr(export, "ROUNDS", 2)
    command = ["export", str(checkpoint), "--data", str(data), "--name", "tiny", "--only", "gates"]
    monkeypatch.setattr(sys, "argv", command)
    export.main()
    files = read_rows(folder / "export/tiny.csv")
    assert [row["precision"] for row in files] == ["fp32", "fp16", "int8"]
    gates = read_rows(folder / "export/tiny-gates.csv", export.GATES)
    for row in files:
        own = [gate for gate in gates if gate["precision"] == row["precision"]]
        counts = [part.split(" ", 1) for part in row["gates"].split("; ")]
        assert sum(int(number) for number, _ in counts) == len(own)
        for number, outcome in counts:
            assert [gate["outcome"] for gate in own].count(outcome) == int(number)
        assert {"boxes lost, %", "F1 lost, %", "scores lowered, mean"} <= {g["gate"] for g in own}
        assert {"class car", "class person"} <= {g["of"] for g in own}
    times = read_rows(folder / "export/tiny-time.csv")
    assert [(row["precision"], row["images"]) for row in times] == [
        ("fp32", "6"),
        ("fp16", "6"),
        ("int8", "6"),
    ]
    assert all(float(row["now, s"]) > 0 for row in times)
    assert list(gaps(folder)) == []
