"""Text that comes from others, made fit for a terminal and a log."""

from __future__ import annotations

import re
import reprlib
import unicodedata
from typing import Any, TextIO

# Categories of Unicode: control, format (e.g. direction overrides), surrogate, private use,
# unassigned, line separator, paragraph separator.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Control characters, surrogates, line and paragraph separators, controls of the text direction and
# the byte order mark. Names need other format characters: joiners (Persian, emoji), soft hyphens.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029"
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)

# Few lines of YAML or a pickle may hold lists of the same lists that would be gigabytes of text.
_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = _short.maxfrozenset = 16
_short.maxstring = _short.maxother = _short.maxlong = 200


def one_line(text: object, limit: int = 200) -> str:
    r"""Return text as one printable line of at most `limit` characters, cut off with "…".

    White space becomes single spaces; other characters that do not print are escaped ("\x1b").
    A container is shown with its first values only.
    For messages of errors, names of classes and files, and anything else that others wrote.
    """
    if isinstance(text, (list, tuple, dict, set, frozenset)):
        text = _short.repr(text)
    # More is not needed, however long the text is.
    text = str(text)[: 4 * limit + 4]
    line = "".join(_escaped(c) for c in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


class PrintableStream:
    """Text stream whose characters that do not print are escaped; lines and tabs are kept.

    For the output of commands, which has names of files and classes that others chose.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text to the stream; return the number of its characters."""
        self._stream.write("".join(c if c in "\n\t" else _escaped(c) for c in text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_plain(text: str) -> bool:
    """Return whether text is one line in reading order, and can be written as UTF-8."""
    return _UNSAFE.search(text) is None


def unsafe_character(text: str) -> str:
    """Return the first character for which `is_plain` refuses text, e.g. "U+202E"; else ""."""
    found = _UNSAFE.search(text)
    return f"U+{ord(found[0]):04X}" if found else ""


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")
