"""Every TensorRT name that our code uses exists in every supported version.

tensorrt_names.py made the table from NVIDIA's wheels. The sources annotate each variable that
holds a TensorRT object with its class (`context: trt.IExecutionContext = ...`); this test parses
them without running them.
"""

import ast
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tensorrt_names import CLASSES, WHEELS, load_table

NAMES = load_table()
ON_BOARD = Path(__file__).parents[3] / "drone_kd"
SOURCES = [path for path in ON_BOARD.rglob("*.py") if "import tensorrt as trt" in path.read_text()]

# Used only behind a condition on the version.
SINCE_10 = ("10.3", "10.13", "11.4")
GUARDED = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": ("STRONGLY_TYPED", SINCE_10),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": ("STRONGLY_TYPED", ("8.6",)),
    "BuilderFlag.FP16": ("STRONGLY_TYPED", ("8.6",)),
    "IProgressMonitor": ("MONITORED", SINCE_10),
    "IBuilderConfig.progress_monitor": ("MONITORED", SINCE_10),
}

# Our methods that TensorRT calls.
CALLBACKS = {
    "ILogger.log": tuple(WHEELS),
    "IProgressMonitor.phase_start": SINCE_10,
    "IProgressMonitor.phase_finish": SINCE_10,
    "IProgressMonitor.step_complete": SINCE_10,
}

MEMBERS = {name for table in NAMES.values() for known in table.values() for name in known}
# Allowed on objects without an annotation: other classes have these names, too.
COMMON = {name for cls in (np.ndarray, str, dict, list, Path, bytes) for name in dir(cls)}
COMMON |= {"name", "value"}


def exists(name: str, version: str) -> bool:
    cls, _, member = name.partition(".")
    known = NAMES[version].get(cls)
    return known is not None and (not member or member == "__init__" or member in known)


def trt_class(annotation: ast.expr | None) -> str | None:
    """Return "X" of an annotation trt.X or trt.X | None."""
    if isinstance(annotation, ast.BinOp):
        annotation = annotation.left
    if isinstance(annotation, ast.Attribute) and ast.unparse(annotation.value) == "trt":
        return annotation.attr
    return None


def annotated_classes(tree: ast.Module) -> dict[str, str]:
    """Return variable to TensorRT class of all annotations in a module."""
    classes: dict[str, str] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.AnnAssign | ast.arg):
            continue
        target = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
        if cls := trt_class(node.annotation):
            assert classes.setdefault(target, cls) == cls, f"{target} has two classes"
    return classes


class UsedNames(ast.NodeVisitor):
    """Collects the TensorRT names that a module uses.

    Attributes:
        used: ("Class" or "Class.member", conditions around it).

    Raises:
        AssertionError: a TensorRT name is used on an object without an annotation.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.used: list[tuple[str, list[str]]] = []
        self._classes = annotated_classes(tree)
        self._conditions: list[str] = []
        self.visit(tree)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = ast.unparse(node.value)
        if owner == "trt" and node.attr != "__version__":
            self._add(node.attr)
        elif owner.startswith("trt."):
            self._add(f"{owner.removeprefix('trt.')}.{node.attr}")
        elif owner in self._classes:
            self._add(f"{self._classes[owner]}.{node.attr}")
        else:
            assert node.attr in COMMON or node.attr not in MEMBERS or owner == "self", (
                f"line {node.lineno}: annotate {owner} with its class, so that .{node.attr} can "
                "be checked"
            )
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self._visit_conditional(node.test, [*node.body, *node.orelse])

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._visit_conditional(node.test, [node.body, node.orelse])

    def _visit_conditional(self, test: ast.expr, branches: Sequence[ast.AST]) -> None:
        self.visit(test)
        self._conditions.append(ast.unparse(test))
        for branch in branches:
            self.visit(branch)
        self._conditions.pop()

    def _add(self, name: str) -> None:
        self.used.append((name, list(self._conditions)))


def used_names(source: str) -> list[tuple[str, list[str]]]:
    return UsedNames(ast.parse(source)).used


def test_sources_that_import_tensorrt():
    assert {path.name for path in SOURCES} == {"runtime.py", "build.py"}
    assert set(NAMES) == set(WHEELS)
    assert all(cls in CLASSES for table in NAMES.values() for cls in table)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_name_exists_in_every_version(path):
    used = used_names(path.read_text())
    assert len(used) > 10
    for name, conditions in used:
        if name in GUARDED:
            guard, versions = GUARDED[name]
            assert any(guard in condition for condition in conditions), f"{name} needs {guard}"
        else:
            versions = tuple(WHEELS)
        missing = [version for version in versions if not exists(name, version)]
        assert not missing, f"{path.name}: {name} is not in TensorRT {', '.join(missing)}"


def test_callbacks_exist_in_their_versions():
    for name, versions in CALLBACKS.items():
        assert all(exists(name, version) for version in versions), name


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("import tensorrt as trt\nx: trt.Builder = 1\nx.build_engine()", "Builder.build_engine"),
        ("import tensorrt as trt\ntrt.BuilderFlag.INT8", "BuilderFlag.INT8"),
        ("import tensorrt as trt\ntrt.IInt8EntropyCalibrator2", "IInt8EntropyCalibrator2"),
    ],
)
def test_name_that_some_version_lacks_is_detected(source, missing):
    (name,) = [name for name, _ in used_names(source) if "8" in name or "." in name]
    assert name == missing
    assert not all(exists(name, version) for version in WHEELS)


def test_object_without_annotation_is_detected():
    with pytest.raises(AssertionError, match="annotate context with its class"):
        used_names("context.execute_async_v3(0)")
