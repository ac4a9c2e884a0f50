"""Reports without personal data: no paths, no names of users and computers."""

from __future__ import annotations

import contextlib
import getpass
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drone_kd.machine import host_name
from drone_kd.paths import expanded

# A path from "/" or "~" on; "frames/s" is none.
_PATH = re.compile(r"(?<![\w.~/])~?(?:/[^/\s'\"`,;:()<>|\[\]]+)+/?")
# Names of users and computers that tell nothing, and are words of a report, too.
_COMMON = frozenset({"root", "nvidia", "jetson", "ubuntu", "user", "orin", "localhost", "drone"})
_SHORTEST = 3


def private_names() -> list[str]:
    """Return what a report must not contain: home folder, working folder, user and computer."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user that the system does not know
        user = ""
    words = [word for word in (user, host_name()) if word.lower() not in _COMMON]
    folders = [str(Path.cwd())]
    with contextlib.suppress(ValueError):  # a user without a home folder
        folders.append(str(expanded("~")))
    return [name for name in (*folders, *words) if len(name) >= _SHORTEST]


def anonymous(value: Any, names: Iterable[str]) -> Any:
    """Return a JSON value whose texts have file names instead of paths, and no private names.

    `names`: see `private_names`.
    """
    names = tuple(names)
    if isinstance(value, dict):
        return {key: anonymous(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [anonymous(item, names) for item in value]
    return without_names(_PATH.sub(_last_part, value), names) if isinstance(value, str) else value


def without_names(text: str, names: Iterable[str]) -> str:
    """Return a text with each private name replaced by "…"."""
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", text)
    return text


def _last_part(path: re.Match[str]) -> str:
    return path[0].rstrip("/").rpartition("/")[2]
