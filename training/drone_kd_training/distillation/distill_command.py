# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd distill: train a student with one or more teachers."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields, replace
from pathlib import Path

from drone_kd.text import one_line
from drone_kd_training.dataclass_options import add_config_options, add_option, from_arguments
from drone_kd_training.distillation.config import Config, read_config
from drone_kd_training.isolation import add_trust_option

INTERRUPTED = "the last finished epoch is kept: the same command with --resume continues"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    helps = {f.name: f.metadata["help"] for f in fields(Config) if "help" in f.metadata}
    changes = {
        name: {
            "required": False,
            "default": "",
            "help": f"{helps[name]} (required without --teachers)",
        }
        for name in ("data", "teacher")
    }
    changes["data"]["help"] = f"{helps['data']} (required without --teachers or --classes)"
    groups = add_config_options(parser, Config, omit=("student",), changes=changes)
    models = groups["data and models"]
    student = models.add_mutually_exclusive_group()
    text = f"{helps['student']} (required without --from)"
    add_option(student, Config, "student", required=False, help=text)
    student.add_argument(
        "--from", dest="from_", metavar="best.pt", help="with --quantize: the trained student"
    )
    models.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the run"
    )
    add_trust_option(models)
    groups["training"].add_argument(
        "--resume",
        action="store_true",
        help="continue the interrupted run in --output; no other option is needed, and only "
        "--device counts",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate and print the result; with --quantize, export both INT8 models."""
    inputs = ("data", "classes", "teacher", "teachers", "student", "from_")
    if arguments.resume and not any(getattr(arguments, name) for name in inputs):
        config = _resumed(arguments)
    else:
        config = _config(arguments)
    from drone_kd_training.distillation.distill import distill
    from drone_kd_training.distillation.run_report import by_model, effect
    from drone_kd_training.tables import format_table

    metrics = distill(config, arguments.output, resume=arguments.resume)
    if not metrics:  # another process of torchrun reports
        return 0
    print(format_table(by_model(metrics)))
    if brought := effect(metrics):
        print(f"Distillation: {brought}")
    print(f"student: {arguments.output / 'best.pt'}")
    if config.quantize:
        from drone_kd_training.export.qat import export_both

        print(export_both(config, arguments.output))
    return 0


def _resumed(arguments: argparse.Namespace) -> Config:
    """Return the settings of the run to continue; ValueError: there is none."""
    if not (arguments.output / "config.yaml").is_file():
        raise ValueError(
            f"nothing to resume in {one_line(arguments.output)}: it has no config.yaml; start "
            "without --resume"
        )
    saved = read_config(arguments.output)
    words = {word.partition("=")[0] for word in shlex.split(arguments.command_line)}
    ignored = [
        f"{f.name} {one_line(getattr(saved, f.name), 60)}"
        for f in fields(Config)
        if f"--{f.name.replace('_', '-')}" in words
        and f.name != "device"
        and getattr(arguments, f.name) != getattr(saved, f.name)
    ]
    if ignored:
        print(f"--resume continues with the settings of the run: {', '.join(ignored)}")
    return replace(saved, device=arguments.device or saved.device)


def _config(arguments: argparse.Namespace) -> Config:
    """Return the settings that a user gives; ValueError: one is missing, or two conflict."""
    data = bool(arguments.data or arguments.classes)
    if bool(arguments.teachers) in (data, bool(arguments.teacher)):
        raise ValueError(
            "distill needs --teacher with --data or --classes, or --teachers instead of these"
        )
    if bool(arguments.quantize) != bool(arguments.from_):
        raise ValueError("--quantize int8 goes with --from best.pt, the student it starts from")
    if not (arguments.student or arguments.from_):
        raise ValueError("distill needs --student, or --from with --quantize")
    return from_arguments(
        Config,
        arguments,
        student=arguments.student or arguments.from_,
        # Several sources: each is evaluated by itself, at the end.
        val=arguments.val and not arguments.teachers and not arguments.classes,
    )
