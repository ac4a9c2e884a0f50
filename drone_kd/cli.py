# PYTHON_ARGCOMPLETE_OK
"""Command line of drone_kd: the table of commands, their errors and exit codes.

A command is a module with ``add_options(parser)`` and ``run(arguments) -> int``; it is imported
only when it is chosen, so that help, completion and errors need neither OpenCV nor torch.
"""
# Python 3.9 has to parse this file, so that it can say that it is too old.

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import signal
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from drone_kd.text import PrintableStream, one_line

# Command: module of the package, help.
ON_BOARD = {
    "detect": ("commands.detect", "detect objects in images, a video or a live stream"),
    "bench": ("commands.bench", "measure the latency of each stage"),
    "build": ("commands.build", "build the TensorRT engine on this device"),
    "selftest": ("commands.selftest", "compare TensorRT with ONNX Runtime on this device"),
    "report": ("commands.report", "test this device, and write a page for an issue"),
    "lineage": ("commands.lineage", "print what a model was trained from"),
    "simulate": (
        "simulation.simulate",
        "publish a generated or recorded flight as a ROS 2 camera",
    ),
    "rehearse": ("simulation.rehearse", "run a model on a simulated flight, and score it"),
    "score": ("simulation.scoring.score_command", "score a recorded flight"),
}
TRAINING = {
    "generate": ("data.generate_command", "render a procedural aerial data set"),
    "distill": ("distillation.distill_command", "train a student with one or more teachers"),
    "compare": (
        "distillation.compare_command",
        "compare baseline and distillation on paired seeds",
    ),
    "evaluate": ("evaluation.evaluate_command", "measure the mAP of a .pt or .onnx"),
    "predict": (
        "teachers.predict_command",
        "write a teacher's predictions to disk once, for many runs",
    ),
    "mine": ("mining.mine_command", "select frames of flights that are worth a label"),
    "labels": ("mining.labels_command", "exchange mined labels with an annotation tool"),
    "retrain": (
        "retraining.retrain_command",
        "fine-tune the deployed model; export it only if better",
    ),
    "export": (
        "export.export_command",
        "export a checkpoint to an ONNX file that describes itself",
    ),
}
_COMMANDS = {
    name: (f"{package}.{module}", text)
    for package, table in (("drone_kd", ON_BOARD), ("drone_kd_training", TRAINING))
    for name, (module, text) in table.items()
}
INSTALL_TRAINING = "pip install . ./training in a checkout of drone_kd, or `make setup`"

_MAX_LINE = 2000
_WRONG_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
# What is found, under the names that distributions of it have.
_LIBRARIES = {
    "training part": ("drone-kd-training",),
    "ONNX Runtime": ("onnxruntime", "onnxruntime-gpu"),
    "TensorRT": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "torch": ("torch",),
    "Ultralytics": ("ultralytics", "ultralytics-opencv-headless"),
}
_NOTES = f"""\
exit codes:
  0 done  1 failed  2 bad input  3 refused  130 interrupted  141 closed pipe
environment:
  DRONE_KD_TRACEBACK=1  show the traceback of an error
  DRONE_KD_VERBOSE=1    show the messages of all libraries
  DRONE_KD_TRUST_CHECKPOINTS=1  as --trust: load a .pt even if it may run code
  DRONE_KD_DOWNLOADS=1  download a released checkpoint that is missing
shell completion (pip install argcomplete), in ~/.bashrc:
  eval "$(register-python-argcomplete drone-kd)"
training part: {INSTALL_TRAINING}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see _NOTES); a failure prints a line to stderr.

    `argv` are the command and its options; None: those of this process.
    """
    if sys.version_info < (3, 10):  # noqa: UP036  a checkout on PYTHONPATH was never installed
        return _fail(f"expected Python 3.10 or newer, got {platform.python_version()}", 2)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    try:
        return _run(arguments)
    except SystemExit as stop:  # argparse has printed its line
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _fail(_interrupted(*arguments[:1]), 130, prefix="drone-kd: ")
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  Python flushes it at the end
        return 128 + signal.SIGPIPE
    except (ValueError, PermissionError, *_WRONG_PATH) as error:
        return _fail(str(error), 2, error)
    except (RuntimeError, OSError) as error:
        return _fail(str(error), 1, error)


def training_is_installed() -> bool:
    """Return whether the training part can be imported; it is not imported."""
    spec = importlib.util.find_spec("drone_kd_training")
    # A folder of that name in the search path, without a package in it, has no origin.
    return spec is not None and spec.origin is not None


