"""drone-kd build: the TensorRT engine of a model, on the device that runs it."""

from __future__ import annotations

import argparse

from drone_kd.backends import open_backend
from drone_kd.commands.shared_options import add_model, show_progress
from drone_kd.paths import default_model_path

add_options = add_model


def run(arguments: argparse.Namespace) -> int:
    """Build the engine, if there is no valid one, and print the runtime's name."""
    model = arguments.model or default_model_path()
    print(open_backend(model, runtime="tensorrt", progress=show_progress).name)
    return 0
