import random

import numpy as np
import pytest
import torch

from drone_kd_training.distillation.train_loader import FrameSampler, View, build_loader


def epochs(sampler: FrameSampler, count: int) -> list[list[View]]:
    return [list(sampler) for _ in range(count)]


def test_each_pass_draws_every_frame_once():
    drawn = [view for epoch in epochs(FrameSampler(7, samples=4), 7) for view in epoch]
    assert len(drawn) == 28
    for number in range(4):
        one_pass = drawn[7 * number : 7 * number + 7]
        assert {view.number for view in one_pass} == {number}
        assert sorted(view.frame for view in one_pass) == list(range(7))
    assert [v.frame for v in drawn[:7]] != [v.frame for v in drawn[7:14]]


def test_a_sampler_continues_at_an_epoch_as_one_that_was_never_stopped():
    whole = epochs(FrameSampler(7, samples=4, seed=3), 6)
    later = FrameSampler(7, samples=4, seed=3)
    later.epoch = 4
    assert epochs(later, 2) == whole[4:]
    assert epochs(FrameSampler(7, samples=4, seed=4), 6) != whole


def test_views_come_again():
    numbers = [view.number for epoch in epochs(FrameSampler(5, views=2), 4) for view in epoch]
    assert numbers == [0] * 5 + [1] * 5 + [0] * 5 + [1] * 5


def test_views_after_mosaic_is_closed_are_other_ones():
    sampler = FrameSampler(5, views=2)
    sampler.first_view = 2
    assert {view.number for epoch in epochs(sampler, 4) for view in epoch} == {2, 3}


@pytest.mark.parametrize("samples", [0, 10])
def test_processes_share_an_epoch(samples):
    alone = epochs(FrameSampler(8, samples), 3)
    pair = [epochs(FrameSampler(8, samples, rank=rank, processes=2), 3) for rank in (0, 1)]
    for epoch in range(3):
        first, second = (own[epoch] for own in pair)
        merged = [view for both in zip(first, second, strict=True) for view in both]
        assert merged == alone[epoch]


def test_uneven_epochs_repeat_frames_so_that_processes_draw_equally_many():
    lengths = [len(list(FrameSampler(7, rank=rank, processes=2))) for rank in (0, 1)]
    assert lengths == [len(FrameSampler(7, processes=2))] * 2 == [4, 4]


class Numbers:
    """A data set that shows the random numbers of a view."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, view: View) -> tuple:
        view.seed_generators(0)
        return view, random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002

    @staticmethod
    def collate_fn(batch: list) -> list:
        return batch


@pytest.mark.parametrize("workers", [1, 2])
def test_random_numbers_of_a_view_do_not_depend_on_workers_or_epochs(workers):
    def drawn(workers: int, epochs: int) -> list:
        loader = build_loader(Numbers(), 2, workers, FrameSampler(6), pin_memory=False)
        found = [sample for _ in range(epochs) for batch in loader for sample in batch]
        loader.close()
        return found

    expected = drawn(0, 3)
    assert len({sample[1:] for sample in expected}) == 18
    assert drawn(workers, 3) == expected


def test_workers_stay_from_epoch_to_epoch():
    loader = build_loader(Numbers(), 2, 1, FrameSampler(6), pin_memory=False)
    processes = []
    for _ in range(2):
        list(loader)
        processes.append([worker.pid for worker in loader.iterator._workers])
    loader.close()
    assert processes[0] == processes[1] != []
