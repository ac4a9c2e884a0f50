import codecs
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from ultralytics.nn.modules.block import SPPF, TorchVision
from ultralytics.nn.modules.conv import Conv
from ultralytics.nn.tasks import DetectionModel, WorldModel
from ultralytics.utils.torch_utils import is_qat, prepare_qat, qat_state

from command_line import only_message, run
from drone_kd_training.isolation import load_safely, may_download
from drone_kd_training.models import safe_loading
from drone_kd_training.models.checkpoints import (
    PACKAGED_MODELS,
    UnusableModelError,
    class_names,
    cost,
    load_model,
    match_classes,
    resolve_model,
)
from drone_kd_training.models.safe_loading import read_state
from drone_kd_training.models.torch_backend import TorchBackend, trained_imgsz
from tiny_training import SIZE, save_checkpoint, save_rtdetr
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


@pytest.mark.parametrize("name", ["/**/**/no.yaml", "**/no.yaml", "ul://a/b/c.yaml"])
def test_name_of_a_yaml_is_not_searched_for_on_the_disk_or_online(name, monkeypatch):
    monkeypatch.setattr("drone_kd_training.models.checkpoints.yaml_model_load", None)
    with pytest.raises(UnusableModelError, match="no such file"):
        resolve_model(name)


def test_yaml_that_ultralytics_takes_for_another_is_refused(tmp_path, architecture):
    given = Path(architecture(lambda content: None)).rename(tmp_path / "yolov5u.yaml")
    (tmp_path / "yolov5.yaml").write_text(given.read_text() + "activation: nn.ReLU()\nnc: 7\n")
    with pytest.raises(UnusableModelError, match="rename it"):
        load_model(str(given))


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
    expected = r"may run code.*--trust or DRONE_KD_TRUST_CHECKPOINTS=1"
    with pytest.raises(UnusableModelError, match=expected):
        load_model(str(path))
    assert not ran.exists()


