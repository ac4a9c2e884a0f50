"""JSON and YAML files of others: limited in size and depth, and parsed without running code."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from drone_kd.text import one_line

MAX_BYTES = 64_000_000
# Of YAML, whose parser takes a second per megabyte and a hundred times its size.
MAX_YAML_BYTES = 4_000_000
_MAX_DEPTH = 64
_MAX_VALUES = 1_000_000
# Characters of a number: those in base 60 ("1:30") take quadratic time.
_MAX_NUMBER = 100
# Of a number that is a key: longer ones can all have the same hash.
_MAX_KEY = 18
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MEGA = 1e6


class ParseError(ValueError):
    """Unreadable file, or other content than its format; the message is one line and names it."""


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    A device or a named pipe is not opened: it might never end.

    Raises:
        ParseError: there is no such file, it cannot be read, or is no regular file.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ParseError(f"{one_line(path)}: {reason}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ParseError(f"{one_line(path)}: expected a file, got another kind")
    return os.fdopen(descriptor, "rb")


def read_limited(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file, at most `limit` of them.

    Raises:
        ParseError: there is no such file, it cannot be read, is larger, or is no regular file.
    """
    with open_regular(path) as file:
        try:
            too_large = os.fstat(file.fileno()).st_size > limit
            # None: a file of the kernel that has nothing to say yet.
            content = b"" if too_large else file.read(limit + 1) or b""
        except OSError as error:
            raise ParseError(f"{one_line(path)}: {error.strerror}") from None
    if too_large or len(content) > limit:  # it may have grown
        raise ParseError(f"{one_line(path)}: expected at most {limit / _MEGA:g} MB, got more")
    return content


def parse_json(content: bytes | str, name: object, max_values: int = MAX_BYTES // 8) -> Any:
    """Return the value of a JSON text; `name` says in an error where the text is from.

    A value takes some 60 bytes of memory more than its text.

    Raises:
        ParseError: it is not JSON, is nested too deeply or has too many values.
    """
    separators = (",", "[", "{") if isinstance(content, str) else (b",", b"[", b"{")
    if sum(map(content.count, separators)) > max_values:  # type: ignore[arg-type]
        raise ParseError(f"{one_line(name)}: expected JSON, got too many values")
    try:
        value = json.loads(content)
    except RecursionError:
        raise ParseError(f"{one_line(name)}: expected JSON, got too many levels") from None
    except UnicodeDecodeError:
        raise ParseError(
            f"{one_line(name)}: expected JSON in UTF-8, got another encoding; save it as UTF-8"
        ) from None
    except ValueError as error:
        raise ParseError(f"{one_line(name)}: expected JSON: {one_line(error)}") from None
    return value


def read_json(path: str | Path, limit: int = MAX_BYTES) -> Any:
    """Return the value of a JSON file; ParseError: see `read_limited` and `parse_json`."""
    return parse_json(read_limited(path, limit), path, limit // 8)


def parse_yaml(content: bytes | str, name: object, loader: type = yaml.SafeLoader) -> Any:
    """Return the value of a YAML text with plain values.

    Args:
        content: UTF-8.
        name: says in an error where the text is from.
        loader: subclass of `yaml.SafeLoader`.

    Raises:
        ParseError: it is not YAML, has a number that is too long, or is nested too deeply or too
            large with its aliases.
    """
    if not issubclass(loader, yaml.SafeLoader):
        raise TypeError(f"expected a subclass of SafeLoader, got {loader}")
    try:
        _number_of_values(yaml.compose(content, yaml.SafeLoader), 0, {})
        return yaml.load(content, loader)  # noqa: S506  a SafeLoader: plain values only
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if getattr(error, "encoding", None) == "utf-8":
            raise ParseError(
                f"{one_line(name)}: expected YAML in UTF-8, got another encoding; save it as UTF-8"
            ) from None
        raise ParseError(f"{one_line(name)}: expected YAML: {one_line(error)}") from None
    # What the loader raises for a tag that does not fit its text, e.g. "!!bool x".
    except (ArithmeticError, AttributeError, LookupError, TypeError):
        raise ParseError(f"{one_line(name)}: expected YAML, got a tag on other values") from None


def _number_of_values(node: yaml.Node | None, depth: int, known: dict[int, int]) -> int:
    """Return how many values a YAML node has with its aliases written out.

    Ten lines with aliases of aliases stand for gigabytes. `known`: numbers by id of the node.
    ValueError: there are too many, too many levels, or a number that is too long.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("too many levels")
    if not isinstance(node, yaml.CollectionNode):
        _check_number(node, _MAX_NUMBER)
        return 1
    if id(node) not in known:
        children = node.value
        if isinstance(node, yaml.MappingNode):
            for key, _ in children:
                _check_number(key, _MAX_KEY)
            children = [child for pair in children for child in pair]
        known[id(node)] = sum(_number_of_values(c, depth + 1, known) for c in children) + 1
    if known[id(node)] > _MAX_VALUES:
        raise ValueError("too many values")
    return known[id(node)]


def _check_number(node: yaml.Node | None, limit: int) -> None:
    if node is not None and node.tag in _NUMBERS and len(node.value) > limit:
        raise ValueError(f"expected a number of at most {limit} characters")


def read_yaml(path: str | Path, loader: type = yaml.SafeLoader) -> Any:
    """Return the value of a YAML file; ParseError: see `read_limited` and `parse_yaml`."""
    return parse_yaml(read_limited(path, MAX_YAML_BYTES), path, loader)
