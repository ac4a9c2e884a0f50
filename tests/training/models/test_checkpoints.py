import pytest

from drone_kd_training.models.checkpoints import (
    UnusableModelError,
    class_names,
    cost,
    load_model,
    match_classes,
    resolve_model,
)
from tiny_training import save_checkpoint


def test_classes_match_by_name_and_the_table_shows_the_rest():
    match = match_classes(("Car", "minibus", "person"), ("person", "car", "boat"))
    assert match.pairs == ((0, 1), (2, 0))
    assert "minibus (1)" in match.table()
    assert "labels only" in match.table()
    assert "not used: boat" in match.table()


def test_no_common_class_is_refused_with_both_lists():
    with pytest.raises(UnusableModelError, match=r"no class in common.*\['ship'\].*\['car'\]"):
        match_classes(("ship",), ("car",))


def test_packaged_models_are_found_by_name():
    assert resolve_model("aerial-student.yaml").endswith("recipes/aerial-student.yaml")
    assert resolve_model("yolo11n.yaml") == "yolo11n.yaml"


@pytest.mark.parametrize("name", ["model.txt", "nowhere/model.pt", "no-such-model.yaml"])
def test_missing_models_are_refused(name):
    with pytest.raises(UnusableModelError):
        resolve_model(name)


def test_yaml_without_a_model_is_refused(tiny_data):
    with pytest.raises(UnusableModelError, match="expected keys backbone and head"):
        resolve_model(str(tiny_data))


@pytest.mark.parametrize("content", [b"", b"just text", b"PK\x03\x04 truncated"])
def test_file_that_is_not_a_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UnusableModelError, match="not an Ultralytics checkpoint") as error:
        load_model(str(path))
    assert "\n" not in str(error.value)


def test_model_that_is_not_a_detector_is_refused(tmp_path):
    with pytest.raises(UnusableModelError, match="Detect head, found Classify"):
        load_model("yolo11n-cls.yaml")


def test_checkpoint_round_trip_and_cost(tmp_path):
    model, _ = load_model(str(save_checkpoint(tmp_path / "a.pt", names=("a", "b", "c"))))
    assert class_names(model) == ("a", "b", "c")
    assert not model.training
    assert 4e5 < cost(model, 640)["parameters"] < 1e6
    assert cost(model, 640)["gflops"] == pytest.approx(4 * cost(model, 320)["gflops"], rel=0.05)
