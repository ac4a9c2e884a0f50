"""Detections of one image: the value type that flows through the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drone_kd.core.arrays import Float32Array, Int64Array


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes detected in one image.

    Raises:
        TypeError: an array has another dtype.
        ValueError: a shape differs, or a value is not finite or out of its range.
    """

    xyxy: Float32Array  # (N, 4), left, top, right, bottom in pixels of the original image
    scores: Float32Array  # (N,), in [0, 1]
    class_ids: Int64Array  # (N,), index into the model's class list

    def __post_init__(self) -> None:
        n = len(self.scores)
        for name, dtype, shape in (
            ("xyxy", np.float32, (n, 4)),
            ("scores", np.float32, (n,)),
            ("class_ids", np.int64, (n,)),
        ):
            array = getattr(self, name)
            if array.dtype != dtype:
                raise TypeError(f"{name}: expected {np.dtype(dtype)}, got {array.dtype}")
            if array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
        # Negated comparisons, so that NaN fails them too.
        if not np.isfinite(self.xyxy).all() or not (self.xyxy[:, :2] <= self.xyxy[:, 2:]).all():
            raise ValueError("xyxy: expected finite boxes with x1 <= x2 and y1 <= y2")
        if not ((self.scores >= 0) & (self.scores <= 1)).all():
            raise ValueError("scores: expected values in [0, 1]")
        if (self.class_ids < 0).any():
            raise ValueError("class_ids: expected values >= 0")

    def __len__(self) -> int:
        return len(self.scores)
