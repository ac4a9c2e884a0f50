# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mine flights: choose the frames that are worth a label, and pseudo-label them by a teacher.

drone-kd mine flight.mcap video.mp4 --teacher teacher.pt --output mined --frames 300

The work is done segment by segment in a folder beside the output, and an interrupted run
continues there. The output appears when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drone_kd.files import file_sha256, write_text
from drone_kd.media.image_files import SourceError
from drone_kd.parsing import ParseError, read_json
from drone_kd.paths import default_model_path
from drone_kd.progress import Progress, print_line
from drone_kd.text import one_line
from drone_kd_training.data.folders import own_folder, real_folder
from drone_kd_training.data.names import DataError
from drone_kd_training.mining import mined_dataset, stages
from drone_kd_training.mining.config import Settings
from drone_kd_training.mining.flight_ledger import JUDGE, assign_sides, split_flights
from drone_kd_training.mining.flights import Segment, plan
from drone_kd_training.mining.remote_flights import shown_flight
from drone_kd_training.mining.selection import add_scenes, held_out, pick
from drone_kd_training.mining.student_and_teacher import Models, open_models
from drone_kd_training.models.checkpoints import resolve_model

if TYPE_CHECKING:  # imported on demand: only a cluster needs it
    from drone_kd_training.mining.ray_pipeline import Cluster


# A frame's candidate or a segment's summary, as `stages.summarise` describes them.
Row = dict[str, Any]
# Segments with their chosen frames.
Chosen = list[tuple[Segment, list[Row]]]
Warn = Callable[[str], None]
# A damaged flight may have a problem of its own in every frame.
MAX_WARNINGS = 50


def mine(
    flights: list[str],
    output: Path,
    settings: Settings,
    topics: tuple[str, ...] = (),
    cluster: str | None = None,
    warn: Warn = print_line,
) -> dict[str, int]:
    """Mine flights into a data set; `mining.mined_dataset` describes its files.

    ``flights``: bags, videos, folders of images: paths or fsspec URLs. ``topics``: of the bags'
    cameras; empty: all. ``cluster``: "host:port" of a Ray cluster that does the work (default:
    this process). ``warn`` gets warnings, one line each. Returns the number of scored "frames",
    and of frames in "train" and "val".

    Raises ValueError if a setting is out of its range; SourceError, UnusableModelError,
    ModelError, DataError or FileExistsError if the input cannot be used; OSError if the output
    cannot be written, but finished work is kept.
    """
    if settings.frames < 1 or settings.per_scene < 1:
        raise ValueError("--frames and --per-scene: expected at least 1")
    if not 0 < settings.pseudo_threshold < 1:
        raise ValueError(
            "--pseudo-threshold: expected a score between 0 and 1, got "
            f"{settings.pseudo_threshold:g}"
        )
    if output.exists():
        raise FileExistsError(
            f"{one_line(output)} exists already: choose another folder, or delete it"
        )
    models = open_models(settings.teacher, settings.student)
    segments = plan(flights, list(topics), lambda error: warn(f"WARNING {one_line(error, 400)}"))
    work = _work_folder(output, settings, segments)
    sides = _sides(flights, segments, settings)
    if cluster is None:
        workers: InProcess | Cluster = InProcess(models)
    else:
        from drone_kd_training.mining.ray_pipeline import Cluster

        workers = Cluster(cluster, settings.teacher, settings.student)
    try:
        done = _score(work, segments, settings, workers.score)
        _report(done, warn)
        chosen = _choose(segments, done, settings, sides, warn)
        _label(work, chosen, workers.label, settings.pseudo_threshold)
        rows = [row for _, rows in chosen for row in rows]
        if not mined_dataset.finish(work, rows, models.names):
            warn(
                "WARNING no chosen frame has a confident prediction of the teacher: these frames "
                "would teach that they are empty; correct their labels, lower --pseudo-threshold "
                "or use another teacher"
            )
        shutil.rmtree(work / "shards")
        work.replace(output)
    except OSError as error:
        raise OSError(
            f"{one_line(error.filename or work)}: {error.strerror or one_line(error)}; finished "
            "work is kept: the same command continues it"
        ) from error
    splits = Counter(row["split"] for row in rows)
    frames = sum(part["frames"] for part in done.values())
    return {"frames": frames, "train": splits["train"], "val": splits["val"]}


def _sides(flights: list[str], segments: list[Segment], settings: Settings) -> dict[str, str]:
    """Return the sides of whole flights; empty: time blocks of each flight are held out."""
    if settings.ledger:
        return assign_sides(flights, Path(settings.ledger))
    return split_flights(list(dict.fromkeys(segment.flight for segment in segments)))


