import pytest
import torch

from drone_kd_training.distillation.loss_balancing import (
    Balance,
    Schedule,
    average_over_processes,
)


def test_balance_gives_a_term_its_share_of_the_gradient():
    feature = torch.tensor([1.0, 2.0], requires_grad=True)
    balance = Balance(0.2)
    detection, term = 3 * feature.sum(), (feature**2).sum() * 100
    balance.measure(detection, {"kd": term}, [feature])
    share = torch.autograd.grad(balance.weight("kd") * term, feature)[0].norm() / (3 * 2**0.5)
    assert share.item() == pytest.approx(0.2)
    assert Balance(0.2, state=balance.state()).weight("kd") == balance.weight("kd")
    assert Balance(0.2).weight("kd") == 0.0


def test_balance_measures_every_fifth_of_the_first_fifty_batches():
    balance = Balance(0.2)
    measured = []
    for batch in range(60):
        balance.batches = batch
        if balance.due:
            measured.append(batch)
    assert measured == list(range(0, 50, 5))


def test_balance_follows_gradients_that_change():
    feature = torch.tensor([1.0, 2.0], requires_grad=True)
    rolling, fixed = Balance(1.0, every=40), Balance(1.0)
    for size in [1.0] * 50 + [9.0] * 400:  # the term's gradient, of a detection loss of 1
        for balance in (rolling, fixed):
            if balance.due:
                balance.measure(feature.sum(), {"kd": size * feature.sum()}, [feature])
            balance.batches += 1
    assert fixed.weight("kd") == pytest.approx(1.0)
    assert rolling.weight("kd") == pytest.approx(1 / 9, rel=0.2)
    again = Balance(1.0, 40, rolling.state())
    assert (again.weight("kd"), again.due) == (rolling.weight("kd"), rolling.due)


def test_a_single_process_averages_nothing():
    """Two processes: test_distill.py, with torchrun."""
    assert average_over_processes(torch.tensor([3.0])).tolist() == [3.0]


def test_schedule_ramps_and_stays():
    schedule = Schedule(warmup_steps=10, total_steps=100)
    values = [schedule.advance() for _ in range(100)]
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert values[10:] == [1.0] * 90


def test_schedule_that_fades_ends_at_a_tenth():
    schedule = Schedule(warmup_steps=10, total_steps=100, fades=True)
    values = [schedule.advance() for _ in range(100)]
    assert schedule.step == 100
    assert values[0] == pytest.approx(0.1, abs=0.01)
    assert max(values) > 0.95
    assert values.index(max(values)) in range(9, 12)
    assert values[10:100] == sorted(values[10:100], reverse=True)
    assert values[99] == pytest.approx(0.1, abs=0.01)
    assert Schedule(10, 100, True, step=110).factor() == pytest.approx(0.1)
