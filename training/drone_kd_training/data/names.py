# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names from files of others: of classes, and those that become part of a file's name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from drone_kd.core.model_spec import MAX_CLASSES, class_name_problem
from drone_kd.text import is_plain, one_line

LOGGER = logging.getLogger(__name__)

# Bytes in UTF-8 that a file system allows, and those of a name that gets numbers and suffixes.
_MAX_NAME, _MAX_FILE_NAME = 255, 100
_NOT_IN_FILE_NAMES = re.compile(r'[/\\<>:"|?*\[\]]')
# Device names of Windows, with any suffix.
_RESERVED = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?")
# Control characters, line and paragraph separators, and bytes that are no UTF-8: they break lists
# of files, logs and terminals. Names of files may hold other characters that do not print.
_BREAKS_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class DataError(ValueError):
    """A data set cannot be used; the message says what was expected and what to do."""


def class_list(names: Iterable[object], where: object) -> tuple[str, ...]:
    """Return class names as text; ``where`` says in an error where they are from.

    Blanks at the ends of a name are removed, with one warning for all. Raises DataError if there
    are none or too many, or a name is empty, too long, there twice, or has control characters.
    """
    found = stripped([str(name) for name in names], where)
    if not 0 < len(found) <= MAX_CLASSES:
        raise DataError(
            f"{one_line(where)}: expected 1 to {MAX_CLASSES} class names, got {len(found)}"
        )
    for number, name in enumerate(found):
        if problem := class_name_problem(name):
            raise DataError(f"{one_line(where)}: class {number}: {problem}; rename it")
    if len(set(found)) != len(found):
        shown = one_line(", ".join(found[:20]))
        raise DataError(f"{one_line(where)}: class names must be unique, found {shown}")
    return found


def stripped(names: Sequence[str], where: object) -> tuple[str, ...]:
    """Return class names without blanks at their ends; one warning names those that had some."""
    found = tuple(name.strip() for name in names)
    changed = [
        repr(name) for name, short in zip(names, found, strict=True) if short not in ("", name)
    ]
    if changed:
        LOGGER.warning(
            "%s: removed blanks at the ends of class names: %s",
            one_line(where),
            one_line(", ".join(changed[:20])),
        )
    return found


def file_name_part(name: str, where: object) -> str:
    """Return a name that may begin the name of a file, and stays in the file's folder.

    Raises DataError if it is empty, too long, reserved, begins with a dot, ends with a dot or a
    blank, or holds a separator of folders, a wildcard or a character that does not print.
    """
    odd = not is_plain(name) or _NOT_IN_FILE_NAMES.search(name) or _RESERVED.fullmatch(name)
    if odd or name.strip(" ") != name or name[:1] in ("", ".", "-") or name.endswith("."):
        raise DataError(
            f"{one_line(where)}: expected a name that can begin a file name (letters, digits, _, "
            f"- and . inside), got {one_line(repr(name), 60)}"
        )
    if len(name.encode()) > _MAX_FILE_NAME:
        raise DataError(
            f"{one_line(where)}: expected a name of at most {_MAX_FILE_NAME} bytes, got "
            f"{one_line(repr(name), 60)}"
        )
    return name


def usable_path(path: str | Path, where: object) -> Path:
    """Return a path that can be opened and listed, in UTF-8 on one line.

    Raises DataError if it holds a control character or a byte that is no UTF-8, or a name in it is
    too long.
    """
    text = os.fspath(path)
    if _BREAKS_A_LINE.search(text) or any(len(n.encode()) > _MAX_NAME for n in text.split("/")):
        raise DataError(
            f"{one_line(where)}: expected a path without control characters, with names of at "
            f"most {_MAX_NAME} bytes, got {one_line(repr(text), 60)}; rename it"
        )
    return Path(text)
