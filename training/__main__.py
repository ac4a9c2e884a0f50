# SPDX-License-Identifier: AGPL-3.0-or-later
"""Run drone-kd from a checkout that is not installed: python -m training COMMAND."""

import sys
from pathlib import Path

_TRAINING = Path(__file__).resolve().parent
sys.path[:0] = [str(_TRAINING), str(_TRAINING.parent)]

from drone_kd.cli import main  # noqa: E402  the paths above have to come first

sys.exit(main())
