import numpy as np
import pytest

from drone_kd.tracking.assignment import assign

scipy = pytest.importorskip("scipy.optimize", reason="compares with SciPy, which training brings")


@pytest.mark.parametrize("seed", range(40))
def test_total_cost_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(1, 30, 2)
    cost, allowed = rng.normal(0, 5, (rows, columns)), rng.random((rows, columns)) < rng.random()
    first, second = assign(cost, allowed)
    assert allowed[first, second].all()
    assert len({*first.tolist()}) == len({*second.tolist()}) == len(first)
    if allowed.any():
        value = np.where(allowed, cost - cost[allowed].max() - 1, 0)
        assert value[first, second].sum() == pytest.approx(
            value[scipy.linear_sum_assignment(value)].sum()
        )


def test_nothing_allowed_gives_no_pairs():
    for shape in ((0, 0), (0, 3), (3, 0), (2, 2)):
        first, second = assign(np.full(shape, np.inf), np.zeros(shape, bool))
        assert len(first) == len(second) == 0
        assert first.dtype == second.dtype == np.int64


def test_greedy_choice_is_not_taken_where_it_costs_a_pair():
    cost = np.array([[0.0, 1.0], [0.5, 100.0]])
    first, second = assign(cost, cost < 50)
    assert dict(zip(first.tolist(), second.tolist(), strict=True)) == {0: 1, 1: 0}
