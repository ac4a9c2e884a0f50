"""The detector as a process whose first model is being loaded, or built, without end."""

import sys
import threading
from collections.abc import Callable

from drone_kd.ros import detector_node


def load_model(*arguments: object) -> None:
    """Report progress, then wait."""
    progress = next(a for a in arguments if isinstance(a, Callable))
    progress("building the engine of model.onnx")
    threading.Event().wait()


if __name__ == "__main__":
    detector_node.REPORT_SECONDS = 0.1
    detector_node.load_model = load_model  # type: ignore[assignment]
    sys.exit(detector_node.main())
