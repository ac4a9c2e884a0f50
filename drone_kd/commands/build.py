"""drone-kd build: the TensorRT engine of a model, on the device that runs it."""

from __future__ import annotations

import argparse

from drone_kd.backends import open_backend
from drone_kd.commands.shared_options import add_model, show_progress
from drone_kd.paths import default_model_path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    text = "build even if there is a valid engine, or one that was refused"
    parser.add_argument("--rebuild", action="store_true", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Build the engine, if there is no valid one, and print the runtime's name."""
    model = arguments.model or default_model_path()
    backend = open_backend(
        model, runtime="tensorrt", rebuild=arguments.rebuild, progress=show_progress
    )
    print(backend.name)
    return 0