def build_parser(
    chosen: str = "",
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of drone-kd and those of its commands; only the chosen one has options."""
    parser = _Parser(
        prog="drone-kd",
        usage="drone-kd COMMAND [OPTIONS]",
        description=_overview(),
        epilog=_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shown = "versions of drone_kd and of the libraries found"
    parser.add_argument("--version", action="version", version="", help=shown)
    subparsers = parser.add_subparsers(
        prog="drone-kd", dest="command", metavar="COMMAND", help=argparse.SUPPRESS
    )
    commands: dict[str, argparse.ArgumentParser] = {}
    for name, (_, text) in _COMMANDS.items():
        description = f"{text[0].upper()}{text[1:]}."
        commands[name] = subparsers.add_parser(
            name, description=description, formatter_class=_HelpFormatter
        )
    if chosen:
        _module(chosen).add_options(commands[chosen])
    return parser, commands


def versions() -> dict[str, str]:
    """Return the versions of drone_kd, Python and the libraries found, by name."""
    found = {"drone_kd": _installed(("drone_kd",)), "Python": platform.python_version()}
    return found | {name: _installed(names) for name, names in _LIBRARIES.items()}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong call in one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        shown = one_line(message, _MAX_LINE)
        self.exit(2, f"drone-kd: error: {shown} (see {self.prog} --help)\n")


class _HelpFormatter(argparse.HelpFormatter):
    """Shows every default, and only the required arguments in the usage line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        groups = [group for group in groups if group.required]
        needed = [[action] for action in actions if action.required and action.option_strings]
        needed += [group._group_actions for group in groups]
        parts = ["[OPTIONS]", *(" | ".join(map(self._call, choice)) for choice in needed)]
        parts += [self._call(action) for action in actions if not action.option_strings]
        width = self._width - len("usage: ")
        lines = textwrap.wrap(f"{self._prog} {' '.join(parts)}", width, break_on_hyphens=False)
        indent = " " * len("usage: drone-kd ")
        short = f"\n{indent}".join(lines).replace("\xa0", " ").replace("%", "%%")
        super().add_usage(usage or short, actions, [], prefix)

    def _call(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return self._format_args(action, self._get_default_metavar_for_positional(action))
        if action.nargs == 0:
            return action.option_strings[-1]
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[-1]}\xa0{values}"  # a line does not end between them

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        if not action.option_strings:
            return text
        if action.required:
            return f"{text} (required)"
        if "(required without " in text:
            return text
        default = action.default
        if isinstance(default, (list, tuple)):
            default = (" " if action.nargs else ",").join(map(str, default))
        if isinstance(action, argparse.BooleanOptionalAction):
            text = text.removesuffix(f" (default: {default})")  # added by Python 3.10
            return f"{text} (default: {action.option_strings[0]})"
        if action.nargs == 0 or default is argparse.SUPPRESS or "default: " in text:
            return text
        shown = "none" if default in (None, "", {}) else default
        return f"{text} (default: {shown})"


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name not in _COMMANDS:
        return _without_command(arguments)
    if name in TRAINING:
        if not training_is_installed():
            return _fail(f"{name} needs the training part: {INSTALL_TRAINING}", 2)
        importlib.import_module("drone_kd_training.quiet").log_to_terminal()
    try:
        # Intermixed, so that options may stand between positional arguments.
        options = build_parser(name)[1][name].parse_intermixed_args(arguments[1:])
        options.command_line = shlex.join(["drone-kd", *arguments])
        if getattr(options, "trust", False):
            importlib.import_module("drone_kd_training.isolation").trust_checkpoints()
        with contextlib.redirect_stdout(PrintableStream(sys.stdout)):
            return int(_module(name).run(options))
    except ModuleNotFoundError as error:
        missing = f"{name} needs the Python package {error.name}"
        return _fail(f"{missing}: {_requirements(name)}", 2, error)


def _without_command(arguments: list[str]) -> int:
    """Handle a call that names no command: --help, --version or a mistake."""
    if arguments[:1] == ["--version"]:
        print("\n".join(f"{name:<14}{value}" for name, value in versions().items()))
        return 0
    if arguments and not arguments[0].startswith("-"):
        name = arguments[0]
        near = difflib.get_close_matches(name, _COMMANDS)
        found = f"did you mean {' or '.join(near)}? " if near else ""
        return _fail(f"unknown command {name!r}: {found}drone-kd --help lists them", 2)
    build_parser()[0].parse_args(arguments)
    return _fail("expected a command: drone-kd --help lists them", 2)


def _module(name: str) -> Any:
    return importlib.import_module(_COMMANDS[name][0])


def _requirements(name: str) -> str:
    """Return how to install what a command imports."""
    if name in TRAINING:
        return INSTALL_TRAINING
    part = "simulation" if "simulation" in _COMMANDS[name][0] else "onboard"
    return f"pip install -r requirements/{part}.txt in a checkout of drone_kd"


def _interrupted(name: str = "") -> str:
    """Return what an interrupted command leaves behind."""
    module, _ = _COMMANDS.get(name, ("", ""))
    hint = getattr(sys.modules.get(module), "INTERRUPTED", "")
    return f"interrupted; {hint}" if hint else "interrupted"


def _complete() -> None:
    """Print the completions if the shell asks for them, and exit."""
    try:
        import argcomplete
    except ImportError:
        return
    name = "".join(os.environ.get("COMP_LINE", "").split()[1:2])
    known = name in ON_BOARD or (name in TRAINING and training_is_installed())
    argcomplete.autocomplete(build_parser(name if known else "")[0])


def _overview() -> str:
    """Return the commands of both parts, as lines of text."""
    missing = "" if training_is_installed() else ": not installed"
    lines = ["Distil an object detector, export it, run it on a drone and score it."]
    for title, table in (("on board", ON_BOARD), (f"training{missing}", TRAINING)):
        lines += ["", f"{title}:", *(f"  {name:<10}{text}" for name, (_, text) in table.items())]
    return "\n".join(lines)


def _installed(names: Iterable[str]) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not found"


def _fail(
    message: str, code: int, error: BaseException | None = None, prefix: str = "drone-kd: error: "
) -> int:
    """Print one line and return the exit code, or raise the error if its traceback is wanted."""
    if error is not None and os.environ.get("DRONE_KD_TRACEBACK"):
        raise error
    # Only of line feeds: other characters that end a line may be part of a file's name.
    lines = [line for line in message.split("\n") if line.strip()]
    shown = one_line(lines[0], _MAX_LINE) if lines else type(error).__name__
    print(f"{prefix}{shown}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
