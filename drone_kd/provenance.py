"""Where a result comes from: commit, versions, machine, seeds, command, classes, image sizes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from drone_kd.files import write_text
from drone_kd.machine import machine_name

PACKAGES = (
    *("drone_kd", "torch", "ultralytics", "ultralytics-opencv-headless", "onnxruntime"),
    "numpy",
)
FILE = "provenance.json"
FIELDS = (
    *("date", "commit", "versions", "machine", "threads", "seeds", "command", "classes"),
    "image_sizes",
)
# Results, which a benchmark may have written before.
_NO_CODE = (":(top,exclude)*.csv", ":(top,exclude)*.md")


def provenance(seeds: str, classes: str, image_sizes: str) -> dict[str, str]:
    """Return where a result of this command comes from: a text for each of `FIELDS`.

    Args:
        seeds: of its runs, e.g. "0 1 2".
        classes: that were scored, by name.
        image_sizes: in px, e.g. "student 320, teacher 640".
    """
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "versions": _versions(),
        "machine": f"{machine_name()}, load average {os.getloadavg()[0]:.1f}",
        "threads": os.environ.get("OMP_NUM_THREADS", "") or str(len(os.sched_getaffinity(0))),
        "seeds": seeds,
        "command": _command(),
        "classes": classes,
        "image_sizes": image_sizes,
    }


def write_provenance(output: Path, seeds: str, classes: str, image_sizes: str) -> None:
    """Write provenance.json into the folder of a result; arguments as of `provenance`."""
    write_text(output / FILE, json.dumps(provenance(seeds, classes, image_sizes), indent=1))


def _command() -> str:
    """Return the command line of this process, without the path of its program."""
    program = Path(sys.argv[0])
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"python -m {spec.name}" if spec else program.name
    return " ".join([name, *map(shlex.quote, sys.argv[1:])])


def _commit() -> str:
    """Return the commit of this code, with "+" if code differs; empty outside its repository."""
    own = Path(__file__)
    git = ["git", "-C", str(own.parent)]
    try:
        _output([*git, "ls-files", "--error-unmatch", own.name])  # installed inside another one?
        commit = _output([*git, "rev-parse", "--short", "HEAD"])
        changed = _output([*git, "status", "--porcelain", "-uno", "--", ":/", *_NO_CODE])
        return commit + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _output(command: list[str]) -> str:
    found = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=30)
    return found.strip()


def _versions() -> str:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return " ".join(f"{name} {number}" for name, number in found.items())
