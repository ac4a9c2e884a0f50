"""What is installed: one version, on-board code without torch, a command on PATH, two wheels."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
import setuptools
import yaml

from commands import run_command

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]

IMPORT_ALL = """
import importlib, pkgutil, sys

for name in ("torch", "torchvision", "ultralytics", "drone_kd_training"):
    sys.modules[name] = None  # any import of it now raises ImportError

import drone_kd

def fail(name):
    raise ImportError(name)

for module in pkgutil.walk_packages(drone_kd.__path__, "drone_kd.", onerror=fail):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":  # JetPack's, and needed by what runs it alone
            raise
    print(module.name)
"""


def run(*command: object, cwd: Path) -> str:
    """Run a command in `cwd` and return its output; fail the test when the command fails."""
    return run_command([*map(str, command)], cwd)


def build_wheel(source: Path, output: Path) -> tuple[set[str], str]:
    """Build the wheel of a folder in a temporary copy; return its files and its METADATA."""
    copy = shutil.copytree(
        source,
        output / "source",
        ignore=shutil.ignore_patterns(".*", "*.egg-info", "runs", "build"),
    )
    build = "import setuptools.build_meta as b; print(b.build_wheel('..'))"
    wheel = output / run(sys.executable, "-c", build, cwd=copy).split()[-1]
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return set(names), file.read(metadata).decode()


def top_level(names: set[str]) -> set[str]:
    """Return the importable packages and modules among a wheel's files."""
    tops = {name.split("/")[0] for name in names if name.endswith(".py")}
    return {top for top in tops if not top.endswith(".data")}


def test_version_is_that_of_package_xml() -> None:
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert run(sys.executable, "setup.py", "--version", cwd=ROOT).split()[-1] == version


def test_setup_runs_through_a_link_as_colcon_does(tmp_path: Path) -> None:
    """With --symlink-install, beside links to the packages but not to requirements/."""
    for name in ("setup.py", "setup.cfg", "drone_kd"):
        (tmp_path / name).symlink_to(ROOT / name)
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert run(sys.executable, "setup.py", "--version", cwd=tmp_path).split()[-1] == version


@pytest.mark.slow
def test_wheel_of_the_on_board_part(tmp_path: Path) -> None:
    source = tmp_path / "checkout with blanks"
    source.mkdir()
    for name in ("drone_kd", "config", "launch", "worlds", "requirements", "resource"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "package.xml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    names, metadata = build_wheel(source, tmp_path)
    assert top_level(names) == {"drone_kd"}
    assert {"drone_kd/py.typed", "drone_kd/models/default.onnx"} <= names
    shared = {name.partition("/data/share/drone_kd/")[2] for name in names}
    files = {"config/detector.yaml", "config/sros2/detector.policy.xml", "launch/fly.launch.py"}
    assert files <= shared
    worlds = (
        "aerial_traffic.sdf",
        "aerial_traffic.yaml",
        "bridge.yaml",
        "aerial_traffic/ground.obj",
    )
    assert {f"worlds/{file}" for file in worlds} <= shared
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License: Apache-2.0" in metadata and "Requires-Python: >=3.10" in metadata


@pytest.mark.skipif(
    tuple(map(int, setuptools.__version__.split(".")[:3])) < (77, 0, 3),
    reason=f"needs setuptools >= 77.0.3 (training/pyproject.toml), got {setuptools.__version__}",
)
def test_wheel_of_the_training_part(tmp_path: Path) -> None:
    names, metadata = build_wheel(ROOT / "training", tmp_path)
    assert top_level(names) == {"drone_kd_training"}  # no module `training` on the user's path
    recipes = {path.name for path in (ROOT / "training/drone_kd_training/recipes").glob("*.*")}
    files = {name for name in recipes if name.endswith((".yaml", ".pt"))}
    assert {"default_model.yaml", "demo-student.pt", "night-teacher.pt"} <= files
    assert {f"drone_kd_training/recipes/{name}" for name in files} <= names
    assert "drone_kd_training/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    version = ElementTree.parse(ROOT / "package.xml").findtext("version")
    assert f"\nVersion: {version}\n" in metadata
    assert "License-Expression: AGPL-3.0-or-later" in metadata
    assert "Requires-Dist: drone_kd[onboard,simulation]" in metadata


# Modules of Python packages, and the rosdep keys that install them.
ROSDEP_KEYS = {
    "cv2": "python3-opencv",
    "numpy": "python3-numpy",
    "onnxruntime": "python3-onnxruntime-pip",
    "yaml": "python3-yaml",
}
# What no launch file needs: extras of setup.py, JetPack's tensorrt, shell completion.
OPTIONAL = {
    "argcomplete",
    "av",
    "ffmpeg_image_transport_msgs",
    "jinja2",
    "lz4",
    "mcap",
    "pycocotools",
    "rosbags",
    "tensorrt",
    "zstandard",
}


def imports(folder: str) -> set[str]:
    """Return the top-level modules that a folder imports, the standard library's left out."""
    names = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)


