# SPDX-License-Identifier: AGPL-3.0-or-later
"""From the flying model and mined frames to a better model, or to none.

    python -m training retrain MODEL.pt --mined MINED --data BASE.yaml --teacher T --output DIR

The teacher's answers to the base's frames are written down once and laid beside those to the mined
frames. The model learns from both together: base frames and corrected ones have labels, the
teacher labels the others. Then `guard` compares the candidate with the model that flies;
an accepted one is exported.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from ultralytics.utils.torch_utils import is_qat

from drone_kd.backends.onnx_runtime import read_spec
from drone_kd.files import file_sha256
from drone_kd.lineage import Ancestor, Lineage, descend
from drone_kd_training.data.dataset import (
    DataError,
    DataSet,
    image_paths,
    label_lines,
    label_path,
    load_data,
    write_text,
)
from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.export.export import export
from drone_kd_training.export.quantize import spread
from drone_kd_training.models.checkpoints import (
    UnusableModelError,
    class_names,
    load_model,
    match_classes,
)
from drone_kd_training.models.torch_backend import trained_imgsz
from drone_kd_training.models.weight_interpolation import blend
from drone_kd_training.retraining.config import Plan
from drone_kd_training.retraining.guard import (
    CONFIDENCE,
    DRAWS,
    accepted,
    as_dicts,
    as_table,
    compare_models,
)
from drone_kd_training.teachers.predict import predict
from drone_kd_training.teachers.teachers import CLASSES_FILE, Predictions, open_teacher

ACCEPTED, REFUSED, CANDIDATE = "accepted.json", "refused.json", "candidate.pt"
# A teacher that is a folder of answers teaches with its boxes.
TERMS = ("class", "box")
# Short and gentle: the model knows its trade already. A step a batch: few frames are few steps.
GENTLE = {
    "optimizer": "AdamW",
    "lr0": 0.0001,
    "warmup_epochs": 1.0,
    "mosaic": 0.0,
    "close_mosaic": 0,
}


@dataclass(frozen=True)
class Mined:
    """What `training mine` wrote: frames to learn from, held-out frames, answers to both."""

    data: DataSet
    labelled: list[Path]
    unlabelled: list[Path]
    answers: Predictions
    corrected: set[str]


def retrain(plan: Plan, output: Path, command: str) -> dict:
    """Retrain, judge, and export what was accepted; what is finished is not done again.

    Args:
        plan: the same as before, where the folder holds a run.
        output: folder for ``accepted.json`` or ``refused.json``; with the former
            ``model-HASH.onnx``. The candidate is ``candidate.pt`` in either case.
        command: the command line, for the lineage.

    Returns:
        The content of the .json: "accepted", "rows" (see `guard.Row`), "model" and so on.

    Raises:
        ValueError: (also as DataError, UnusableModelError, ModelError) input that cannot work,
            before any training.
        ExportError: the candidate was accepted, but does not pass the gates of the export.
    """
    for name, share in (("--replay", plan.replay), ("--keep", plan.keep)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {share}")
    if Path(plan.model).suffix != ".pt":
        raise UnusableModelError(
            f"MODEL must be the checkpoint (.pt) that the flying model was exported from, got "
            f"{plan.model}"
        )
    model, _ = load_model(plan.model)
    if is_qat(model):
        raise UnusableModelError(
            f"{plan.model} was trained for INT8: retrain the float one that it was trained from"
        )
    base, mined = load_data(plan.data), read_mined(Path(plan.mined))
    _check_classes(class_names(model), base, mined.data)
    frames = _replayed(base, mined, plan.replay)
    lineage = _lineage(plan, command, frames, mined)
    _keep_settings(plan, output, lineage)
    for name in (ACCEPTED, REFUSED):
        if (output / name).is_file():
            return json.loads((output / name).read_text(encoding="utf-8"))

    lists = {"base.txt": frames, "labelled.txt": frames + mined.labelled}
    lists["unlabelled.txt"] = mined.unlabelled
    for name, paths in lists.items():
        write_text(output / name, "".join(f"{path}\n" for path in paths))
    answers = output / "answers"
    split = replace(base, train=(output / "labelled.txt").resolve(), test=None)
    config = Config(
        data=str(split.write_resolved(output / "data.yaml").resolve()),
        teacher=str(answers.resolve()),
        student=str(Path(plan.model).resolve()),
        epochs=plan.epochs,
        imgsz=plan.imgsz or trained_imgsz(model),
        batch=plan.batch,
        device=plan.device,
        seed=plan.seed,
        terms=TERMS,
        unlabelled=str((output / "unlabelled.txt").resolve()) if mined.unlabelled else "",
        val=False,
        overrides={**GENTLE, "nbs": plan.batch, **plan.overrides},
    )
    if not answers.is_dir():
        to_base = _answers_to_base(plan.teacher, base, output)
        _merge_answers(to_base, frames, mined, answers)
    run = output / "run"
    distill(config, run, resume=(run / "config.yaml").is_file())
    blend(run / "best.pt", plan.model, plan.keep, output / CANDIDATE)
    return _judge(plan, output, base, mined, lineage)


def _judge(plan: Plan, output: Path, base: DataSet, mined: Mined, lineage: Lineage) -> dict:
    candidate = output / CANDIDATE
    rows = compare_models(
        plan.model,
        str(candidate),
        base.yaml_path,
        mined.data.yaml_path,
        mined.answers,
        mined.corrected,
    )
    found = {
        "accepted": accepted(rows),
        "rows": as_dicts(rows),
        "table": as_table(rows),
        "interval": f"{100 * CONFIDENCE:g} % over {DRAWS} draws of the frames",
        "candidate": str(candidate),
        "candidate_sha256": file_sha256(candidate),
        "data_sha256": dict(lineage.data),
        "command": lineage.command,
    }
    if found["accepted"]:
        found["model"] = str(_export(plan, candidate, output, base, lineage))
    write_text(
        output / (ACCEPTED if found["accepted"] else REFUSED), json.dumps(found, indent=1) + "\n"
    )  # last: its presence means that all is done
    return found


def _export(plan: Plan, candidate: Path, output: Path, base: DataSet, lineage: Lineage) -> Path:
    """Export through the gates; the name says what is in the file."""
    temporary = output / "candidate.onnx"
    export(
        candidate,
        temporary,
        precision=plan.precision,
        data=str(base.yaml_path),
        imgsz=plan.imgsz,
        lineage=lineage,
    )
    named = output / f"model-{file_sha256(temporary)[:12]}.onnx"
    os.replace(temporary, named)
    return named


def read_mined(folder: Path) -> Mined:
    """Read a folder of `training mine`.

    Raises:
        DataError: something that retraining needs is missing; says what.
    """
    for name, what in (
        ("data.yaml", "no folder of `training mine`"),
        ("images/train", "no frames to learn from"),
        ("images/val", "no held-out frames to judge a candidate by: mine a longer flight"),
        ("answers", "no answers of a teacher"),
    ):
        if not (folder / name).exists():
            raise DataError(f"{folder} holds {what} ({name} is missing)")
    data = load_data(folder / "data.yaml")
    train = image_paths(data.train)
    for path in image_paths(data.val):
        if label_path(path).is_file() and label_path(path).read_text(encoding="utf-8").strip():
            break
    else:
        raise DataError(f"{data.val} holds no labelled object: nothing to judge a candidate by")
    listed = folder / "corrected.txt"
    corrected = set(listed.read_text(encoding="utf-8").splitlines()) if listed.is_file() else set()
    return Mined(
        data,
        [path for path in train if path.stem in corrected],
        [path for path in train if path.stem not in corrected],
        open_teacher(str(folder / "answers"), data.names),
        corrected,
    )


def _check_classes(model: tuple[str, ...], base: DataSet, mined: DataSet) -> None:
    """All three mean the same by a class's number."""
    for name, names in (("--data", base.names), ("--mined", mined.names)):
        if names != model:
            raise UnusableModelError(
                f"the classes differ: MODEL has {list(model)}, {name} has {list(names)}; give "
                "base and mined frames the model's list, in its order"
            )


