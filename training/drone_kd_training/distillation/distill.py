# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train a student with its teacher: python -m training distill.

    --teacher teacher.pt --student yolo11n.yaml --data data.yaml --output runs/car
    ... --output runs/car --resume     # after an interruption
    --teacher none ...                 # the student alone (or a teacher to be)
    --teachers teachers.yaml ...       # several, each on its own sources: teachers/plan.py
    ... --device 0,1                   # on two GPUs of this machine

On several machines with two GPUs each, sharing a file system:

    torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
      --module training distill --device 0,1 ...

The loop, the detection loss, augmentation and checkpoints are Ultralytics'; what is added is one
wrapper round the detection criterion (`distillation.criterion`), so that the checkpoint holds the
student alone and loads anywhere.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
import yaml
from ultralytics import __version__ as ultralytics_version
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import strip_optimizer

from drone_kd_training.data.dataset import image_paths, load_data, write_text
from drone_kd_training.distillation.config import Config, read_config
from drone_kd_training.distillation.criterion import BOX_TERMS, match_levels
from drone_kd_training.distillation.trainer import COST, FRAMES, STATE, DistillTrainer
from drone_kd_training.evaluation.evaluate import evaluate
from drone_kd_training.html_report import write_report
from drone_kd_training.models.checkpoints import (
    UnusableModelError,
    cost,
    load_model,
    match_classes,
    resolve_model,
)
from drone_kd_training.tables import format_score
from drone_kd_training.teachers.plan import read_plan
from drone_kd_training.teachers.soft_labels import Coverage
from drone_kd_training.teachers.teachers import open_teacher
from drone_kd_training.teachers.teaching_dataset import REGIONS, write_frames, write_regions

# A trained student gets used to INT8, and is not to learn anew.
QUANTIZED = {
    "quantize": 8,
    "optimizer": "AdamW",
    "lr0": 1e-4,
    "warmup_epochs": 0.5,
    "mosaic": 0.0,
    "close_mosaic": 0,
}
# As CUDA and the CPU's allocator put it.
_NO_MEMORY = re.compile("out of memory|allocate memory", re.IGNORECASE)


