"""Paths of the package's own files: parameter defaults, the default model, the self-test image."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import yaml

from drone_kd.core.model_spec import ModelError

_PACKAGE = Path(__file__).resolve().parent


def share_path(name: str) -> Path:
    """Return the path of a shared file of the package, e.g. "worlds/aerial_traffic.yaml".

    Searches the parent of the package (a checkout), the ament share directory (colcon) and the
    data directory of the Python installation (pip), in this order. FileNotFoundError: none has it.
    """
    folders = [_PACKAGE.parent]
    try:
        from ament_index_python.packages import get_package_share_directory

        folders.append(Path(get_package_share_directory("drone_kd")))
    except (ImportError, LookupError, OSError):  # without ROS, or drone_kd is not in its index
        pass
    folders.append(Path(sysconfig.get_path("data")) / "share" / "drone_kd")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"expected {name} in {' or '.join(map(str, folders))}, found none; reinstall drone_kd"
    )


def config_path(name: str) -> Path:
    """Return the path of a file of config/, e.g. "detector.yaml"; see `share_path`."""
    return share_path(f"config/{name}")


def parameter_defaults(name: str) -> dict[str, Any]:
    """Return the parameters of a ROS parameter file of config/, e.g. "detector.yaml"."""
    parameters: dict[str, Any] = yaml.safe_load(config_path(name).read_text())["/**"][
        "ros__parameters"
    ]
    return parameters


def default_model_path() -> Path:
    """Return the path of the package's model; ModelError: this installation has none."""
    path = _PACKAGE / "models" / "default.onnx"
    if not path.is_file():
        raise ModelError("this installation has no default model; give a model.onnx")
    return path


def selftest_image_path() -> Path:
    """Return the path of the self-test's image; data/README.md has its source and licence."""
    return _PACKAGE / "data" / "bogota-niza_103-0351.jpg"
