import json
from pathlib import Path

import pytest

from command_line import only_message, run
from drone_kd_training.distillation.config import Config
from drone_kd_training.mining.config import Settings
from drone_kd_training.retraining.config import Plan
from tiny_model import tiny_spec


@pytest.fixture
def call(monkeypatch):
    """Replace a library function; return the list of its calls, as (positional, named)."""

    def replace(target, result):
        calls = []

        def function(*positional, **named):
            calls.append((positional, named))
            return result

        monkeypatch.setattr(target, function)
        return calls

    return replace


def test_evaluate_prints_and_writes_json(tiny_data, tiny_teacher, tmp_path, capsys):
    out = tmp_path / "m.json"
    assert run("evaluate", tiny_teacher, "--data", tiny_data, "--json", out) == 0
    assert json.loads(out.read_text())["images"] == 6
    printed = capsys.readouterr().out
    assert "map50_95" in printed and "6 images" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "model.pt", "--data", "nowhere/data.yaml"],
        ["export", "nowhere/best.pt", "--output", "model.onnx"],
        ["distill", "--data", "nowhere.yaml", "--teacher", "none", "--student", "yolo11n.yaml"]
        + ["--output", "out"],
        ["generate", "--output", "out", "--train", "0", "--val", "1"],
    ],
)
def test_wrong_input_is_one_line_and_2(arguments, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert only_message(capfd)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--student", "s.yaml"], "needs --teacher with --data or --classes"),
        (["--student", "s.yaml", "--data", "d"], "needs --teacher with --data or --classes"),
        (["--student", "s", "--data", "d", "--teachers", "t"], "--teachers instead of these"),
        (["--data", "d", "--teacher", "t"], "distill needs --student, or --from"),
        (["--from", "b.pt", "--data", "d", "--teacher", "t"], "--quantize int8 goes with --from"),
        (["--student", "s", "--data", "d", "--teacher", "t", "--set", "lr0"], "KEY=VALUE"),
        (
            ["--student", "s", "--data", "d", "--teacher", "t", "--terms", "x"],
            "terms must be some",
        ),
    ],
)
def test_distill_refuses_options_that_do_not_go_together(options, says, tmp_path, capfd):
    assert run("distill", *options, "--output", tmp_path / "out") == 2
    assert says in only_message(capfd) and not (tmp_path / "out").exists()


def test_distill_makes_its_configuration_of_the_options(call, tmp_path):
    calls = call("drone_kd_training.distillation.distill.distill", {})
    options = ["--data", "d.yaml", "--teacher", "t.pt", "--student", "s.yaml", "--epochs", "7"]
    options += ["--terms", "box,feature", "--teacher-scale", "1.5", "--no-val", "--imgsz", "64"]
    options += ["--set", "lr0=1e-3", "--resume"]
    assert run("distill", *options, "--output", tmp_path) == 0
    ((config, output), named), *others = calls
    assert not others and output == tmp_path and named == {"resume": True}
    assert config == Config(
        "d.yaml",
        "t.pt",
        "s.yaml",
        epochs=7,
        terms=("box", "feature"),
        teacher_scale=1.5,
        val=False,
        imgsz=64,
        overrides={"lr0": 0.001},
    )


def test_distill_with_several_teachers_validates_at_the_end(call, tmp_path):
    calls = call("drone_kd_training.distillation.distill.distill", {})
    assert run("distill", "--teachers", "t.yaml", "--student", "s", "--output", tmp_path) == 0
    (((config, _), _),) = calls
    assert config == Config("", "", "s", teachers="t.yaml", val=False)


def test_mine_warns_without_held_out_frames(call, tmp_path, capsys):
    call("drone_kd_training.mining.mine.mine", {"frames": 3, "train": 2, "val": 0})
    options = ["--teacher", "t.pt", "--frames", "9", "--output", tmp_path]
    assert run("mine", "a.mcap", *options) == 0
    assert "WARNING no frame is held out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--pseudo-threshold", "--sure"])
def test_mine_makes_its_settings_of_the_options(option, call, tmp_path):
    calls = call("drone_kd_training.mining.mine.mine", {"frames": 3, "train": 2, "val": 1})
    options = ["--teacher", "t.pt", "--frames", "9", option, "0.3", "--topic", "/a"]
    assert run("mine", "a.mcap", "b.mp4", *options, "--output", tmp_path) == 0
    settings = Settings("t.pt", None, 9, 5, pseudo_threshold=0.3)
    assert calls == [((["a.mcap", "b.mp4"], tmp_path, settings, ("/a",), None), {})]


