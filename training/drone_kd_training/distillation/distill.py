# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train a student with its teacher: validate -> prepare_data -> train -> report.

    drone-kd distill --teacher teacher.pt --student yolo11n.yaml --data data.yaml --output runs/car
    ... --output runs/car --resume     # after an interruption
    --teacher none ...                 # the student alone (or a future teacher)
    --teachers teachers.yaml ...       # several, each on its own sources: teaching_plan.py
    ... --device 0,1                   # on two GPUs of this machine

On several machines with two GPUs each, sharing a file system:

    torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
      --module training distill --device 0,1 ...

Loop, detection loss, augmentation and checkpoints are Ultralytics'. This part adds one wrapper
around the detection criterion (`distillation.criterion`), so the checkpoint holds the student
alone and loads anywhere.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from ultralytics import __version__ as ultralytics_version
from ultralytics.utils import LOGGER, RANK

from drone_kd.files import atomic_file, write_text
from drone_kd.parsing import read_json
from drone_kd.text import one_line
from drone_kd_training.data.dataset import DataSet, load_data
from drone_kd_training.data.names import DataError, class_list
from drone_kd_training.distillation.baseline import FOLDER as BASELINE
from drone_kd_training.distillation.baseline import baseline_beside
from drone_kd_training.distillation.claims import claim
from drone_kd_training.distillation.config import Config, read_config, write_config
from drone_kd_training.distillation.levels import match_levels
from drone_kd_training.distillation.run_report import (
    by_model,
    facts,
    mean_of_sources,
    plot_curves,
    read_metrics,
    title,
    warn_if_teacher_is_weaker,
)
from drone_kd_training.distillation.terms import BOX_TERMS
from drone_kd_training.distillation.train_data import (
    FRAMES,
    spread_fraction,
)
from drone_kd_training.distillation.trainer import COST, STATE, DistillTrainer
from drone_kd_training.distillation.unlabelled import (
    EXPECTATION,
    add_flights,
    check_flights,
    check_threshold,
    continue_with_flights,
    read_expectation,
)
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.html_report import compare_frames, example_frames, write_report
from drone_kd_training.models.checkpoints import (
    check_weights,
    cost,
    detect_head,
    load_model,
    match_classes,
    resolve_model,
)
from drone_kd_training.models.published import finish_checkpoint
from drone_kd_training.models.safe_loading import read_state
from drone_kd_training.teachers.teachers import Teacher, open_teacher
from drone_kd_training.teachers.teaching_dataset import write_frames
from drone_kd_training.teachers.teaching_plan import Plan, read_plan

# Quantization-aware training adapts a trained student; it must not start over.
QUANTIZED = {
    "quantize": 8,
    "optimizer": "AdamW",
    "lr0": 1e-4,
    "warmup_epochs": 0.5,
    "mosaic": 0.0,
    "close_mosaic": 0,
}
# Figures of a run; the file is written last, so its presence means that the run is complete.
METRICS = "metrics.json"
# Locked by the process that writes into the folder of a run.
LOCK = ".lock"
# The wording of CUDA and of the CPU's allocator.
_NO_MEMORY = re.compile("out of memory|allocate memory", re.IGNORECASE)


@dataclass(frozen=True)
class Run:
    """A validated run.

    Attributes:
        student: path of the student's checkpoint or architecture.
        data: None for a plan whose frames are not written yet.
        teacher: the teacher, or None for the student alone (or for a plan, as ``data``).
        plan: several teachers with their sources, or None.
        sources: test sets of a plan: name -> data.yaml and the classes that are labelled.
    """

    config: Config
    output: Path
    student: str
    data: DataSet | None = None
    teacher: Teacher | None = None
    plan: Plan | None = None
    sources: dict[str, tuple[Path, tuple[str, ...]]] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        """The trained student."""
        return self.output / "weights" / "best.pt"

    @property
    def state(self) -> Path:
        """The trainer's state for --resume, as in `DistillTrainer.state_file`."""
        return self.output / "weights" / STATE


