"""Module tensorrt of child processes that have this folder in PYTHONPATH: see simulated_tensorrt.

A build with --rebuild lasts until it is stopped.
"""

import ctypes
import sys

from simulated_tensorrt import SimulatedGpu, SimulatedTensorrt

simulation = SimulatedTensorrt("10.3", SimulatedGpu())
simulation.builds_until_stopped = "--rebuild" in sys.argv
sys.modules["tensorrt"] = simulation.module
ctypes.CDLL = simulation.gpu.library  # type: ignore[assignment,misc]