def distill(
    config: Config, output: Path, resume: bool = False, measure_teacher: bool = True
) -> dict:
    """Train, evaluate and leave ``best.pt``, ``metrics.json``, ``results.csv``, ``config.yaml``,
    ``curves.png``, ``report.html``.

    Args:
        config: the run; with ``resume`` the one in the folder counts.
        output: the run's folder: new or empty, or with ``resume`` one that was interrupted.
        measure_teacher: evaluate the teacher, too, and warn if it is the weaker one.

    Returns:
        The content of ``metrics.json``; nothing in all but the first of torchrun's processes.

    Raises:
        ValueError: (also as DataError, UnusableModelError) anything about the input that cannot
        work, before any
            training; or a folder that is in use.
    """
    output = Path(output).resolve()
    done = output / "metrics.json"
    if resume and done.is_file():
        LOGGER.info(f"{output} is finished, nothing to resume")
        return json.loads(done.read_text(encoding="utf-8"))
    if resume and (output / "config.yaml").is_file():
        config = read_config(output)
    elif resume:
        raise ValueError(
            f"nothing to resume in {output}: it holds no config.yaml; leave --resume out to start"
        )
    elif RANK <= 0 and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"{output} is not an empty folder: choose another, or --resume to go on with that run"
        )

    # What cannot work is refused here, before anything is written.
    frames = None
    if config.teachers:
        plan = read_plan(config.teachers)
        LOGGER.info(plan.table())
        resolve_model(config.student)
        _write_config(config, output)
        while RANK > 0 and not (output / FRAMES / REGIONS).is_file():
            time.sleep(1)  # one of torchrun's: the first process writes them
        frames = write_frames(plan, output / FRAMES)
        config = replace(config, data=str(frames.data), teacher=str(frames.answers))
    data = load_data(config.data)
    student_source = resolve_model(config.student)
    untrained, _ = load_model(student_source)
    teacher = open_teacher(config.teacher, data.names) if config.distils else None
    if teacher is not None:
        LOGGER.info(match_classes(data.names, teacher.names).table())
        levels = match_levels(untrained.model[-1], teacher.head, config.teacher_scale)
        LOGGER.info(levels.table())
        if not levels.pairs and (impossible := set(config.terms) - BOX_TERMS):
            raise UnusableModelError(
                f"{config.teacher} has no level in common with the student (strides "
                f"{list(levels.teacher_strides)} of a picture {config.teacher_scale:g} times as "
                f"large, against {list(levels.student_strides)}): it can teach with its boxes, "
                f"but not {', '.join(sorted(impossible))}; use --terms "
                f"{','.join(sorted(BOX_TERMS))}"
            )

    unlabelled = image_paths(Path(config.unlabelled).resolve()) if config.unlabelled else []

    _write_config(config, output)
    if config.fraction < 1:
        data = replace(data, train=_thin(data.train, config.fraction, output / "train.txt"))
    if unlabelled:
        listed = image_paths(data.train) + unlabelled
        write_text(output / "train.txt", "\n".join(map(str, listed)) + "\n")
        data = replace(data, train=output / "train.txt")
        known = {i for i, _ in match_classes(data.names, teacher.names).pairs}
        answered = tuple(i in known for i in range(len(data.names)))
        kinds = [Coverage((every,) * len(data.names), answered) for every in (True, False)]
        bare = set(unlabelled)
        kind_of = {str(path): int(path in bare) for path in listed}
        write_regions(output / FRAMES / REGIONS, kinds, kind_of)
    resolved = data.write_resolved(output / "data.yaml")
    started = time.time()
    state = output / "weights" / STATE
    try:
        if _is_trained(state, config.epochs):
            LOGGER.info("all epochs are done: what is left are the figures")
            strip_optimizer(output / "weights" / "best.pt")
        else:
            overrides = _overrides(config, student_source, resolved, output)
            trainer = DistillTrainer(overrides=overrides)
            with _interrupt_between_batches(trainer):
                trainer.train()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            raise RuntimeError(
                f"out of memory: lower --batch (now {config.batch}) or --imgsz (now "
                f"{config.imgsz}), or take a smaller teacher or --teacher-scale"
            ) from error
        raise
    if RANK > 0:  # one of torchrun's: the first process takes the figures
        return {}
    train_seconds = round(time.time() - started, 1)

    student, _ = load_model(str(output / "weights" / "best.pt"))
    sources = {}
    if frames is not None:
        sources = {
            name: evaluate(student, path, imgsz=config.imgsz, only=classes)
            for name, (path, classes) in frames.val.items()
        }
    measured = mean_of_sources(sources) if sources else None
    metrics = {
        "student": {
            **(measured or evaluate(student, resolved, imgsz=config.imgsz)),
            **cost(student, config.imgsz),
        },
        "teacher": _teacher_figures(resolved, config)
        if teacher is not None and teacher.head is not None and measure_teacher
        else None,
        "teacher_cost": _read_cost(output),
        **({"sources": sources} if sources else {}),
        "epochs": config.epochs,
        "imgsz": config.imgsz,
        "seed": config.seed,
        "seconds": train_seconds,
        "versions": {"ultralytics": ultralytics_version, "torch": torch.__version__},
    }
    _warn_if_weaker(metrics)
    plot_curves(output / "results.csv", output / "curves.png")
    models = {k: metrics[k] for k in ("teacher", "student") if metrics[k]}
    curves = {"training": output / "curves.png"}
    write_report(output / "report.html", f"Student {config.student}", models, curves)
    temporary = output / ".best.pt.tmp"
    shutil.copyfile(output / "weights" / "best.pt", temporary)
    os.replace(temporary, output / "best.pt")
    state.unlink(missing_ok=True)
    write_text(
        done, json.dumps(metrics, indent=1)
    )  # last: its presence means that the run is complete
    return metrics


def _is_trained(state: Path, epochs: int) -> bool:
    """Whether a run ended with its last epoch; ``state``: `DistillTrainer.state_file`."""
    return state.is_file() and torch.load(state, map_location="cpu")["epoch"] == epochs - 1


