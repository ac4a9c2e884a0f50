"""Two subscriptions to one topic: each message is passed on once, in order."""

import random

import pytest

from drone_kd.ros.hand_over import HandOver

LIMIT = 4


class Taken:
    """A hand-over, what it has delivered, and how often it has ended."""

    def __init__(self, limit=LIMIT):
        self.messages, self.ends = [], 0
        self.over = HandOver(self.messages.append, self._end, limit)

    def _end(self):
        self.ends += 1


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_or_repeated_in_any_order_of_the_two(seed):
    taken, rng = Taken(), random.Random(seed)
    old, new = list(range(20)), list(range(rng.randint(0, 5), 20))  # it misses the first ones
    while old or new:
        arrears = len(old) - len(new)  # of the old one, or of the new; fewer than the limit
        if old and (
            not new or arrears >= LIMIT - 1 or (arrears > 1 - LIMIT and rng.random() < 0.5)
        ):
            taken.over.receive_old(old.pop(0))
        else:
            taken.over.receive_new(new.pop(0))
    assert (taken.messages, taken.ends) == (list(range(20)), 1)


def test_messages_wait_until_the_old_subscription_has_them():
    taken = Taken()
    taken.over.receive_new(2)
    taken.over.receive_old(1)
    assert (taken.messages, taken.ends) == ([1], 0)
    taken.over.receive_old(2)
    assert (taken.messages, taken.ends) == ([1, 2], 1)


def test_old_subscription_that_receives_nothing_is_given_up():
    taken = Taken()
    for number in range(LIMIT):
        assert taken.messages == []
        taken.over.receive_new(number)
    assert (taken.messages, taken.ends) == (list(range(LIMIT)), 1)


def test_what_waits_is_delivered_at_the_end_that_is_asked_for():
    taken = Taken()
    taken.over.receive_new(1)
    for _ in range(2):
        taken.over.finish()
    taken.over.receive_old(1)
    assert (taken.messages, taken.ends) == ([1], 1)


def test_without_waiting_the_first_message_ends_it():
    taken = Taken(limit=1)
    taken.over.receive_old(1)
    taken.over.receive_new(2)
    assert (taken.messages, taken.ends) == ([1, 2], 1)
