import pytest

from command_line import only_message, run
from tiny_model import with_golden, write_bright_cell_model


def test_every_stage_is_measured(model, capfd):
    assert run("bench", model, "--frames", "3") == 0
    lines = capfd.readouterr().out.splitlines()
    assert any("onnxruntime" in line for line in lines)
    assert any("1280x720" in line for line in lines)
    stages = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in lines[-4:]}
    assert list(stages) == ["letterbox", "infer", "decode", "total"]
    assert all(0 < p50 <= p95 for p50, p95 in stages.values())


def test_golden_images_are_part_of_the_output(model, tmp_path, capfd):
    assert run("bench", model, "--frames", "1") == 0
    assert "golden    none in the model" in capfd.readouterr().out
    with_golden(model)
    assert run("bench", model, "--frames", "1") == 0
    assert "golden    reproduced: 0 of " in capfd.readouterr().out
    other = write_bright_cell_model(tmp_path / "other.onnx", cell=16)
    with_golden(other, rows_of=model)
    assert run("bench", other, "--frames", "1") == 1
    assert "golden    NOT reproduced: " in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--frames", "many"], "≥ 1, got 'many'"),
        (["--image", "no.jpg"], "no.jpg: No such file"),
        (["--runtime", "torch"], "invalid choice: 'torch'"),
    ],
)
def test_wrong_input_is_one_line_and_2(options, says, model, capfd):
    assert run("bench", model, *options) == 2
    assert says in only_message(capfd)
