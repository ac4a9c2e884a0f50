"""Text that comes from others, made fit for a terminal and a log."""

from __future__ import annotations

import unicodedata

# Categories of Unicode: control, format (e.g. direction overrides), surrogate, private use,
# unassigned, line separator, paragraph separator.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def one_line(text: object, limit: int = 200) -> str:
    r"""Return text as one printable line of at most `limit` characters, cut off with "…".

    White space becomes single spaces; other characters that do not print are escaped ("\x1b").
    For messages of errors, names of classes and files, and anything else that others wrote.
    """
    # More is not needed, however long the text is.
    text = str(text)[: 4 * limit + 4]
    line = "".join(_escaped(c) for c in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def is_plain(text: str) -> bool:
    """Return whether text is one line of characters that print, and can be written as UTF-8."""
    return not any(unicodedata.category(character) in _HIDDEN for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape").decode("ascii")
