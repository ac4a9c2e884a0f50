"""Imports inside drone_kd point inwards: core <- media, backends, tracking <- detector <- ros."""

import ast
from pathlib import Path

import pytest

import drone_kd

PACKAGE = Path(drone_kd.__file__).parent

# Foreign text and values are checked in every layer; these two import only each other.
CHECKS = ("drone_kd.text", "drone_kd.parsing")
ALLOWED = {
    "core": ("drone_kd.core", *CHECKS),
    "media": ("drone_kd.core", "drone_kd.media", *CHECKS),
    "backends": (
        "drone_kd.core",
        "drone_kd.backends",
        "drone_kd.files",
        "drone_kd.machine",
        "drone_kd.paths",
        *CHECKS,
    ),
    "tracking": ("drone_kd.core", "drone_kd.tracking"),
    "detector.py": ("drone_kd.core", "drone_kd.backends", "drone_kd.paths"),
}
# Allowed in core: no I/O, no clock, no globals, no runtime.
PURE = {
    "__future__",
    "collections",
    "cv2",
    "dataclasses",
    "drone_kd",
    "json",
    "math",
    "numpy",
    "re",
    "typing",
}


def imported_modules(part: str) -> set[str]:
    path = PACKAGE / part
    modules: set[str] = set()
    for source in [path] if path.is_file() else path.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                modules.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{source}: a relative import"
                modules.add(node.module or "")
    return modules


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_inwards(part):
    own = {name for name in imported_modules(part) if name.split(".")[0] == "drone_kd"}
    assert own
    outwards = {
        name
        for name in own
        if not any(name == layer or name.startswith(f"{layer}.") for layer in ALLOWED[part])
    }
    assert not outwards


def test_core_imports_nothing_that_does_io():
    assert {name.split(".")[0] for name in imported_modules("core")} <= PURE