def _replayed(base: DataSet, mined: Mined, replay: float) -> list[Path]:
    """The base frames that go with the mined ones: at least one, at most all."""
    new = len(mined.labelled) + len(mined.unlabelled)
    frames = spread(image_paths(base.train), max(1, round(new * replay / (1 - replay))))
    own = {path.stem for path in mined.labelled + mined.unlabelled}
    if both := sorted(own & {path.stem for path in frames}):
        raise DataError(
            f"{len(both)} frames of base and mined have the same name, such as {both[0]}: their "
            "answers could not be told apart; rename the flight and mine it again"
        )
    return frames


def _lineage(plan: Plan, command: str, frames: list[Path], mined: Mined) -> Lineage:
    data = {
        "base": _content_sha256(frames),
        "mined": _content_sha256(mined.labelled + mined.unlabelled),
    }
    own = file_sha256(Path(plan.model))
    if not plan.parent:
        # The checkpoint itself, where nobody says which file flies.
        now = datetime.now(timezone.utc)
        return Lineage(
            date=f"{now:%Y-%m-%dT%H:%M:%SZ}",
            command=command,
            data=data,
            ancestors=(Ancestor(sha256=own, metrics={}),),
        )
    made_from = read_spec(Path(plan.parent)).source_sha256
    if made_from != own:
        raise ValueError(
            f"{plan.parent} was exported from {made_from[:12]}, but {plan.model} is {own[:12]}: "
            "name the file that was exported from it"
        )
    return descend(Path(plan.parent), command, data)