class Called:
    """Object whose pickle calls a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [Called(torch.nn.Linear, 10**9, 10**9), Called(TorchVision, "resnet18", "DEFAULT")],
    ids=["memory", "download"],
)
def test_constructor_of_a_layer_in_a_checkpoint_is_not_called(call, tmp_path):
    torch.save({"model": call}, tmp_path / "model.pt")
    with pytest.raises(UnusableModelError, match="may run code"):
        load_model(str(tmp_path / "model.pt"))
    torch.nn.Linear(1, 1)  # as before


# Each stands for more memory than this machine has.
MEMORY = {
    "bytes": Called(bytearray, 10**15),
    "tensor": Called(torch.Tensor, 10**8, 10**8),
    "storage": Called(torch.UntypedStorage, 10**15),
    "growing text": Called(codecs.encode, Called(codecs.encode, b"0", "hex"), "hex"),
    "scalar": Called(np.float64(0).__reduce__()[0], Called(np.dtype, "V1000000000")),
    "repeated value": torch.zeros(1).expand(10**12),
}


@pytest.mark.parametrize("name", MEMORY)
def test_checkpoint_that_names_memory_without_data_is_refused(name, tmp_path):
    checkpoint = torch.load(save_checkpoint(tmp_path / "model.pt"), weights_only=False)
    torch.save({**checkpoint, "epoch": 0, "extra": MEMORY[name]}, tmp_path / "model.pt")
    with pytest.raises(
        UnusableModelError, match=r"may run code|larger than its data|expected a number"
    ):
        load_model(str(tmp_path / "model.pt"))
    torch.save({"epoch": 0, "extra": MEMORY[name]}, tmp_path / "resume.pt")
    with pytest.raises(ValueError, match="expected the state of an interrupted run"):
        read_state(tmp_path / "resume.pt")


def test_checkpoint_with_a_numpy_score_loads_safely(tmp_path):
    checkpoint = torch.load(save_checkpoint(tmp_path / "model.pt"), weights_only=False)
    torch.save({**checkpoint, "best_fitness": np.float64(0.25)}, tmp_path / "model.pt")
    assert load_model(str(tmp_path / "model.pt"))[1]["best_fitness"] == 0.25


def test_checkpoint_in_the_format_of_old_releases_names_the_flag(tmp_path):
    path = save_checkpoint(tmp_path / "model.pt")
    checkpoint = torch.load(path, weights_only=False)
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnusableModelError, match=r"may run code.*--trust"):
        load_model(str(path))


def test_old_format_is_named_with_both_remedies(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": 1}, path, _use_new_zipfile_serialization=False)
    expected = r"format of torch before 1\.6, a plain pickle.*save it with the version that it"
    with pytest.raises(UnusableModelError, match=expected):
        load_model(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("argparse.Namespace", r"holds argparse\.Namespace, which may run code .*--trust"),
        ("absent_package.a.Thing", r"needs absent_package\.a, which is not installed: install it"),
        ("models.yolo.Model", r"needs models\.yolo, which .* by the YOLOv5 repository"),
        ("ultralytics.nn.absent.Thing", r"needs ultralytics\.nn\.absent.*version of Ultralytics"),
        ("ultralytics.nn.tasks.Absent", r"needs ultralytics\.nn\.tasks\.Absent.*version of Ultra"),
    ],
)
def test_class_that_is_refused_is_named_with_a_remedy_that_helps(name, message, tmp_path):
    module, _, kind = name.rpartition(".")
    path = tmp_path / "model.pt"
    thing = type(kind, (), {"__module__": module})
    parent = ModuleType(module)
    setattr(parent, kind, thing)
    known = sys.modules.get(module)
    above = {root: ModuleType(root)} if (root := module.partition(".")[0]) != "ultralytics" else {}
    with mock.patch.dict(sys.modules, above | {module: parent}):
        torch.save({"model": thing()}, path)
    assert sys.modules.get(module) is known
    with pytest.raises(UnusableModelError, match=message) as error:
        load_model(str(path))
    text = str(error.value)
    assert ("--trust" in text) == (name == "argparse.Namespace")
    assert "yolo predict" not in text and text.isprintable()


def test_advice_of_ultralytics_is_not_repeated(tmp_path):
    torch.save({"model": None}, tmp_path / "model.pt")
    with pytest.raises(UnusableModelError, match="is not an Ultralytics checkpoint") as error:
        load_model(str(tmp_path / "model.pt"))
    assert "yolo predict" not in str(error.value)


def test_compressed_checkpoint_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "model.pt")
    with zipfile.ZipFile(path) as before:
        content = {entry.filename: before.read(entry) for entry in before.infolist()}
    content |= {next(iter(content)).replace("data.pkl", "data/bomb"): bytes(10**8)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(UnusableModelError, match="uncompressed archive"):
        load_model(str(path))


def changed_checkpoint(path: Path, change) -> Path:
    checkpoint = torch.load(save_checkpoint(path), weights_only=False)
    change(checkpoint["model"])
    torch.save(checkpoint, path)
    return path


def test_tensor_that_is_larger_than_its_data_is_refused(tmp_path):
    def expand(model):
        values = torch.zeros(1).expand(1000, 1000, 1000)
        model.model[0].conv.weight = torch.nn.Parameter(values, requires_grad=False)

    path = changed_checkpoint(tmp_path / "model.pt", expand)
    with pytest.raises(UnusableModelError, match="larger than its data"):
        load_model(str(path))


def nested(leaf: object = "x") -> list:
    """A list that is small in a pickle, and would be 10 TB of text."""
    value = [leaf, leaf]
    for _ in range(40):
        value = [value, value]
    return value


@pytest.mark.parametrize("count", [60_000_000, 0, True, 2.0])
def test_number_of_classes_is_checked(count, tmp_path):
    def change(model):
        model.model[-1].nc = count

    path = changed_checkpoint(tmp_path / "model.pt", change)
    with pytest.raises(UnusableModelError, match="expected 1 to 10000 classes"):
        load_model(str(path))


def test_description_in_a_checkpoint_is_not_shown_whole(tmp_path):
    def change(model):
        model.yaml = {"backbone": [nested()], "head": []}

    path = changed_checkpoint(tmp_path / "model.pt", change)
    with pytest.raises(UnusableModelError, match="layer 0: expected"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: "car", 1: "\x1b[2Jperson"}, r"class 1: .*'\\x1b\[2Jperson'"),
        ({0: "car", 1: "x" * 10**6}, "class 1: expected a name of 1 to 100"),
        ({0: "car", 1: ""}, "class 1: expected a name of 1"),
        ({0: "car", 2: "person"}, "expected 2 class names, numbered from 0"),
        ({0: "car", 1: nested()}, "class 1: expected a name"),
        (nested(), "class 0: expected a name"),
        ({0: "car", 1: 7}, "class 1: expected a name"),
        (["car"], "expected 2 class names"),
        (7, "expected 2 class names"),
    ],
)
def test_class_names_that_cannot_be_shown_are_refused(names, message, tmp_path):
    path = changed_checkpoint(tmp_path / "a.pt", lambda model: setattr(model, "names", names))
    with pytest.raises(UnusableModelError, match=message) as error:
        load_model(str(path))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_damaged_layer_is_named(tmp_path, monkeypatch):
    def change(model):
        del model.model[0].conv._forward_hooks

    path = changed_checkpoint(tmp_path / "model.pt", change)
    with pytest.raises(UnusableModelError, match="a layer of its checkpoint is damaged"):
        load_model(str(path))
    monkeypatch.setenv("DRONE_KD_TRUST_CHECKPOINTS", "1")
    with pytest.raises(UnusableModelError, match="a layer of its checkpoint is damaged"):
        TorchBackend(load_model(str(path))[0]).infer(np.zeros((1, SIZE, SIZE, 3), np.uint8))


def hide_from_the_check(model):
    """A first parameter that names other channels than the layers take."""
    model._parameters = {"decoy": torch.nn.Parameter(torch.zeros(1, 7, 1, 1))}
    model.model[0].conv.padding = (4000, 4000)


def share_layers(model):
    """Few layers that contain each other, 2 ** 40 times in all."""
    pair = [torch.nn.Identity(), torch.nn.Identity()]
    for _ in range(40):
        pair = [torch.nn.Sequential(*order) for order in (pair, pair[::-1])]
    model.shared = pair[0]


def share_data(model):
    """Weights that would be 4 GB in float32, of 1 MB."""
    data = torch.zeros(500_000, dtype=torch.float16)
    parts = [torch.nn.Parameter(data, requires_grad=False) for _ in range(2000)]
    model.shared = torch.nn.ParameterList(parts)


def repeat_layers(model):
    """Layers that run a million times a million times."""
    inner, outer = (torch.nn.Module.__new__(SPPF) for _ in range(2))
    for layer, repeated in ((inner, torch.nn.Identity()), (outer, inner)):
        torch.nn.Module.__init__(layer)
        layer.cv1 = layer.cv2 = torch.nn.Identity()
        layer.n, layer.m = 1_000_000, repeated
    model.model[0].act = outer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hide_from_the_check, "the model cannot run"),
        (share_layers, "expected at most 10000 modules"),
        (share_data, "larger than their data"),
        (repeat_layers, "expected at most 100000 steps"),
        (lambda model: setattr(model.model[0], "n", 10**9), "expected n up to 1000000"),
        (lambda model: model.yaml["backbone"][0][3].append(nested(1)), "at most 1000 arguments"),
        (lambda model: model.yaml.update(backbone=(*model.yaml["backbone"],)), "a description of"),
        (lambda model: setattr(model, "yaml", "other.yaml"), "a description of its layers"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_checkpoint_that_would_run_without_an_end_is_refused(change, message, tmp_path):
    with pytest.raises(UnusableModelError, match=message) as error:
        load_model(str(changed_checkpoint(tmp_path / "model.pt", change)))
    assert str(error.value).isprintable()


def test_archive_with_two_lists_of_files_is_refused(tmp_path):
    """Python finds the list that is before the end, torch the one that the end names."""
    path = save_checkpoint(tmp_path / "model.pt")
    with zipfile.ZipFile(path) as before:
        content = {entry.filename: before.read(entry) for entry in before.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    raw = path.read_bytes()
    end = raw.rfind(b"PK\5\6")
    size, start = struct.unpack("<II", raw[end + 12 : end + 20])
    harmless = bytearray(raw[start : start + size])
    place = 0
    while place < size:  # the sizes before and after compression
        harmless[place + 24 : place + 28] = harmless[place + 20 : place + 24]
        place += 46 + sum(struct.unpack("<HHH", harmless[place + 28 : place + 34]))
    path.write_bytes(raw[: start + size] + harmless + raw[end:])
    assert torch.load(path, weights_only=False)["model"]
    with pytest.raises(UnusableModelError, match=r"expected a file of torch\.save"):
        load_model(str(path))


def test_checkpoint_that_was_packed_again_is_accepted(tmp_path):
    path = save_checkpoint(tmp_path / "model.pt")
    with zipfile.ZipFile(path) as before:
        content = {entry.filename: before.read(entry) for entry in before.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    assert load_model(str(path))


@pytest.mark.parametrize("name", ["DATA.PKL", "data.pkl"])
def test_large_object_tree_is_refused_whatever_its_name(name, tmp_path, monkeypatch):
    monkeypatch.setattr("drone_kd_training.models.safe_loading._MAX_PICKLE_BYTES", 1000)
    path = save_checkpoint(tmp_path / "model.pt")
    with zipfile.ZipFile(path) as before:
        content = {entry.filename: before.read(entry) for entry in before.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in content.items():
            archive.writestr(entry.replace("data.pkl", name), data)
    with pytest.raises(UnusableModelError, match="beside the weights"):
        load_model(str(path))


@pytest.mark.parametrize("size", [0, 10**9, "x", None, [64, 64]])
def test_size_of_training_is_checked(size, tmp_path):
    checkpoint = torch.load(save_checkpoint(tmp_path / "model.pt"), weights_only=False)
    torch.save({**checkpoint, "train_args": {"imgsz": size}}, tmp_path / "model.pt")
    model, _ = load_model(str(tmp_path / "model.pt"))
    if size in (None, [64, 64]):
        assert trained_imgsz(model) == (64 if size else 640)
    else:
        with pytest.raises(UnusableModelError, match="trained at 32 to 8192 pixels"):
            trained_imgsz(model)


def test_blanks_at_the_ends_of_class_names_are_removed(tmp_path, caplog):
    names = {0: "car ", 1: "👩\u200d🚒"}
    path = changed_checkpoint(tmp_path / "a.pt", lambda model: setattr(model, "names", names))
    assert class_names(load_model(str(path))[0]) == ("car", names[1])
    assert f"{path}: removed blanks at the ends of class names: 'car '" in caplog.messages


def test_list_of_class_names_is_accepted(tmp_path):
    def change(model):
        model.names = ["car", "person"]

    path = changed_checkpoint(tmp_path / "model.pt", change)
    assert class_names(load_model(str(path))[0]) == ("car", "person")


def test_checkpoint_with_the_yaml_of_another_network_is_refused(tmp_path):
    def change(model):
        model.yaml["backbone"][0] = [-1, 1, "DetectionModel", ["other.yaml"]]

    path = changed_checkpoint(tmp_path / "model.pt", change)
    with pytest.raises(UnusableModelError, match="layer 0: expected a layer"):
        load_model(str(path))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_checkpoint_of_another_kind_is_refused(kind, tmp_path):
    path = tmp_path / "model.pt"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(UnusableModelError, match="no checkpoint at"):
        load_model(str(path))


# One of each documented family, in its smallest size.
FAMILIES = ("yolov5n", "yolov8n", "yolov8n-world", "yolov9t", "yolov10n", "yolo11n", "yolo12n",
            "yolo26n")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_detector_of_each_family_loads_safely(family, tmp_path):
    kind = WorldModel if "world" in family else DetectionModel
    model = kind(f"{family}.yaml", nc=2, verbose=False).half()
    torch.save({"model": model, "train_args": {"imgsz": SIZE}}, tmp_path / "model.pt")
    heads = ("v10Detect", "WorldDetect")
    assert len(class_names(load_model(str(tmp_path / "model.pt"), also=heads)[0])) == 2


def test_rtdetr_loads_safely(tmp_path):
    path = str(save_rtdetr(tmp_path / "model.pt"))
    assert class_names(load_model(path, also=("RTDETRDecoder",))[0]) == ("car", "person")


@pytest.fixture
def untrusting(monkeypatch):
    """Restore the setting that ``--trust`` changes for this process and its children."""
    for variable in ("DRONE_KD_TRUST_CHECKPOINTS", "ULTRALYTICS_SAFE_LOAD"):
        monkeypatch.setenv(variable, "")
    for module in ("ultralytics.utils", "ultralytics.nn.tasks"):
        monkeypatch.setattr(f"{module}.SAFE_LOAD", True)


COMMANDS = {
    "evaluate": ["MODEL", "--data", "DATA"],
    "export": ["MODEL", "--output", "model.onnx"],
    "predict": ["MODEL", "--data", "DATA", "--output", "new"],
    "distill": ["--student", "MODEL", "--teacher", "none", "--data", "DATA", "--output", "new"],
    "compare": ["--student", "aerial-student.yaml", "--teacher", "MODEL", "--data", "DATA"]
    + ["--output", "new"],
    "mine": ["images", "--teacher", "MODEL", "--frames", "2", "--output", "new"],
    "retrain": ["MODEL", "--mined", "mined", "--data", "DATA", "--teacher", "MODEL"]
    + ["--output", "new"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_trust_lets_a_command_load_any_checkpoint(
    command, hostile, untrusting, tiny_data, tmp_path, monkeypatch, capsys
):
    path, ran = hostile
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_data.parent / "images" / "val", tmp_path / "images")
    names = {"MODEL": str(path), "DATA": str(tiny_data)}
    arguments = [names.get(argument, argument) for argument in COMMANDS[command]]
    assert run(command, *arguments) == 2
    assert "--trust" in only_message(capsys) and not ran.exists()
    assert run(command, *arguments, "--trust") == 2
    assert "is not an Ultralytics checkpoint" in only_message(capsys) and ran.exists()
    assert os.environ["DRONE_KD_TRUST_CHECKPOINTS"] == "1"  # its subprocesses trust it, too


@pytest.mark.parametrize("value", ["", "0", "false", "No", "OFF", "2", "1", "true", "Yes", " on"])
def test_only_a_clear_yes_sets_a_variable(value, monkeypatch):
    monkeypatch.setenv("DRONE_KD_DOWNLOADS", value)
    assert may_download() == (value in ("1", "true", "Yes", " on"))
    monkeypatch.setenv("ULTRALYTICS_SAFE_LOAD", "")
    for module in ("ultralytics.utils", "ultralytics.nn.tasks"):
        monkeypatch.setattr(f"{module}.SAFE_LOAD", True)
    monkeypatch.setenv("DRONE_KD_TRUST_CHECKPOINTS", value)
    load_safely()
    assert os.environ["ULTRALYTICS_SAFE_LOAD"] == str(int(not may_download()))


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
    assert "person" in class_names(load_model(str(path))[0])


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


@pytest.fixture
def architecture(tmp_path):
    """Write the packaged student's yaml with changes; return its path."""

    def write(change) -> str:
        content = yaml.safe_load((PACKAGED_MODELS / "aerial-student.yaml").read_text())
        change(content)
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "model.yaml")

    return write