def distill(
    config: Config, output: Path, resume: bool = False, measure_teacher: bool = True
) -> dict:
    """Train and evaluate a student.

    Writes ``best.pt``, ``metrics.json``, ``results.csv``, ``config.yaml``, ``curves.png`` and
    ``report.html``.

    Args:
        output: folder of the run: new or empty, or that of an interrupted run, or of one that
            failed before it had trained.
        resume: continue the run in ``output`` with the settings written there; of ``config`` only
            the device counts.
        measure_teacher: evaluate the teacher too, and warn if it is the weaker one.

    Returns:
        The content of ``metrics.json``; empty in all but the first of torchrun's processes.

    Raises:
        ValueError: (also as DataError, UnusableModelError) input that cannot work, before any
            training; or a folder that is in use.
        RuntimeError: out of memory.
    """
    output = Path(output).resolve()
    if resume and (finished := output / METRICS).is_file():
        LOGGER.info(f"{output} is finished, nothing to resume")
        return read_metrics(finished)
    run = validate(config, output, resume)
    # The first of torchrun's processes claims the folder for all.
    with claim(output / LOCK) if RANK <= 0 else nullcontext(True) as claimed:
        if not claimed:
            raise ValueError(
                f"{one_line(output)} is in use by another process: wait for it, or choose another"
            )
        run, data = prepare_data(run)
        with baseline_beside(run.config, output) as finish_baseline:
            seconds = train(run, data)
            if RANK > 0:  # the first one reports, too
                return {}
            baseline = finish_baseline()
        return report(run, data, seconds, measure_teacher, baseline)


def validate(config: Config, output: Path, resume: bool) -> Run:
    """Check everything that can be checked before anything is written; ``output`` is absolute.

    Raises:
        ValueError: see `distill`.
    """
    if resume:
        if not (output / "config.yaml").is_file():
            raise ValueError(
                f"nothing to resume in {output}: it has no config.yaml; start without --resume"
            )
        _check_links(output)
        config = _resumed(config, output)
    elif RANK <= 0 and output.exists() and not _is_free(output):
        got = "not an empty folder" if output.is_dir() else "a file"
        remedy = "choose another" + (", or continue that run with --resume" * output.is_dir())
        raise ValueError(f"{one_line(output)} is {got}: {remedy}")
    if config.baseline and RANK >= 0:
        raise ValueError("--baseline does not go with torchrun: train the student alone by itself")
    run = Run(config, output, resolve_model(config.student))
    if not config.teachers:
        return _open_inputs(run)
    plan = read_plan(config.teachers)
    LOGGER.info(plan.table())
    return replace(run, plan=plan)


def _is_free(output: Path) -> bool:
    """Return whether a run may start in a folder: empty, or of a run that trained nothing."""
    if not output.is_dir() or (output / "weights").exists() or (output / METRICS).exists():
        return False
    if all(path.name == LOCK for path in output.iterdir()):
        return True
    try:
        read_config(output)
        _check_links(output)
    except (OSError, ValueError):  # also as ParseError: of another kind
        return False
    return True


def _resumed(given: Config, output: Path) -> Config:
    """Return the settings of a run to resume; warn of other ones, which do not count."""
    saved = read_config(output)
    ignored = [
        f"{f.name} {one_line(getattr(saved, f.name), 60)}"
        for f in fields(Config)
        if f.name != "device" and getattr(given, f.name) != getattr(saved, f.name)
    ]
    if ignored:
        settings = one_line(output / "config.yaml")
        LOGGER.warning(f"--resume continues with the settings of {settings}: {', '.join(ignored)}")
    return replace(saved, device=given.device or saved.device)


def _check_links(output: Path) -> None:
    """Refuse a run folder with links where files are written and deleted; ValueError."""
    weights = output / "weights"
    below = weights.iterdir() if weights.is_dir() and not weights.is_symlink() else ()
    for path in (*output.iterdir(), *below):
        if path.is_symlink():
            raise ValueError(
                f"{one_line(path)}: expected a file or folder of the run, got a link; delete it, "
                "or start the run anew"
            )


def _open_inputs(run: Run) -> Run:
    """Open data and models, and check that they fit together."""
    config = run.config
    if config.data:
        data = load_data(config.data)
    else:  # the flights, which `prepare_data` reads
        classes = class_list(config.classes, "--classes")
        data = DataSet(run.output / "data.yaml", classes, run.output, run.output)
    student, _ = load_model(run.student)
    if getattr(student, "yaml", None) is None:
        raise ValueError(
            f"{one_line(run.student)}: expected a student with a description of its layers, got "
            "none; give a model yaml, and the checkpoint as --set pretrained=FILE"
        )
    if isinstance(weights := config.overrides.get("pretrained"), str):
        check_weights(weights)
    if isinstance(weights := config.overrides.get("distill_model"), str):
        load_model(weights)
    teacher = open_teacher(config.teacher, data.names) if config.distils else None
    if teacher is not None:
        match = match_classes(data.names, teacher.names)
        if not config.data and len(match.pairs) < len(data.names):
            known = ", ".join(teacher.names[:12])
            raise DataError(
                "without labels every class needs the teacher, expected some of "
                f"{one_line(known, 200)}, got {one_line(', '.join(data.names), 200)}"
            )
        LOGGER.info(match.table())
        levels = match_levels(detect_head(student), teacher.head, config.teacher_scale)
        LOGGER.info(levels.table())
        levels.check_terms(config.terms, config.teacher, BOX_TERMS)
    if config.unlabelled:
        check_flights(config)
        check_threshold(config.pseudo_threshold, data.names)
    return replace(run, data=data, teacher=teacher)