def _content_sha256(frames: list[Path]) -> str:
    """SHA-256 over names, pictures and labels."""
    digest = hashlib.sha256()
    for path in sorted(frames):
        labels = label_path(path)
        said = file_sha256(labels) if labels.is_file() else "-"
        digest.update(f"{path.name}\0{file_sha256(path)}{said}".encode())
    return digest.hexdigest()


def _keep_settings(plan: Plan, output: Path, lineage: Lineage) -> None:
    """Write what the run is made of, or make sure that the run in the folder is this one."""
    settings = {
        **asdict(plan),
        "data_sha256": dict(lineage.data),
        "model_sha256": file_sha256(Path(plan.model)),
    }
    file = output / "retrain.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if other := [key for key in settings if before.get(key) != settings[key]]:
            raise ValueError(
                f"{output} is of a run with other settings ({', '.join(other)}): choose another "
                "folder, or delete it"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not an empty folder: choose another")
    output.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(settings, indent=1) + "\n")


def _answers_to_base(teacher: str, base: DataSet, output: Path) -> Predictions:
    """Those of a folder as they are, or those of a checkpoint, written down once."""
    if Path(teacher).is_dir():
        return open_teacher(teacher, base.names)
    if Path(teacher).suffix != ".pt":
        raise UnusableModelError(
            f"--teacher must be a checkpoint (.pt) or a folder of YOLO .txt, got {teacher}"
        )
    written = output / "base-answers"
    if not written.is_dir():
        listed = replace(base, train=(output / "base.txt").resolve(), test=None)
        predict(teacher, listed.write_resolved(output / "base.yaml"), written)
    return open_teacher(str(written), base.names)


def _merge_answers(to_base: Predictions, frames: list[Path], mined: Mined, output: Path) -> None:
    """Write the answers to all frames into one folder, in the model's classes.

    What a person said of a corrected frame stands there in the place of the teacher's answer.
    """
    names = mined.data.names
    known = [
        dict(match_classes(names, answers.names).pairs) for answers in (to_base, mined.answers)
    ]
    # The mined answers' list names the model's classes, whatever their teacher knows.
    own = {names[i] for i, k in known[1].items() if k in _classes_found(mined.answers)}
    if other := own - {names[i] for i in known[0]}:
        raise UnusableModelError(
            f"the mined frames have answers of {sorted(other)}, of which --teacher knows nothing "
            f"(it knows {list(to_base.names)}): give the teacher that they were mined with"
        )
    if missing := [path for path in frames if path.stem not in to_base.found]:
        raise DataError(
            f"{len(missing)} of {len(frames)} base frames have no answers, such as "
            f"{missing[0].name}: `training predict` writes them"
        )
    order = sorted(set(known[0]) & set(known[1]))
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        write_text(temporary / CLASSES_FILE, "".join(f"{names[i]}\n" for i in order))
        for answers, pairs, paths in (
            (to_base, known[0], frames),
            (mined.answers, known[1], mined.unlabelled),
        ):
            position = {pairs[i]: k for k, i in enumerate(order)}  # by the teacher's number
            for path in paths:
                boxes, scores = answers.found.get(path.stem, (np.zeros((0, 4)), np.zeros((0, 1))))
                class_ids = scores.argmax(axis=1)
                kept = np.isin(class_ids, list(position))
                ids = [position[c] for c in class_ids[kept].tolist()]
                lines = label_lines(ids, boxes[kept], scores[kept].max(axis=1))
                write_text(temporary / f"{path.stem}.txt", lines)
        for path in mined.labelled:
            labels = label_path(path)
            text = labels.read_text(encoding="utf-8") if labels.is_file() else ""
            table = np.array([line.split() for line in text.splitlines() if line], np.float64)
            table = table.reshape(-1, 5)
            table = table[np.isin(table[:, 0], order)]
            ids = [order.index(c) for c in table[:, 0].tolist()]
            lines = label_lines(ids, table[:, 1:], np.ones(len(ids)))
            write_text(temporary / f"{path.stem}.txt", lines)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _classes_found(answers: Predictions) -> set[int]:
    return {int(c) for _, scores in answers.found.values() for c in scores.argmax(axis=1)}
