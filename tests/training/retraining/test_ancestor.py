# SPDX-License-Identifier: AGPL-3.0-or-later
from pathlib import Path

import pytest

from drone_kd.files import file_sha256
from drone_kd.lineage import Ancestor, Lineage
from drone_kd_training.retraining.ancestor import find_ancestor


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Return the files of the deployed model and of two before it."""
    found = {name: tmp_path / f"{name}.onnx" for name in ("deployed", "second", "first")}
    for name, path in found.items():
        path.write_text(name)
    return found


def lineage(*files: Path) -> Lineage:
    ancestors = tuple(Ancestor(sha256=file_sha256(path), metrics={}) for path in files)
    return Lineage(date="2026-11-30T00:00:00Z", command="retrain", data={}, ancestors=ancestors)


def test_first_model_is_found_beside_the_deployed_one(files):
    parent = str(files["deployed"])
    assert find_ancestor("", parent, lineage(*files.values())) == (files["first"], "")
    # The deployed model is the first one itself.
    assert find_ancestor("", parent, lineage(files["deployed"])) == (None, "")


def test_first_model_that_is_not_there_is_one_line(files, tmp_path):
    own = lineage(*files.values())
    elsewhere = files["first"].rename(tmp_path / "kept.bin")
    path, line = find_ancestor("", str(files["deployed"]), own)
    assert path is None
    assert "not found beside" in line and "give --ancestor" in line
    assert own.ancestors[-1].sha256[:12] in line and len(line.splitlines()) == 1
    assert find_ancestor(str(elsewhere), str(files["deployed"]), own) == (elsewhere, "")


def test_unknown_parent_is_one_line(files):
    path, line = find_ancestor("", "", lineage(files["deployed"]))
    assert path is None
    assert line.startswith("parent of the deployed model unknown")
    given = str(files["first"])
    assert find_ancestor(given, "", lineage(files["deployed"])) == (files["first"], "")


def test_another_model_than_the_first_is_refused(files):
    own = lineage(*files.values())
    with pytest.raises(ValueError, match="begins with"):
        find_ancestor(str(files["second"]), str(files["deployed"]), own)
    with pytest.raises(ValueError, match="no such file"):
        find_ancestor("nowhere.pt", "", own)
