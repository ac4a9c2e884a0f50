"""The detector node: newest image in, detections out.

    ros2 run drone_kd detector --ros-args -r image:=/camera/image_raw -p autostart:=true

Without `autostart` the node waits to be configured and activated, as lifecycle nodes do. This
file is its life cycle and its wiring; each other file of this folder does one of its jobs.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger
from vision_msgs.msg import Detection2DArray, LabelInfo

from drone_kd.machine import temperatures_c
from drone_kd.ros.debug_image import DebugImages
from drone_kd.ros.detection_messages import to_detection_array, to_label_info
from drone_kd.ros.diagnostics import (
    camera_status,
    judge_camera,
    judge_node,
    node_status,
    processor_temperatures,
    record_status,
)
from drone_kd.ros.inbox import Frame, Inbox
from drone_kd.ros.model_loader import Loader, Model, load_model
from drone_kd.ros.params import Settings, SettingsError, declare_detector_parameters
from drone_kd.ros.qos import DETECTIONS_QOS, LATCHED_QOS, REPORT_QOS, ImageSubscription
from drone_kd.ros.recording.recorder import Recorder
from drone_kd.ros.run import run_node
from drone_kd.ros.stats import DISABLED, SUPERSEDED, CameraReport, CameraStats
from drone_kd.ros.worker import Result, Worker

MATCH_SECONDS = 0.5
REPORT_SECONDS = 1.0
# A camera that stays silent is reported again after so long.
_REMIND_SECONDS = 10.0
# An inference may take as long as it likes, but nobody waits longer for it to end.
_STOP_SECONDS = 1.0
# The recorder has a minute of pictures to bring to a slow disk.
_STOP_RECORDER_SECONDS = 10.0


class DetectorNode(LifecycleNode):
    """Publishes the detections of the newest image of each camera.

    Raises:
        rclpy.exceptions.ParameterException, SettingsError: a parameter given at the start cannot
            be used.
    """

    def __init__(self) -> None:
        super().__init__("detector")
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state
        declare_detector_parameters(self)
        self._settings = Settings.from_parameters(self._values())
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._model: Model | None = None
        # Flew before, and is kept loaded: a roll-back must not depend on a file.
        self._model_before: Model | None = None
        self._problem = ""
        self._setting_back = False
        self._loader = Loader(
            ready=self.create_guard_condition(self._on_loaded).trigger,
            progress=self.get_logger().info,
        )
        self._enabled = True
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/rollback", self._on_rollback)
        self._recorder: Recorder | None = None
        self.create_service(SetBool, "~/record", self._on_record)

        self._worker: Worker | None = None
        self._hanging: Worker | None = None
        self._inbox: Inbox | None = None
        self._subscriptions_by_camera: dict[str, ImageSubscription] = {}
        self._image_topics: dict[str, str] = {}
        self._stats = {camera: CameraStats() for camera in self._settings.cameras}
        self._reminders: dict[str, tuple[str, float]] = {}

        self._report_publishers = [
            self.create_publisher(DiagnosticArray, topic, REPORT_QOS)
            for topic in ("/diagnostics", "~/stats")
        ]
        # On the machine's own clock: a simulation that stands still must not silence them.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(REPORT_SECONDS, self._report, clock=clock)
        self.create_timer(MATCH_SECONDS, self._match, clock=clock)
        if self.get_parameter("autostart").value:
            if (
                self.trigger_configure() == TransitionCallbackReturn.SUCCESS
                and self.trigger_activate() == TransitionCallbackReturn.SUCCESS
            ):
                self.get_logger().info("configured and activated itself (autostart)")
        else:
            self.get_logger().info(
                "waiting to be configured and activated (autostart:=true does both): "
                f"ros2 lifecycle set {self.get_fully_qualified_name()} configure"
            )

    # Life cycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and run it once; FAILURE with one line if that cannot be."""
        try:
            self._model = load_model(
                self.get_parameter("model").value,
                self._settings,
                may_build=True,
                progress=self.get_logger().info,
            )
        except Exception as error:  # rclpy would swallow it without a word
            self._problem = f"cannot configure: {error}"
            self.get_logger().error(self._problem)
            return TransitionCallbackReturn.FAILURE
        self._labels = self.create_lifecycle_publisher(LabelInfo, "~/label_info", LATCHED_QOS)
        self._detections, self._debug = {}, {}
        for camera in self._settings.cameras:
            prefix = f"~/{camera}/" if camera else "~/"
            self._detections[camera] = self.create_lifecycle_publisher(
                Detection2DArray, f"{prefix}detections", DETECTIONS_QOS
            )
            self._debug[camera] = DebugImages(self, prefix)
        self.get_logger().info(f"model {self._model}")
        self._note_fallback()
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to receive, detect and publish."""
        if self._hanging is not None and not self._hanging.stop(timeout=0):
            self.get_logger().error("cannot activate: an inference from before is still running")
            return TransitionCallbackReturn.FAILURE
        self._hanging = None
        result = super().on_activate(state)
        self._announce_labels()
        self._stats = {camera: CameraStats() for camera in self._settings.cameras}
        self._reminders = {}
        self._inbox = Inbox(self._settings.cameras)
        self._worker = Worker(
            self._inbox,
            self._stats,
            self._model,
            self._settings,
            publish=self._publish,
            show=self._show,
            wants_full_size=lambda camera: self._debug[camera].wanted(),
            logger=self.get_logger(),
        )
        for camera in self._settings.cameras:
            self._subscriptions_by_camera[camera] = ImageSubscription(
                self,
                f"{camera}/image" if camera else "image",
                self._settings.image_transport,
                self._settings.reliability,
                partial(self._on_image, camera),
            )
            self._image_topics[camera] = self._subscriptions_by_camera[camera].topic
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop to receive and publish; says what became of the images."""
        self._stop_worker()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give the model back."""
        result = super().on_cleanup(state)
        self._loader.forget()
        self.destroy_lifecycle_publisher(self._labels)
        for publisher in self._detections.values():
            self.destroy_lifecycle_publisher(publisher)
        for debug in self._debug.values():
            debug.destroy()
        self._model = self._model_before = None
        return result

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop to receive and publish, from any state."""
        self.stop()
        return super().on_shutdown(state)

    def _on_change_state(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Refuse a transition that the state does not allow: Humble and Jazzy die of it."""
        try:
            return self._change_state(request, response)
        except RuntimeError as error:  # rclpy's RCLError, which has no public name
            self.get_logger().error(f"no such transition now: {error}")
            response.success = False
            return response

    def stop(self) -> bool:
        """End the threads; False if one of them hangs, or a model is still being loaded."""
        self._stop_worker()
        recorded = True
        if self._recorder is not None:
            self._recorder.close()
            recorded = self._recorder.join(_STOP_RECORDER_SECONDS)
        return self._loader.stop() and self._hanging is None and recorded

    def _stop_worker(self) -> None:
        if self._worker is None:
            return
        for subscription in self._subscriptions_by_camera.values():
            subscription.destroy()
        self._subscriptions_by_camera.clear()
        worker, self._worker = self._worker, None
        if not worker.stop(_STOP_SECONDS):
            self._hanging = worker
            self.get_logger().warning("an inference is still running: its result will be dropped")
        for camera, report in self.reports().items():
            self.get_logger().info(f"stopped: {camera and f'{camera}: '}{report}")

    # Frames

    def _on_image(self, camera: str, message: Image | CompressedImage) -> None:
        received = perf_counter()
        stats = self._stats[camera]
        stats.count_received()
        if not self._enabled:
            stats.count_drop(DISABLED)
            return
        stamp = message.header.stamp
        stamp_ns = stamp.sec * 10**9 + stamp.nanosec
        transport_ms = (self.get_clock().now().nanoseconds - stamp_ns) / 1e6 if stamp_ns else None
        if self._inbox.put(Frame(camera, message, transport_ms, received)):
            stats.count_drop(SUPERSEDED)

    def _publish(self, result: Result) -> None:
        """Publish detections; called by the worker."""
        self._detections[result.frame.camera].publish(
            to_detection_array(result.detections, result.classes, result.frame.message.header)
        )

    def _show(self, result: Result) -> None:
        """Hand a published result to those who can wait; called by the worker."""
        camera, recorder = result.frame.camera, self._recorder
        if recorder is not None:
            recorder.offer(result, self._image_topics[camera])
        self._debug[camera].publish(result)

    def _announce_labels(self) -> None:
        """Publish the class list and the threshold in use."""
        header = Header(stamp=self.get_clock().now().to_msg())
        classes = self._model.backend.spec.classes
        self._labels.publish(to_label_info(classes, self._settings.confidence, header))

    # Control

    def _values(self) -> dict[str, object]:
        return {field.name: self.get_parameter(field.name).value for field in fields(Settings)}

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        changed = {parameter.name: parameter.value for parameter in parameters}
        model = changed.get("model") if self._model is not None else None
        try:
            settings = Settings.from_parameters(self._values() | changed)
            if self._model is not None:
                settings.detector(self._model.backend)
            if model and not self._setting_back and not Path(model).is_file():
                raise ValueError(f"model: {model}: expected a model file, but there is none")
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        labels_changed = settings.confidence != self._settings.confidence
        self._settings = settings
        if self._worker is not None:
            self._worker.settings = settings
            self._inbox.wake()
            if labels_changed:
                self._announce_labels()
        if model is not None and not self._setting_back:
            self._loader.request(model, settings)
            self.get_logger().info(f"loading {model or 'the model of the package'}")
        return SetParametersResult(successful=True)

    def _on_loaded(self) -> None:
        """Fly a model that was loaded in the background, or set the parameter back."""
        outcome = self._loader.take()
        if outcome is None or self._model is None:
            return
        parameter, model = outcome
        try:
            if isinstance(model, Exception):
                raise model
            self._settings.detector(model.backend)  # they may have changed while it was loaded
        except Exception as error:  # a runtime's own exceptions have no common base class
            self._problem = f"cannot load {parameter}: {error}; {self._model.path.name} flies on"
            self.get_logger().error(self._problem)
            self._set_model_parameter()
            return
        self._swap(model)
        self.get_logger().info(f"swapped, model {model}")

    def _swap(self, model: Model) -> None:
        """Fly another model from the next frame on."""
        self._model_before, self._model = self._model, model
        self._note_fallback()
        if self._worker is not None:
            self._announce_labels()
            self._worker.model = model

    def _set_model_parameter(self) -> None:
        """Let the parameter name the model that flies."""
        self._setting_back = True
        self.set_parameters([Parameter("model", value=self._model.parameter)])
        self._setting_back = False

    def _on_rollback(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Fly the model that flew before; once more, and the other one is back."""
        before = self._model_before
        try:
            if before is None:
                raise ValueError("no other model has flown since the node was configured")
            self._settings.detector(before.backend)  # they may have changed since
        except ValueError as error:
            response.success, response.message = False, f"cannot roll back: {error}"
            self.get_logger().error(response.message)
            return response
        self._loader.forget()
        self._swap(before)
        self._set_model_parameter()
        response.success, response.message = True, f"rolled back, model {before}"
        self.get_logger().info(response.message)
        return response

    def _note_fallback(self) -> None:
        """Say it, loudly, if this is not the runtime that was asked for."""
        fallback = self._model.backend.fallback
        self._problem = f"ONNX Runtime serves instead of TensorRT: {fallback}" if fallback else ""
        if fallback:
            self.get_logger().warning(self._problem)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        if not self._enabled and self._worker is not None:
            for frame in self._inbox.clear():
                self._stats[frame.camera].count_drop(DISABLED)
        response.success = True
        response.message = "enabled" if self._enabled else "disabled"
        self.get_logger().info(f"{response.message} by ~/enable")
        return response

    def _on_record(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data:
            response.success, response.message = self._start_recorder()
        else:
            if self._recorder is not None:
                self._recorder.close()
            response.success, response.message = True, "recording off"
        if response.success:
            self.get_logger().info(f"{response.message} by ~/record")
        else:
            self.get_logger().error(response.message)
        return response

    def _start_recorder(self) -> tuple[bool, str]:
        """Start to record, unless that goes on; returns whether it is on, and a line."""
        if self._recorder is None or self._recorder.join(0):
            try:
                self._recorder = Recorder(self, self._settings)
            except SettingsError as error:
                return False, f"cannot record: {error}"
        elif self._recorder.report().state != "on":
            return False, "cannot record yet: the last bag is still being finished"
        return True, f"recording to {self._recorder.folder}"

    # Reports

    def reports(self) -> dict[str, CameraReport]:
        """Return what became of each camera's frames since activation."""
        return {camera: stats.report() for camera, stats in self._stats.items()}

    def _match(self) -> None:
        for subscription in self._subscriptions_by_camera.values():
            subscription.match()

    def _report(self) -> None:
        """Publish /diagnostics and ~/stats, and log cameras that are silent."""
        state = self._state_machine.current_state[1]
        temperatures = processor_temperatures(temperatures_c())
        name = self.get_fully_qualified_name()
        verdict = judge_node(state, self._enabled, self._problem, temperatures, self._settings)
        status = [node_status(name, verdict, state, self._model, temperatures)]
        for camera, subscription in self._subscriptions_by_camera.items():
            report = self._stats[camera].report()
            is_silent = report.silent_s > self._settings.silence_s
            why_silent = subscription.why_silent() if is_silent else ""
            self._remind(camera, subscription.topic, report, why_silent)
            verdict = judge_camera(report, why_silent, self._settings)
            status.append(
                camera_status(f"{name}: {camera or 'image'}", verdict, subscription.topic, report)
            )
        if self._recorder is not None:
            recorded = self._recorder.report()
            status.append(record_status(f"{name}: record", self._recorder.folder, recorded))
        message = DiagnosticArray(status=status)
        message.header.stamp = self.get_clock().now().to_msg()
        for publisher in self._report_publishers:
            publisher.publish(message)

    def _remind(self, camera: str, topic: str, report: CameraReport, why_silent: str) -> None:
        """Log a silent camera when it falls silent, for another reason, or for long."""
        before, since = self._reminders.get(camera, ("", 0.0))
        now = monotonic()
        if why_silent and (why_silent != before or now - since > _REMIND_SECONDS):
            self.get_logger().warning(
                f"no image on {topic} for {report.silent_s:.1f} s: {why_silent}"
            )
            self._reminders[camera] = why_silent, now
        elif not why_silent:
            self._reminders.pop(camera, None)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; see `run_node`."""
    return run_node("detector", lambda finished: DetectorNode(), args)


if __name__ == "__main__":
    sys.exit(main())
