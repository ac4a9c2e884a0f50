"""Provenance of an experiment that several processes run."""

import json

import pytest

from drone_kd_training.distillation import experiment_provenance
from drone_kd_training.distillation.experiment_provenance import record_process


@pytest.fixture
def commit(monkeypatch) -> list[str]:
    """Commit and load of the processes, which a test may change."""
    values = ["abc", "1.0"]

    def provenance(seeds, classes, image_sizes):
        machine = f"2-core VM, no GPU, load average {values[1]}"
        fields = {"commit": values[0], "machine": machine, "seeds": seeds}
        return fields | {"classes": classes, "image_sizes": image_sizes}

    monkeypatch.setattr(experiment_provenance, "provenance", provenance)
    return values


def test_each_process_adds_what_is_new(tmp_path, commit):
    record_process(tmp_path, (0, 2), ["car", "bus"], "student 64")
    commit[:] = "abc", "9.0"
    record_process(tmp_path, (10, 1), ["car", "bus"], "student 64")
    commit[0] = "def+"
    record_process(tmp_path, (0,), ["car", "bus"], "student 64")
    assert json.loads((tmp_path / "provenance.json").read_text()) == {
        "commit": "abc; def+",
        "machine": "2-core VM, no GPU, load average 1.0",
        "seeds": "0 1 2 10",
        "classes": "car bus",
        "image_sizes": "student 64",
    }


def test_a_value_with_the_separator_is_added_once(tmp_path, commit):
    for commit[0] in ("a 'b; c'", "a", "a 'b; c'", "a"):
        record_process(tmp_path, (0,), ["car"], "student 64")
    assert json.loads((tmp_path / "provenance.json").read_text())["commit"] == "a 'b; c'; a"


@pytest.mark.parametrize("content", ["[]", '{"commit": 1}'])
def test_another_file_is_one_line(content, tmp_path, commit):
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(ValueError, match=r"expected a provenance, got others; delete") as error:
        record_process(tmp_path, (0,), [], "")
    assert "\n" not in str(error.value)
