"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drone_kd.backends import RUNTIMES
from drone_kd.files import check_writable
from drone_kd.media.image_files import SourceError
from drone_kd.paths import parameter_defaults
from drone_kd.progress import print_line
from drone_kd.text import one_line


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the optional positional argument MODEL.onnx."""
    text = "an exported model (default: the one of the package)"
    parser.add_argument("model", nargs="?", metavar="MODEL.onnx", help=text)


def add_measurement(parser: argparse.ArgumentParser, frames: str, image: str) -> None:
    """Add --frames and --image with these help texts."""
    parser.add_argument("--frames", type=count, default=100, metavar="N", help=frames)
    parser.add_argument("--image", metavar="PATH", help=image)


def add_runtime(parser: argparse._ActionsContainer) -> None:
    """Add --runtime."""
    default, text = parameter_defaults("detector.yaml")["runtime"], f"one of {', '.join(RUNTIMES)}"
    parser.add_argument("--runtime", choices=RUNTIMES, default=default, metavar="R", help=text)


def fraction(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def count(text: str) -> int:
    """Read a whole number of 1 or more."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number ≥ 1, got {text!r}")
    return value


def check_folder(option: str, path: Path) -> None:
    """Check before the work that a file can be written into its folder; else SourceError."""
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {path.parent}")
        check_writable(path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise SourceError(f"{option} {one_line(path)}: {one_line(reason)}") from None


def show_progress(line: str) -> None:
    """Print a line about the work in hand to standard error."""
    print_line(f"drone-kd: {line}", sys.stderr)
