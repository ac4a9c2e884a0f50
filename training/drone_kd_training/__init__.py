# SPDX-License-Identifier: AGPL-3.0-or-later
"""Offline part of drone_kd: generate data, distil a student, evaluate and export it."""

import os

import drone_kd  # noqa: F401  # before OpenCV and ONNX Runtime, which read what it sets
from drone_kd_training.home import ensure_home
from drone_kd_training.isolation import load_safely, stay_offline
from drone_kd_training.quiet import quiet_libraries

# Nothing is ever installed behind the user's back while a command runs.
os.environ.setdefault("YOLO_AUTOINSTALL", "False")
# Torch's threads otherwise spin while they wait for each other: where something else takes a core
# from them, as a simulator or a second run does, a step took three to ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ensure_home()
load_safely()
stay_offline()
quiet_libraries()
