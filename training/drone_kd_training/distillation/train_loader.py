# SPDX-License-Identifier: AGPL-3.0-or-later
"""Order of the training frames, and the loader that keeps its workers from start to end.

A frame is identified by how often it was drawn before (its pass) and its index. Its augmentation
depends on these and the seed alone: paired and resumed runs see the same images, on any number of
workers, and a teacher's predictions for it can be stored (`stored_views`).
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler
from ultralytics.data.build import InfiniteDataLoader, seed_worker


class View(NamedTuple):
    """One augmentation of one frame: its number, and that of the frame."""

    number: int
    frame: int

    def seed_generators(self, seed: int) -> None:
        """Seed the generators that augmentation uses (`random`, NumPy's, torch's)."""
        mixed = np.random.SeedSequence([seed, self.number, self.frame]).generate_state(1)[0]
        random.seed(int(mixed))
        np.random.seed(int(mixed))  # noqa: NPY002 - Ultralytics uses this generator
        torch.manual_seed(int(mixed))


class FrameSampler(Sampler[View]):
    """Draws frames in random order, each once per pass, in epochs of any length.

    Args:
        frames: number of frames.
        samples: frames per epoch over all processes; 0: one pass.
        views: after so many passes the views of the first one come again; 0: never.
        seed: of the order.
        rank, processes: this process among those of a multi-GPU run.
    """

    def __init__(
        self,
        frames: int,
        samples: int = 0,
        views: int = 0,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.frames, self.views, self.seed = frames, views, seed
        self.samples = samples or frames
        self.rank, self.processes = rank, processes
        # The epoch that is drawn next: loaders draw ahead.
        self.epoch = 0
        # Number of the first view: those before and after mosaic is closed are different ones.
        self.first_view = 0

    def __len__(self) -> int:
        """Return the number of frames that this process draws in an epoch."""
        return math.ceil(self.samples / self.processes)

    def __iter__(self) -> Iterator[View]:
        """Yield the next epoch."""
        first = self.epoch * self.samples
        self.epoch += 1
        order, of_pass = np.empty(0, int), -1
        for number in range(len(self)):
            # The processes draw alternately; the last ones repeat the first frames.
            offset = (number * self.processes + self.rank) % self.samples
            drawn, place = divmod(first + offset, self.frames)
            if drawn != of_pass:
                order = np.random.default_rng([self.seed, drawn]).permutation(self.frames)
                of_pass = drawn
            number = drawn % self.views if self.views else drawn
            yield View(self.first_view + number, int(order[place]))

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: Ultralytics calls this, and the sampler counts by itself."""


def build_loader(
    dataset: Any, batch: int, workers: int, sampler: FrameSampler, pin_memory: bool
) -> InfiniteDataLoader:
    """Return the loader of the training frames, as Ultralytics' `build_dataloader`."""
    batch = min(batch, len(sampler))
    batches = math.ceil(len(sampler) / batch)
    workers = min(os.cpu_count() or 1, workers, 0 if batches <= 1 else batches)
    return InfiniteDataLoader(
        dataset=dataset,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        collate_fn=dataset.collate_fn,
        worker_init_fn=partial(seed_worker),
    )
