"""Which messages of libraries are shown."""

import logging
import os
import subprocess
import sys

import pytest

from drone_kd_training import quiet

SHOW = """
import logging, warnings
import drone_kd_training
from ultralytics.utils import LOGGER
LOGGER.info("Freezing layer 'model.14.dfl.conv.weight'")
LOGGER.info("train: a/b.jpg: ignoring corrupt image/label: truncated")
LOGGER.warning("unheard-of trouble")
LOGGER.warning("Dataset images contain up to 372 objects (train=372), but max_det=300.")
warnings.warn_explicit("meaningless", FutureWarning, "x.py", 1, module="torch.onnx.utils")
warnings.warn_explicit("of your own", UserWarning, "y.py", 1, module="mine")
"""


def printed(verbose: str) -> str:
    environment = {**os.environ, "DRONE_KD_VERBOSE": verbose}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_only_messages_about_user_data_and_unknown_warnings_are_shown():
    text = printed("")
    assert "Freezing" not in text and "meaningless" not in text and "max_det" not in text
    assert "Ignored a/b.jpg: corrupt image or label (truncated)" in text
    assert "unheard-of trouble" in text and "of your own" in text


@pytest.mark.slow
def test_verbose_shows_everything():
    text = printed("1")
    for message in ("Freezing", "ignoring corrupt image/label", "meaningless", "of your own"):
        assert message in text


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("val: a.jpg: 3 duplicate labels removed", "a.jpg: ignored 3 duplicate labels"),
        (
            "train: No labels found in x/train.cache. See https://docs.example",
            "No labels found for x/train.cache",
        ),
        (
            "CUDA out of memory with batch=8. Reducing to batch=4 and retrying (1/3).",
            "CUDA out of memory with batch=8. Training continues with batch 4",
        ),
        ("optimizer: AdamW", None),
    ],
)
def test_messages_about_user_data_are_reworded(message, expected):
    assert quiet.reworded(message) == expected


def test_commands_log_warnings_to_stderr_and_messages_to_stdout(capsys):
    package = logging.getLogger("drone_kd_training")
    handlers, level = list(package.handlers), package.level
    try:
        quiet.log_to_terminal()
        quiet.log_to_terminal()  # once is enough
        logging.getLogger("drone_kd_training.data").warning("ignored %s", "a.jpg")
        logging.getLogger("drone_kd_training.data").info("12 images")
    finally:
        package.handlers, package.level = handlers, level
    captured = capsys.readouterr()
    assert captured.err == "WARNING ignored a.jpg\n" and captured.out == "12 images\n"