@pytest.mark.parametrize("trusted", [False, True])
def test_expression_in_a_model_yaml_is_not_evaluated(trusted, architecture, tmp_path, monkeypatch):
    monkeypatch.setattr("ultralytics.nn.tasks.SAFE_LOAD", not trusted)
    ran = tmp_path / "ran"
    expression = f"__import__('pathlib').Path({str(ran)!r}).touch() or torch.nn.SiLU()"
    path = architecture(lambda content: content.update(activation=expression))
    with pytest.raises(UnusableModelError, match="activation: expected"):
        load_model(path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ([-1, 1, "DetectionModel", ["model.yaml"]], "layer 0: expected a layer"),
        ([-1, 1, "nn.functional.relu", []], "layer 0: expected a layer"),
        ([-1, 1, "torchvision.ops.nms", []], "layer 0: expected a layer"),
        ([-1, 1, "TorchVision", [64, "resnet18", "DEFAULT"]], "layer 0: .*DOWNLOADS=1"),
        ([-1, 1, "Conv", ["__import__('os')", 3, 2]], "layer 0: expected a number"),
        ([-1, 1, "Conv", ["ast", 3, 2]], "layer 0: expected a number"),
        ([-1, 1, "Conv", [10**9, 3, 2]], "layer 0: expected a number up to"),
        ([-1, 10**9, "Conv", [16, 3, 2]], "layer 0: expected a number up to"),
        ([-1, 1, "Conv", [4096, 511, 2]], "expected at most .* weights"),
        ([-1, 1, "Conv"], r"layer 0: expected \[from, number, layer, arguments\]"),
        ("Conv", r"layer 0: expected \[from, number, layer, arguments\]"),
    ],
)
def test_layer_that_is_no_plain_layer_is_refused(layer, message, architecture):
    def change(content):
        content["backbone"][0] = layer

    with pytest.raises(UnusableModelError, match=message) as error:
        load_model(architecture(change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"nc": 10**9},
        {"nc": "exit()"},
        {"depth_multiple": 10**9, "scales": None},
        {"scales": {"n": [float("nan"), 1, 1024]}},
        {"scales": {"n": 3}},
        {"backbone": [[-1, 1000, "Conv", [16, 3, 1]]] * 3},
        {"backbone": [[-1, 1, "Conv", [4000, 99, 1]]] * 2},
        {"head": []},
        {"head": {"a": 1}},
        {"backbone": [[-1, 1, "ResNetLayer", [16, 16, 1, False, 4096]]] * 300},
        {"backbone": [[-1, 0, "nn.Identity", []]] * 3000},
        {"backbone": [[-1, sign * 2000, "nn.Identity", []] for sign in (1, -1)] * 3},
    ],
    ids=str,
)
def test_model_yaml_of_an_impossible_size_is_refused(change, architecture):
    with pytest.raises(UnusableModelError) as error:
        load_model(architecture(lambda content: content.update(change)))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "nn.Linear(25000, 25000)"},
        {"activation": "nn.Linear(4000, 4000, device='cpu')"},
        {"activation": [["nn.SiLU()"]]},
        {"backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "nn.Upsample", [None, 96, "nearest"]]]},
        {"backbone": [[-1, 1, "Conv", [16, 3, 1, 4000]]]},
        {"backbone": [[-1, 60, "nn.Upsample", [None, 2, "nearest"]]]},
    ],
    ids=str,
)
def test_model_yaml_that_needs_much_memory_is_refused_before_it_is_built(
    change, architecture, monkeypatch
):
    monkeypatch.setattr("drone_kd_training.models.checkpoints.DetectionModel", None)
    default = Conv.default_act

    def shorten(content):
        content.update(change)
        if "backbone" in change:
            content["head"] = [[[len(change["backbone"]) - 1], 1, "Detect", ["nc"]]]

    with pytest.raises(UnusableModelError, match=r"activation|values of a layer"):
        load_model(architecture(shorten))
    assert Conv.default_act is default


