# SPDX-License-Identifier: AGPL-3.0-or-later
"""Frame selection: pure functions on the candidates of `stages.summarise`."""

from __future__ import annotations

from typing import Any

import numpy as np

from drone_kd_training.mining.reasons import SHARES
from drone_kd_training.mining.stages import SCENE_DISTANCE

# One of five time blocks is held out for the guard. A quarter as many frames are chosen there, at
# random: hard frames alone do not measure a model.
_HELD_OUT_OF = 5
_HELD_OUT_SHARE = 0.25
# Validation frames are this far in time from each training frame of their flight, in time blocks
# (0.5 to 7.5 s), and this far in embedding from every training frame: in HIT-UAV under 1 % of the
# neighbours are nearer, and no frames of different flights.
_GAP = 0.25
_NEAR_DUPLICATE = SCENE_DISTANCE / 6
# Novelty is the mean distance to this many nearest other scenes.
_NEIGHBOURS = 3


def held_out(block: int) -> bool:
    """Return whether a time block is for the guard only."""
    return block % _HELD_OUT_OF == 2


def pick(
    candidates: list[dict[str, Any]],
    frames: int,
    per_scene: int,
    shares: dict[str, float] = SHARES,
) -> list[dict[str, Any]]:
    """Choose training frames, and validation frames from held-out blocks.

    ``candidates``: of all flights, in order, with the fields of `add_scenes`, "flight", "time" (in
    time blocks) and "held_out". ``frames``: maximum number of training frames; ``per_scene``: of
    frames of one scene in each split. ``shares``: of the training frames, by reason; the first one
    gets what rounding leaves. Returns the chosen candidates with "split" and "reason", in their
    order. Validation frames are neither neighbours nor near duplicates of training frames.
    """
    train = [c for c in candidates if not c["held_out"]]
    wanted = {reason: round(frames * share) for reason, share in shares.items()}
    wanted[next(iter(shares))] += frames - sum(wanted.values())
    most = max(1, round(frames * _HELD_OUT_SHARE))
    taken = {"train": _take(train, wanted, frames, per_scene)}
    learned = [c for c in train if c["name"] in taken["train"]]
    val = _apart([c for c in candidates if c["held_out"]], learned)
    taken["val"] = _take(val, {"random": most}, most, per_scene)
    return [
        {**c, "split": split, "reason": reasons[c["name"]]}
        for c in candidates
        for split, reasons in taken.items()
        if c["name"] in reasons
    ]


def _apart(held_out: list[dict[str, Any]], learned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the held-out candidates that are apart from all training frames."""
    if not learned:
        return held_out
    embeddings = np.array([c["embedding"] for c in learned], np.float32)
    times = {flight: np.array([c["time"] for c in learned if c["flight"] == flight])
             for flight in {c["flight"] for c in learned}}  # fmt: skip
    nowhere = np.array([np.inf])
    return [
        c
        for c in held_out
        if np.abs(times.get(c["flight"], nowhere) - c["time"]).min() >= _GAP
        and np.linalg.norm(embeddings - np.array(c["embedding"], np.float32), axis=1).min()
        > _NEAR_DUPLICATE
    ]


def add_scenes(candidates: list[dict[str, Any]], leaders: list[int]) -> None:
    """Number the scenes over all flights, and measure the novelty of each frame.

    Candidates get "scene" and "novelty" in place. ``leaders``: per candidate, the index of the one
    that represents its scene.
    """
    centres = np.zeros((0, len(candidates[0]["embedding"])), np.float32)
    scene_of: dict[int, int] = {}
    for leader in dict.fromkeys(leaders):
        embedding = np.array(candidates[leader]["embedding"], np.float32)
        distance = np.linalg.norm(centres - embedding, axis=1)
        if len(centres) and distance.min() <= SCENE_DISTANCE:
            scene_of[leader] = int(distance.argmin())
        else:
            scene_of[leader] = len(centres)
            centres = np.vstack([centres, embedding])
    for candidate, leader in zip(candidates, leaders, strict=True):
        candidate["scene"] = scene_of[leader]
        distance = np.linalg.norm(centres - np.array(candidate["embedding"], np.float32), axis=1)
        others = np.sort(np.delete(distance, candidate["scene"]))[:_NEIGHBOURS]
        candidate["novelty"] = float(others.mean()) if len(others) else 0.0


def _take(
    candidates: list[dict[str, Any]], wanted: dict[str, int], total: int, per_scene: int
) -> dict[str, str]:
    """Return {name: reason}; the first reasons get what others leave over."""
    taken: dict[str, str] = {}
    of_scene: dict[int, int] = {}
    for reason, most in [*wanted.items(), *((r, total) for r in wanted)]:
        left = min(most, total - len(taken))
        for candidate in sorted(candidates, key=lambda c: -c[reason]):
            if left <= 0:
                break
            name, scene = candidate["name"], candidate["scene"]
            if name not in taken and of_scene.get(scene, 0) < per_scene:
                taken[name] = reason
                of_scene[scene] = of_scene.get(scene, 0) + 1
                left -= 1
    return taken
