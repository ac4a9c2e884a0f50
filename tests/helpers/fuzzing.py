"""What the tests in tests/fuzz share: damaged files, and what an error must look like."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

MAX_MESSAGE = 500

# Sizes, counts and offsets of a file format, at their limits.
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_HEADER_BYTES = 100


@contextlib.contextmanager
def only(*expected: type[Exception]) -> Iterator[None]:
    """Accept success, or one of the documented exceptions with a short, printable line."""
    try:
        yield
    except expected as error:
        check_line(error)


def check_line(error: object) -> None:
    """Check that a message is one short, printable line."""
    text = str(error)
    assert text and text.isprintable() and len(text) < MAX_MESSAGE, repr(text[: 2 * MAX_MESSAGE])


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """Return one of some valid files with up to six changes."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 6))):
        # Most fields that matter are at the start.
        limit = draw(st.sampled_from([_HEADER_BYTES, len(data)]))
        at = draw(st.integers(0, max(min(limit, len(data)) - 1, 0)))
        kind = draw(st.sampled_from(["byte", "number", "cut", "delete", "repeat", "insert"]))
        if kind == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "number":
            size = draw(st.sampled_from([2, 4, 8]))
            order = draw(st.sampled_from(["little", "big"]))
            value = draw(st.sampled_from(_EDGES) | st.integers(0, 2**32 - 1))
            data[at : at + size] = (value % 256**size).to_bytes(size, order)
        elif kind == "cut":
            del data[at:]
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 20))
        else:
            data[at:at] = draw(st.binary(max_size=64))
    return bytes(data)


# Text with control characters, direction overrides, surrogates and great length.
hostile_text = (
    st.text(max_size=20)
    | st.sampled_from(["", "../x", "/etc/passwd", "\x1b[2J", "a\nb", "\u202e", "\x00", "~nobody"])
    | st.sampled_from(["\ud800", "x" * 2000, "ä" * 300, "nan", "1e400", "-1"])
)
numbers = (
    st.integers(-10, 2000)
    | st.floats()
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, float("nan"), True])
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | numbers | hostile_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(hostile_text, inner, max_size=5),
    max_leaves=8,
)


@st.composite
def damaged_record(draw: st.DrawFn, record: Any) -> Any:
    """Return a copy of a JSON value in which up to three values or keys differ."""
    content = json.loads(json.dumps(record))
    for _ in range(draw(st.integers(0, 3))):
        content = draw(_with_one_change(content))
    return content


@st.composite
def _with_one_change(draw: st.DrawFn, value: Any) -> Any:
    deeper = isinstance(value, (dict, list)) and len(value) > 0 and draw(st.integers(0, 4)) > 0
    if not deeper:
        return draw(values)
    if isinstance(value, list):
        i = draw(st.integers(0, len(value) - 1))
        if draw(st.booleans()) and not isinstance(value[i], (dict, list)):
            return [*value, draw(values)]
        return [*value[:i], draw(_with_one_change(value[i])), *value[i + 1 :]]
    key = draw(st.sampled_from(sorted(value)))
    change = draw(st.sampled_from(["value", "value", "value", "lost", "more"]))
    rest = {k: v for k, v in value.items() if k != key}
    if change == "lost":
        return rest
    if change == "more":
        return value | {draw(hostile_text): draw(values)}
    return rest | {key: draw(_with_one_change(value[key]))}


def as_json(value: Any) -> str:
    """Return JSON text; what has no JSON (a number of 400 digits) stays as Python writes it."""
    return json.dumps(value)