def test_documented_activations_are_accepted(architecture):
    for activation in ("nn.ReLU6()", "torch.nn.LeakyReLU(0.1, inplace=True)", "nn.PReLU()"):
        load_model(architecture(lambda content, a=activation: content.update(activation=a)))
    Conv.default_act = torch.nn.SiLU()


def test_layer_of_a_checkpoint_with_an_output_of_any_size_is_refused(tmp_path):
    def change(model):
        model.model[0].conv.padding = (4000, 4000)

    path = changed_checkpoint(tmp_path / "model.pt", change)
    with pytest.raises(UnusableModelError, match="values of a layer"):
        load_model(str(path))


def test_model_yaml_that_is_no_yaml_is_refused_in_one_line(tmp_path):
    path = tmp_path / "model.yaml"
    for content in (b"a: [", b"\xff\xfe\x00", b"a: !!python/object/apply:os.getcwd []\n"):
        path.write_bytes(content)
        with pytest.raises(UnusableModelError, match="expected YAML") as error:
            load_model(str(path))
        assert str(error.value).isprintable()


def test_pickle_beside_the_weights_has_a_limit(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "model.pt")
    monkeypatch.setattr(safe_loading, "_MAX_PICKLE_BYTES", 1000)
    with pytest.raises(UnusableModelError, match=r"at most 0\.001 MB beside the weights"):
        load_model(path)


def test_layers_of_other_threads_are_constructed_while_a_checkpoint_is_loaded():
    with safe_loading._restricted(), ThreadPoolExecutor(1) as other:
        assert isinstance(other.submit(torch.nn.Identity).result(), torch.nn.Identity)
        with pytest.raises(safe_loading.UnsafeError, match="Identity would be constructed"):
            torch.nn.Identity()


def test_weights_that_stand_for_more_values_than_they_have_are_refused():
    model = torch.nn.Identity()
    model.register_buffer("repeated", torch.zeros(1).expand(3))
    with pytest.raises(ValueError, match="larger than its data"):
        safe_loading._check_tensors(model)
