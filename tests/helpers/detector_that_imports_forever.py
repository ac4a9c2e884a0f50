"""The detector as a background process of a shell, whose import of rclpy takes without end."""

import signal
import sys
import threading


class Finder:
    """Waits instead of finding rclpy."""

    def find_spec(self, name: str, *_: object) -> None:
        """Report the import, then wait."""
        if name == "rclpy":
            print("importing rclpy", flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell without job control does
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
    from drone_kd.ros.detector import main

    sys.exit(main())
