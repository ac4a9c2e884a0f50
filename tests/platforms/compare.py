"""Compare two files of `drone-kd detect --json`: same objects, scores and boxes within limits.

python compare.py expected.json got.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Measured between x86-64 and aarch64: 0.012 and 0.65 px. OpenCV's resize rounds differently there:
# 30 % of the pixels by one level of 255.
SCORE_LIMIT = 0.02
BOX_LIMIT_PX = 1.0


def main(expected: str, got: str) -> str:
    """Return the largest differences; SystemExit when they are above the limits."""
    pairs = list(zip(_objects(expected), _objects(got), strict=True))
    if not pairs or any(one["class"] != other["class"] for one, other in pairs):
        sys.exit(f"platforms: expected the same classes in {expected} and {got}")
    score = max(abs(one["score"] - other["score"]) for one, other in pairs)
    box = max(
        abs(a - b) for one, other in pairs for a, b in zip(one["xyxy"], other["xyxy"], strict=True)
    )
    summary = f"{len(pairs)} objects; largest difference: score {score:.2g}, box {box:.2g} px"
    if score > SCORE_LIMIT or box > BOX_LIMIT_PX:
        sys.exit(f"platforms: {summary}; at most {SCORE_LIMIT} and {BOX_LIMIT_PX} px are allowed")
    return summary


def _objects(path: str) -> list[dict]:
    frames = json.loads(Path(path).read_text(encoding="utf-8"))
    objects = [item for frame in frames for item in frame["detections"]]
    # Scores of neighbours may swap; places do not.
    return sorted(objects, key=lambda item: item["xyxy"])


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
