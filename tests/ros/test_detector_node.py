"""Detector node: detections, dropped frames, life cycle, processes."""

import gc
import signal
import threading
import weakref

import cv2
import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Float64

from drone_kd.paths import config_path
from drone_kd.ros import detector_node, pipeline
from drone_kd.ros.drop_reasons import FAILED, SUPERSEDED, UNDECODABLE
from ground_station import WAIT_SECONDS
from tiny_model import write_fixed_model

EMPTY = np.zeros((128, 256, 3), np.uint8)
# At the network's 64 x 64 px one cell of 8 px is 32 px of this image.
ONE = EMPTY.copy()
ONE[32:64, 96:128] = 255

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


def test_detections_have_the_header_and_the_boxes_of_the_image(flying):
    header = flying.send(ONE, seconds=7)
    found = flying.receive()
    assert found.header == header
    (detection,) = found.detections
    assert detection.header == header
    centre = detection.bbox.center.position
    box = (centre.x, centre.y, detection.bbox.size_x, detection.bbox.size_y)
    assert box == pytest.approx((112, 48, 32, 32), abs=1e-3)
    (result,) = detection.results
    assert result.hypothesis.class_id == "car"
    assert result.hypothesis.score == pytest.approx(1.0, abs=1e-3)


def test_image_without_objects_gives_an_empty_array(flying):
    header = flying.send(EMPTY)
    found = flying.receive()
    assert found.header == header
    assert len(found.detections) == 0


def test_sizes_and_encodings_may_change_between_frames(flying):
    one_pixel = Image(width=1, height=1, encoding="mono8", step=1, data=[255])
    padded = Image(width=64, height=64, encoding="rgba8", step=64 * 4 + 3)
    padded.data = bytes([255]) * (padded.step * 64)
    for image, count in ((ONE, 1), (one_pixel, 64), (padded, 64), (ONE[:, 64:192], 4)):
        flying.send(image)
        assert len(flying.receive().detections) == count


def test_unusable_images_are_counted_and_dropped(flying):
    unknown = Image(width=2, height=2, encoding="yuv444", step=4, data=bytes(8))
    short = Image(width=2, height=2, encoding="bgr8", step=6, data=bytes(11))
    for count, image in enumerate((unknown, short), start=1):
        flying.send(image)
        flying.wait_until(lambda n=count: flying.dropped(UNDECODABLE) == n, "it is dropped")
    assert "got 'yuv444'" in flying.wait_for_log("Image dropped")

    flying.send(ONE, seconds=9)
    assert flying.receive().header.stamp.sec == 9, "something was published for a bad image"
    assert flying.dropped(FAILED) == 0


def test_failed_inference_publishes_nothing(ground, tmp_path):
    """Not even an empty array, which would mean that there is no object."""
    site = ground(model=write_fixed_model(tmp_path / "ok.onnx", np.zeros((1, 1, 6))))
    node = site.add_detector()
    assert (node.trigger_configure(), node.trigger_activate()) == (SUCCESS, SUCCESS)
    site.wait_for_detector()
    works, output = site.backend.infer, np.full((1, 1, 6), np.nan, np.float32)

    site.backend.infer = lambda batch: output
    site.send(ONE, seconds=1)
    site.wait_until(lambda: site.dropped(FAILED) == 1, "the failure is counted")
    assert "not finite" in site.wait_for_log("Inference failed")

    site.backend.infer = works
    site.send(ONE, seconds=2)
    assert site.receive().header.stamp.sec == 2


def test_only_the_newest_image_waits_for_a_busy_network(flying):
    with flying.held_inference() as held:
        for number in range(1, 6):
            # Received while the network is busy: the executor is never blocked.
            flying.send_and_wait(ONE, seconds=number)
            flying.wait_until(lambda: held.calls == 1, "the first inference runs")

    assert [flying.receive().header.stamp.sec for _ in range(2)] == [1, 5]
    assert flying.dropped(SUPERSEDED) == 3
    assert flying.detections.empty()


def test_camera_that_stops_is_reported_and_may_return(ground, model):
    site = ground(model=model, confidence=0.9, autostart=True, silence_s=0.2)
    site.add_detector()
    site.wait_for_detector()
    assert "No image on /image" in site.wait_for_log("there is a publisher")

    site.node.destroy_publisher(site.images)
    site.wait_for_log("it has no publisher; remap it with -r image:=/your/topic")

    site.offer_images()
    site.wait_for_detector()
    assert len(site.exchange(ONE).detections) == 1


def test_subscription_follows_the_reliability_of_the_publisher(flying):
    """Reliable if the publisher offers it: large images need retransmission."""
    for reliability in (ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE):
        flying.node.destroy_publisher(flying.images)
        flying.offer_images(reliability)
        flying.wait_for_detector()  # until it subscribes with this reliability
        assert len(flying.exchange(ONE).detections) == 1


def test_processing_time_of_each_frame_is_published(flying):
    times = flying.collect(Float64, "/detector/processing_time_ms")
    flying.exchange(ONE)
    assert 0 < times.get(timeout=WAIT_SECONDS).data < 1e3 * WAIT_SECONDS


