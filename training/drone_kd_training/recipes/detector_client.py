# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client of a running detector node: record, swap the model, wait for what the node reports."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from drone_kd.files import file_sha256
from drone_kd.processes import running
from drone_kd.ros.recording import BUSY
from drone_kd_training.data.folders import open_new
from drone_kd_training.recipes.runner import TIMEOUT_S, ros_session


@contextlib.contextmanager
def detector_client(command: Sequence[str], log: Path) -> Iterator[DetectorClient]:
    """Run a detector node for the duration of a block; its output goes to ``log``."""
    with (
        ros_session(),
        open_new(log) as file,
        running(command, stdout=file, stderr=file) as process,
    ):
        client = DetectorClient(process, log)
        try:
            client.wait(lambda: bool(client.model_sha256), "diagnostics of the detector")
            yield client
        finally:
            client.ros.destroy_node()


class DetectorClient:
    """Services, parameters and diagnostics of the node ``detector``.

    Attributes:
        model_sha256: hash of the deployed model, from the newest diagnostics.

    Every method raises RuntimeError if the node has ended, refuses, or does not respond.
    """

    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        import rclpy  # offline commands run without ROS 2
        from diagnostic_msgs.msg import DiagnosticArray

        self.model_sha256 = ""
        self._process, self._log = process, log
        self.ros = rclpy.create_node("demo_loop")
        self.ros.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            for value in status.values:
                if value.key == "model sha256":
                    self.model_sha256 = value.value

    def record(self, on: bool) -> None:
        """Switch recording on or off; wait while the bag before is being finished."""
        import rclpy
        from std_srvs.srv import SetBool

        deadline = time.monotonic() + TIMEOUT_S
        request = SetBool.Request(data=on)
        while not (response := self._call(SetBool, "detector/record", request)).success:
            if time.monotonic() > deadline or not response.message.startswith(BUSY):
                raise RuntimeError(response.message)
            rclpy.spin_once(self.ros, timeout_sec=0.1)

    def swap(self, model: Path) -> None:
        """Deploy another model, and wait until the node reports it."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        expected = file_sha256(model)
        parameter = Parameter("model", value=str(model.resolve())).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        for result in self._call(SetParameters, "detector/set_parameters", request).results:
            if not result.successful:
                raise RuntimeError(result.reason)
        self.wait(lambda: self.model_sha256 == expected, f"deployment of {model.name}")

    def check(self) -> None:
        """Make sure that the node runs."""
        if self._process.poll() is not None:
            code = self._process.returncode
            raise RuntimeError(f"the detector ended with exit code {code}: see {self._log}")

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Handle messages until a condition holds."""
        import rclpy

        deadline = time.monotonic() + TIMEOUT_S
        while not until():
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {what} within {TIMEOUT_S:.0f} s: see {self._log}")
            rclpy.spin_once(self.ros, timeout_sec=0.1)

    def _call(self, kind: Any, name: str, request: Any) -> Any:
        client: Any = self.ros.create_client(kind, name)
        self.wait(client.service_is_ready, f"service {name}")
        future = client.call_async(request)
        self.wait(future.done, f"response of {name}")
        self.ros.destroy_client(client)
        return future.result()
