"""Generated pages of the documentation site, without MkDocs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from drone_kd.cli import ON_BOARD, TRAINING
from drone_kd.paths import parameter_defaults

ROOT = Path(__file__).resolve().parents[2]
# What the pages are made without.
WITHOUT = ("rclpy", "rcl_interfaces", "torch", "ultralytics", "mkdocs", "onnxruntime")


def generate(page: str) -> str:
    """Return a page, made in a process that has neither ROS 2 nor torch nor MkDocs."""
    code = f"import sys; sys.modules.update(dict.fromkeys({WITHOUT})); import hooks"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.path[:0] = [*hooks.CODE]; print(hooks.{page}())"],
        cwd=ROOT / "docs",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_commands_have_all_commands_with_their_options():
    page = generate("commands")
    for name in (*ON_BOARD, *TRAINING):
        assert f"### {name}\n" in page
    assert "| `--temperature T` | softens the class probabilities (default: 1.0) |" in page


def test_parameters_have_all_parameters_with_default_and_range():
    page = generate("parameters")
    for file in ("detector", "camera", "scorer", "gazebo_truth"):
        assert f"## {file}\n" in page
        for name, default in parameter_defaults(f"{file}.yaml").items():
            assert f"| `{name}` | `{default!r}` |" in page
    assert "| `confidence` | `0.25` | 0 to 1 |" in page
    assert "one without a name. Fixed at startup. |" in page


@pytest.mark.parametrize(
    ("link", "in_the_site"),
    [
        ("[a](../../benchmarks/node.md#start)", "[a](../results/node.md#start)"),
        ("[a](../default-model.md)", "[a](../default-model.md)"),
        ("![a](late-boxes.jpg)", "![a](late-boxes.jpg)"),
        ("[LICENSE](../../LICENSE)", "LICENSE"),
        ("[defaults](../../config/detector.yaml)", "defaults (`config/detector.yaml`)"),
        ("[a](https://example.org/b)", "[a](https://example.org/b)"),
        ("[a](#here)", "[a](#here)"),
    ],
)
def test_links_lead_to_pages_of_the_site(hooks: ModuleType, link: str, in_the_site: str):
    assert hooks._relink(link, "docs/guides/fly.md", "guides/fly.md") == in_the_site


def test_links_of_a_results_page_lead_back_to_the_documents(hooks: ModuleType):
    link = "[card](../docs/default-model.md) [b](export.md)"
    moved = hooks._relink(link, "benchmarks/node.md", "results/node.md")
    assert moved == "[card](../default-model.md) [b](export.md)"
