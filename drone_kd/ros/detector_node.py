"""Detector node: newest image in, detections out.

    ros2 run drone_kd detector --ros-args -r image:=/camera/image_raw -p autostart:=true

Without `autostart` the node waits to be configured and activated, as lifecycle nodes do. This
file holds the life cycle and the wiring; every other file in this folder does one job.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from concurrent import futures
from dataclasses import fields
from time import monotonic
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from drone_kd.backends.tensorrt.cuda import lasting_error
from drone_kd.core.model_spec import ModelError
from drone_kd.machine import temperatures_c
from drone_kd.paths import expanded
from drone_kd.ros import diagnostics
from drone_kd.ros.bond import start_bond
from drone_kd.ros.camera import Camera
from drone_kd.ros.declare import declare_detector_parameters
from drone_kd.ros.drop_reasons import FAILED, UNDECODABLE
from drone_kd.ros.labels import Labels
from drone_kd.ros.life_cycle import RespondingNode, transition
from drone_kd.ros.local_camera import LocalCamera, is_reading
from drone_kd.ros.memory import return_memory
from drone_kd.ros.model_loader import Loader, Model, load_model
from drone_kd.ros.model_slot import ModelSlot
from drone_kd.ros.model_trial import Trial
from drone_kd.ros.params import ModelFolders, Settings, SettingsError
from drone_kd.ros.pipeline import Pipeline, Result
from drone_kd.ros.qos import REPORT_QOS, ImageSubscription
from drone_kd.ros.recording import BUSY
from drone_kd.ros.recording.recorder import Recorder
from drone_kd.ros.run import RestartNeededError, StopFlag, run_node
from drone_kd.ros.stats import CameraReport
from drone_kd.ros.survival import describe, log_failure
from drone_kd.ros.work import Work
from drone_kd.text import one_line

MATCH_SECONDS = 0.5
REPORT_SECONDS = 1.0
# Longest wait for an inference at deactivation, and for a first model at the end of the process.
_STOP_SECONDS = 1.0
# Until a request to stop is noticed.
_POLL_SECONDS = 0.1
# The recorder may have a minute of images to write to a slow disk; launch and Docker kill after
# 10 s.
_STOP_RECORDER_SECONDS = 8.0
# Of a text that may quote what others sent.
_SHOWN_CHARACTERS = 300


class DetectorNode(RespondingNode):
    """Publishes the detections of the newest image of each camera.

    Args:
        stopping: set when the process has to end: a model that is being loaded is given up.

    Raises:
        rclpy.exceptions.ParameterException, SettingsError: a parameter given at startup is
            invalid.
    """

    ends_with = (RestartNeededError,)

    def __init__(self, stopping: StopFlag | None = None) -> None:
        super().__init__("detector")
        self._is_stopping = (stopping or StopFlag()).is_set
        self._ignored = declare_detector_parameters(self)
        self._settings = Settings.from_parameters(self._values())
        self._started_with = self.get_parameter("model").value
        self._folders = ModelFolders(self._started_with, self._settings.model_directories)
        for folder in self._folders.missing():
            self.get_logger().warning(
                f"No folder {one_line(folder)}: no model can be loaded from it"
            )
        self._check_remapping()
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._loader = Loader(self.create_guard_condition(self._on_loaded).trigger, self._log_info)
        self._first_results: deque[tuple[Model, Exception | None]] = deque()
        self._settle = self.create_guard_condition(self._on_first_results).trigger
        self._problem = ""  # why the last configuration or activation failed
        self._progress, self._progressed = "", 0.0  # of the load, and when
        self._abandoned: futures.Future[Model] | None = None  # the first model, at the end
        self._slot: ModelSlot | None = None  # while configured
        self._labels: Labels | None = None  # while configured
        self._cameras: dict[str, Camera] = {}  # while configured
        self._pipeline: Pipeline | None = None  # while active
        # Undo what the two states hold.
        self._configured, self._active = contextlib.ExitStack(), contextlib.ExitStack()
        self._unfinished: list[Work] = []  # that hangs, or went on after deactivation
        self._refused = 0, 0  # frames and requests at the last two reports
        self._enabled = True
        self._recorder: Recorder | None = None
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/rollback", self._on_rollback)
        self.create_service(SetBool, "~/record", self._on_record)
        topics = "/diagnostics", "~/stats"
        self._report_publishers = [
            self.create_publisher(DiagnosticArray, topic, REPORT_QOS) for topic in topics
        ]
        # On the machine's own clock: a paused simulation must not silence them.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(REPORT_SECONDS, self._report, callback_group=self.always, clock=clock)
        self.create_timer(MATCH_SECONDS, self._match, clock=clock)
        if self.get_parameter("autostart").value:
            self.call_soon(self._autostart)
        else:
            self.get_logger().info(
                "Waiting to be configured and activated (autostart:=true does both): "
                f"ros2 lifecycle set {self.get_fully_qualified_name()} configure"
            )

    def _autostart(self) -> None:
        if all(
            trigger() == TransitionCallbackReturn.SUCCESS
            for trigger in (self.trigger_configure, self.trigger_activate)
        ):
            self.get_logger().info("Configured and activated (autostart)")

    # Life cycle

    @transition
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and run it once; FAILURE and one log line if it is unusable."""
        self._problem = ""
        self._note_progress("loading the model")
        try:
            with contextlib.ExitStack() as stack:
                self._make_configured(stack)
                result = super().on_configure(state)
                self._configured = stack.pop_all()
        except Exception as error:  # rclpy would swallow it silently
            return self._refuse("cannot configure", error)
        return result

    def _refuse(self, what: str, error: Exception) -> TransitionCallbackReturn:
        """Log and report why a transition fails, and return FAILURE."""
        self._problem = f"{what}: {one_line(error, _SHOWN_CHARACTERS) or describe(error)}"
        self.get_logger().error(self._problem)
        return TransitionCallbackReturn.FAILURE

    def _make_configured(self, stack: contextlib.ExitStack) -> None:
        """Load the model and create the publishers; the stack undoes it."""
        model = self._load()
        stack.callback(self._forget_model)
        self._create_publishers(stack)
        self.get_logger().info(f"Model {model}")
        self._slot = ModelSlot(
            model,
            self._loader,
            settings=lambda: self._settings,
            write_parameter=lambda path: self.set_parameters([Parameter("model", value=path)]),
            on_swap=self._on_swap,
            is_busy=self._is_busy,
            failures=self.failures,
            log=self.get_logger(),
        )

    def _forget_model(self) -> None:
        self._loader.forget()
        self._slot = None

    def _check_remapping(self) -> None:
        """Warn of a remapped `image` that no camera uses, as by `image:=` of the launch file."""
        cameras = self._settings.cameras
        own = f"{self.get_namespace().rstrip('/')}/image"
        if cameras != ("",) and (topic := self.resolve_topic_name("image")) != own:
            self.get_logger().warning(
                f"image is remapped to {topic}, but with cameras {', '.join(cameras)} no topic is "
                f"named so: remap {cameras[0]}/image"
            )

    def _load(self) -> Model:
        """Load the model of the parameter; one that was set after startup is tried before."""
        parameter = self.get_parameter("model").value
        if parameter == self._started_with:
            path, trial = (expanded(parameter) if parameter else None), None
        else:
            path, trial = self._folders.find(parameter), Trial(self._is_stopping)
        # In a thread: the signal that ends the process would wait for the runtime's return.
        pool = futures.ThreadPoolExecutor(1, "configure")
        loading = pool.submit(
            load_model,
            parameter,
            path,
            self._settings,
            self._settings.may_build,
            self._log_info,
            trial,
            self._is_stopping,
        )
        pool.shutdown(wait=False)
        while futures.wait([loading], _POLL_SECONDS).not_done and not self._is_stopping():
            pass
        if futures.wait([loading], _STOP_SECONDS).not_done:
            self._abandoned = loading
            raise ModelError("the process ends, and its model is still being loaded")
        try:
            return loading.result()
        finally:
            del loading  # its exception, which holds the file's content, would refer to it

    def _create_publishers(self, stack: contextlib.ExitStack) -> None:
        self._labels = Labels(self)
        stack.callback(self._labels.destroy)
        stack.callback(self._cameras.clear)
        for name in self._settings.cameras:
            self._cameras[name] = Camera(self, name, self.failures)
            stack.callback(self._cameras[name].destroy)

    @transition
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start to receive, detect and publish."""
        assert self._slot is not None  # the life cycle: configured before activated
        self._problem = ""
        try:
            if self._is_busy(self._slot.model):
                raise ModelError(
                    "an earlier inference of the model is still running; wait for its end, set "
                    "another model, or restart the node"
                )
            with contextlib.ExitStack() as stack:
                stack.callback(super().on_deactivate, state)
                result = super().on_activate(state)
                for camera in self._cameras.values():
                    stack.callback(camera.stop)
                    camera.start()
                self._start_pipeline(self._slot)
                stack.callback(self._stop_pipeline)
                start_bond(self, stack)
                self._active = stack.pop_all()
        except Exception as error:  # rclpy would swallow it silently
            return self._refuse("cannot activate", error)
        return result

    def _start_pipeline(self, slot: ModelSlot) -> None:
        self._announce_labels(slot.model)
        self._pipeline = Pipeline(
            self,
            self._settings,
            slot.model,
            slot.former(),
            self._cameras.copy(),
            self._enabled,
            record=self._record,
            failures=self.failures,
            on_first_result=self._on_first_result,
        )

    @transition
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop receiving and publishing; log the outcome of the frames."""
        self._active.close()
        return TransitionCallbackReturn.SUCCESS

    @transition
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and the publishers."""
        self._problem = ""
        self._configured.close()
        return super().on_cleanup(state)

    @transition
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop receiving and publishing and free everything, from any state."""
        self.stop()
        return super().on_shutdown(state)

    @transition
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to the unconfigured state after a transition that failed half-way."""
        self._release()
        return super().on_error(state)

    def _release(self) -> None:
        """Give back what the states hold, whatever of it fails."""
        for name, stack in (("active", self._active), ("configured", self._configured)):
            try:
                stack.close()
            except Exception as error:
                self.log_transition_failure(f"Leaving the {name} state", error)

    def stop(self) -> bool:
        """End the threads; False if one of them hangs, or a model is still loading."""
        deadline = monotonic() + _STOP_RECORDER_SECONDS
        if self._recorder is not None:
            self._recorder.close()  # it finishes its bag while the others end
        changed = self.join_transition(2 * _STOP_SECONDS)
        if changed:
            self._release()
        loaded = self._loader.stop()
        left_s = max(deadline - monotonic(), 0.0)
        recorded = self._recorder is None or self._recorder.join(left_s)
        loading = self._abandoned is not None and not self._abandoned.done()
        ended = changed and loaded and recorded and not self._still_working() and not loading
        return ended and not is_reading()

    def _stop_pipeline(self) -> None:
        if self._pipeline is None:
            return
        pipeline, self._pipeline = self._pipeline, None
        work = pipeline.stop(_STOP_SECONDS)
        if work is not None and work not in self._unfinished:
            self._unfinished.append(work)
        if work is not None:
            self.get_logger().warning("An inference is still running: its result will be dropped")
        for camera, report in self.reports().items():
            self.get_logger().info(f"Stopped: {camera and f'{camera}: '}{report}")

    def _record(self, result: Result) -> None:
        """Called by the worker."""
        if self._recorder is not None:
            self._recorder.offer(result)

    def _announce_labels(self, model: Model) -> None:
        assert self._labels is not None  # with a model
        self._labels.publish(model, self._settings.confidence)

    # Control

    def _values(self) -> dict[str, object]:
        return {field.name: self.get_parameter(field.name).value for field in fields(Settings)}

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        before = self._settings
        try:
            self._set({parameter.name: parameter.value for parameter in parameters})
        except Exception as error:  # of any kind: the old values stay
            self._settings = before
            if self._pipeline is not None:
                self._pipeline.apply(before)
            if not isinstance(error, ValueError):
                log_failure(self.get_logger(), self.failures, "Setting parameters", error)
            reason = one_line(error, _SHOWN_CHARACTERS) or type(error).__name__
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _set(self, changed: dict[str, Any]) -> None:
        """Check new values and use them; ValueError: one of them cannot be used."""
        settings = Settings.from_parameters(self._values() | changed)
        if changed.get("use_sim_time", self._uses_sim_time()) != self._uses_sim_time():
            raise SettingsError("use_sim_time: fixed at startup")
        model, path = changed.get("model"), None
        if model and not (self._slot is not None and self._slot.is_writing):
            path = self._folders.find(model)
        if self._slot is None:
            self._settings = settings
            return
        self._slot.check(settings)
        labels_changed = settings.confidence != self._settings.confidence
        self._settings = settings
        if self._pipeline is not None:
            self._pipeline.apply(settings)
            if labels_changed:
                self._announce_labels(self._slot.model)
        if model is not None:
            self._slot.request(model, path, settings)

    def _uses_sim_time(self) -> bool:
        return bool(self.get_parameter("use_sim_time").value)

    def _on_loaded(self) -> None:
        if self._slot is not None:
            self._slot.finish_load()

    def _on_swap(self, model: Model, former: Model | None) -> None:
        """Use another model in flight; its first result will be reported if it has a former."""
        if self._pipeline is not None:
            self._announce_labels(model)
            self._pipeline.swap(model, former)

    def _still_working(self) -> list[Work]:
        """Return what hangs, or went on after deactivation."""
        return [work for work in self._unfinished if not work.ended]

    def _is_busy(self, model: Model) -> bool:
        """Return whether an inference of a model goes on that nobody waits for any more."""
        busy = [work.model for work in self._still_working()]
        return any(other is not None and other.sha256 == model.sha256 for other in busy)

    def _check_inferences(self) -> None:
        """Cancel an inference that takes too long, and do without a model whose hangs."""
        for left in self._unfinished.copy():
            if left.ended:
                # Not a new list: a transition's thread may add to this one meanwhile.
                self._unfinished.remove(left)
                continue
            # Its deactivation may have come before it was known to hang.
            if not left.hangs and left.check() and left.model is not None and self._slot:
                self._slot.replace_hanging(left.model, str(left))
        pipeline = self._pipeline
        work = None if pipeline is None else pipeline.check_inference()
        if work is None or work in self._unfinished or work.model is None:
            return
        self._unfinished.append(work)
        if self._slot is not None:
            self._slot.replace_hanging(work.model, str(work))

    def _hang_problem(self, slot: ModelSlot | None) -> str:
        """Return a line if an inference hangs; empty: none does."""
        line = next((str(work) for work in self._still_working() if work.hangs), "")
        if not line or slot is None:
            return line
        if self._is_busy(slot.model):
            return f"{line}; no other model is loaded: set one, or restart the node"
        return f"{line}; in use: {one_line(slot.model.path.name)}"

    def _load_problem(self, state: str) -> str:
        """Return a line if the load of the first model makes no progress; empty: it does."""
        idle_s = monotonic() - self._progressed
        if state != "configuring" or idle_s <= self._settings.swap_timeout_s:
            return ""
        return f"configuring: {self._progress}: no progress for {idle_s:.0f} s; restart the node"

    def _stall_problem(self, pipeline: Pipeline | None) -> str:
        """Return a line if a camera's frames get no results; empty: all do."""
        if pipeline is None:
            return ""
        subscriptions = pipeline.subscriptions.copy()
        for camera, report in self.reports().items():
            if camera not in subscriptions or not subscriptions[camera].is_open:
                continue
            if stalled := diagnostics.stall(report, self._settings):
                return f"{camera}: {stalled}" if camera else stalled
        return ""

    def _on_first_result(self, model: Model, error: Exception | None) -> None:
        """Called by the worker."""
        self._first_results.append((model, error))
        self._settle()

    def _on_first_results(self) -> None:
        while self._first_results:
            model, error = self._first_results.popleft()
            if self._slot is None:
                continue
            self._slot.settle(model, error)
            if error is not None and self._pipeline is not None:
                self._announce_labels(self._slot.model)

    def _on_rollback(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        """Use the previous model again; a second call undoes the first."""
        try:
            if self._slot is None:
                raise ValueError("the node is not configured")
            success, line = True, f"rolled back to model {self._slot.roll_back()}"
        except ValueError as error:
            success, line = False, f"cannot roll back: {error}"
        return self._respond("rollback", response, success, line)

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        if self._pipeline is not None:
            self._pipeline.enable(self._enabled)
        self._match()  # receive again at once
        return self._respond("enable", response, True, "enabled" if request.data else "disabled")

    def _on_record(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data:
            started, line = self._start_recorder()
            self._match()  # receive at once
            return self._respond("record", response, started, line)
        if self._recorder is not None:
            self._recorder.close()
        return self._respond("record", response, True, "recording off")

    def _respond(self, service: str, response: Any, success: bool, line: str) -> Any:
        """Fill in and log the response of a service."""
        response.success, response.message = success, line
        if success:
            self.get_logger().info(f"By ~/{service}: {line}")
        else:
            self.get_logger().error(line)
        return response

    def _start_recorder(self) -> tuple[bool, str]:
        """Start recording unless it is on; return whether it is on, and a line."""
        if self._recorder is None or self._recorder.join(0):
            try:
                self._recorder = Recorder(self, self._settings, self.failures)
            except SettingsError as error:
                return False, f"cannot record: {one_line(error, _SHOWN_CHARACTERS)}"
        elif self._recorder.report().state != "on":
            return False, f"{BUSY}: the last bag is still being finished"
        return True, f"recording to {one_line(self._recorder.folder)}"

    # Reports

    def reports(self) -> dict[str, CameraReport]:
        """Return the outcome of each camera's frames since activation."""
        return {name: camera.stats.report() for name, camera in self._cameras.copy().items()}

    def _match(self) -> None:
        on_cpu = self._slot is not None and self._slot.model.backend.fallback
        if (error := lasting_error()) and not on_cpu:
            raise RestartNeededError(f"the GPU is lost to this process: {error}; restart it")
        self._check_inferences()
        if self._pipeline is not None:
            recorder = self._recorder
            self._pipeline.match(recorder is not None and recorder.report().state == "on")

    def _report(self) -> None:
        """Publish /diagnostics and ~/stats, and log silent cameras."""
        state = self.state
        temperatures = diagnostics.processor_temperatures(temperatures_c())
        name = self.get_fully_qualified_name()
        # A transition may replace them meanwhile.
        slot, pipeline = self._slot, self._pipeline
        model, problem = None, self._problem
        if slot is not None:
            model, problem = slot.model, problem or slot.problem
        failures = self.failures.report()
        verdict = diagnostics.judge_node(
            state,
            self._enabled,
            problem,
            temperatures,
            self._settings,
            failures,
            self._hang_problem(slot) or self._stall_problem(pipeline) or self._load_problem(state),
            self._progress if state == "configuring" else "",
            self._ignored,
        )
        status = [diagnostics.node_status(name, verdict, state, model, temperatures, failures)]
        subscriptions = {} if pipeline is None else pipeline.subscriptions.copy()
        for camera_name, camera in self._cameras.copy().items():
            if camera_name in subscriptions:
                label = f"{name}: {camera_name or 'image'}"
                status.append(self._report_camera(label, camera, subscriptions[camera_name]))
        if self._recorder is not None:
            recorded = self._recorder.report()
            status.append(
                diagnostics.record_status(f"{name}: record", self._recorder.folder, recorded)
            )
        self._return_memory()
        message = DiagnosticArray(status=status)
        message.header.stamp = self.get_clock().now().to_msg()
        for publisher in self._report_publishers:
            publisher.publish(message)

    def _report_camera(
        self, label: str, camera: Camera, subscription: ImageSubscription | LocalCamera
    ) -> DiagnosticStatus:
        """Return the status of a camera, and log that it is silent."""
        report, topic = camera.stats.report(), subscription.topic
        if not subscription.is_open:
            verdict = diagnostics.OK, "idle: nobody subscribes to the detections, or disabled"
            return diagnostics.camera_status(label, verdict, topic, report)
        is_silent = report.silent_s > self._settings.silence_s
        why_silent = one_line(subscription.why_silent(), 500) if is_silent else ""
        camera.remind(topic, report, why_silent)
        verdict = diagnostics.judge_camera(
            report, why_silent, self._settings, self._uses_sim_time()
        )
        return diagnostics.camera_status(label, verdict, topic, report)

    def _return_memory(self) -> None:
        """Return the memory of hostile messages to the system: some are very large."""
        refused = self.failures.report().count + sum(
            report.dropped[UNDECODABLE] + report.dropped[FAILED]
            for report in self.reports().values()
        )
        # Again with the next report: the last frame may have been in work.
        if refused != self._refused[0]:
            return_memory()
        self._refused = self._refused[1], refused

    def _note_progress(self, line: str) -> None:
        self._progress, self._progressed = line, monotonic()

    def _log_info(self, line: str) -> None:
        self._note_progress(line)
        self.get_logger().info(one_line(line, 500))


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; see `run_node`."""
    ends_with = DetectorNode.ends_with
    return run_node("detector", DetectorNode, args, survives=True, ends_with=ends_with)


if __name__ == "__main__":
    sys.exit(main())
