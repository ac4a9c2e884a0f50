import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics.utils.torch_utils import is_qat, prepare_qat, qat_state

from drone_kd_training.models.checkpoints import (
    PACKAGED_MODELS,
    UnusableModelError,
    class_names,
    cost,
    load_model,
    match_classes,
    resolve_model,
)
from tiny_training import SIZE, save_checkpoint
from touch_file import TouchFile


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


def test_released_checkpoint_is_downloaded_only_if_allowed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnusableModelError, match=r"no checkpoint at yolo11n\.pt: .*DOWNLOADS=1"):
        resolve_model("yolo11n.pt")
    monkeypatch.setenv("DRONE_KD_DOWNLOADS", "1")
    assert resolve_model("yolo11n.pt") == "yolo11n.pt"
    with pytest.raises(UnusableModelError, match=r"no checkpoint at yolo11m\.ptt\.pt$"):
        resolve_model("yolo11m.ptt.pt")


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


@pytest.fixture
def hostile(tmp_path) -> tuple[Path, Path]:
    """A checkpoint, and the file that it creates if its code runs."""
    torch.save({"model": TouchFile(tmp_path / "ran")}, tmp_path / "hostile.pt")
    return tmp_path / "hostile.pt", tmp_path / "ran"


def test_checkpoint_with_code_is_refused_and_its_code_does_not_run(hostile):
    path, ran = hostile
    with pytest.raises(UnusableModelError, match=r"may run code.*DRONE_KD_TRUST_CHECKPOINTS=1"):
        load_model(str(path))
    assert not ran.exists()


@pytest.mark.slow  # imports torch in another process
@pytest.mark.parametrize("first", ["", "import ultralytics.nn.tasks\n"], ids=["alone", "after"])
@pytest.mark.parametrize("trusted", [False, True])
def test_variable_decides_whether_a_checkpoint_may_run_code(hostile, first, trusted, monkeypatch):
    path, ran = hostile
    monkeypatch.setenv("ULTRALYTICS_SAFE_LOAD", "0")
    monkeypatch.setenv("DRONE_KD_TRUST_CHECKPOINTS", str(int(trusted)))
    code = "from drone_kd_training.models.checkpoints import load_model\nload_model(sys.argv[1])"
    command = [sys.executable, "-c", f"import sys\n{first}{code}", str(path)]
    environment_path = os.pathsep.join(sys.path)
    monkeypatch.setenv("PYTHONPATH", environment_path)
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert "UnusableModelError" in result.stderr
    assert ran.exists() == trusted


@pytest.mark.parametrize("path", sorted(PACKAGED_MODELS.glob("*.pt")), ids=lambda path: path.name)
def test_packaged_checkpoint_loads_safely(path):
    assert "car" in class_names(load_model(str(path))[0])


@pytest.mark.slow
def test_qat_checkpoint_loads_safely(tmp_path):
    pytest.importorskip("modelopt", reason="no nvidia-modelopt (training/requirements.txt)")
    model, checkpoint = load_model(str(save_checkpoint(tmp_path / "float.pt")))
    prepare_qat(model, [torch.rand(2, 3, SIZE, SIZE)], lambda batch: batch, batches=1)
    state = qat_state(model)
    plain, _ = load_model(str(tmp_path / "float.pt"))
    path = tmp_path / "qat.pt"
    torch.save({**checkpoint, "model": plain, "modelopt": state}, path)
    assert is_qat(load_model(str(path))[0])


def test_expression_in_a_model_yaml_is_not_evaluated(tmp_path):
    content = yaml.safe_load((PACKAGED_MODELS / "aerial-student.yaml").read_text())
    ran = tmp_path / "ran"
    content["activation"] = f"__import__('pathlib').Path({str(ran)!r}).touch() or torch.nn.SiLU()"
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UnusableModelError, match="unsupported activation"):
        load_model(str(path))
    assert not ran.exists()
