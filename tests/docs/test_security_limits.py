"""The limits in docs/security.md are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from drone_kd.paths import parameter_defaults

ROOT = Path(__file__).resolve().parents[2]
UNITS = {"MB": 1e6, "megapixels": 1e6, "pixels": 1, "characters": 1, "s": 1, "": 1}
ROW = re.compile(r"^\| [^|]+ \| ([\d,]+) ?(\w*) \| (parameter )?`([\w.]+)` \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/security.md").read_text(encoding="utf-8"))


def constant(name: str) -> int:
    """Return a module's constant without importing the module, which may need torch."""
    module, _, wanted = name.rpartition(".")
    folder = ROOT / "training" if module.startswith("drone_kd_training") else ROOT
    source = (folder / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            (targets,), values = node.targets, node.value
            names = targets.elts if isinstance(targets, ast.Tuple) else [targets]
            given = values.elts if isinstance(values, ast.Tuple) else [values]
            for target, value in zip(names, given, strict=False):
                if isinstance(target, ast.Name) and target.id == wanted:
                    return int(ast.literal_eval(value))
    raise AssertionError(f"no constant {name}")


def test_table_is_found() -> None:
    table = (
        (ROOT / "docs/security.md")
        .read_text(encoding="utf-8")
        .split("| what |")[1]
        .split("\n\n")[0]
    )
    unread = [
        row for row in re.findall(r"^\| \w.*\d.* \|$", table, re.MULTILINE) if not ROW.match(row)
    ]
    assert len(ROWS) > 20 and not unread


@pytest.mark.parametrize(("number", "unit", "is_parameter", "name"), ROWS)
def test_limit_is_that_of_the_code(number: str, unit: str, is_parameter: str, name: str) -> None:
    shown = float(number.replace(",", "")) * UNITS[unit]
    if is_parameter:
        value = parameter_defaults("detector.yaml")[name]
        # Of a parameter its own unit.
        assert value == shown / UNITS[unit]
    else:
        assert constant(name) == shown