def prepare_data(run: Run) -> tuple[Run, Path]:
    """Write the settings, the frames of a plan, and the list of training frames.

    Only the first of torchrun's processes writes; the others wait for it.

    Returns:
        The run with its data, and the data.yaml to train from.
    """
    output, resolved = run.output, run.output / "data.yaml"
    trained = run.state.is_file()
    if RANK <= 0 and not trained:
        _forget_other(run.config, output)
    while RANK > 0 and not resolved.is_file():
        time.sleep(1)  # the file of another process, and there is no process group yet
    if run.plan is not None:
        if RANK <= 0:
            write_config(run.config, output)
        frames = write_frames(run.plan, output / FRAMES)
        config = replace(run.config, data=str(frames.data), teacher=str(frames.predictions))
        run = _open_inputs(replace(run, config=config, sources=frames.val))
    if RANK > 0:
        return run, resolved
    data, teacher, config = run.data, run.teacher, run.config
    assert data is not None  # opened by `validate`, or just now
    write_config(config, output)
    if config.unlabelled and trained:  # the frames and thresholds of an interrupted training
        resumed = continue_with_flights(config, data, teacher, output)
        return run, resumed.write_resolved(resolved)
    if config.fraction < 1:
        listed = spread_fraction(data.train, config.fraction, output / "train.txt")
        data = replace(data, train=listed)
    if config.unlabelled:
        assert teacher is not None  # checked by `Config`
        data = add_flights(config, data, teacher, output)
    return run, data.write_resolved(resolved)  # last: the other processes wait for it


def _forget_other(config: Config, output: Path) -> None:
    """Delete what an earlier start with other settings left; its student trained nothing."""
    if not (output / "config.yaml").is_file():
        return
    before = read_config(output)
    if config.teachers:  # data and teacher follow from that file
        config = replace(config, data=before.data, teacher=before.teacher)
    if before != config:
        (output / EXPECTATION).unlink(missing_ok=True)
        shutil.rmtree(output / FRAMES, ignore_errors=True)
        shutil.rmtree(output / BASELINE, ignore_errors=True)


def train(run: Run, data: Path) -> float:
    """Train the student, or continue an interrupted training; return the duration in seconds.

    Raises:
        RuntimeError: out of memory.
    """
    started = time.time()
    try:
        last = _last_epoch(run)
        if last == run.config.epochs_and_steps[0] - 1:
            LOGGER.info("All epochs are done, only the figures are missing")
            finish_checkpoint(run.checkpoint)
        else:
            trainer = DistillTrainer(overrides=_overrides(run, data))
            with _safe_imports(), _interrupt_between_batches(trainer):
                trainer.train()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            raise RuntimeError(
                f"out of memory: lower --batch (now {run.config.batch}) or --imgsz (now "
                f"{run.config.imgsz}), or take a smaller teacher or --teacher-scale"
            ) from error
        raise
    return round(time.time() - started, 1)


def _last_epoch(run: Run) -> int:
    """Return the last finished epoch of an interrupted run, -1 for a new one.

    The checkpoint is written before the state: a full disk may leave the state an epoch behind.
    """
    state, last = run.state, run.checkpoint.with_name("last.pt")
    found = [read_state(state)["epoch"]] if state.is_file() else []
    if last.is_file():
        found.append(load_model(str(last))[1].get("epoch"))
    return max((epoch for epoch in found if isinstance(epoch, int)), default=-1)


@contextmanager
def _safe_imports() -> Iterator[None]:
    """Let child processes import nothing from the working directory (Python ≥ 3.11).

    They are those of several GPUs, and the folder may be a data set of others.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@contextmanager
def _interrupt_between_batches(trainer: DistillTrainer) -> Iterator[None]:
    """Stop at the next batch on Ctrl-C, and at once on a second one.

    An exception raised by a signal handler is lost inside Python's own clean-up, such as the
    forking of a loader's process.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield
        return
    interrupted = threading.Event()

    process = os.getpid()

    def on_signal(*_) -> None:
        if os.getpid() != process:  # a forked data loader, which its parent ends
            return
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        LOGGER.info("Stopping after this batch")

    def check(_) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    for event in ("on_train_batch_start", "on_val_batch_start"):
        trainer.add_callback(event, check)
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    check(trainer)


