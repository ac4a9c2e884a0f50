"""Paths: of the package's own files, and of others, confined to given folders."""

from __future__ import annotations

import os
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from drone_kd.core.model_spec import ModelError
from drone_kd.files import private_folder
from drone_kd.parsing import read_yaml
from drone_kd.text import one_line

_NAME_BYTES, _PATH_BYTES = 255, 4096  # limits of Linux
_PACKAGE = Path(__file__).resolve().parent


def share_path(name: str) -> Path:
    """Return the path of a shared file of the package, e.g. "worlds/aerial_traffic.yaml".

    Searches the parent of the package (a checkout), the ament share directory (colcon) and the
    data directory of the Python installation (pip), in this order. The second comes from
    AMENT_PREFIX_PATH, which is trusted: ROS 2 loads libraries and Python modules from its folders.
    FileNotFoundError: none has it.
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
    parameters: dict[str, Any] = read_yaml(config_path(name))["/**"]["ros__parameters"]
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


def confined(path: str | Path, folders: Iterable[str | Path]) -> Path:
    """Return the absolute path without links of something in one of `folders`, or of one of them.

    A leading "~" is the home folder, and a relative path starts at the working directory. What is
    at the path, if anything, makes no difference, so a refusal does not tell what exists.

    Raises:
        ValueError: the path is in none of the folders, or none at all; the message is one line.
    """
    allowed = [_resolved(folder) for folder in folders]
    found = _resolved(path)
    if found is None or not any(folder and found.is_relative_to(folder) for folder in allowed):
        inside = " or ".join(one_line(folder) for folder in allowed if folder) or "no folder"
        raise ValueError(f'expected a path in {inside}, got "{one_line(path)}"')
    return found


def cache_folder(warn: Callable[[str], None]) -> Path:
    """Return the folder for caches of this user: $XDG_CACHE_HOME/drone_kd or ~/.cache/drone_kd.

    Without a home folder that can be written, as in a container that runs as another user, it is
    a private folder in the temporary one, and `warn` gets a line. OSError: see `private_folder`.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the specification has others ignored
        return Path(base, "drone_kd")
    try:
        home = Path.home()
        if home.is_absolute() and os.access(home, os.W_OK | os.X_OK):
            return home / ".cache" / "drone_kd"
    except RuntimeError:  # a user that the system does not know
        pass
    folder = private_folder(Path(tempfile.gettempdir(), f"drone_kd-{os.geteuid()}"))
    hint = "XDG_CACHE_HOME changes it"
    warn(f"no home folder that can be written: caching in {one_line(folder)}; {hint}")
    return folder


def expanded(path: str | Path) -> Path:
    """Return a path with its leading "~" replaced; ValueError: that user has no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"expected a path, got that of a user without a home folder: {one_line(path)}; "
            "set HOME or give an absolute path"
        ) from None


def _resolved(path: str | Path) -> Path | None:
    """Return an absolute path without links; None: it is no path, or longer than a path may be."""
    try:
        # RuntimeError: a loop of links; ValueError: a null character.
        found = expanded(path).resolve()
        parts = [os.fsencode(part) for part in found.parts]
    except (OSError, RuntimeError, ValueError):
        return None
    too_long = max(map(len, parts)) > _NAME_BYTES or len(bytes(found)) >= _PATH_BYTES
    return None if too_long or not str(path) else found
