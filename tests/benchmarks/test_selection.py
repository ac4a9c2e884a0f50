# SPDX-License-Identifier: AGPL-3.0-or-later
from pathlib import Path

import numpy as np

from benchmarks import selection
from benchmarks.label_cost import LabelCost
from drone_kd_training.tables import as_csv


def frame(number, scene=0, predicted=(4, 0), boxes=4):
    path = Path(f"night_{number:05d}.jpg")
    return {"name": path.stem, "number": number, "path": path, "scene": scene,
            "predicted": list(predicted), "classes": [0] * boxes}  # fmt: skip


def numbers(rows):
    return [row["number"] for row in rows]


def test_frames_are_labelled_until_the_boxes_are_spent():
    pool = [frame(i, boxes=10) for i in range(9)]
    assert numbers(selection.label(pool, 40)) == [0, 1, 2, 3]
    assert numbers(selection.label(pool, 44)) == [0, 1, 2, 3]  # nearest to the budget
    assert numbers(selection.label(pool, 46)) == [0, 1, 2, 3, 4]
    assert selection.label([], 40) == []


def test_pool_is_two_thirds_of_the_stretches_of_a_flight():
    rows = [frame(i) for i in range(300)]
    pools = [set(numbers(selection.draw_pool(rows, seed))) for seed in (0, 0, 1)]
    assert pools[0] == pools[1] != pools[2]
    assert len(pools[0]) == 200
    for first in range(0, 300, 20):  # a stretch is in it or not
        assert len(pools[0] & set(range(first, first + 20))) in (0, 20)


def test_random_frames_depend_on_the_seed_alone():
    pool = [frame(i, boxes=10) for i in range(200)]
    orders = [numbers(selection.random_frames(pool, seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert len(orders[0]) == len(set(orders[0])) == selection.BOXES // 10


def test_balanced_frames_change_scene_and_class(monkeypatch):
    monkeypatch.setattr(selection, "label", list)  # an order without an end
    same = [frame(i, scene=0, predicted=(4, 0)) for i in range(5)]
    other_scene = frame(5, scene=1, predicted=(4, 0))
    other_class = frame(6, scene=0, predicted=(0, 2))
    ordered = numbers(selection.balanced([*same, other_scene, other_class], 0))
    assert sorted(ordered) == list(range(7))
    assert set(ordered[:3]) == {0, 5, 6}
    costly = frame(7, scene=2, predicted=(50, 0))
    assert numbers(selection.balanced([*same, other_scene, costly], 0)).index(7) > 1


def test_mined_frames_are_those_of_mine_within_the_boxes():
    fields = {"disagreement": 0.5, "uncertainty": 0.2, "novelty": 0.1, "random": 0.3, "time": 0}
    pool = [
        frame(i, scene=i, boxes=10)
        | fields
        | {"held_out": False, "flight": "a", "embedding": [0.0]}
        for i in range(100)
    ]
    assert len(selection.mined(pool, 0)) == round(1.05 * selection.BOXES / 10)


def made(name, seed, gain):
    flights = {f"gain_{f}": gain + 0.1 * i for i, f in enumerate(selection.FLIGHTS)}
    return {"selection": name, "seed": seed, "frames": 50, "boxes": 400, "scenes": 9,
            "gain_all": gain, **flights}  # fmt: skip


def test_table_pairs_seeds_and_survives_a_file(tmp_path):
    rows = [made("random", 0, 2.0), made("balanced", 0, 3.0), made("random", 1, 2.1),
            made("balanced", 1, 3.2), made("balanced", 2, 9.0)]  # fmt: skip
    path = tmp_path / "selection.csv"
    path.write_text(as_csv(rows), encoding="utf-8")
    assert selection.read_csv(path) == rows
    lines = selection.table(rows, LabelCost(box_s=6, frame_s=0)).splitlines()
    assert len(lines) == 4
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[:6] == ["balanced", "2", "50", "400", "40", "+3.1 [+3.0, +3.2]"]
    assert cells[6].startswith("1.51 [") and cells[7] == "4 of 4"


def test_published_rows_are_those_of_the_plan():
    path = Path(selection.__file__).with_name("selection.csv")
    published = selection.read_csv(path)
    assert {(r["selection"], r["seed"]) for r in published} <= set(selection.plan_of_rows())
    assert all(abs(r["boxes"] - selection.BOXES) < 30 for r in published)
    assert np.isfinite([r["gain_all"] for r in published]).all()
