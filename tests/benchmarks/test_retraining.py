# SPDX-License-Identifier: AGPL-3.0-or-later
import csv

import pytest

from benchmarks import retraining
from benchmarks.label_cost import LabelCost
from drone_kd_training.tables import as_csv


def row(arm, seed, frames, labels, gain):
    figures = {"new_before": 0.1, "new_after": 0.1 + gain / 100}
    base = dict.fromkeys(retraining.GUARD_BASE, 0.2)
    return {"arm": arm, "seed": seed, "frames": frames, "labels": labels, "accepted": True,
            **base, **figures}  # fmt: skip


def rows():
    """100 and 300 random frames with 10 boxes each, 100 mined ones with 20."""
    return [
        made
        for seed in (0, 1)
        for made in (
            row("random 100, true labels", seed, 100, 1000, 1.0),
            row("random 300, true labels", seed, 300, 4000, 3.0),
            row("mined 100, true labels", seed, 100, 2000, 4.0),
            row("random 100, teacher's labels", seed, 100, 50, 0.5),
        )
    ]


def test_gain_per_frame_box_and_minute():
    found = retraining.with_cost(rows(), LabelCost(box_s=6, frame_s=60))
    mined = next(r for r in found if r["arm"].startswith("mined"))
    assert float(mined["gain_per_frame"]) == pytest.approx(0.04)
    assert float(mined["gain_per_box"]) == pytest.approx(0.002)
    assert float(mined["minutes"]) == pytest.approx(300)
    assert float(mined["gain_per_minute"]) == pytest.approx(4 / 300, abs=1e-6)
    taught = next(r for r in found if "teacher" in r["arm"])
    assert taught["minutes"] == taught["gain_per_box"] == ""  # no person labelled


def test_mined_frames_against_random_ones_by_cost():
    table = retraining.cost_table(rows(), LabelCost(box_s=6, frame_s=60)).splitlines()
    assert len(table) == 3  # nothing else is in both
    name, seeds, frame, box, minute, _, boxes = (
        c.strip() for c in table[2].strip("| ").split("|")
    )
    assert (name, seeds) == ("mined 100", "2")
    assert frame == "4.00 [4.00, 4.00]"
    assert box == "2.00 [2.00, 2.00]"
    assert minute.startswith("2.67")  # 4 points in 300 minutes, 1 in 200
    assert boxes.startswith("2.00")  # random frames with 2000 boxes: half way from 1 to 3


def test_published_rows_get_their_costs(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.csv"
    path.write_text(as_csv(rows()), encoding="utf-8")
    for box_s in (6, 12):  # costs are replaced
        command = ["retraining", "--csv", str(path), "--box-seconds", str(box_s)]
        monkeypatch.setattr("sys.argv", command)
        retraining.main()
        with path.open(encoding="utf-8") as file:
            first = next(csv.DictReader(file))
        assert float(first["minutes"]) == pytest.approx(13 + 1000 * box_s / 60, abs=0.1)
    assert "mined 100" in capsys.readouterr().out


def test_published_files_hold_their_costs():
    for name in ("retraining", "retraining-drawn"):
        path = retraining.Path(retraining.__file__).with_name(f"{name}.csv")
        published = retraining.read_csv(path)
        assert retraining.with_cost(published, LabelCost()) == published