def launched_packages() -> set[str]:
    """Return the ROS packages that launch files name: of nodes, and of other launch files."""
    names = set()
    for path in (ROOT / "launch").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                values = [word.value for word in node.keywords if word.arg == "package"]
                if "share" in ast.unparse(node.func).lower():
                    values += node.args[:1]
                names |= {
                    value.value
                    for value in values
                    if isinstance(value, ast.Constant) and isinstance(value.value, str)
                }
    return names


def test_package_xml_names_what_is_imported_and_launched() -> None:
    """`rosdep install` brings all that the nodes and the launch files need."""
    manifest = ElementTree.parse(ROOT / "package.xml")
    declared = {item.text for item in manifest.iter("exec_depend")}
    imported = imports("drone_kd") | imports("launch")
    launched = launched_packages()
    assert {"cv2", "onnxruntime", "rclpy", "launch_ros"} <= imported
    assert {"drone_kd", "ros_gz_bridge", "ros_gz_sim"} <= launched
    required = (imported | launched) - OPTIONAL - {"drone_kd"}
    assert {ROSDEP_KEYS.get(name, name) for name in required} - declared == set()
    assert declared - {ROSDEP_KEYS.get(name, name) for name in required} == {"ros2launch"}


def test_on_board_modules_import_without_torch_and_training_part(tmp_path: Path) -> None:
    pytest.importorskip("rclpy", reason="drone_kd.ros needs ROS 2: source one or `make setup`")
    # Elsewhere than in the repository, so that what is installed is imported.
    modules = run(sys.executable, "-c", IMPORT_ALL, cwd=tmp_path).split()
    assert {"drone_kd.cli", "drone_kd.detector", "drone_kd.ros.detector_node"} <= set(modules)


@pytest.mark.skipif(
    sys.prefix == sys.base_prefix, reason="colcon puts drone-kd into lib/drone_kd, not on PATH"
)
@pytest.mark.parametrize("folder", ["training", "drone_kd_training", "a folder with blanks"])
def test_installed_command_ignores_the_working_directory(folder: str, tmp_path: Path) -> None:
    here = tmp_path / folder
    (here / folder).mkdir(parents=True)
    for name in ("torch.py", "drone_kd.py", "numpy.py", "training.py"):
        (here / name).write_text("raise SystemExit('the module of the working directory')")
    command = Path(sys.prefix, "bin", "drone-kd")
    assert "detect" in run(command, "--help", cwd=here)
    assert "MODEL.onnx" in run(command, "detect", "--help", cwd=here)


@pytest.mark.slow
def test_training_commands_run_from_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the requirements of the training part")
    checkout = tmp_path / "a checkout with blanks"
    checkout.mkdir()
    for name in ("drone_kd", "training", "config"):
        (checkout / name).symlink_to(ROOT / name)
    output = tmp_path / "data set"
    command = [sys.executable, "-m", "training", "generate", "--output", output]
    run(*command, "--train", "2", "--val", "1", "--imgsz", "64", cwd=checkout)
    assert yaml.safe_load((output / "data.yaml").read_text(encoding="utf-8"))["names"]


def test_old_python_is_one_line_of_the_setup() -> None:
    """As of JetPack 5; colcon and old versions of pip run the file before they know the limit."""
    ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    script = "import runpy, sys; sys.version_info = (3, 8, 10); runpy.run_path('setup.py')"
    done = subprocess.run(
        [sys.executable, "-c", script, "--version"], cwd=ROOT, capture_output=True, text=True
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith("drone_kd: expected Python 3.10 or newer") and "JetPack 6" in line


def test_colcon_ignores_interfaces() -> None:
    # Without it, colcon could build a second vision_msgs over that of the distribution.
    assert (ROOT / "interfaces" / "COLCON_IGNORE").exists()
