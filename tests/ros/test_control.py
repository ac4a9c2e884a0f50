"""Control in flight: parameters, warm model swaps, ~/enable; and what the node tells of itself."""

import threading

import cv2
import numpy as np
import pytest

from tiny_model import tiny_spec, write_bright_cell_model

pytest.importorskip("rclpy", reason="ROS 2 is not here")
pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not here")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from drone_kd.ros import debug_image, model_loader
from drone_kd.ros import detector_node as node_module
from drone_kd.ros.image_conversion import image_to_bgr
from drone_kd.ros.stats import DISABLED, UNDECODABLE

WHITE = np.full((64, 64, 3), 255, np.uint8)
ONE = np.zeros((64, 64, 3), np.uint8)
ONE[8:16, 8:16] = 255


@pytest.fixture(autouse=True)
def frequent_reports(monkeypatch):
    monkeypatch.setattr(node_module, "REPORT_SECONDS", 0.1)


def set_parameter(site, name, value):
    """Set it as the parameter service does: in the executor's thread."""
    task = site.executor.create_task(site.detector.set_parameters, [Parameter(name, value=value)])
    site.wait_until(task.done, "the parameter is set")
    return task.result()[0]


def count(site, image=WHITE):
    site.send(image)
    return len(site.receive().detections)


def test_class_filter_and_thresholds_from_the_next_frame_on(flying):
    assert count(flying) == 64
    assert set_parameter(flying, "classes", ["person"]).successful
    assert count(flying) == 0
    assert set_parameter(flying, "classes", ["person", "car"]).successful
    assert count(flying) == 64
    assert set_parameter(flying, "class_confidence", ["person=0.1", "car=1.0"]).successful
    assert count(flying) == 0
    assert set_parameter(flying, "class_confidence", [""]).successful
    assert set_parameter(flying, "classes", [""]).successful
    assert count(flying) == 64


