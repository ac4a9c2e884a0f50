# SPDX-License-Identifier: AGPL-3.0-or-later
"""Retraining of the deployed model on mined frames: validate, train, judge, export.

    drone-kd retrain MODEL.pt --mined MINED --data BASE.yaml --teacher T --output DIR

Base frames and corrected frames train with labels, the other mined frames with pseudo-labels. The
teacher's predictions for the base frames are written once, beside those for the mined frames. The
guard then compares the candidate with the deployed model, and only an accepted one is exported.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from ultralytics.utils.torch_utils import is_qat

from drone_kd.backends.onnx_runtime import read_spec
from drone_kd.files import file_sha256, write_text
from drone_kd.lineage import Ancestor, Lineage, descend, read_ancestry
from drone_kd.parsing import ParseError, read_json
from drone_kd.progress import print_line
from drone_kd.text import one_line
from drone_kd_training.data.dataset import DataSet, image_paths, label_path, load_data
from drone_kd_training.data.names import DataError
from drone_kd_training.distillation.config import Config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.export.export import export
from drone_kd_training.models.checkpoints import UnusableModelError, class_names, load_model
from drone_kd_training.models.torch_backend import trained_imgsz
from drone_kd_training.models.weight_interpolation import interpolate_weights
from drone_kd_training.retraining import guard, guard_report, training_set
from drone_kd_training.retraining.ancestor import find_ancestor
from drone_kd_training.retraining.config import Plan
from drone_kd_training.retraining.training_set import Mined
from drone_kd_training.teachers import IGNORE_BAND

ACCEPTED, REFUSED, CANDIDATE = "accepted.json", "refused.json", "candidate.pt"
SETTINGS = "retrain.json"
# A teacher that is a folder of predictions teaches with its boxes.
TERMS = ("class", "box")
# A low learning rate, because the model is trained already. An optimizer step per batch, because
# few frames give few steps.
GENTLE = {"optimizer": "AdamW", "lr0": 0.0001, "warmup_epochs": 1.0, "mosaic": 0.0,
          "close_mosaic": 0}  # fmt: skip


@dataclass(frozen=True)
class _Inputs:
    """Validated inputs of a run.

    Attributes:
        frames: the base frames in the training set.
        excluded: validation frames that must not judge a candidate.
        ancestor: first model of the lineage, if it is known and not the deployed one.
        notes: one line each on what the guard cannot judge.
    """

    base: DataSet
    mined: Mined
    frames: list[Path]
    imgsz: int
    lineage: Lineage
    excluded: set[Path]
    ancestor: Path | None
    notes: list[str]


def retrain(plan: Plan, output: Path, command: str) -> dict:
    """Retrain, judge, and export an accepted candidate; finished steps are not repeated.

    ``plan``: the same as before if ``output`` holds a run. ``output`` gets ``accepted.json`` or
    ``refused.json``, ``candidate.pt``, and for an accepted candidate ``model-HASH.onnx``.
    ``command``: command line, for the lineage. Returns the content of the .json: "accepted",
    "rows" (see `guard.Row`), "table", "model" and so on.

    Raises ValueError for input that cannot work (also as DataError, UnusableModelError,
    ModelError), before anything is trained, and ExportError if the accepted candidate fails a gate
    of the export.
    """
    inputs = _validate(plan, command)
    for note in inputs.notes:
        print_line(f"NOTE {note}")
    _open_folder(plan, output, inputs.lineage)
    for name in (ACCEPTED, REFUSED):
        if (output / name).is_file():
            return _read_object(output / name)
    candidate = _train(plan, inputs, output)
    result = _judge(plan, inputs, candidate)
    if result["accepted"]:
        result["model"] = str(_export(plan, inputs, candidate))
    # Written last: the run is finished once it is there.
    name = ACCEPTED if result["accepted"] else REFUSED
    write_text(output / name, json.dumps(result, indent=1) + "\n")
    return result


def _validate(plan: Plan, command: str) -> _Inputs:
    for name, share in (("--replay", plan.replay), ("--keep", plan.keep)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {share}")
    if Path(plan.model).suffix != ".pt":
        raise UnusableModelError(
            f"MODEL must be the checkpoint (.pt) that the deployed model was exported from, got "
            f"{plan.model}"
        )
    model, _ = load_model(plan.model)
    if is_qat(model):
        raise UnusableModelError(
            f"{plan.model} was trained for INT8: retrain the float one that it was trained from"
        )
    base, mined = load_data(plan.data), training_set.read_mined(Path(plan.mined))
    classes = class_names(model)
    for name, names in (("--data", base.names), ("--mined", mined.data.names)):
        _check_classes(name, classes, names)
    frames = training_set.replay_frames(base, mined, plan.replay)
    lineage = _lineage(plan, command, frames, mined)
    ancestor, note = find_ancestor(plan.ancestor, plan.parent, lineage)
    if ancestor is not None:
        _check_classes("--ancestor", classes, _classes_of(ancestor))
    excluded = training_set.excluded_frames(base, mined, frames)
    notes = [note, *_judging_notes(base, mined, excluded)]
    imgsz = plan.imgsz or trained_imgsz(model)
    return _Inputs(
        base, mined, frames, imgsz, lineage, excluded, ancestor, [n for n in notes if n]
    )


def _judging_notes(base: DataSet, mined: Mined, excluded: set[Path]) -> Iterator[str]:
    if excluded:
        yield (
            f"{len(excluded)} validation frames judge nothing: they repeat learning frames, or a "
            "teacher labelled them"
        )
    for domain, data in ((guard.NEW, mined.data), (guard.BASE, base)):
        left = [path for path in image_paths(data.val) if path not in excluded]
        yield guard_report.too_few_frames(domain, left)


def _check_classes(name: str, classes: tuple[str, ...], names: tuple[str, ...]) -> None:
    if names != classes:
        raise UnusableModelError(
            f"the classes differ: MODEL has {one_line(list(classes))}, {name} has "
            f"{one_line(list(names))}; give the model's list, in its order"
        )


def _classes_of(model: Path) -> tuple[str, ...]:
    if model.suffix == ".onnx":
        return read_spec(model).classes
    return class_names(load_model(str(model))[0])


def _lineage(plan: Plan, command: str, frames: list[Path], mined: Mined) -> Lineage:
    data = {"base": _content_sha256(frames), "mined": _content_sha256(mined.train)}
    own = file_sha256(Path(plan.model))
    if not plan.parent:
        # Without the deployed file the checkpoint is the ancestor.
        date = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
        ancestors = (Ancestor(sha256=own, metrics={}),)
        return Lineage(date=date, command=command, data=data, ancestors=ancestors)
    made_from = read_spec(Path(plan.parent)).source_sha256
    if made_from != own:
        raise ValueError(
            f"--parent {plan.parent} was exported from {made_from[:12]}, but {plan.model} is "
            f"{own[:12]}: give the file that was exported from it"
        )
    return descend(Path(plan.parent), command, data)


def _content_sha256(frames: list[Path]) -> str:
    """Return the SHA-256 over names, images and labels."""
    digest = hashlib.sha256()
    for path in sorted(frames):
        labels = label_path(path)
        label_sha256 = file_sha256(labels) if labels.is_file() else "-"
        digest.update(f"{path.name}\0{file_sha256(path)}{label_sha256}".encode())
    return digest.hexdigest()


def _open_folder(plan: Plan, output: Path, lineage: Lineage) -> None:
    """Write the settings into an empty folder, or check that the run in it has the same."""
    hashes = {"data_sha256": dict(lineage.data), "model_sha256": file_sha256(Path(plan.model))}
    settings = asdict(plan) | hashes
    file = output / SETTINGS
    if file.is_file():
        before = _read_object(file)
        if other := [key for key in settings if before.get(key) != settings[key]]:
            raise ValueError(
                f"{one_line(output)} holds a run with other settings ({', '.join(other)}): choose "
                "another folder, or delete it"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{one_line(output)} is not an empty folder: choose another")
    write_text(file, json.dumps(settings, indent=1) + "\n")


def _read_object(path: Path) -> dict:
    """Return what an earlier run wrote; DataError if the file holds no JSON object."""
    try:
        content = read_json(path)
    except ParseError as error:
        raise DataError(f"{error}; delete its folder") from None
    if not isinstance(content, dict):
        raise DataError(f"{one_line(path)}: expected a JSON object; delete its folder")
    return content


def _train(plan: Plan, inputs: _Inputs, output: Path) -> Path:
    """Distil; return the candidate, interpolated with the deployed model."""
    data, unlabelled, predictions = training_set.write_training_set(
        output, inputs.base, inputs.frames, inputs.mined, plan.teacher
    )
    config = Config(
        data=str(data),
        teacher=str(predictions),
        student=str(Path(plan.model).resolve()),
        epochs=plan.epochs,
        imgsz=inputs.imgsz,
        batch=plan.batch,
        device=plan.device,
        seed=plan.seed,
        terms=TERMS,
        unlabelled=(str(unlabelled),) if unlabelled.stat().st_size else (),
        pseudo_threshold=str(IGNORE_BAND[1]),
        labelled_share=0.0,
        tile="off",
        max_frames=sys.maxsize,
        val=False,
        overrides={**GENTLE, "nbs": plan.batch, **plan.overrides},
    )
    run = output / "run"
    distill(config, run, resume=(run / "config.yaml").is_file())
    candidate = output / CANDIDATE
    interpolate_weights(run / "best.pt", plan.model, plan.keep, candidate)
    return candidate


def _judge(plan: Plan, inputs: _Inputs, candidate: Path) -> dict:
    """Compare the candidate with the deployed model; return the content of the .json."""
    base, mined = inputs.base.yaml_path, inputs.mined
    new = mined.data.yaml_path
    rows, label_next = guard.compare_models(
        plan.model,
        str(candidate),
        base,
        new,
        mined.teacher,
        mined.corrected,
        inputs.ancestor,
        inputs.excluded,
    )
    outcome, reason = guard_report.outcome(rows)
    return {
        "accepted": guard.accepted(rows),
        "outcome": outcome,
        "reason": reason,
        "notes": inputs.notes,
        "label_next": label_next,
        "rows": guard_report.as_dicts(rows),
        "table": guard_report.as_table(rows),
        "interval": f"{100 * guard.CONFIDENCE:g} % over {guard.RESAMPLES} bootstrap resamples",
        "candidate": str(candidate),
        "candidate_sha256": file_sha256(candidate),
        "data_sha256": dict(inputs.lineage.data),
        "command": inputs.lineage.command,
    }


def _export(plan: Plan, inputs: _Inputs, candidate: Path) -> Path:
    """Export through the gates to a file named after its content."""
    output, data = candidate.with_suffix(".onnx"), str(inputs.base.yaml_path)
    file, _ = export(
        candidate,
        output,
        plan.precision,
        data,
        plan.imgsz,
        lineage=inputs.lineage,
        ancestry=read_ancestry(Path(plan.parent)) if plan.parent else "",
    )
    return file.replace(file.with_name(f"model-{file_sha256(file)[:12]}.onnx"))
