"""drone-kd lineage: what a model was trained from, read from its own metadata."""

from __future__ import annotations

import argparse
from pathlib import Path

from drone_kd.commands.shared_options import add_model
from drone_kd.lineage import family_tree
from drone_kd.paths import default_model_path

add_options = add_model


def run(arguments: argparse.Namespace) -> int:
    """Print the lineage."""
    print(family_tree(Path(arguments.model or default_model_path())))
    return 0
