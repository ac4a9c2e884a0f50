# SPDX-License-Identifier: AGPL-3.0-or-later
"""Run the training commands in a checkout: python -m training COMMAND."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from drone_kd_training.cli import main  # noqa: E402  the path above has to come first

sys.exit(main())
