# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the command leaves beside its tables."""

import json

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
def test_a_result_says_where_it_comes_from(
    tiny_data, tmp_path, monkeypatch, module, name, options
):
    def finish(config, output, *_):
        output.mkdir()
        classes = {"car": {"ap50_95": 0.5}, "bus": {"ap50_95": None}}  # no bus was labelled
        metrics = {"teacher": {"per_class": classes}}
        (output / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        (output / "compare.md").write_text("| arm |\n", encoding="utf-8")

    monkeypatch.setattr(module, name, finish)  # hours of training
    output = tmp_path / "out"
    command = ["compare", "--data", str(tiny_data), "--teacher", "t.pt", "--student", "s.pt"]
    size = ["--imgsz", "64", "--seeds", "0", "2"]
    assert main([*command, "--output", str(output), *size, *options]) == 0
    found = json.loads((output / "provenance.json").read_text(encoding="utf-8"))
    assert found["seeds"] == "0 2"
    assert found["classes"] == "car"
    assert found["image_sizes"] == "student 64, teacher 64"
