# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stages of mining on a Ray cluster: the same functions, as stages of Ray Data.

Segments go in; frames stream from the readers to actors that hold both models; what comes back is
committed here, once, whoever computed it and however often.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from drone_kd_training.mining import stages
from drone_kd_training.mining.flights import Segment
from drone_kd_training.ray_cluster import ClusterError, connect, failure


class Cluster:
    """Scores and labels segments on a cluster; see `mining.mine` for the same in one
    process.
    """

    def __init__(self, address: str, teacher: str, student: str | None) -> None:
        room = connect(address)
        self.gpus = 1 if room.gpus else 0
        # On cores the teachers take them all: a reader is idle most of the time. Beside GPUs the
        # readers are what takes cores.
        self.actors = min(room.gpus, room.cpus - 1) if room.gpus else room.cpus
        self.readers = max(1, room.cpus - self.actors) if room.gpus else room.cpus
        if self.actors < 1:
            needed = "two, for a teacher's GPU and to read," if room.gpus else "one"
            raise ClusterError(
                f"the cluster at {address} has {room.cpus} free cores, and mining needs {needed} "
                "at least: wait, or add nodes"
            )
        self.models = _load(teacher), None if student is None else _load(student)

    def score(self, segments: list[Segment]) -> Iterator[tuple[Segment, list, Counter]]:
        """Yield segments with all that was seen in them, and what went wrong."""
        seen: dict[Segment, dict[int, stages.Seen]] = {s: {} for s in segments}
        ends: dict[Segment, tuple[int, Counter]] = {}
        for segment, kind, found in self._run(segments, _read_segment, stages.look):
            if segment not in seen:
                continue  # done before
            if kind == "end":
                ends[segment] = found
            else:
                seen[segment].update({one.index: one for one in found})
            if segment in ends and len(seen[segment]) == ends[segment][0]:
                yield segment, list(seen.pop(segment).values()), ends.pop(segment)[1]

    def label(
        self, wanted: list[tuple[Segment, set[int]]]
    ) -> Iterator[tuple[Segment, list[stages.Labelled]]]:
        """Yield segments with some of their chosen frames."""
        for segment, _, found in self._run(wanted, _read_chosen, stages.label):
            yield segment, found

    def _run(
        self, items: list, read: Callable[[Any], Iterator], look: Callable
    ) -> Iterator[tuple[Segment, str, Any]]:
        if not items:
            return
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = ray.data.from_items(
            [{"payload": pickle.dumps(item)} for item in items], override_num_blocks=len(items)
        )
        # A reader that asked for a core of its own would wait for ever where teachers have them
        # all.
        rows = rows.map_batches(
            _Reader(read),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.TaskPoolStrategy(size=self.readers),
            num_cpus=self.gpus,
        )
        rows = rows.map_batches(
            _Looker,
            fn_constructor_args=(look, *self.models),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=self.actors),
            num_cpus=1,
            num_gpus=self.gpus,
        )
        try:
            for row in rows.iter_rows():
                yield pickle.loads(row["payload"])
        except ray.exceptions.RayError as error:
            raise failure(error) from None


def _read_segment(segment: Segment) -> Iterator[tuple[Segment, str, Any]]:
    said: Counter = Counter()
    frames = 0
    for batch in stages.glances(segment, said):
        frames += len(batch)
        yield segment, "batch", batch
    yield segment, "end", (frames, said)


def _read_chosen(wanted: tuple[Segment, set[int]]) -> Iterator[tuple[Segment, str, Any]]:
    for batch in stages.chosen(*wanted):
        yield wanted[0], "batch", batch


class _Reader:
    """A stage that reads: what `read` yields for each row, one row at a time."""

    def __init__(self, read: Callable[[Any], Iterator]) -> None:
        self.read = read

    def __call__(self, rows: dict[str, np.ndarray]) -> Iterator[dict[str, list]]:
        for payload in rows["payload"]:
            for found in self.read(pickle.loads(payload)):
                yield {"payload": [pickle.dumps(found)]}


class _Looker:
    """An actor with both models, which looks at the batches that pass."""

    def __init__(self, look: Callable, teacher: tuple, student: tuple | None) -> None:
        # Here, and not in every reader's process: it imports torch.
        from drone_kd_training.mining.student_and_teacher import open_models

        self.look = look
        with tempfile.TemporaryDirectory() as folder:
            paths = [model and _store(model, Path(folder)) for model in (teacher, student)]
            self.models = open_models(*paths)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list]:
        found = []
        for payload in rows["payload"]:
            segment, kind, batch = pickle.loads(payload)
            done = self.look(batch, self.models) if kind == "batch" else batch
            found.append(pickle.dumps((segment, kind, done)))
        return {"payload": found}


def _load(model: str) -> tuple[str, bytes]:
    """A model's file name and content: it goes to the nodes, which need no copy of their own."""
    from drone_kd_training.models.checkpoints import resolve_model

    path = Path(model if model.endswith(".onnx") else resolve_model(model))
    return path.name, path.read_bytes()


def _store(model: tuple[str, bytes], folder: Path) -> str:
    own = Path(tempfile.mkdtemp(dir=folder)) / model[0]
    own.write_bytes(model[1])
    return str(own)