class InProcess:
    """Scoring and labelling of segments in this process, one batch after the other."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def score(self, segments: list[Segment]) -> Iterator[stages.Scored]:
        """Yield segments with their scored frames and problems."""
        for segment in segments:
            problems: Counter[str] = Counter()
            batches = stages.read_features(segment, problems)
            yield segment, [f for b in batches for f in stages.score(b, self.models)], problems

    def label(self, wanted: list[tuple[Segment, set[int]]]) -> Iterator[stages.Labelled]:
        """Yield segments with some of their labelled frames."""
        for segment, numbers in wanted:
            for batch in stages.read_chosen(segment, numbers):
                yield segment, stages.label(batch, self.models)


def _score(
    work: Path, segments: list[Segment], settings: Settings, score: Callable[..., Iterator]
) -> dict[str, Row]:
    """Return the summaries of all segments by key; those of an interrupted run are reused."""
    shards = {segment.key: work / "shards" / f"{segment.key}.json" for segment in segments}
    missing = [segment for segment in segments if not shards[segment.key].exists()]
    scored = len(segments) - len(missing)
    with Progress("Score", len(segments), "segment", done=scored) as progress:
        frames = 0
        for segment, scored, problems in score(missing):
            summary = stages.summarise(segment, scored, problems, settings.per_scene)
            write_text(shards[segment.key], json.dumps(summary))
            frames += summary["frames"]
            progress.update(note=f"{frames} frames")
    return {segment.key: _read_shard(shards[segment.key], segment) for segment in segments}


def _read_shard(path: Path, segment: Segment) -> Row:
    """Return the summary of a segment; DataError if the file is none."""
    try:
        summary = read_json(path)
        # Frames are written under their names.
        if all(c["name"] == stages.frame_name(segment, c["index"]) for c in summary["candidates"]):
            return summary
    except (ParseError, KeyError, TypeError, ValueError):
        pass
    raise DataError(
        f"{one_line(path)}: expected the scores of an interrupted run; delete its folder"
    )


def _report(done: dict[str, Row], warn: Warn) -> None:
    problems: Counter[str] = Counter()
    for part in done.values():
        problems.update(part["said"])
    for line, times in problems.most_common(MAX_WARNINGS):
        warn(f"WARNING {one_line(line, 400)}" + (f" ({times} times)" if times > 1 else ""))
    if len(problems) > MAX_WARNINGS:
        warn(f"WARNING {len(problems) - MAX_WARNINGS} other problems")
    if not sum(part["frames"] for part in done.values()):
        reason = one_line(next(iter(problems), "all flights are empty"), 400)
        raise SourceError(f"expected a readable frame in some flight, found none: {reason}")


def _choose(
    segments: list[Segment],
    done: dict[str, Row],
    settings: Settings,
    sides: Mapping[str, str],
    warn: Warn,
) -> Chosen:
    """Choose frames; ``sides``: of the flights in the ledger, see `flight_ledger`."""
    candidates: list[Row] = []
    leaders: list[int] = []
    segment_of: dict[str, Segment] = {}
    for segment in segments:
        first = len(candidates)
        flight, topic = shown_flight(segment.flight), one_line(segment.topic)
        for candidate in done[segment.key]["candidates"]:
            leaders.append(first + candidate.pop("leader"))
            side = sides.get(segment.flight)
            more = {
                "flight": flight,
                "topic": topic,
                "time": _time(segment, candidate),
                "held_out": held_out(candidate["block"]) if side is None else side == JUDGE,
            }
            candidates.append({**candidate, **more})
            segment_of[candidate["name"]] = segment
    add_scenes(candidates, leaders)
    rows = pick(candidates, settings.frames, settings.per_scene, settings.shares)
    train = sum(row["split"] == "train" for row in rows)
    if train < settings.frames:
        scenes = len({c["scene"] for c in candidates})
        warn(
            f"WARNING {train} frames instead of {settings.frames}: {scenes} scenes with at most "
            f"{settings.per_scene} frames each (--per-scene)"
        )
    by_segment: dict[Segment, list[Row]] = {}
    for row in rows:
        by_segment.setdefault(segment_of[row["name"]], []).append(row)
    return list(by_segment.items())


def _time(segment: Segment, candidate: Row) -> float:
    """Return the time of a frame in time blocks of its flight; only differences have a meaning."""
    if segment.topic:  # stamps, which may be of another clock than the recorder's
        return candidate["stamp_s"] * 1e9 / segment.block
    return (segment.start + candidate["index"]) / segment.block


def _label(work: Path, chosen: Chosen, label: Callable[..., Iterator], confident: float) -> None:
    """Write the chosen frames that an interrupted run has not written."""
    rows = {(segment.key, row["index"]): row for segment, own in chosen for row in own}
    missing = [
        (segment, numbers)
        for segment, own in chosen
        if (numbers := {row["index"] for row in own if not mined_dataset.is_written(work, row)})
    ]
    written = len(rows) - sum(len(numbers) for _, numbers in missing)
    with Progress("Label", len(rows), "frame", done=written) as progress:
        for segment, found in label(missing):
            for labelled in found:
                row = rows[segment.key, labelled.number]
                mined_dataset.write_frame(work, row, labelled, confident)
                progress.update()


def _work_folder(output: Path, settings: Settings, segments: list[Segment]) -> Path:
    """Return the work folder beside the output: new, or of the same command and user."""
    models = [settings.teacher, settings.student or str(default_model_path())]
    parts = json.dumps([[s.key, s.start, s.stop] for s in segments]).encode()
    content = {
        **asdict(settings),
        "models": [_digest(model) for model in models],
        "segments": hashlib.sha256(parts).hexdigest(),
    }
    work = own_folder(output.with_name(f".{output.name}.mining"))
    settings_file = work / "settings.json"
    if settings_file.exists():
        before = read_json(settings_file)
        names = sorted(content)
        if isinstance(before, dict):
            names = [name for name in names if before.get(name) != content[name]]
        if names:
            raise DataError(
                f"{one_line(work)} holds an interrupted run with other {', '.join(names)}: delete "
                "it, or choose another --output"
            )
    mined_dataset.make_folders(work)
    real_folder(work / "shards")
    write_text(settings_file, json.dumps(content))
    return work


def _digest(model: str) -> str:
    path = Path(model if model.endswith(".onnx") else resolve_model(model))
    return file_sha256(path) if path.is_file() else model