def _write_config(config: Config, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    content = {**asdict(config), "terms": list(config.terms)}
    write_text(output / "config.yaml", yaml.safe_dump(content, sort_keys=False))


def mean_of_sources(sources: dict[str, dict]) -> dict:
    """What `evaluate` says of several sources as one: means over sources, sums of counts."""
    found: dict = {}
    for key, value in next(iter(sources.values())).items():
        values = [figures[key] for figures in sources.values()]
        if key in ("images", "images_ignored", "boxes"):
            found[key] = sum(values)
        elif key == "per_class":
            found[key] = {
                f"{name} {label}": scores
                for name, figures in sources.items()
                for label, scores in figures[key].items()
            }
        elif isinstance(value, list):
            found[key] = []
        else:
            known = [v for v in values if v is not None]
            found[key] = round(sum(known) / len(known), 5) if known else None
    return found


@contextlib.contextmanager
def _interrupt_between_batches(trainer: DistillTrainer) -> Iterator[None]:
    """Ctrl-C stops at the next batch; a second one stops at once.

    An exception out of a signal is lost where it meets Python's own clean-up, such as the forking
    of a loader's process.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    seen = threading.Event()

    def on_signal(*_) -> None:
        if seen.is_set():
            raise KeyboardInterrupt
        seen.set()
        LOGGER.info("stopping")

    def check(_) -> None:
        if seen.is_set():
            raise KeyboardInterrupt

    for event in ("on_train_batch_start", "on_val_batch_start"):
        trainer.add_callback(event, check)
    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    check(trainer)


def _read_cost(output: Path) -> dict | None:
    path = output / COST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _teacher_figures(data: Path, config: Config) -> dict:
    """Measured at the size at which it teaches."""
    teacher, _ = load_model(config.teacher)
    imgsz = config.teacher_imgsz
    return {**evaluate(teacher, data, imgsz=imgsz), **cost(teacher, imgsz)}


def _warn_if_weaker(metrics: dict) -> None:
    """Say so where the student has nothing to learn from its teacher."""
    student, teacher = (
        (metrics[who] or {}).get("map50_95") or 0.0 for who in ("student", "teacher")
    )
    if metrics["teacher"] and teacher < student:
        LOGGER.warning(
            f"the teacher is weaker than its student: mAP50-95 {format_score(teacher)} against "
            f"{format_score(student)}; take a better teacher, or train it on this data first"
        )


def _thin(split: Path, fraction: float, output: Path) -> Path:
    """List every n-th picture: Ultralytics takes the first ones, which are of one flight."""
    paths = image_paths(split)
    count = max(1, round(len(paths) * fraction))
    kept = [paths[i * len(paths) // count] for i in range(count)]
    write_text(output, "\n".join(map(str, kept)) + "\n")
    return output


def _overrides(config: Config, student: str, data: Path, output: Path) -> dict:
    last = output / "weights" / "last.pt"
    overrides = {
        "task": "detect",
        "mode": "train",
        "data": str(data),
        "save_dir": str(output),
        "epochs": config.epochs,
        "imgsz": config.imgsz,
        "batch": config.batch,
        "device": config.device or None,
        "seed": config.seed,
        "val": config.val,
        "plots": False,
        "close_mosaic": min(10, math.ceil(config.epochs / 10)),
        "exist_ok": True,
        # As Ultralytics' own automatic choice does: at 0.1, its default, an AdamW moves every bias
        # by up to 0.1 a step, and a pretrained student has forgotten what it knew.
        "warmup_bias_lr": 0.0,
        **(QUANTIZED if config.quantize else {}),
        **config.overrides,
    }
    if last.is_file():
        LOGGER.info(f"resuming from {last}")
        return {**overrides, "model": str(last), "resume": str(last)}
    return {**overrides, "model": student}


def plot_curves(csv: Path, picture: Path) -> None:
    """Draw every loss term and the validation's mAP of a results.csv over the epochs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import polars

    table = polars.read_csv(csv)
    names = [c for c in table.columns if c.startswith("train/")]
    names += [c for c in table.columns if c.startswith("metrics/mAP") and table[c].sum() > 0]
    columns = 4
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot(table["epoch"], table[name], marker="o", markersize=3)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(picture, dpi=90)
    plt.close(figure)