@pytest.mark.parametrize("accepted", [True, False])
def test_retrain_records_the_typed_command(accepted, call, tmp_path, capsys):
    found = {"accepted": accepted, "table": "| table |", "model": "m.onnx"}
    found |= {"outcome": "not enough flights", "reason": "why", "label_next": ["a-1", "b-2"]}
    calls = call("drone_kd_training.retraining.retrain.retrain", found)
    typed = [
        "retrain",
        "m x.pt",
        "--mined",
        "m",
        "--data",
        "d",
        "--teacher",
        "t",
        "--keep",
        "0.25",
    ]
    assert run(*typed, "--output", tmp_path) == (0 if accepted else 3)
    plan = Plan("m x.pt", "m", "d", "t", keep=0.25)
    command = "drone-kd retrain 'm x.pt' --mined m --data d --teacher t --keep 0.25 "
    assert calls == [((plan, tmp_path, f"{command}--output {tmp_path}"), {})]
    printed = capsys.readouterr().out
    assert "| table |" in printed and ("accepted: why: m.onnx" in printed) is accepted
    for text in ("not enough flights: why", "label next (of the held-out frames): a-1, b-2"):
        assert (text in printed) is not accepted


def test_compare_makes_its_runs_of_the_options(call, tmp_path, capsys):
    calls = call("drone_kd_training.distillation.compare.compare", None)
    (tmp_path / "compare.md").write_text("Primary: +1\n\n| plain | 2 |\n")
    options = ["--data", "d", "--teacher", "t.pt", "--student", "s.yaml", "--epochs", "1"]
    options += ["--seeds", "3", "4", "--select", "0.5", "--arms", "plain", "terms=class"]
    assert run("compare", *options, "--output", tmp_path) == 0
    config = Config("d", "t.pt", "s.yaml", epochs=1, seed=3)
    assert calls == [((config, tmp_path, (3, 4), ["plain", "terms=class"], 0.5, None), {})]
    printed = capsys.readouterr().out.splitlines()
    assert "| plain | 2 |" in printed and printed[0] == printed[-1] == "Primary: +1"


def test_compare_with_few_labels(call, tmp_path, capsys):
    calls = call("drone_kd_training.distillation.few_labels.compare_few_labels", None)
    (tmp_path / "compare.md").write_text("| ours | 5 |")
    options = ["--data", "d", "--teacher", "t.pt", "--student", "s.yaml", "--steps", "9"]
    options += ["--output", tmp_path]
    assert run("compare", *options, "--protocol", "few-labels") == 0
    config = Config("d", "t.pt", "s.yaml", steps=9)
    assert calls.pop() == ((config, tmp_path, (0, 1, 2, 3, 4), (), [5], 0.0), {})
    assert "| ours | 5 |" in capsys.readouterr().out
    few = ["--protocol", "few-labels", "--labels", "0", "10", "all", "--arms", "few", "hard:0.3"]
    assert run("compare", *options, *few, "--seeds", "7", "--select", "0.2") == 0
    config = Config("d", "t.pt", "s.yaml", steps=9, seed=7)
    assert calls == [((config, tmp_path, (7,), ["few", "hard:0.3"], [0, 10, None], 0.2), {})]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--labels", "5"], "--labels needs --protocol few-labels"),
        (["--labels", "few"], "invalid"),
        (["--protocol", "few-labels", "--cluster", "h:1"], "--cluster needs --protocol paired"),
        (["--protocol", "few-labels"], "expects --steps"),
    ],
)
def test_compare_refuses_options_of_the_other_protocol(options, says, tmp_path, capfd):
    given = ["--data", "d", "--teacher", "t.pt", "--student", "s.yaml", "--output", tmp_path / "o"]
    assert run("compare", *given, *options) == 2
    assert says in only_message(capfd)
    assert not (tmp_path / "o").exists()


def test_export_passes_its_options_on(call, tmp_path, capsys):
    output = tmp_path / "model.onnx"
    spec = tiny_spec(metrics={"map50": 0.5}, gates={"box": {"measured": 0.1, "limit": 0.2}})
    calls = call("drone_kd_training.export.export.export", (output, spec))
    options = ["--precision", "int8", "--data", "d.yaml", "--imgsz", "384x640"]
    assert run("export", "best.pt", "--output", output, *options) == 0
    named = {"precision": "int8", "data": "d.yaml", "imgsz": (384, 640)}
    named |= {"batch": 1, "input_": "uint8-nhwc", "force": False}
    named |= {"licence": "AGPL-3.0", "attribution": "", "ancestry": "", "golden": True}
    assert calls == [((Path("best.pt"), output), named)]
    printed = capsys.readouterr().out
    assert "holds" in printed and "50.00" in printed and printed.endswith(f"{output}\n")
