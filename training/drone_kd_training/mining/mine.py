# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mine flights: choose the frames that are worth a label, and let a teacher label them.

python -m training mine flight.mcap video.mp4 --teacher teacher.pt --output mined --frames 300

The work is done in a folder beside the output, segment by segment; what is finished there is not
done again. The output appears when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drone_kd.files import file_sha256, write_whole
from drone_kd.media.image_files import SourceError
from drone_kd.paths import default_model_path
from drone_kd.progress import Progress, print_line
from drone_kd_training.data.dataset import DataError
from drone_kd_training.mining import mined_dataset, stages
from drone_kd_training.mining.config import Settings
from drone_kd_training.mining.flights import Segment, plan
from drone_kd_training.mining.selection import add_scenes, pick
from drone_kd_training.mining.student_and_teacher import Models, open_models
from drone_kd_training.models.checkpoints import resolve_model


def mine(
    flights: list[str],
    output: Path,
    settings: Settings,
    topics: tuple[str, ...] = (),
    cluster: str | None = None,
    warn: Callable[[str], None] = print_line,
) -> dict[str, int]:
    """Mine flights into a data set; see `mining.mined_dataset` for what it holds.

    Args:
        flights: bags, videos, folders of pictures: paths or fsspec URLs.
        output: folder to make.
        topics: of the bags' cameras; empty: all.
        cluster: "host:port" of a Ray cluster that does the work (default: this process).
        warn: told, a line at a time, of what is wrong but was got round.

    Returns:
        How many frames were looked at, and how many are in "train" and "val".

    Raises:
        SourceError, UnusableModelError, ModelError, DataError, FileExistsError: input that cannot
            work.
        OSError: the output cannot be written; what is done is kept.
    """
    if settings.frames < 1 or settings.per_scene < 1:
        raise ValueError("--frames and --per-scene: expected at least 1")
    if not 0 < settings.sure < 1:
        raise ValueError(f"--sure: expected a score between 0 and 1, got {settings.sure:g}")
    if output.exists():
        raise FileExistsError(f"{output} exists already: choose another folder, or delete it")
    models = open_models(settings.teacher, settings.student)
    segments = plan(flights, list(topics), lambda error: warn(f"WARNING {error}"))
    work = _work_folder(output, settings, segments)
    if cluster is None:
        score, label = _Here(models).score, _Here(models).label
    else:
        from drone_kd_training.mining.ray_pipeline import Cluster

        workers = Cluster(cluster, settings.teacher, settings.student)
        score, label = workers.score, workers.label

    try:
        done = _score(work, segments, settings, score)
        _report(done, warn)
        chosen = _choose(segments, done, settings, warn)
        _label(work, chosen, label, settings.sure)
        rows = [row for _, rows in chosen for row in rows]
        if not mined_dataset.finish(work, rows, models.names):
            warn(
                "WARNING the teacher is sure of nothing in any chosen frame: as they are, they "
                "teach that there is nothing; correct their labels, or use another teacher"
            )
        _publish(work, output)
    except OSError as error:
        raise OSError(
            f"{error.filename or work}: {error.strerror or error}; what is done is kept: the same "
            "command goes on from there"
        ) from error
    splits = Counter(row["split"] for row in rows)
    return {
        "frames": sum(part["frames"] for part in done.values()),
        "train": splits["train"],
        "val": splits["val"],
    }


