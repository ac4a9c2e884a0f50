# SPDX-License-Identifier: AGPL-3.0-or-later
"""The stages of mining on a Ray cluster: the same functions, as stages of Ray Data.

Segments go in; frames stream from the readers to actors that hold both models. A result is used
once, even if a node died and another one computed it again.

Payloads are pickles, which run code when they are read. They pass between this command and the
workers that it started, over the cluster that the user named (``--cluster HOST:PORT``) and nowhere
else; no file holds any. Whoever reaches a cluster's port can run code on it anyway.
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
    """Scoring and labelling of segments on a cluster; `mine.InProcess` does the same here."""

    def __init__(self, address: str, teacher: str, student: str | None) -> None:
        free = connect(address)
        self.gpus = 1 if free.gpus else 0
        # Without GPUs the actors take all cores, as a reader is idle most of the time. With GPUs
        # the readers take cores.
        self.actors = min(free.gpus, free.cpus - 1) if free.gpus else free.cpus
        self.readers = max(1, free.cpus - self.actors) if free.gpus else free.cpus
        if self.actors < 1:
            needed = "two, for a teacher's GPU and to read," if free.gpus else "one"
            raise ClusterError(
                f"the cluster at {address} has {free.cpus} free cores, and mining needs {needed} "
                "at least: wait, or add nodes"
            )
        self.models = _load(teacher), None if student is None else _load(student)

    def score(self, segments: list[Segment]) -> Iterator[stages.Scored]:
        """Yield segments with their scored frames and problems."""
        scored: dict[Segment, dict[int, stages.ScoredFrame]] = {s: {} for s in segments}
        ends: dict[Segment, tuple[int, Counter[str]]] = {}
        for segment, kind, found in self._run(segments, _read_segment, stages.score):
            if segment not in scored:
                continue  # complete
            if kind == "end":
                ends[segment] = found
            else:
                scored[segment].update({frame.number: frame for frame in found})
            if segment in ends and len(scored[segment]) == ends[segment][0]:
                yield segment, list(scored.pop(segment).values()), ends.pop(segment)[1]

    def label(self, wanted: list[tuple[Segment, set[int]]]) -> Iterator[stages.Labelled]:
        """Yield segments with some of their labelled frames."""
        for segment, _, found in self._run(wanted, _read_chosen, stages.label):
            yield segment, found

    def _run(
        self, items: list, read: Callable[[Any], Iterator], stage: Callable
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
        # Without GPUs readers ask for no core: the actors have them all, and they would wait
        # forever.
        rows = rows.map_batches(
            _Reader(read),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.TaskPoolStrategy(size=self.readers),
            num_cpus=self.gpus,
        )
        rows = rows.map_batches(
            _ModelActor,
            fn_constructor_args=(stage, *self.models),
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
    problems: Counter[str] = Counter()
    frames = 0
    for batch in stages.read_features(segment, problems):
        frames += len(batch)
        yield segment, "batch", batch
    yield segment, "end", (frames, problems)


def _read_chosen(wanted: tuple[Segment, set[int]]) -> Iterator[tuple[Segment, str, Any]]:
    for batch in stages.read_chosen(*wanted):
        yield wanted[0], "batch", batch


class _Reader:
    """Reading stage: yields what `read` yields for each row, one row at a time."""

    def __init__(self, read: Callable[[Any], Iterator]) -> None:
        self.read = read

    def __call__(self, rows: dict[str, np.ndarray]) -> Iterator[dict[str, list]]:
        for payload in rows["payload"]:
            for found in self.read(pickle.loads(payload)):
                yield {"payload": [pickle.dumps(found)]}


class _ModelActor:
    """Actor that holds both models and runs a stage on batches of frames."""

    def __init__(
        self, stage: Callable, teacher: tuple[str, bytes], student: tuple[str, bytes] | None
    ) -> None:
        # Imports torch, which the readers' processes do not need.
        from drone_kd_training.mining.student_and_teacher import open_models

        self.stage = stage
        with tempfile.TemporaryDirectory() as folder:
            self.models = open_models(
                _store(teacher, Path(folder)), student and _store(student, Path(folder))
            )

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list]:
        found = []
        for payload in rows["payload"]:
            segment, kind, batch = pickle.loads(payload)
            done = self.stage(batch, self.models) if kind == "batch" else batch
            found.append(pickle.dumps((segment, kind, done)))
        return {"payload": found}


def _load(model: str) -> tuple[str, bytes]:
    """Return a model's file name and content, which go to nodes without a copy of the file."""
    from drone_kd_training.models.checkpoints import resolve_model

    path = Path(model if model.endswith(".onnx") else resolve_model(model))
    return f"model{path.suffix}", path.read_bytes()


def _store(model: tuple[str, bytes], folder: Path) -> str:
    own = Path(tempfile.mkdtemp(dir=folder)) / model[0]
    own.write_bytes(model[1])
    return str(own)
