# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which messages of libraries reach a user: those about the user's own data and settings.

`DRONE_KD_VERBOSE=1` shows everything that torch, Ultralytics and others print.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from pathlib import Path

from drone_kd.progress import erase_line, print_line

VERBOSE = os.environ.get("DRONE_KD_VERBOSE", "") not in ("", "0")
_OURS = str(Path(__file__).parent)
# Libraries whose Python warnings concern their own code, not the user's data.
_LIBRARIES = (
    "torch", "torchvision", "ultralytics", "modelopt", "ray", "transformers", "huggingface_hub",
    "onnx", "onnxscript", "onnxslim", "onnxruntime", "multiprocessing", "numpy", "matplotlib",
    "polars", "pycocotools", "fsspec",
)  # fmt: skip
# What Ultralytics says of a user's frames, labels and memory -> the same in our words.
_FILE = r"(?:\w+: )?(?P<file>.+?): "
_REWORDED = {
    _FILE + r"ignoring corrupt image/label: (?P<why>.*)":
        "Ignored {file}: corrupt image or label ({why})",
    _FILE + r"corrupt JPEG restored and saved":
        "{file}: the JPEG has bytes after its end, which are ignored",
    _FILE + r"(?P<n>\d+) duplicate labels removed": "{file}: ignored {n} duplicate labels",
    r"(?:\w+: )?No labels found in (?P<where>.+?)\. See .*": "No labels found for {where}",
    r"(?:\w+: )?Labels are missing or empty in (?P<where>.+?), training may .*":
        "All labels are missing or empty ({where})",
    r"(?P<what>.*out of memory.*) Reducing to batch=(?P<batch>\d+) and retrying.*":
        "{what} Training continues with batch {batch}",
}  # fmt: skip
# Warnings of Ultralytics about settings that this package chooses itself.
_MEANINGLESS = re.compile(
    r"(?:'rect=True' is incompatible|validating an untrained model YAML|"
    r"setting 'requires_grad=True' for frozen layer|Resume ignores|"
    r".*Box and segment counts should be equal|"
    # This package names the module that a checkpoint needs.
    r".*appears to require '[^']*', which is not in|.*Ultralytics requirement .*not found|"
    # It raises the limit by itself; the figures come from this package's own evaluation.
    # The images of a run depend on their seeds alone (`train_loader`).
    r".*cache='ram' may produce non-deterministic|"
    r"Dataset images contain up to \d+ objects)"
)


class _UltralyticsFilter(logging.Filter):
    """Drops what Ultralytics logs, but for errors and warnings; rewords those on user data."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.pathname.startswith(_OURS):
            message = record.getMessage()
            lines = list(filter(None, map(reworded, message.splitlines())))
            if lines:
                record.msg, record.args = "\n".join(lines), ()
                record.levelno, record.levelname = logging.WARNING, "WARNING"
            elif record.levelno < logging.WARNING or _MEANINGLESS.match(message):
                return False
        erase_line()
        return True


def reworded(line: str) -> str | None:
    """Return a message of Ultralytics about the user's data in our words, None for others."""
    for pattern, text in _REWORDED.items():
        if match := re.fullmatch(pattern, line.strip(), re.DOTALL):
            return text.format(**match.groupdict())
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, or the error's name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def quiet_libraries() -> None:
    """Hide messages that mean nothing to a user, here and in subprocesses; called at import."""
    if VERBOSE:
        return
    # Read when torch is imported: its C++ part warns about CPU features and symbolic shapes.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("GLOG_minloglevel", "2")
    for library in _LIBRARIES:
        for category in (FutureWarning, DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"{library}(\.|$)")
    logging.getLogger("ultralytics").addFilter(_UltralyticsFilter())


def quiet_progress_bars() -> None:
    """Hide Ultralytics' progress bars; the training log has its own."""
    if not VERBOSE:
        import ultralytics.utils  # seconds to import, and only training needs it

        # Read by each new bar; the environment variable would hide our own log lines, too.
        ultralytics.utils.VERBOSE = False


class _LineHandler(logging.Handler):
    """Prints records below WARNING to stdout and others to stderr, clear of the progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        line = f"{record.levelname} {self.format(record)}" if warning else self.format(record)
        print_line(line, sys.stderr if warning else sys.stdout)


def log_to_terminal() -> None:
    """Show this package's log on the terminal; for commands, not for users of the library."""
    logger = logging.getLogger(__package__)
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _LineHandler) for handler in logger.handlers):
        logger.addHandler(_LineHandler())