def test_label_info_is_latched_and_follows_the_threshold(flying):
    labels = flying.labels()
    label_info = labels.get(timeout=WAIT_SECONDS)
    assert [c.class_name for c in label_info.class_map] == ["car", "person"]
    assert label_info.threshold == pytest.approx(0.9)

    flying.set_parameter("confidence", 0.5)
    flying.send(ONE)
    assert labels.get(timeout=WAIT_SECONDS).threshold == 0.5


def test_parameters_apply_to_the_next_frame(flying):
    white = np.full((64, 64, 3), 255, np.uint8)
    flying.send(white)
    assert len(flying.receive().detections) == 64
    flying.set_parameter("max_detections", 5)
    flying.send(white)
    assert len(flying.receive().detections) == 5
    flying.set_parameter("confidence", 1.0)
    flying.send(white)
    assert len(flying.receive().detections) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence", 1.5),
        ("iou", -0.1),
        ("max_detections", 0),
        ("max_detections", 1001),
        ("autostart", False),
        ("model", 3),
    ],
)
def test_parameter_of_wrong_type_or_range_is_rejected(flying, name, value):
    before = flying.detector.get_parameter(name).value
    assert not flying.try_parameter(name, value).successful
    assert flying.detector.get_parameter(name).value == before


@pytest.fixture
def no_cycle_collector():
    """Free only what nothing refers to any more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_cleanup_frees_the_model(ground, model, no_cycle_collector):
    site = ground(model=model, confidence=0.9, autostart=True)
    node = site.add_detector()
    site.wait_for_detector()
    assert len(site.exchange(ONE).detections) == 1
    backend = weakref.ref(site.backend)

    assert node.trigger_deactivate() == SUCCESS
    assert backend() is not None
    assert node.trigger_cleanup() == SUCCESS
    site.wait_until(lambda: backend() is None, "the model is freed")


def test_cleanup_frees_the_model_of_an_inference_that_outlasts_it(
    ground, model, monkeypatch, no_cycle_collector
):
    monkeypatch.setattr(detector_node, "_STOP_SECONDS", 0.0)
    site = ground(model=model, confidence=0.9, autostart=True)
    node = site.add_detector()
    site.wait_for_detector()
    # Not of the backend, to which its held inference refers.
    loaded = weakref.ref(node._slot.model)
    with site.held_inference() as held:
        site.send(ONE)
        site.wait_until(lambda: held.calls == 1, "the inference runs")
        assert node.trigger_deactivate() == SUCCESS
        assert node.trigger_cleanup() == SUCCESS
        assert loaded() is not None, "freed during an inference"
    site.wait_until(lambda: loaded() is None, "the model is freed")


def test_failed_activation_leaves_no_thread_and_no_subscription(ground, model, monkeypatch):
    class Limited(pipeline.ImageSubscription):
        def __init__(self, node, topic, *args):
            if topic.startswith("down"):
                raise RuntimeError("no more readers")
            super().__init__(node, topic, *args)

    site = ground(model=model, cameras="[front, down]")
    node = site.add_detector()
    assert node.trigger_configure() == SUCCESS
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "ImageSubscription", Limited)
        assert node.trigger_activate() == FAILURE
    assert "no more readers" in site.wait_for_log("cannot activate")
    assert "detector" not in [thread.name for thread in threading.enumerate()]
    assert not [s.topic_name for s in node.subscriptions if s.topic_name.endswith("/image")]
    assert node.trigger_activate() == SUCCESS


def test_life_cycle(ground, model, tmp_path):
    site = ground(model=tmp_path / "missing.onnx", confidence=0.9)
    node = site.add_detector()
    site.wait_for_log("Waiting to be configured and activated")

    assert node.trigger_configure() == FAILURE
    assert "missing.onnx: expected a model file" in site.wait_for_log("cannot configure")
    site.set_parameter("model", str(model))
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    site.wait_for_detector()
    site.send(ONE, seconds=1)
    assert len(site.receive().detections) == 1

    assert node.trigger_deactivate() == SUCCESS
    assert "1 images received, 1 published" in site.wait_for_log("Stopped")
    site.wait_until(lambda: site.images.get_subscription_count() == 0, "it no longer listens")

    assert node.trigger_activate() == SUCCESS
    site.wait_for_detector()
    site.send(ONE, seconds=2)
    assert site.receive().header.stamp.sec == 2

    assert node.trigger_deactivate() == SUCCESS
    assert node.trigger_cleanup() == SUCCESS
    site.wait_until(
        lambda: site.node.count_publishers("/detector/detections") == 0, "the topics are gone"
    )
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    assert node.trigger_shutdown() == SUCCESS
    assert node._pipeline is None


ALLOWED = {  # transition: (from, to)
    Transition.TRANSITION_CONFIGURE: ("unconfigured", "inactive"),
    Transition.TRANSITION_ACTIVATE: ("inactive", "active"),
    Transition.TRANSITION_DEACTIVATE: ("active", "inactive"),
    Transition.TRANSITION_CLEANUP: ("inactive", "unconfigured"),
}


def test_transitions_in_any_order_while_images_come(ground, model):
    site = ground(model=model, confidence=0.9)
    node = site.add_detector()
    camera = site.node.create_timer(0.005, lambda: site.send(ONE))
    state, order = "unconfigured", np.random.default_rng(0)
    for transition in order.choice(list(ALLOWED), 60).tolist():
        request = ChangeState.Request(transition=Transition(id=transition))
        response = site.call(ChangeState, "/detector/change_state", request)
        before, after = ALLOWED[transition]
        assert response.success == (state == before), (state, transition)
        state = after if state == before else state
        assert node._state_machine.current_state[1] == state
    site.node.destroy_timer(camera)
    if state == "unconfigured":
        assert node.trigger_configure() == SUCCESS
    if state != "active":
        assert node.trigger_activate() == SUCCESS
    site.wait_for_detector()
    assert len(site.exchange(ONE, seconds=7).detections) == 1


@pytest.mark.slow
def test_camera_that_is_killed_and_restarted_is_received(flying, tmp_path, start):
    """It does not sign off, so DDS notices late or never."""
    flying.node.destroy_publisher(flying.images)
    cv2.imwrite(str(tmp_path / "one.png"), ONE)
    arguments = ["--ros-args", "-p", f"source:={tmp_path}", "-p", "rate:=50.0", "-p"]
    for name in ("first", "second"):
        process = start("drone_kd.simulation.camera_node", *arguments, f"frame_id:={name}")
        flying.receive_until(flying.detections, lambda m, n=name: m.header.frame_id == n, name)
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_process_detects_and_ends_on_a_signal(ground, model, start_detector, number):
    site = ground()
    process = start_detector(model=model, autostart=True)
    process.wait_for_line("Configured and activated")
    found = site.exchange(ONE, seconds=3)
    assert found.header.stamp.sec == 3
    assert len(found.detections) == 1
    assert "images received" in process.end(number)


def test_class_filter_unknown_to_the_model_fails_configuration(ground, model):
    site = ground(model=model, classes="[lorry]")
    node = site.add_detector()
    assert node.trigger_configure() == FAILURE
    site.wait_for_log(
        "cannot configure: the model knows no class 'lorry'; its classes: car, person"
    )
    site.set_parameter("classes", [""])
    assert node.trigger_configure() == SUCCESS


@pytest.mark.slow
def test_parameter_file_and_bare_off_on_the_command_line(ground, model, start_detector):
    """YAML reads a bare off as false."""
    site = ground()
    defaults = str(config_path("detector.yaml"))
    process = start_detector("--params-file", defaults, tiling="off", model=model)
    process.wait_for_line("Waiting to be configured")
    process.end()
    assert site.detections.empty()


@pytest.mark.slow
def test_process_survives_a_bad_model_and_can_be_configured_again(
    ground, model, tmp_path, start_detector
):
    (tmp_path / "bad.onnx").write_text("not a model")
    site = ground()
    process = start_detector(model=tmp_path / "bad.onnx", autostart=True)
    assert "bad.onnx" in process.wait_for_line("cannot configure")
    parameter = Parameter("model", value=str(model)).to_parameter_msg()
    request = SetParameters.Request(parameters=[parameter])
    response = site.call(SetParameters, "/detector/set_parameters", request)
    assert response.results[0].successful
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert site.call(ChangeState, "/detector/change_state", request).success
    site.exchange(ONE)
    process.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-p", "confidence:=1.5"], "confidence out of range"),
        (["-p", "confidence:=high"], "'confidence'"),
        (["-p", "tiling:=3"], "tiling: expected off, auto or ROWSxCOLUMNS"),
        (["-p", "class_confidence:=[car]"], "expected NAME=THRESHOLD with 0 to 1, got 'car'"),
        (["--params-file", "missing.yaml"], "missing.yaml"),
    ],
)
def test_process_rejects_wrong_parameters_in_one_line(ros_domain_id, start_detector, args, says):
    code, output = start_detector(*args).wait()
    assert code == 2
    (line,) = [line for line in output.splitlines() if "[rcl]" not in line]
    assert line.startswith("detector: error: ")
    assert says in line


@pytest.mark.slow
def test_hostile_parameters_do_not_end_the_process(ground, start_detector, model):
    site = ground()
    process = start_detector(model=model, confidence=0.9, autostart=True)
    site.wait_for_detector()
    hostile = [("model", "m" * 5000), ("record_directory", "~nosuchuser/x")]
    for name, value in hostile:
        request = SetParameters.Request()
        request.parameters = [Parameter(name, value=value).to_parameter_msg()]
        response = site.call(SetParameters, "/detector/set_parameters", request)
        assert not response.results[0].successful
        assert len(response.results[0].reason) <= 300
    site.send(ONE)
    assert len(site.receive().detections) == 1
    process.end()
