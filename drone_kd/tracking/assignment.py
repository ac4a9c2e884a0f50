"""Assignment of detections to tracks with the least total cost.

An own implementation: SciPy, which has one, would more than double what is installed on board.
"""

from __future__ import annotations

import numpy as np

from drone_kd.core.arrays import BoolArray, Float64Array, Int64Array


def assign(cost: Float64Array, allowed: BoolArray) -> tuple[Int64Array, Int64Array]:
    """Return rows and columns (K,) of the pairs that are assigned to each other.

    A pair that is not allowed stays apart. Among the allowed ones as many as pay off are made: a
    pair is worth the largest allowed cost less its own.

    Args:
        cost: float64 (N, M), finite where allowed.
        allowed: bool (N, M).
    """
    # Most pairs have no rival.
    lonely = allowed & (allowed.sum(1) == 1)[:, None] & (allowed.sum(0) == 1)
    lonely_rows, lonely_columns = np.nonzero(lonely)
    rows, columns = lonely_rows.tolist(), lonely_columns.tolist()
    if len(rows) < allowed.any(axis=1).sum():
        value = np.where(allowed, cost - cost[allowed].max() - 1, 0.0)
        for part_rows, part_columns in _parts(allowed & ~lonely):
            part = value[np.ix_(part_rows, part_columns)]
            swap = len(part_rows) > len(part_columns)
            chosen = _hungarian(part.T if swap else part)
            for first, second in enumerate(chosen.tolist()):
                row, column = (second, first) if swap else (first, second)
                if allowed[part_rows[row], part_columns[column]]:
                    rows.append(int(part_rows[row]))
                    columns.append(int(part_columns[column]))
    return np.array(rows, np.int64), np.array(columns, np.int64)


def _parts(allowed: BoolArray) -> list[tuple[Int64Array, Int64Array]]:
    """Return rows and columns of the independent parts, most of which are a pair."""
    parts = []
    waiting = np.asarray(allowed.any(axis=1))
    while waiting.any():
        rows = np.arange(len(allowed)) == int(waiting.argmax())
        size = 0
        while size < rows.sum():
            size = int(rows.sum())
            columns = allowed[rows].any(axis=0)
            rows = rows | allowed[:, columns].any(axis=1)
        waiting = waiting & ~rows
        parts.append((np.flatnonzero(rows), np.flatnonzero(columns)))
    return parts


def _hungarian(cost: Float64Array) -> Int64Array:
    """Return the column (N,) of each row of an (N, M) cost with N <= M.

    Shortest augmenting paths with potentials (Jonker and Volgenant, Computing 38, 1987).
    """
    n, m = cost.shape
    if n == 1:
        return np.array([cost[0].argmin()], np.int64)
    row_potential, column_potential = np.zeros(n + 1), np.zeros(m + 1)
    # Column 0 is where a path starts; rows and columns are counted from 1.
    row_of = np.zeros(m + 1, np.int64)
    for row in range(1, n + 1):
        row_of[0] = row
        shortest = np.full(m + 1, np.inf)
        before = np.zeros(m + 1, np.int64)
        done = np.zeros(m + 1, bool)
        column = 0
        while True:
            done[column] = True
            current = row_of[column]
            reduced = cost[current - 1] - row_potential[current] - column_potential[1:]
            better = ~done[1:] & (reduced < shortest[1:])
            shortest[1:][better] = reduced[better]
            before[1:][better] = column
            following = int(np.where(done, np.inf, shortest).argmin())
            step = shortest[following]
            row_potential[row_of[done]] += step
            column_potential[done] -= step
            shortest[~done] -= step
            column = following
            if row_of[column] == 0:
                break
        while column:
            row_of[column] = row_of[before[column]]
            column = int(before[column])
    chosen = np.zeros(n, np.int64)
    used = np.flatnonzero(row_of[1:])
    chosen[row_of[1:][used] - 1] = used
    return chosen