class _Here:
    """The stages in this process, one after the other, a batch at a time."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def score(self, segments: list[Segment]) -> Iterator[tuple[Segment, list, Counter]]:
        """Yield segments with all that was seen in them, and what went wrong."""
        for segment in segments:
            said: Counter = Counter()
            seen = []
            for batch in stages.glances(segment, said):
                seen += stages.look(batch, self.models)
            yield segment, seen, said

    def label(
        self, wanted: list[tuple[Segment, set[int]]]
    ) -> Iterator[tuple[Segment, list[stages.Labelled]]]:
        """Yield segments with some of their chosen frames."""
        for segment, indices in wanted:
            for batch in stages.chosen(segment, indices):
                yield segment, stages.label(batch, self.models)


def _score(
    work: Path,
    segments: list[Segment],
    settings: Settings,
    score: Callable[[list[Segment]], Iterator],
) -> dict[str, dict[str, Any]]:
    """Summaries of all segments by key; those that an earlier run left are read."""
    shards = {segment.key: work / "shards" / f"{segment.key}.json" for segment in segments}
    missing = [segment for segment in segments if not shards[segment.key].exists()]
    scored = len(segments) - len(missing)
    with Progress("Score", len(segments), "segment", done=scored) as progress:
        frames = 0
        for segment, seen, said in score(missing):
            summary = stages.summarise(segment, seen, said, settings.per_scene)
            write_whole(shards[segment.key], json.dumps(summary).encode())
            frames += summary["frames"]
            progress.update(note=f"{frames} frames")
    return {key: json.loads(path.read_bytes()) for key, path in shards.items()}


def _report(done: dict[str, dict[str, Any]], warn: Callable[[str], None]) -> None:
    said: Counter = Counter()
    for part in done.values():
        said.update(part["said"])
    for line, times in said.items():
        warn(f"WARNING {line}" + (f" ({times} times)" if times > 1 else ""))
    if not sum(part["frames"] for part in done.values()):
        reason = next(iter(said), "all flights are empty")
        raise SourceError(f"no frame that can be read in any flight: {reason}")


def _choose(
    segments: list[Segment],
    done: dict[str, dict[str, Any]],
    settings: Settings,
    warn: Callable[[str], None],
) -> list[tuple[Segment, list[dict[str, Any]]]]:
    """The chosen frames of every segment that has some."""
    candidates, leaders, segment_of = [], [], {}
    for segment in segments:
        first = len(candidates)
        for candidate in done[segment.key]["candidates"]:
            leaders.append(first + candidate.pop("leader"))
            candidates.append({**candidate, "flight": segment.flight, "topic": segment.topic})
            segment_of[candidate["name"]] = segment
    add_scenes(candidates, leaders)
    rows = pick(candidates, settings.frames, settings.per_scene, settings.shares)
    train = sum(row["split"] == "train" for row in rows)
    if train < settings.frames:
        scenes = len({c["scene"] for c in candidates})
        warn(
            f"WARNING {train} frames instead of {settings.frames}: {scenes} scenes, and at most "
            f"{settings.per_scene} frames of each (--per-scene)"
        )
    by_segment: dict[Segment, list[dict[str, Any]]] = {}
    for row in rows:
        by_segment.setdefault(segment_of[row["name"]], []).append(row)
    return list(by_segment.items())


def _label(
    work: Path,
    chosen: list[tuple[Segment, list[dict[str, Any]]]],
    label: Callable[[list[tuple[Segment, set[int]]]], Iterator],
    sure: float,
) -> None:
    """Write every chosen frame that an earlier run has not written."""
    rows = {(segment.key, row["index"]): row for segment, own in chosen for row in own}
    missing = []
    for segment, own in chosen:
        indices = {row["index"] for row in own if not mined_dataset.is_written(work, row)}
        if indices:
            missing.append((segment, indices))
    written = len(rows) - sum(len(indices) for _, indices in missing)
    with Progress("Label", len(rows), "frame", done=written) as progress:
        for segment, found in label(missing):
            for labelled in found:
                mined_dataset.write_frame(work, rows[segment.key, labelled.index], labelled, sure)
                progress.update()


def _work_folder(output: Path, settings: Settings, segments: list[Segment]) -> Path:
    """The folder beside the output that the work is done in; new, or of the same command."""
    models = [settings.teacher, settings.student or str(default_model_path())]
    content = {
        **asdict(settings),
        "models": [_digest(model) for model in models],
        "segments": hashlib.sha256(
            json.dumps([[s.key, s.start, s.stop] for s in segments]).encode()
        ).hexdigest(),
    }
    work = output.with_name(f".{output.name}.mining")
    settings_file = work / "settings.json"
    if settings_file.exists():
        before = json.loads(settings_file.read_bytes())
        if changed := sorted(key for key in content if before.get(key) != content[key]):
            raise DataError(
                f"{work} is of an interrupted run with other {', '.join(changed)}: delete it, or "
                "choose another --output"
            )
    mined_dataset.make_folders(work)
    (work / "shards").mkdir(exist_ok=True)
    write_whole(settings_file, json.dumps(content).encode())
    return work


def _digest(model: str) -> str:
    path = Path(model if model.endswith(".onnx") else resolve_model(model))
    return file_sha256(path) if path.is_file() else model


def _publish(work: Path, output: Path) -> None:
    shutil.rmtree(work / "shards")
    os.replace(work, output)
