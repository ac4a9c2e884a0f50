"""Standard error of this process in a file, which other threads write while it is read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def stderr_in_file(path: Path) -> Iterator[None]:
    """Write standard error to a file, that of C libraries included; afterwards pytest shows it.

    pytest's own `capfd` would not do: it loses what is written between its reading and emptying.
    """
    saved = os.dup(2)
    with path.open("a", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(file):
                yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    os.write(2, path.read_bytes())
