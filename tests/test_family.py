import hashlib

import onnx
import pytest

from drone_kd import cli
from drone_kd.core.model_spec import ModelError
from drone_kd.family import descend, generations
from drone_kd.lineage import LINEAGE_KEY
from tiny_model import tiny_spec, write_bright_cell_model

DATA = {"base": "b" * 64, "night": "e" * 64}


def write_child(path, parent, command, **spec):
    """A model that says of itself that it was made from `parent`."""
    write_bright_cell_model(path, tiny_spec(**spec))
    proto = onnx.load(path)
    for key, value in descend(parent, command, DATA).to_metadata().items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, path)
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_tree_prints_without_the_files_of_the_parents(model, tmp_path, capsys):
    child = write_child(tmp_path / "child.onnx", model, "retrain 1", metrics={"map50_95": 0.211})
    metrics = {"map50_95": 0.25, "map50_95_fp32": 0.26}
    youngest = write_child(tmp_path / "youngest.onnx", child, "retrain 2", metrics=metrics)
    hashes = [digest(path) for path in (youngest, child, model)]
    assert [each.sha256 for each in generations(youngest)] == hashes
    model.unlink()
    child.unlink()
    assert cli.main(["lineage", str(youngest)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith(hashes[0][:12]) and lines[0].endswith("25.0 (in FP32 26.0)")
    assert lines[1].strip() == "retrain 2"
    assert lines[2].strip() == f"data: base {'b' * 12}, night {'e' * 12}"
    assert lines[3].startswith(f"└─ {hashes[1][:12]}") and lines[3].endswith("mAP50-95 21.1")
    assert lines[4].strip() == "retrain 1"
    assert lines[6] == f"   └─ {hashes[2][:12]}  no lineage  mAP50-95 not measured"


def test_a_file_without_lineage_is_one_line(model, capsys):
    assert cli.main(["lineage", str(model)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{model} ({digest(model)[:12]}) says nothing of its lineage"


def test_a_lineage_that_cannot_be_read_is_one_line_and_2(model, capsys):
    proto = onnx.load(model)
    proto.metadata_props.add(key=LINEAGE_KEY, value="{}")
    onnx.save(proto, model)
    assert cli.main(["lineage", str(model)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("drone-kd: error: ") and "not a lineage" in error
    assert error.count("\n") == 1


def test_the_parent_must_be_a_model(tmp_path):
    with pytest.raises(ModelError, match="expected a model file"):
        descend(tmp_path / "no.onnx", "retrain", {})