def _overrides(run: Run, data: Path) -> dict:
    """Return Ultralytics' settings of the run."""
    config = run.config
    overrides = {
        "task": "detect",
        "mode": "train",
        "data": str(data),
        "save_dir": str(run.output),
        "epochs": config.epochs_and_steps[0],
        "imgsz": config.imgsz,
        "batch": config.batch,
        "device": config.device or None,
        "seed": config.seed,
        "val": config.val,
        "plots": False,
        "close_mosaic": min(10, math.ceil(config.epochs_and_steps[0] / 10)),
        "cache": "ram",  # where the images fit
        "exist_ok": True,
        # As Ultralytics' own automatic choice: at 0.1, its default, AdamW moves every bias by up
        # to 0.1 per step, and a pretrained student loses what it learned.
        "warmup_bias_lr": 0.0,
        **(QUANTIZED if config.quantize else {}),
        **config.overrides,
    }
    last = run.output / "weights" / "last.pt"
    if last.is_file():
        LOGGER.info(f"Resuming from {last}")
        load_model(str(last))  # Ultralytics does not say why it refuses one
        return {**overrides, "model": str(last), "resume": str(last)}
    return {**overrides, "model": run.student}


def report(
    run: Run, data: Path, seconds: float, measure_teacher: bool, baseline: Path | None = None
) -> dict:
    """Evaluate the student and write figures, curves and the page of the run; see `distill`.

    ``baseline``: folder of the student that was trained alone.
    """
    config, output = run.config, run.output
    student, _ = load_model(str(run.checkpoint))
    sources = {
        name: evaluate(student, path, imgsz=config.imgsz, only=classes)
        for name, (path, classes) in run.sources.items()
    }
    scores = mean_of_sources(sources) if sources else _scores(student, data, config)
    has_head = run.teacher is not None and run.teacher.head is not None
    teacher_cost = output / COST
    metrics: dict[str, Any] = {
        "baseline": read_metrics(baseline / METRICS)["student"] if baseline else None,
        "student": {**scores, **cost(student, config.imgsz)},
        "teacher": _teacher_figures(data, config)
        if has_head and measure_teacher and config.data
        else None,
        "teacher_cost": read_json(teacher_cost) if teacher_cost.is_file() else None,
        **({"sources": sources} if sources else {}),
        "epochs": config.epochs_and_steps[0],
        "learned_from": read_expectation(output),
        "imgsz": config.imgsz,
        "seed": config.seed,
        "seconds": seconds,
        "versions": {"ultralytics": ultralytics_version, "torch": torch.__version__},
    }
    warn_if_teacher_is_weaker(metrics)
    plot_curves(output / "results.csv", output / "curves.png")
    with atomic_file(output / "best.pt") as temporary:
        shutil.copyfile(run.checkpoint, temporary)
    curves = {"training": output / "curves.png"}
    write_report(
        output / "report.html",
        title(config),
        by_model(metrics),
        curves,
        compare_frames(baseline / "best.pt", output / "best.pt", data, config.imgsz)
        if baseline
        else None,
        facts=facts(config, metrics),
        frames=[
            frame
            for path, classes in (run.sources or {"": (data, ())} if config.data else {}).values()
            for frame in example_frames(student, path, config.imgsz, classes)
        ],
    )
    run.state.unlink(missing_ok=True)
    write_text(output / METRICS, json.dumps(metrics, indent=1))  # last: now the run is complete
    return metrics


def _scores(student: Any, data: Path, config: Config) -> dict:
    """Evaluate the student; without labels there is nothing to compare it with."""
    if config.data:
        return evaluate(student, data, imgsz=config.imgsz)
    unknown = dict.fromkeys(("map50_95", "map50", "ap_tiny", "ap_small", "ap_medium"))
    classes: dict[str, dict] = {name: {} for name in config.classes}
    return {**unknown, "images": 0, "boxes": 0, "per_class": classes}


def _teacher_figures(data: Path, config: Config) -> dict:
    """Evaluate the teacher at the size at which it teaches."""
    teacher, _ = load_model(config.teacher)
    imgsz = config.teacher_imgsz
    return {**evaluate(teacher, data, imgsz=imgsz), **cost(teacher, imgsz)}
