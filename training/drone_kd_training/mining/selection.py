# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which frames are worth a label: pure functions on what `stages.summarise` kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from drone_kd_training.mining.config import SHARES
from drone_kd_training.mining.stages import SCENE_DISTANCE

# Of every five time blocks one is held out for the guard, and a quarter as many frames are taken
# from these, drawn: hard frames alone would not say how good a model is.
_HELD_OUT_OF = 5
_HELD_OUT_SHARE = 0.25
# A frame is as novel as these scenes, the nearest other ones, are far.
_NEIGHBOURS = 3


def held_out(block: int) -> bool:
    """Whether a time block is for the guard alone."""
    return block % _HELD_OUT_OF == 2


def pick(
    candidates: list[dict[str, Any]],
    frames: int,
    per_scene: int,
    shares: dict[str, float] = SHARES,
) -> list[dict[str, Any]]:
    """Choose frames to learn from, and frames of held-out blocks.

    Args:
        candidates: of all flights, in order; "scene" says which of them show the same, see
            `add_scenes`.
        frames: how many to learn from, at most.
        per_scene: at most this many of one scene in each split.
        shares: of the frames to learn from by reason; what rounding leaves over is the first's.

    Returns:
        The chosen ones with "split" and "reason", in the order of `candidates`.
    """
    learn = [c for c in candidates if not held_out(c["block"])]
    apart = [c for c in candidates if held_out(c["block"])]
    wanted = {reason: round(frames * share) for reason, share in shares.items()}
    wanted[next(iter(shares))] += frames - sum(wanted.values())
    picked = _take(learn, wanted, frames, per_scene)
    drawn = max(1, round(frames * _HELD_OUT_SHARE))
    guard = _take(apart, {"random": drawn}, drawn, per_scene)
    split = {name: ("train", why) for name, why in picked.items()}
    split |= {name: ("val", why) for name, why in guard.items()}
    return [
        {**c, "split": split[c["name"]][0], "reason": split[c["name"]][1]}
        for c in candidates
        if c["name"] in split
    ]


def add_scenes(candidates: list[dict[str, Any]], leaders: list[int]) -> None:
    """Number the scenes, over all segments and flights, and tell how novel each frame is.

    Args:
        candidates: get "scene" and "novelty".
        leaders: per candidate, the index of the one that stands for its scene.
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
    """Name to reason. What one reason leaves over goes to the first one, and so on."""
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
