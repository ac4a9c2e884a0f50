# SPDX-License-Identifier: AGPL-3.0-or-later
"""Folders that a command writes into, and files in them: no link in them leads elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np

from drone_kd.text import one_line
from drone_kd_training.data.names import DataError


def real_folder(path: Path) -> Path:
    """Make a folder with its parents, or accept one; return its path.

    Raises DataError if a link or a file is there: whoever made a link chooses where files are
    written. OSError if the folder cannot be made.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise DataError(
            f"{one_line(path)}: expected a folder, got a link or a file; delete it, or choose "
            "another output"
        )
    path.mkdir(parents=True, exist_ok=True)
    return path


def own_folder(path: Path) -> Path:
    """Make a folder with its parents, or accept one of this user's; return its path.

    Raises DataError if a link, a file, or a folder of another user is there: whoever made it
    chooses what is used as finished work. OSError if it cannot be made.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        owner = real_folder(path).lstat().st_uid
        if owner != os.geteuid():
            raise DataError(
                f"{one_line(path)}: expected a folder of your own, got one of uid {owner}; choose "
                "another output"
            ) from None
    return path


def empty_folder(path: Path) -> Path:
    """Make an empty folder in place of an old one, whose links are not followed; return its path.

    OSError if it cannot be made, or the old one cannot be removed.
    """
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def check_inside(path: Path, folder: Path) -> None:
    """Raise DataError unless a file's folder, with links followed, is ``folder`` or inside it."""
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{one_line(path)}: expected a folder inside {one_line(folder)}, got a link that "
            "leads elsewhere; nothing is written"
        )


def write_image(path: Path, image: np.ndarray, quality: int | None = None) -> None:
    """Write a BGR image in the format of the path's suffix; a link there is replaced.

    ``quality``: of a JPEG, 0 to 100. OSError if it cannot be written.
    """
    options = () if quality is None else (cv2.IMWRITE_JPEG_QUALITY, quality)
    encoded = cv2.imencode(path.suffix, image, options)[1]
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(encoded.tobytes())


def open_new(path: Path) -> TextIO:
    """Open a new text file in place of an old one, or of a link; OSError if it cannot be made."""
    path.unlink(missing_ok=True)
    return path.open("x", encoding="utf-8")
