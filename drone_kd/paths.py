"""Where the package's own files are: parameter defaults, the default model, a picture."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import yaml

from drone_kd.core.model_spec import ModelError

_PACKAGE = Path(__file__).resolve().parent


def share_path(name: str) -> Path:
    """Return the path of a shared file of the package, e.g. "worlds/aerial_traffic.yaml".

    Looked up beside the package (a checkout), then in the ament share directory (colcon), then
    in the Python installation's data directory (pip).

    Raises:
        FileNotFoundError: it is in none of them.
    """
    folders = [_PACKAGE.parent]
    try:
        from ament_index_python.packages import get_package_share_directory

        folders.append(Path(get_package_share_directory("drone_kd")))
    except (ImportError, LookupError, OSError):  # no ROS here, or drone_kd is not installed in it
        pass
    folders.append(Path(sysconfig.get_path("data")) / "share" / "drone_kd")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{name} is not in {', '.join(map(str, folders))}: install drone_kd again"
    )


def config_path(name: str) -> Path:
    """Return the path of a file of config/, e.g. "detector.yaml"; see `share_path`."""
    return share_path(f"config/{name}")


def parameter_defaults(name: str) -> dict[str, Any]:
    """Return the parameters of a ROS parameter file of config/, e.g. "detector.yaml"."""
    return yaml.safe_load(config_path(name).read_text())["/**"]["ros__parameters"]


def default_model_path() -> Path:
    """Return the path of the model that comes with the package.

    Raises:
        ModelError: this installation has none.
    """
    path = _PACKAGE / "models" / "default.onnx"
    if not path.is_file():
        raise ModelError("this installation has no default model: name a model.onnx")
    return path


def selftest_picture_path() -> Path:
    """Return the path of the picture that the self-test runs on; data/README.md credits it."""
    return _PACKAGE / "data" / "bogota-niza_103-0351.jpg"
