"""Where a result comes from."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from drone_kd import provenance

KNOWN = {"seeds": "0 1", "classes": "car", "image_sizes": "640"}


def test_fields_of_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/bin/drone-kd", "compare", "--output", "a b"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    provenance.write_provenance(tmp_path, **KNOWN)
    found = json.loads((tmp_path / provenance.FILE).read_text(encoding="utf-8"))
    assert tuple(found) == provenance.FIELDS
    assert found["command"] == "drone-kd compare --output 'a b'"
    assert found["threads"] == "3"
    assert re.match(r"python 3\.\d+\.\d+", found["versions"])
    assert "cores, Linux" in found["machine"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_a_module_is_named_as_it_is_started(tmp_path):
    code = "from drone_kd.provenance import provenance\nprint(provenance('', '', '')['command'])\n"
    (tmp_path / "tool.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(provenance.__file__).parents[1])}
    command = [sys.executable, "-m", "tool", "x y"]
    found = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert found == "python -m tool 'x y'\n"


def test_outside_a_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.provenance(**KNOWN)["commit"] == ""


def test_the_commit_of_another_repository_is_not_named(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    (tmp_path / "provenance.py").write_text("installed", encoding="utf-8")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.provenance(**KNOWN)["commit"] == ""


def test_the_commit_says_whether_files_differ(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "provenance.py").write_text("a", encoding="utf-8")
    (tmp_path / "a.csv").write_text("a", encoding="utf-8")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    (tmp_path / "a.csv").write_text("b", encoding="utf-8")
    clean = provenance.provenance(**KNOWN)["commit"]
    (tmp_path / "provenance.py").write_text("b", encoding="utf-8")
    assert re.fullmatch(r"[0-9a-f]{7,}", clean)
    assert provenance.provenance(**KNOWN)["commit"] == f"{clean}+"
