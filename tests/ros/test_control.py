"""Control in flight: parameters, model swaps, roll-back, ~/enable; diagnostics, debug images."""

import errno
import threading
from array import array
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces import msg, srv
from rclpy.logging import LoggingSeverity
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from drone_kd.ros import debug_image, model_loader
from drone_kd.ros.drop_reasons import DISABLED, UNDECODABLE
from drone_kd.ros.image_conversion import image_to_bgr
from ground_station import WAIT_SECONDS
from tiny_model import tiny_spec, write_bright_cell_model

WHITE = np.full((64, 64, 3), 255, np.uint8)
ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255


def count(site, image=WHITE):
    site.send(image)
    return len(site.receive().detections)


def test_class_filter_and_thresholds_apply_to_the_next_frame(flying):
    assert count(flying) == 64
    flying.set_parameter("classes", ["person"])
    assert count(flying) == 0
    flying.set_parameter("classes", ["person", "car"])
    assert count(flying) == 64
    flying.set_parameter("class_confidence", ["person=0.1", "car=1.0"])
    assert count(flying) == 0
    flying.set_parameter("class_confidence", [""])
    flying.set_parameter("classes", [""])
    assert count(flying) == 64


def test_tiling_finds_objects_too_small_for_the_whole_image(flying):
    """A cell of the network is 32 px wide in 256 x 256 px, and 8 px in one of 16 tiles."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[8:16, 16:24] = image[200:208, 128:136] = 255
    assert count(flying, image) == 0
    flying.set_parameter("tile_overlap", 0.0)
    flying.set_parameter("tiling", "4x4")
    flying.send(image)
    centres = {
        (d.bbox.center.position.x, d.bbox.center.position.y) for d in flying.receive().detections
    }
    assert centres == {(20, 12), (132, 204)}
    # A budget for the whole image only.
    flying.set_parameter("budget_ms", 1e-3)
    assert count(flying, image) == 0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("classes", ["lorry"], "knows no class 'lorry'; its classes: car, person"),
        ("class_confidence", ["car=2"], "expected NAME=THRESHOLD with 0 to 1, got 'car=2'"),
        ("class_confidence", ["car"], "got 'car'"),
        ("class_confidence", ["lorry=0.5"], "knows no class 'lorry'"),
        ("tiling", "3", "expected off, auto or ROWSxCOLUMNS"),
        ("tiling", array("d", [0.5] * 20_000), "expected up to 10000 values"),
        (
            "tiling",
            [0.5],
            "tiling: expected off, auto or ROWSxCOLUMNS as text, got a value of type list",
        ),
        (
            "tiling",
            True,
            "tiling: expected off, auto or ROWSxCOLUMNS as text, got a value of type bool",
        ),
        ("tile_overlap", 0.9, "tile_overlap"),
        ("reliability", "best effort", "expected auto or reliable or best_effort"),
        ("image_transport", "theora", "expected raw or compressed"),
        ("max_age", -1.0, "max_age"),
        ("model", "/no/such/model.onnx", "model: expected a file in"),
        ("model", "m" * 5000, "model: expected a file in"),
        ("model", "a\0b", "model: expected a file in"),
        ("record_directory", "~nosuchuser/x", "read-only"),
        ("model_directories", ["/"], "read-only"),
        ("record_budget_mb", 10.0, "read-only"),
        ("swap_timeout_s", 3600.0, "read-only"),
        ("use_sim_time", True, "fixed at startup"),
        ("cameras", ["a", "b"], "read-only"),
    ],
)
def test_invalid_parameter_is_rejected_and_the_old_value_kept(flying, name, value, says):
    before = flying.detector.get_parameter(name).value
    result = flying.try_parameter(name, value)
    assert not result.successful
    assert says in result.reason
    assert flying.detector.get_parameter(name).value == before
    assert count(flying) == 64


def test_refused_relative_model_gets_the_folders_and_the_remedy(ground, model, tmp_path):
    site = ground(model=model, model_directories=["models", str(tmp_path)])
    site.add_detector()
    folder = Path("models").absolute()
    assert f"No folder {folder}: " in site.wait_for_log("no model can be loaded from it")
    reason = site.try_parameter("model", "other.onnx").reason
    assert f"expected a file in {folder} or {tmp_path} (set by model_directories" in reason
    assert reason.endswith('got "other.onnx": give an absolute path')


def test_refused_model_does_not_tell_what_exists(flying, model, tmp_path, monkeypatch):
    """Anyone on the network can set the parameter."""
    outside = [Path(__file__), tmp_path.parent / "missing.onnx", Path("/dev/zero"), tmp_path]
    (tmp_path / "pipe.onnx").symlink_to("/dev/zero")
    (tmp_path / "out.onnx").symlink_to(__file__)
    inside = [tmp_path / name for name in ("missing.onnx", "pipe.onnx", "out.onnx")]
    reasons = set()
    for path in [*outside, *inside]:
        result = flying.try_parameter("model", str(path))
        assert not result.successful, path
        reasons.add(result.reason.replace(str(path), "PATH"))
    with monkeypatch.context() as patch:  # the tests may run as root, who may read everything
        patch.setattr(Path, "is_file", Mock(side_effect=PermissionError(errno.EACCES, "no")))
        reasons.add(flying.try_parameter("model", str(model)).reason.replace(str(model), "PATH"))
    assert len({reason.partition(" in ")[0] for reason in reasons}) == 1, reasons
    assert count(flying) == 64


def test_link_that_was_the_first_model_can_be_changed_and_set_again(ground, tmp_path):
    for folder in ("models", "links"):
        (tmp_path / folder).mkdir()
    write_bright_cell_model(tmp_path / "models/1.onnx")
    write_bright_cell_model(tmp_path / "models/2.onnx", tiny_spec(classes=("bus", "dog")))
    link = tmp_path / "links/current.onnx"
    link.symlink_to("../models/1.onnx")
    site = ground(model=link, confidence=0.9, autostart=True)
    site.add_detector()
    site.wait_for_detector()
    link.unlink()
    link.symlink_to("../models/2.onnx")
    site.set_parameter("model", str(link))
    site.wait_for_log("Swapped to model current.onnx")
    assert class_of_one(site) == "bus"
    assert not site.try_parameter("model", str(tmp_path / "models/1.onnx")).successful


def test_model_in_the_home_folder_flies_and_can_be_set_again(ground, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_bright_cell_model(tmp_path / "1.onnx")
    write_bright_cell_model(tmp_path / "2.onnx", tiny_spec(classes=("bus", "dog")))
    site = ground(model="~/1.onnx", confidence=0.9, autostart=True)
    site.add_detector()
    site.wait_for_detector()
    assert class_of_one(site) == "car"
    for name, found in (("2", "bus"), ("1", "car")):
        site.set_parameter("model", f"~/{name}.onnx")
        site.wait_for_log(f"Swapped to model {name}.onnx")
        assert class_of_one(site) == found


def test_model_is_swapped_without_losing_a_frame(flying, tmp_path, monkeypatch):
    labels = flying.labels()
    assert [c.class_name for c in labels.get(timeout=WAIT_SECONDS).class_map] == ["car", "person"]
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    loading, gate, works = threading.Event(), threading.Event(), model_loader.open_backend

    def slow(path, **options):
        loading.set()
        gate.wait(WAIT_SECONDS)
        return works(path, **options)

    monkeypatch.setattr(model_loader, "open_backend", slow)
    flying.set_parameter("model", str(other))
    assert loading.wait(WAIT_SECONDS)
    flying.send(ONE)
    assert flying.receive().detections[0].results[0].hypothesis.class_id == "car"
    gate.set()
    flying.wait_for_log("Swapped to model other.onnx")
    flying.send(ONE)
    assert flying.receive().detections[0].results[0].hypothesis.class_id == "bus"
    assert [c.class_name for c in labels.get(timeout=WAIT_SECONDS).class_map] == ["bus", "dog"]


def damaged_model(path):
    path.write_text("not a model")


def model_that_lacks_the_class(path):
    write_bright_cell_model(path, tiny_spec(classes=("bus", "dog")))


@pytest.mark.parametrize(
    ("make", "says"),
    [(damaged_model, "cannot load it"), (model_that_lacks_the_class, "knows no class 'car'")],
)
def test_unusable_model_is_rejected_and_the_parameter_set_back(
    flying, model, tmp_path, make, says
):
    stats = flying.collect(DiagnosticArray, "/detector/stats")
    flying.set_parameter("classes", ["car"])
    make(tmp_path / "other.onnx")
    flying.set_parameter("model", str(tmp_path / "other.onnx"))
    line = flying.wait_for_log("cannot load")
    assert says in line and "keeping model.onnx" in line
    flying.wait_until(
        lambda: flying.detector.get_parameter("model").value == str(model), "it is set back"
    )
    assert count(flying) == 64
    message = flying.receive_until(
        stats, lambda m: m.status[0].level == DiagnosticStatus.WARN, "the rejection is reported"
    )
    assert says in message.status[0].message
    flying.set_parameter("model", str(model))
    flying.receive_until(
        stats, lambda m: m.status[0].level == DiagnosticStatus.OK, "a good model clears it"
    )


def test_class_filter_set_during_a_load_is_checked_against_the_new_model(
    flying, model, tmp_path, monkeypatch
):
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    loading, gate, works = threading.Event(), threading.Event(), model_loader.load_model

    def slow(*arguments, **options):
        loaded = works(*arguments, **options)
        loading.set()
        gate.wait(WAIT_SECONDS)
        return loaded

    monkeypatch.setattr(model_loader, "load_model", slow)
    flying.set_parameter("model", str(other))
    assert loading.wait(WAIT_SECONDS)
    flying.set_parameter("classes", ["car"])
    gate.set()
    assert "knows no class 'car'" in flying.wait_for_log("cannot load")
    assert count(flying) == 64


def test_latest_of_several_requested_models_is_used(flying, model, tmp_path):
    for number in range(4):
        path = write_bright_cell_model(
            tmp_path / f"{number}.onnx", tiny_spec(classes=(f"class{number}", "x"))
        )
        flying.set_parameter("model", str(path))
    flying.wait_for_log("Swapped to model 3.onnx")
    flying.send(ONE)
    assert flying.receive().detections[0].results[0].hypothesis.class_id == "class3"


def roll_back(site):
    return site.call(Trigger, "/detector/rollback", Trigger.Request())


def class_of_one(site):
    site.send(ONE)
    return site.receive().detections[0].results[0].hypothesis.class_id


def test_roll_back_needs_no_file_and_can_be_undone(flying, model, tmp_path):
    labels = flying.labels()
    assert labels.get(timeout=WAIT_SECONDS).class_map[0].class_name == "car"
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    flying.set_parameter("model", str(other))
    flying.wait_for_log("Swapped to model other.onnx")
    assert class_of_one(flying) == "bus"
    model.write_text("no longer a model")
    response = roll_back(flying)
    assert response.success and "rolled back to model model.onnx" in response.message
    assert class_of_one(flying) == "car"
    assert flying.detector.get_parameter("model").value == str(model)
    assert [labels.get(timeout=WAIT_SECONDS).class_map[0].class_name for _ in range(2)] == [
        "bus",
        "car",
    ]
    assert roll_back(flying).success and class_of_one(flying) == "bus"


def test_level_of_the_log_can_be_set(flying):
    if not hasattr(srv, "SetLoggerLevels"):
        pytest.skip("Humble has no such service")
    level = msg.LoggerLevel(name="detector", level=msg.LoggerLevel.LOG_LEVEL_ERROR)
    request = srv.SetLoggerLevels.Request(levels=[level])
    response = flying.call(srv.SetLoggerLevels, "/detector/set_logger_levels", request)
    assert response.results[0].successful
    try:
        assert not flying.detector.get_logger().is_enabled_for(LoggingSeverity.INFO)
    finally:
        flying.detector.get_logger().set_level(LoggingSeverity.UNSET)


def test_impossible_roll_back_is_rejected_with_the_reason(flying, tmp_path):
    response = roll_back(flying)
    assert not response.success and "there was no other model" in response.message
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    flying.set_parameter("model", str(other))
    flying.wait_for_log("Swapped to model other.onnx")
    assert class_of_one(flying) == "bus"
    flying.wait_until(lambda: flying.detector._slot.former() is None, "the model is settled")
    flying.set_parameter("classes", ["bus"])
    response = roll_back(flying)
    assert not response.success and "knows no class 'bus'" in response.message
    assert class_of_one(flying) == "bus"


def test_roll_back_drops_a_load_in_progress(flying, model, tmp_path, monkeypatch):
    names = ("other", "third")
    other, third = (write_bright_cell_model(tmp_path / f"{name}.onnx") for name in names)
    flying.set_parameter("model", str(other))
    flying.wait_for_log("Swapped to model other.onnx")
    loading, gate, works = threading.Event(), threading.Event(), model_loader.load_model

    def slow(*arguments, **options):
        loading.set()
        gate.wait(WAIT_SECONDS)
        return works(*arguments, **options)

    monkeypatch.setattr(model_loader, "load_model", slow)
    flying.set_parameter("model", str(third))
    assert loading.wait(WAIT_SECONDS)
    assert roll_back(flying).success
    gate.set()
    flying.wait_until(lambda: flying.detector._loader._thread is None, "the load has ended")
    assert class_of_one(flying) == "car"  # the executor has handled what the loader left
    assert flying.detector.get_parameter("model").value == str(model)
    assert "Swapped to model third.onnx" not in flying.log()


def enable(site, on):
    assert site.call(SetBool, "/detector/enable", SetBool.Request(data=on)).success


def test_disabled_node_drops_frames_until_it_is_enabled(flying):
    enable(flying, False)
    flying.send(ONE, seconds=1)
    flying.wait_until(lambda: flying.dropped(DISABLED) == 1, "the frame is dropped")
    enable(flying, True)
    flying.send(ONE, seconds=2)
    assert flying.receive().header.stamp.sec == 2
    assert flying.detections.empty()


def test_disabling_during_an_inference_publishes_it_and_drops_the_waiting_frame(flying):
    with flying.held_inference() as held:
        flying.send_and_wait(ONE, seconds=1)
        flying.wait_until(lambda: held.calls == 1, "the inference runs")
        flying.send_and_wait(ONE, seconds=2)
        enable(flying, False)
        assert flying.dropped(DISABLED) == 1
        flying.send_and_wait(ONE, seconds=3)
        assert flying.dropped(DISABLED) == 2
    assert flying.receive().header.stamp.sec == 1
    enable(flying, True)
    flying.send(ONE, seconds=4)
    assert flying.receive().header.stamp.sec == 4
    assert flying.detections.empty()


def test_diagnostics_of_an_active_node(flying, model):
    # A slow machine must not turn the silence or the latency of a camera into its status.
    for name, value in (("silence_s", 60.0), ("latency_warn_ms", 0.0), ("latency_error_ms", 0.0)):
        flying.set_parameter(name, value)
    received = {
        topic: flying.collect(DiagnosticArray, topic)
        for topic in ("/diagnostics", "/detector/stats")
    }
    flying.send(ONE, seconds=0)
    flying.receive()
    bad = Image(width=2, height=2, encoding="bgr8", step=6, data=bytes(11))
    flying.send(bad, seconds=0)
    flying.wait_until(lambda: flying.dropped(UNDECODABLE) == 1, "it is dropped")
    for messages in received.values():
        message = flying.receive_until(
            messages, lambda m: m.status[1].level == DiagnosticStatus.WARN, "the drop is reported"
        )
        node, camera = message.status
        assert (node.name, node.level) == ("/detector", DiagnosticStatus.OK)
        values = {pair.key: pair.value for pair in node.values}
        assert values["model"] == "model.onnx" and len(values["model sha256"]) == 64
        assert values["state"] == "active" and values["precision"] == "fp32"
        assert values["backend"].startswith("onnxruntime")
        assert (camera.name, camera.level) == ("/detector: image", DiagnosticStatus.WARN)
        assert "1 images could not be read" in camera.message
        values = {pair.key: pair.value for pair in camera.values}
        assert values["topic"] == "/image"
        assert (values["frames in"], values["frames processed"]) == ("2", "1")
        assert (values["dropped undecodable"], values["dropped failed"]) == ("1", "0")
        for stage in ("wait", "decode", "prepare", "infer", "post", "publish", "total"):
            assert 0 <= float(values[f"{stage} p50 (ms)"]) <= float(values[f"{stage} p99 (ms)"])


def test_inference_without_end_is_an_error_of_node_and_camera(flying):
    for name, value in (("stall_s", 0.5), ("latency_warn_ms", 0.0), ("latency_error_ms", 0.0)):
        flying.set_parameter(name, value)
    received = flying.collect(DiagnosticArray, "/diagnostics")

    def is_error(message):
        flying.send(ONE, seconds=0)  # the camera goes on
        return [status.level for status in message.status] == [DiagnosticStatus.ERROR] * 2

    with flying.held_inference():
        message = flying.receive_until(received, is_error, "it is reported")
        for status in message.status:
            assert "frames are received, but there is no result for" in status.message
    flying.receive_until(
        received, lambda m: m.status[0].level == DiagnosticStatus.OK, "the results clear it"
    )


def test_diagnostics_of_an_unconfigured_node(ground, tmp_path):
    site = ground(model=tmp_path / "missing.onnx")
    node = site.add_detector()
    messages = site.collect(DiagnosticArray, "/diagnostics")
    (status,) = messages.get(timeout=WAIT_SECONDS).status
    assert (status.level, status.message) == (
        DiagnosticStatus.WARN,
        "unconfigured: no detections",
    )
    node.trigger_configure()
    message = site.receive_until(
        messages, lambda m: m.status[0].level == DiagnosticStatus.ERROR, "the error is reported"
    )
    assert "missing.onnx: expected a model file" in message.status[0].message


def test_debug_images_are_drawn_only_for_subscribers(flying, monkeypatch):
    drawn, draws = [], debug_image.draw_detections

    def draw(*arguments):
        drawn.append(arguments)
        return draws(*arguments)

    monkeypatch.setattr(debug_image, "draw_detections", draw)
    assert count(flying, ONE) == 1
    assert count(flying, ONE) == 1
    assert not drawn, "there is no subscriber"

    raw = flying.collect(Image, "/detector/debug/image", depth=1)
    jpeg = flying.collect(CompressedImage, "/detector/debug/image/compressed", depth=1)
    header = flying.send(ONE, seconds=8)
    image = raw.get(timeout=WAIT_SECONDS)
    assert image.header == header
    annotated = image_to_bgr(image)
    assert annotated.shape == ONE.shape and (annotated != ONE).any()
    message = jpeg.get(timeout=WAIT_SECONDS)
    assert message.header == header
    decoded = np.asarray(cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR))
    assert np.abs(decoded.astype(int) - annotated).mean() < 20


def test_slow_drawing_delays_no_detection_and_continues_with_the_newest_frame(flying, monkeypatch):
    gate, began, draws = threading.Event(), threading.Event(), debug_image.draw_detections

    def draw(*arguments):
        began.set()
        assert gate.wait(WAIT_SECONDS)
        return draws(*arguments)

    monkeypatch.setattr(debug_image, "draw_detections", draw)
    images = flying.collect(Image, "/detector/debug/image")
    for seconds in range(1, 6):
        flying.send(ONE, seconds)
        assert flying.receive().header.stamp.sec == seconds, "it waits for the viewer"
        assert began.wait(WAIT_SECONDS)
    waiting = flying.detector._cameras[""].debug
    flying.wait_until(
        lambda: (newest := waiting._newest) and newest[0].frame.message.header.stamp.sec == 5,
        "the last one waits",
    )
    gate.set()
    assert [images.get(timeout=WAIT_SECONDS).header.stamp.sec for _ in range(2)] == [1, 5]
    assert images.empty()


def test_failed_drawing_is_counted_and_the_next_frame_is_drawn(flying, monkeypatch):
    images = flying.collect(Image, "/detector/debug/image")
    with monkeypatch.context() as patch:
        patch.setattr(debug_image, "draw_detections", lambda *_: 1 / 0)
        assert count(flying, ONE) == 1
        assert "ZeroDivisionError" in flying.wait_for_log("Debug image failed")
    flying.send(ONE, seconds=2)
    assert images.get(timeout=WAIT_SECONDS).header.stamp.sec == 2


def test_compressed_image_is_decoded_at_reduced_size(ground, model):
    site = ground(model=model, confidence=0.9, autostart=True, image_transport="compressed")
    site.add_detector()
    publisher = site.node.create_publisher(CompressedImage, "image/compressed", 1)
    site.wait_for_subscriber(publisher)
    site.wait_for_publisher("/detector/detections")
    image = np.zeros((256, 256, 3), np.uint8)  # decoded at a quarter of its size
    image[32:64, 64:96] = 255
    message = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", image)[1].tobytes())
    publisher.publish(message)
    (detection,) = site.receive().detections
    centre = detection.bbox.center.position
    assert (centre.x, centre.y, detection.bbox.size_x) == (80, 48, 32)
