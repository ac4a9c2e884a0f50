import hashlib
import json
import shlex

import onnx
import pytest

from drone_kd import cli, lineage
from drone_kd.core.model_spec import ModelError
from drone_kd.lineage import (
    ANCESTRY_KEY,
    LINEAGE_KEY,
    Ancestor,
    Lineage,
    ancestry_metadata,
    descend,
    generations,
)
from tiny_model import tiny_spec, write_bright_cell_model

DIGEST = "ab" * 32
DATA = {"base": "b" * 64, "night": "e" * 64}
PARENT = Ancestor(
    sha256=DIGEST,
    metrics={"map50_95": 0.25},
    date="2026-11-24T18:30:00Z",
    command="drone-kd retrain a.onnx",
    data={"base": DIGEST},
)
CHILD = Lineage(
    date="2026-11-25T18:30:00Z",
    command="drone-kd retrain 'Fußgänger.onnx'",
    data={"base": DIGEST, "flight 7": "0" * 64},
    ancestors=(PARENT, Ancestor(sha256=DIGEST, metrics={})),
)


def changed(**changes):
    """Return CHILD's metadata with some JSON keys changed; None removes a key."""
    record = {**json.loads(CHILD.to_metadata()[LINEAGE_KEY]), **changes}
    return {LINEAGE_KEY: json.dumps({k: v for k, v in record.items() if v is not None})}


def write_child(path, parent, command, **spec):
    """Write a model whose lineage names `parent`."""
    write_bright_cell_model(path, tiny_spec(**spec))
    proto = onnx.load(path)
    for key, value in descend(parent, command, DATA).to_metadata().items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, path)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_round_trip_through_metadata():
    assert Lineage.from_metadata(CHILD.to_metadata()) == CHILD
    assert Lineage.from_metadata({"drone_kd": "{}"}) is None


@pytest.mark.parametrize(
    ("command", "stored"),
    [
        ("drone-kd retrain runs/a.pt --set lr0=0.1", "drone-kd retrain runs/a.pt --set lr0=0.1"),
        ("drone-kd retrain /home/jo/a.pt", "drone-kd retrain a.pt"),
        ("drone-kd retrain '/home/jo doe/a b.pt'", "drone-kd retrain 'a b.pt'"),
        ("drone-kd retrain ~jo/a.pt ../../jo/b.pt", "drone-kd retrain a.pt b.pt"),
        ("drone-kd retrain --data=/home/jo/d.yaml", "drone-kd retrain --data=d.yaml"),
        ("drone-kd retrain --set pretrained=/home/jo/", "drone-kd retrain --set pretrained=jo"),
        (r"drone-kd retrain 'C:\Users\jo\a.pt'", "drone-kd retrain a.pt"),
        ("drone-kd mine s3://jo:token@host/a.mcap", "drone-kd mine a.mcap"),
        ("drone-kd mine 'an open /home/jo/quote", "drone-kd mine 'an open quote"),
    ],
)
def test_stored_command_names_no_folder_or_host(command, stored):
    ancestor = Ancestor(sha256=DIGEST, metrics={}, date="2026-11-24", command=command)
    lineage = Lineage(date="2026-11-25", command=command, data={}, ancestors=(ancestor,))
    found = Lineage.from_metadata(lineage.to_metadata())
    assert shlex.split(found.command) == shlex.split(stored) if "open" not in stored else True
    assert found.command == found.ancestors[0].command
    assert "/home" not in found.command and "token" not in found.command


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({LINEAGE_KEY: "not JSON"}, "not a lineage"),
        ({LINEAGE_KEY: "[" * 100_000}, "not a lineage"),
        ({LINEAGE_KEY: "[]"}, "not a lineage"),
        (changed(schema=2), "schema: expected 1, got 2"),
        (changed(ancestors=3), "not iterable"),
        (changed(ancestors=[{}] * 1001), "ancestors: expected at most 1000, got [{}, {}"),
        (changed(ancestors=[{"sha256": "abc", "metrics": {}}]), "expected 64 hex digits"),
        (changed(ancestors=[{"sha256": DIGEST}]), "missing"),
        (changed(ancestors=[{"sha256": DIGEST, "metrics": {"a": "b"}}]), "finite numbers"),
        (changed(command=None), "missing"),
        (changed(date=""), "date: expected a date, got ''"),
        (changed(command="\x1b[2J"), "command: expected one line of text"),
        (changed(command="x" * 20_001), "command: expected one line of text"),
        (changed(data={"b\u202e": "abc"}), "data: expected printable names"),
        (changed(data={str(n): "b" * 64 for n in range(10_001)}), "data: expected names, at most"),
        (changed(**{"k\x1b": 1}), r"k\x1b"),
        (changed(colour="red"), "colour"),
        (changed(data={"base": "abc"}), "data: base: expected 64 hex digits"),
        (changed(data=["base"]), "data: expected names"),
    ],
)
def test_invalid_metadata_is_rejected_in_one_line(metadata, message):
    with pytest.raises(ModelError) as error:
        Lineage.from_metadata(metadata)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_family_tree_prints_without_the_parent_files(model, tmp_path, capsys):
    child = write_child(tmp_path / "child.onnx", model, "retrain 1", metrics={"map50_95": 0.211})
    metrics = {"map50_95": 0.25, "map50_95_fp32": 0.26}
    youngest = write_child(tmp_path / "youngest.onnx", child, "retrain 2", metrics=metrics)
    hashes = [sha256(path) for path in (youngest, child, model)]
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


def test_model_without_lineage_prints_one_line(model, capsys):
    assert cli.main(["lineage", str(model)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{model} ({sha256(model)[:12]}) has no lineage in its metadata"


def test_ancestry_of_the_default_model_is_printed(capsys):
    assert cli.main(["lineage"]) == 0
    assert "VisDrone, whose images are published for non-commercial use" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "x" * 2001])
def test_ancestry_that_cannot_be_shown_is_refused(model, capsys, text):
    with pytest.raises(ModelError, match="drone_kd_ancestry: expected one line of text"):
        ancestry_metadata(text)
    proto = onnx.load(model)
    proto.metadata_props.add(key=ANCESTRY_KEY, value=text)
    onnx.save(proto, model)
    assert cli.main(["lineage", str(model)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ANCESTRY_KEY in line and line.isprintable()


def test_damaged_lineage_is_one_error_line_and_exit_status_2(model, capsys):
    proto = onnx.load(model)
    proto.metadata_props.add(key=LINEAGE_KEY, value="{}")
    onnx.save(proto, model)
    assert cli.main(["lineage", str(model)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("drone-kd: error: ") and "not a lineage" in error
    assert error.count("\n") == 1


def test_missing_parent_is_rejected(tmp_path):
    with pytest.raises(ModelError, match="expected a model file"):
        descend(tmp_path / "no.onnx", "retrain", {})


def test_only_the_latest_ancestors_are_kept(model, monkeypatch):
    (own,) = generations(model)
    monkeypatch.setattr(lineage, "generations", lambda parent: (own,) * 1001)
    latest = descend(model, "retrain", {})
    assert len(latest.ancestors) == 1000
    assert Lineage.from_metadata(latest.to_metadata()) == latest
