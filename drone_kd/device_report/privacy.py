"""Reports without personal data: no paths, no names of users and computers."""

from __future__ import annotations

import contextlib
import getpass
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drone_kd.machine import host_name
from drone_kd.paths import cache_folder, expanded

# A path from "/", "~" or a private folder on; "frames/s" is none.
_PATH = re.compile(r"(?<![\w.~/])[~…]?(?:/[^/\s'\"`,;:()<>|\[\]]+)+/?")
# Names of users and computers that tell nothing, and are words of a report, too.
_COMMON = frozenset({"root", "nvidia", "jetson", "ubuntu", "user", "orin", "localhost", "drone"})
_SHORTEST = 3


def private_names(folders: Iterable[Path] = ()) -> list[str]:
    """Return what a report must not contain: folders, user and computer, longest first.

    `folders`: in addition to the home folder, the working folder and the one for caches.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user that the system does not know
        user = ""
    words = [word for word in (user, host_name()) if word.lower() not in _COMMON]
    folders = [Path.cwd(), *folders]
    with contextlib.suppress(ValueError):  # a user without a home folder
        folders.append(expanded("~"))
    with contextlib.suppress(OSError):
        folders.append(cache_folder(lambda line: None))
    paths = {str(path) for folder in folders for path in (folder.absolute(), folder.resolve())}
    names = [name for name in (*paths, *words) if len(name) >= _SHORTEST]
    return sorted(names, key=len, reverse=True)  # a folder before the one that it is in


def anonymous(value: Any, names: Iterable[str]) -> Any:
    """Return a JSON value whose texts have file names instead of paths, and no private names.

    `names`: see `private_names`.
    """
    names = tuple(names)
    if isinstance(value, dict):
        return {key: anonymous(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [anonymous(item, names) for item in value]
    # Names first: a folder with blanks is not all matched as a path.
    return _PATH.sub(_last_part, without_names(value, names)) if isinstance(value, str) else value


def without_names(text: str, names: Iterable[str]) -> str:
    """Return a text with each private name replaced by "…", in capitals, too.

    "_" separates words: "alice_model.onnx" holds the name "alice".
    """
    for name in names:
        pattern = rf"(?<![^\W_]){re.escape(name)}(?![^\W_])"
        text = re.sub(pattern, "…", text, flags=re.IGNORECASE)
    return text


def _last_part(path: re.Match[str]) -> str:
    return path[0].rstrip("/").rpartition("/")[2]
