# SPDX-License-Identifier: AGPL-3.0-or-later
from collections import Counter

import numpy as np

from drone_kd_training.mining.selection import add_scenes, held_out, pick


def candidates(count, scenes, seed=0):
    rng = np.random.default_rng(seed)
    places = rng.random((scenes, 8))
    made = [
        {
            "name": f"{i:04d}",
            "block": i * 20 // count,
            "held_out": held_out(i * 20 // count),
            "flight": "a",
            "time": i * 20 / count,
            "embedding": places[i * scenes // count].tolist(),
            "disagreement": float(rng.random()),
            "uncertainty": float(rng.random()),
            "random": float(rng.random()),
        }
        for i in range(count)
    ]
    first = {}
    add_scenes(made, [first.setdefault(i * scenes // count, i) for i in range(count)])
    return made


def test_reasons_have_their_shares_and_held_out_blocks_are_drawn():
    rows = pick(candidates(400, 100), 40, 3)
    reasons = Counter((row["split"], row["reason"]) for row in rows)
    assert reasons == {
        ("train", "disagreement"): 20,
        ("train", "uncertainty"): 8,
        ("train", "novelty"): 8,
        ("train", "random"): 4,
        ("val", "random"): 10,
    }
    assert all(held_out(row["block"]) == (row["split"] == "val") for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)
    hard = [row["disagreement"] for row in rows if row["reason"] == "disagreement"]
    assert min(hard) > 0.7


def test_no_more_than_k_of_a_scene_also_when_it_comes_back():
    made = candidates(200, 10)
    again = [{**c, "name": "b" + c["name"]} for c in made]
    leaders = [i // 20 * 20 for i in range(400)]
    both = made + again
    add_scenes(both, leaders)
    assert len({c["scene"] for c in both}) == 10
    rows = pick(both, 100, 3)
    counts = Counter((row["split"], row["scene"]) for row in rows)
    assert max(counts.values()) == 3 and len(rows) < 100


def test_a_frame_of_a_rare_place_is_novel():
    made = candidates(50, 1)
    odd = {**made[0], "name": "odd", "embedding": (np.array(made[0]["embedding"]) + 1).tolist()}
    near = {**made[0], "name": "near"}
    near["embedding"] = (np.array(made[0]["embedding"]) + 0.05).tolist()
    near2 = {**near, "name": "near2", "embedding": [v - 0.1 for v in near["embedding"]]}
    rows = [*made, near, near2, odd]
    add_scenes(rows, [*[0] * 50, 50, 51, 52])
    assert max(rows, key=lambda c: c["novelty"])["name"] == "odd"


def test_one_reason_alone():
    made = candidates(200, 200)
    rows = pick(made, 10, 1, {"uncertainty": 1.0})
    taken = {row["name"] for row in rows if row["split"] == "train"}
    learn = [c for c in made if not held_out(c["block"])]
    assert taken == {c["name"] for c in sorted(learn, key=lambda c: -c["uncertainty"])[:10]}


def test_validation_frames_are_no_neighbours_of_training_frames():
    made = candidates(400, 400)
    rows = pick(made, 300, 1)
    times = {split: np.array([row["time"] for row in rows if row["split"] == split])
             for split in ("train", "val")}  # fmt: skip
    assert len(times["val"]) > 10
    assert np.abs(times["val"][:, None] - times["train"]).min() >= 0.25
    # Times of another flight mean nothing.
    alone = [{**c, "flight": "b"} if c["held_out"] else c for c in made]
    chosen = [row["time"] for row in pick(alone, 300, 1) if row["split"] == "val"]
    assert np.abs(np.array(chosen)[:, None] - times["train"]).min() < 0.25


def test_validation_frames_are_no_near_duplicates_of_training_frames():
    made = candidates(400, 400)
    for c in made[1:]:
        if c["held_out"]:
            c["embedding"] = made[0]["embedding"]
    chosen = [row for row in pick(made, 300, 1) if row["split"] == "train"]
    assert made[0]["name"] in {row["name"] for row in chosen}
    assert not [row for row in pick(made, 300, 1) if row["split"] == "val"]
