# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the command prints."""

import pytest

from drone_kd.cli import main
from drone_kd_training.distillation import compare, few_labels


@pytest.mark.parametrize(
    ("module", "name", "options"),
    [
        (compare, "compare", []),
        (few_labels, "compare_few_labels", ["--protocol", "few-labels", "--steps", "5"]),
    ],
)
def test_the_primary_comparison_is_the_last_line(
    tiny_data, tmp_path, monkeypatch, capsys, module, name, options
):
    def finish(config, output, *_):
        output.mkdir()
        (output / "compare.md").write_text("Primary: a - b\n\n| arm |\n", encoding="utf-8")

    monkeypatch.setattr(module, name, finish)  # hours of training
    output = tmp_path / "out"
    command = ["compare", "--data", str(tiny_data), "--teacher", "t.pt", "--student", "s.pt"]
    assert main([*command, "--output", str(output), "--imgsz", "64", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-1] == "Primary: a - b"
