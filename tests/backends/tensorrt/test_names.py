"""Every name of TensorRT that our code uses is there in every version that it promises to run on.

The table was made from NVIDIA's wheels by tensorrt_names.py. The sources say of each variable that
holds an object of TensorRT of which class it is (`context: trt.IExecutionContext = ...`), and
this test reads them without running them.
"""

import ast
from pathlib import Path

import numpy as np
import pytest

from tensorrt_names import CLASSES, WHEELS, load_table

NAMES = load_table()
ON_BOARD = Path(__file__).parents[3] / "drone_kd"
SOURCES = [path for path in ON_BOARD.rglob("*.py") if "import tensorrt as trt" in path.read_text()]

# Used only behind a condition on what the version has, and then there.
SINCE_10 = ("10.3", "10.13", "11.4")
GUARDED = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": ("STRONGLY_TYPED", SINCE_10),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": ("STRONGLY_TYPED", ("8.6",)),
    "BuilderFlag.FP16": ("STRONGLY_TYPED", ("8.6",)),
    "IProgressMonitor": ("MONITORED", SINCE_10),
    "IBuilderConfig.progress_monitor": ("MONITORED", SINCE_10),
}

# What TensorRT calls of ours.
CALLBACKS = {
    "ILogger.log": tuple(WHEELS),
    "IProgressMonitor.phase_start": SINCE_10,
    "IProgressMonitor.phase_finish": SINCE_10,
    "IProgressMonitor.step_complete": SINCE_10,
}

# An object whose class is not said may have these: they are not TensorRT's alone.
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


def used_names(tree: ast.Module) -> list[tuple[str, list[str]]]:
    """Return ("Class" or "Class.member", conditions around it) of all that a module uses.

    Raises:
        AssertionError: a name of TensorRT's is used of something whose class is not said.
    """
    classes: dict[str, str] = {}
    for node in ast.walk(tree):
        target = None
        if isinstance(node, ast.AnnAssign):
            target = ast.unparse(node.target)
        elif isinstance(node, ast.arg):
            target = node.arg
        if target is not None and (cls := trt_class(node.annotation)):
            assert classes.setdefault(target, cls) == cls, f"{target} has two classes"

    of_tensorrt = {name for table in NAMES.values() for known in table.values() for name in known}
    used = []

    def visit(node: ast.AST, conditions: list[str]) -> None:
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner == "trt" and node.attr != "__version__":
                used.append((node.attr, conditions))
            elif owner.startswith("trt."):
                used.append((f"{owner.removeprefix('trt.')}.{node.attr}", conditions))
            elif owner in classes:
                used.append((f"{classes[owner]}.{node.attr}", conditions))
            else:
                assert node.attr in COMMON or node.attr not in of_tensorrt or owner == "self", (
                    f"line {node.lineno}: say of which class {owner} is, so that .{node.attr} "
                    "can be checked"
                )
        if isinstance(node, ast.If | ast.IfExp):
            visit(node.test, conditions)
            inside = [*conditions, ast.unparse(node.test)]
            for part in (node.body, node.orelse):
                for child in part if isinstance(part, list) else [part]:
                    visit(child, inside)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, conditions)

    visit(tree, [])
    return used


def test_the_sources_were_found():
    assert {path.name for path in SOURCES} == {"trt.py", "build.py"}
    assert set(NAMES) == set(WHEELS)
    assert all(cls in CLASSES for table in NAMES.values() for cls in table)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_name_is_there_in_every_version(path):
    used = used_names(ast.parse(path.read_text()))
    assert len(used) > 10
    for name, conditions in used:
        if name in GUARDED:
            guard, versions = GUARDED[name]
            assert any(guard in condition for condition in conditions), f"{name} needs {guard}"
        else:
            versions = tuple(WHEELS)
        missing = [version for version in versions if not exists(name, version)]
        assert not missing, f"{path.name}: {name} is not in TensorRT {', '.join(missing)}"


def test_what_tensorrt_calls_of_ours_is_there():
    for name, versions in CALLBACKS.items():
        assert all(exists(name, version) for version in versions), name


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import tensorrt as trt\nx: trt.Builder = 1\nx.build_engine()", "Builder.build_engine"),
        ("import tensorrt as trt\ntrt.BuilderFlag.INT8", "BuilderFlag.INT8"),
        ("import tensorrt as trt\ntrt.IInt8EntropyCalibrator2", "IInt8EntropyCalibrator2"),
    ],
)
def test_a_name_that_some_version_lacks_is_found(source, says):
    (name,) = [name for name, _ in used_names(ast.parse(source)) if "8" in name or "." in name]
    assert name == says
    assert not all(exists(name, version) for version in WHEELS)


def test_an_object_of_unknown_class_is_found():
    with pytest.raises(AssertionError, match="say of which class context is"):
        used_names(ast.parse("context.execute_async_v3(0)"))
