"""Test folders of parts that are not installed are left out, and no others with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "folder"),
    [
        ("rclpy", "ros"),
        ("torch", "training"),
        ("rosbags", "training/mining"),
    ],
)
def test_folder_without_its_modules_is_left_out_with_a_reason(
    tmp_path: Path, module: str, folder: str
) -> None:
    (tmp_path / "missing_module.py").write_text(f"import sys; sys.modules[{module!r}] = None\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "missing_module", "--collect-only"]
    # The folder is named, so that pytest imports its conftest.py before it collects.
    done = subprocess.run(
        [*command, "tests/integration/test_optional_parts.py", f"tests/{folder}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert "<Function test_folder_without_its_modules" in done.stdout, done.stdout + done.stderr
    assert f"left out: tests/{folder}: no {module}" in done.stdout
    assert done.stdout.count("<Module ") == 1, "a module of the folder is collected"
