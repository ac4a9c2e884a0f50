"""Requirements have upper bounds, and the lock files match them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
FILES = [*sorted(ROOT.glob("requirements/*.txt")), ROOT / "training" / "requirements.txt"]
LOCKS = sorted(ROOT.glob("requirements/*.lock"))
# What flies: `make setup` and the distributions have no other.
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ALWAYS = Marker("python_version > '3'")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def requirements(path: Path) -> list[Requirement]:
    """Return the requirements that a file names itself."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r "))]


def locked(path: Path) -> list[tuple[Requirement, list[str]]]:
    """Return the entries of a lock file: one version each, and its hashes."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    entries = [entry.split() for entry in re.split(r"\n(?=\S)", text.replace(" \\\n", " "))]
    first = [next(i for i, word in enumerate(e) if word.startswith("--")) for e in entries]
    return [(Requirement(" ".join(e[:i])), e[i:]) for e, i in zip(entries, first, strict=True)]


def versions(path: Path, name: str, python: str) -> list[str]:
    """Return the versions of a package that a lock file installs on Linux with a Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    environment |= {"sys_platform": "linux"}
    return [
        str(entry.specifier).removeprefix("==")
        for entry, _ in locked(path)
        if entry.name.lower() == name.lower() and (entry.marker or ALWAYS).evaluate(environment)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_requirement_has_an_upper_bound(path: Path) -> None:
    found = requirements(path)
    assert found or path.read_text(encoding="utf-8").startswith("-r")
    open_ended = [
        str(item)
        for item in found
        if not {"<", "<=", "==", "~="} & {part.operator for part in item.specifier}
    ]
    assert open_ended == []


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_lock_pins_one_version_with_hashes(path: Path) -> None:
    for entry, hashes in locked(path):
        assert [part.operator for part in entry.specifier] == ["=="], entry
        assert entry.url is None
        assert hashes and all(HASH.fullmatch(item) for item in hashes), entry
    assert "://" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_of_the_on_board_part_is_within_its_bounds(python: str) -> None:
    for item in requirements(ROOT / "requirements/onboard.txt"):
        (version,) = versions(ROOT / "requirements/onboard.lock", item.name, python)
        assert item.specifier.contains(version), (item, version)


@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_lock_beside_a_ros_installation_keeps_numpy_1(python: str) -> None:
    path = ROOT / "requirements/onboard-sourced.lock"
    (numpy,) = versions(path, "numpy", python)
    (bound,) = (i for i in requirements(path.with_name("sourced.txt")) if i.name == "numpy")
    assert bound.specifier.contains(numpy)
    (runtime,) = versions(path, "onnxruntime", python)
    named = {item.name: item for item in requirements(path.with_name("onboard.txt"))}
    assert named["onnxruntime"].specifier.contains(runtime)


def test_actions_are_pinned_and_may_only_read() -> None:
    for path in ROOT.glob(".github/workflows/*.yml"):
        text = path.read_text(encoding="utf-8")
        assert "\npermissions:\n  contents: read\n" in text, path
        used = re.findall(r"uses: (\S+)", text)
        assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used), path


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / ".venv-audit/bin/cyclonedx-py").exists() or not shutil.which("make"),
    reason="needs the tools of `make sbom`: run it once",
)
def test_sbom_names_what_is_locked() -> None:
    subprocess.run(["make", "sbom"], cwd=ROOT, check=True, capture_output=True)
    bom = json.loads((ROOT / "build/sbom.json").read_text(encoding="utf-8"))
    assert bom["bomFormat"] == "CycloneDX"
    assert bom["metadata"]["component"]["name"] == "drone_kd"
    names = {entry.name for entry, _ in locked(ROOT / "requirements/onboard.lock")}
    assert {component["name"] for component in bom["components"]} == names