def test_tiles_find_what_the_whole_picture_hides(flying):
    """On 256 x 256 px a cell of the network is 32 px wide, and in one of 16 tiles 8 px."""
    image = np.zeros((256, 256, 3), np.uint8)
    image[8:16, 16:24] = image[200:208, 128:136] = 255
    assert count(flying, image) == 0
    assert set_parameter(flying, "tile_overlap", 0.0).successful
    assert set_parameter(flying, "tiling", "4x4").successful
    flying.send(image)
    centres = {
        (d.bbox.center.position.x, d.bbox.center.position.y) for d in flying.receive().detections
    }
    assert centres == {(20, 12), (132, 204)}
    # A budget that only the whole picture fits into.
    assert set_parameter(flying, "budget_ms", 1e-3).successful
    assert count(flying, image) == 0


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("classes", ["lorry"], "knows no class 'lorry'; its classes: car, person"),
        ("class_confidence", ["car=2"], "expected NAME=THRESHOLD with 0 to 1, got 'car=2'"),
        ("class_confidence", ["car"], "got 'car'"),
        ("class_confidence", ["lorry=0.5"], "knows no class 'lorry'"),
        ("tiling", "3", "expected off, auto or ROWSxCOLUMNS"),
        ("tile_overlap", 0.9, "tile_overlap"),
        ("reliability", "best effort", "expected auto or reliable or best_effort"),
        ("image_transport", "theora", "expected raw or compressed"),
        ("max_age", -1.0, "max_age"),
        ("model", "/no/such/model.onnx", "expected a model file, but there is none"),
        ("cameras", ["a", "b"], "read-only"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(flying, name, value, says):
    before = flying.detector.get_parameter(name).value
    result = set_parameter(flying, name, value)
    assert not result.successful
    assert says in result.reason
    assert flying.detector.get_parameter(name).value == before
    assert count(flying) == 64


def test_a_model_is_swapped_without_losing_a_frame(flying, tmp_path, monkeypatch):
    labels = flying.labels()
    assert [c.class_name for c in labels.get(timeout=10).class_map] == ["car", "person"]
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    loading, gate, works = threading.Event(), threading.Event(), model_loader.open_backend

    def slow(path, **options):
        loading.set()
        gate.wait(10)
        return works(path, **options)

    monkeypatch.setattr(model_loader, "open_backend", slow)
    assert set_parameter(flying, "model", str(other)).successful
    assert loading.wait(10)
    flying.send(ONE)
    assert flying.receive().detections[0].results[0].hypothesis.class_id == "car"
    gate.set()
    flying.wait_for_log("swapped, model other.onnx")
    flying.send(ONE)
    assert flying.receive().detections[0].results[0].hypothesis.class_id == "bus"
    assert [c.class_name for c in labels.get(timeout=10).class_map] == ["bus", "dog"]


def bad_model(path):
    path.write_text("not a model")


def model_that_lacks_the_class(path):
    write_bright_cell_model(path, tiny_spec(classes=("bus", "dog")))


@pytest.mark.parametrize(
    ("make", "says"),
    [(bad_model, "cannot load it"), (model_that_lacks_the_class, "knows no class 'car'")],
)
def test_a_model_that_cannot_fly_is_rolled_back(flying, model, tmp_path, make, says):
    stats = flying.collect(DiagnosticArray, "/detector/stats")
    set_parameter(flying, "classes", ["car"])
    make(tmp_path / "other.onnx")
    assert set_parameter(flying, "model", str(tmp_path / "other.onnx")).successful
    line = flying.wait_for_log("cannot load")
    assert says in line and "model.onnx flies on" in line
    flying.wait_until(
        lambda: flying.detector.get_parameter("model").value == str(model), "it is set back"
    )
    assert count(flying) == 64
    while (status := stats.get(timeout=5).status[0]).level != DiagnosticStatus.WARN:
        pass
    assert says in status.message
    # A model that works clears the complaint.
    assert set_parameter(flying, "model", str(model)).successful
    while (status := stats.get(timeout=5).status[0]).level != DiagnosticStatus.OK:
        pass


def test_a_filter_set_while_a_model_is_loaded(flying, model, tmp_path, monkeypatch):
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    loading, gate, works = threading.Event(), threading.Event(), model_loader.load_model

    def slow(*arguments, **options):
        loaded = works(*arguments, **options)
        loading.set()
        gate.wait(10)
        return loaded

    monkeypatch.setattr(model_loader, "load_model", slow)
    assert set_parameter(flying, "model", str(other)).successful
    assert loading.wait(10)
    assert set_parameter(flying, "classes", ["car"]).successful
    gate.set()
    assert "knows no class 'car'" in flying.wait_for_log("cannot load")
    assert count(flying) == 64


def test_of_several_models_the_last_one_flies(flying, model, tmp_path):
    for number in range(4):
        path = write_bright_cell_model(
            tmp_path / f"{number}.onnx", tiny_spec(classes=(f"class{number}", "x"))
        )
        assert set_parameter(flying, "model", str(path)).successful
    flying.wait_for_log("swapped, model 3.onnx")
    flying.send(ONE)
    assert flying.receive().detections[0].results[0].hypothesis.class_id == "class3"


def roll_back(site):
    client = site.node.create_client(Trigger, "/detector/rollback")
    assert client.wait_for_service(10)
    future = client.call_async(Trigger.Request())
    site.wait_until(future.done, "the service answers")
    return future.result()


def name_of_one(site):
    site.send(ONE)
    return site.receive().detections[0].results[0].hypothesis.class_id


def test_roll_back_is_one_command_and_needs_no_file(flying, model, tmp_path):
    labels = flying.labels()
    assert labels.get(timeout=10).class_map[0].class_name == "car"
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    assert set_parameter(flying, "model", str(other)).successful
    flying.wait_for_log("swapped, model other.onnx")
    assert name_of_one(flying) == "bus"
    model.write_text("no longer a model")
    answer = roll_back(flying)
    assert answer.success and "rolled back, model model.onnx" in answer.message
    assert name_of_one(flying) == "car"
    assert flying.detector.get_parameter("model").value == str(model)
    assert [labels.get(timeout=10).class_map[0].class_name for _ in range(2)] == ["bus", "car"]
    assert roll_back(flying).success and name_of_one(flying) == "bus"


def test_a_roll_back_that_cannot_be_says_why(flying, tmp_path):
    answer = roll_back(flying)
    assert not answer.success and "no other model has flown" in answer.message
    other = write_bright_cell_model(tmp_path / "other.onnx", tiny_spec(classes=("bus", "dog")))
    assert set_parameter(flying, "model", str(other)).successful
    flying.wait_for_log("swapped, model other.onnx")
    assert set_parameter(flying, "classes", ["bus"]).successful
    answer = roll_back(flying)
    assert not answer.success and "knows no class 'bus'" in answer.message
    assert name_of_one(flying) == "bus"


def test_a_roll_back_ends_a_load_under_way(flying, model, tmp_path, monkeypatch):
    names = ("other", "third")
    other, third = (write_bright_cell_model(tmp_path / f"{name}.onnx") for name in names)
    assert set_parameter(flying, "model", str(other)).successful
    flying.wait_for_log("swapped, model other.onnx")
    loading, gate, works = threading.Event(), threading.Event(), model_loader.load_model

    def slow(*arguments, **options):
        loading.set()
        gate.wait(10)
        return works(*arguments, **options)

    monkeypatch.setattr(model_loader, "load_model", slow)
    assert set_parameter(flying, "model", str(third)).successful
    assert loading.wait(10)
    assert roll_back(flying).success
    gate.set()
    flying.wait_until(lambda: flying.detector._loader.stop(), "the load has ended")
    assert flying.detector.get_parameter("model").value == str(model)
    assert "swapped, model third.onnx" not in flying.log()


def test_enable(flying):
    client = flying.node.create_client(SetBool, "/detector/enable")
    assert client.wait_for_service(10)

    def enable(on):
        future = client.call_async(SetBool.Request(data=on))
        flying.wait_until(future.done, "the service answers")
        assert future.result().success

    enable(False)
    flying.send(ONE, seconds=1)
    flying.wait_until(
        lambda: flying.detector.reports()[""].dropped[DISABLED] == 1, "the frame is dropped"
    )
    enable(True)
    flying.send(ONE, seconds=2)
    assert flying.receive().header.stamp.sec == 2
    assert flying.detections.empty()


def test_diagnostics(flying, model):
    received = {
        topic: flying.collect(DiagnosticArray, topic)
        for topic in ("/diagnostics", "/detector/stats")
    }
    flying.send(ONE, seconds=0)
    flying.receive()
    bad = Image(width=2, height=2, encoding="bgr8", step=6, data=bytes(11))
    flying.send(bad, seconds=0)
    flying.wait_until(
        lambda: flying.detector.reports()[""].dropped[UNDECODABLE] == 1, "it is dropped"
    )
    for messages in received.values():
        while not messages.empty():
            messages.get()
        node, camera = messages.get(timeout=5).status
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


def test_diagnostics_of_a_node_that_is_not_configured(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(node_module, "REPORT_SECONDS", 0.1)
    site = ground(model=tmp_path / "missing.onnx")
    node = site.add_detector()
    messages = site.collect(DiagnosticArray, "/diagnostics")
    (status,) = messages.get(timeout=5).status
    assert (status.level, status.message) == (
        DiagnosticStatus.WARN,
        "unconfigured: no detections",
    )
    node.trigger_configure()
    while (status := messages.get(timeout=5).status[0]).level != DiagnosticStatus.ERROR:
        pass
    assert "missing.onnx: expected a model file" in status.message


def test_debug_images_for_those_who_look(flying, monkeypatch):
    drawn, draws = [], debug_image.draw_detections
    monkeypatch.setattr(debug_image, "draw_detections", lambda *a: drawn.append(1) or draws(*a))
    assert count(flying, ONE) == 1
    assert count(flying, ONE) == 1
    assert not drawn, "nobody looks"

    raw = flying.collect(Image, "/detector/debug/image", depth=1)
    jpeg = flying.collect(CompressedImage, "/detector/debug/image/compressed", depth=1)
    flying.wait_until(
        lambda: (
            flying.detector._debug[""]._raw.get_subscription_count() > 0
            and flying.detector._debug[""]._compressed.get_subscription_count() > 0
        ),
        "the detector knows",
    )
    header = flying.send(ONE, seconds=8)
    image = raw.get(timeout=5)
    assert image.header == header
    picture = image_to_bgr(image)
    assert picture.shape == ONE.shape and (picture != ONE).any()
    message = jpeg.get(timeout=5)
    assert message.header == header
    decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(decoded.astype(int) - picture).mean() < 20


def test_compressed_images(ground, model):
    site = ground(model=model, confidence=0.9, autostart=True, image_transport="compressed")
    site.add_detector()
    publisher = site.node.create_publisher(CompressedImage, "image/compressed", 1)
    site.wait_until(lambda: publisher.get_subscription_count() == 1, "the detector listens")
    site.wait_until(
        lambda: site.node.count_publishers("/detector/detections") == 1, "we hear the detector"
    )
    image = np.zeros((256, 256, 3), np.uint8)  # decoded at a quarter of its size
    image[32:64, 64:96] = 255
    message = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", image)[1].tobytes())
    publisher.publish(message)
    (detection,) = site.receive().detections
    centre = detection.bbox.center.position
    assert (centre.x, centre.y, detection.bbox.size_x) == (80, 48, 32)
