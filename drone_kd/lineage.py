"""Lineage of a model file: what it was trained from, and its family tree.

A model file stores its lineage as JSON under its own ONNX metadata key, with the lineage of every
ancestor. One file is therefore enough to print the whole tree. A second key holds one line on its
ancestry: teachers and their data, if these limit how the model may be used.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from drone_kd.backends.model_file import read_model_file
from drone_kd.core.model_spec import ModelError, ModelSpec, are_finite, is_sha256, is_text
from drone_kd.parsing import ParseError, parse_json
from drone_kd.text import one_line

LINEAGE_KEY = "drone_kd_lineage"
LINEAGE_SCHEMA = 1
ANCESTRY_KEY = "drone_kd_ancestry"

_MAX_COMMAND = 20_000  # characters
_MAX_DATA = 10_000
_MAX_ANCESTORS = 1000
# Absolute paths of Linux and Windows, a home folder, a folder outside the present one, a URL.
_ELSEWHERE = re.compile(r"^[/~\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|://")
_SHOWN_DIGITS = 12  # of each hash in the printed tree


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """Model file that others were trained from; ModelError: a field has an unsupported value.

    The metrics are those of its `ModelSpec`; date, command and data those of its `Lineage`, empty
    if it had none.
    """

    sha256: str
    metrics: Mapping[str, float]
    date: str = ""
    command: str = ""
    data: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(is_sha256(self.sha256), "sha256", "64 hex digits", self.sha256)
        expected = "names and finite numbers"
        _require(are_finite(self.metrics), "metrics", expected, self.metrics)
        _check_origin(self.date, self.command, self.data)


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Origin of a model file. Its own hash and metrics are read from the file itself.

    ModelError: a field has a value that this version does not support.
    """

    date: str  # UTC, for example 2026-11-25T18:30:00Z
    command: str  # command line that made the file
    data: Mapping[str, str]  # name of each training data set to its SHA-256, 64 hex digits
    ancestors: tuple[Ancestor, ...] = ()  # parent, grandparent and so on

    def __post_init__(self) -> None:
        _check_origin(self.date, self.command, self.data)
        _require(bool(self.date), "date", "a date", self.date)

    def to_metadata(self) -> dict[str, str]:
        """Return the ONNX metadata entry that `from_metadata` reads."""
        record = {"schema": LINEAGE_SCHEMA, **asdict(self)}
        for entry in (record, *record["ancestors"]):
            entry["command"] = without_folders(entry["command"])
        return {LINEAGE_KEY: json.dumps(record, allow_nan=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Lineage | None:
        """Read the lineage, None if there is none; ModelError: it is damaged or unsupported."""
        if LINEAGE_KEY not in metadata:
            return None
        try:
            record = parse_json(metadata[LINEAGE_KEY], LINEAGE_KEY)
            schema = record.pop("schema")
            ancestors = record.pop("ancestors")
        except (ParseError, TypeError, AttributeError, KeyError):
            raise ModelError(f"model metadata: {LINEAGE_KEY}: not a lineage") from None
        _require(schema == LINEAGE_SCHEMA, "schema", str(LINEAGE_SCHEMA), schema)
        few = not isinstance(ancestors, list) or len(ancestors) <= _MAX_ANCESTORS
        _require(few, "ancestors", f"at most {_MAX_ANCESTORS}", ancestors)
        try:
            return cls(**record, ancestors=tuple(Ancestor(**each) for each in ancestors))
        except TypeError as error:  # a key is missing or unknown
            raise ModelError(f"model metadata: {LINEAGE_KEY}: {one_line(error)}") from None


def without_folders(command: str) -> str:
    """Return a command line with only the last part of each absolute path and URL.

    They name a user, a machine or a password.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote: it was not written by this package
        words = command.split()
    if all(_base_name(word) == word for word in words):
        return command
    return shlex.join(map(_base_name, words))


def _base_name(word: str) -> str:
    """Return a word of a command line, its value after "=" or "," without its folders."""
    parts = re.split(r"([=,])", word)
    return "".join(
        re.split(r"[/\\]", part.rstrip("/\\"))[-1] if _ELSEWHERE.search(part) else part
        for part in parts
    )


def ancestry_metadata(text: str) -> dict[str, str]:
    """Return the metadata entry of a model whose teachers or data limit its use; none for "".

    ModelError: the text is not one printable line.
    """
    _check_ancestry(text)
    return {ANCESTRY_KEY: text} if text else {}


def read_ancestry(model: Path) -> str:
    """Return what a model file says of its teachers and their data; ModelError: it is unusable."""
    return _ancestry(_read(model)[1])


def _ancestry(metadata: Mapping[str, str]) -> str:
    text = metadata.get(ANCESTRY_KEY, "")
    _check_ancestry(text)
    return text


def _read(model: Path) -> tuple[str, Mapping[str, str]]:
    """Return the SHA-256 and the metadata of a model file; ModelError: it is unusable."""
    from drone_kd.backends.onnx_runtime import read_metadata  # deferred: imports ONNX Runtime

    file = read_model_file(model)
    return file.sha256, read_metadata(file)


def _check_ancestry(text: str) -> None:
    if not is_text(text):
        got = one_line(repr(text), 50)
        raise ModelError(f"model metadata: {ANCESTRY_KEY}: expected one line of text, got {got}")


def generations(model: Path) -> tuple[Ancestor, ...]:
    """Return a model file and its ancestors, most recent first; ModelError: it is unusable."""
    return _generations(*_read(model))


def _generations(sha256: str, metadata: Mapping[str, str]) -> tuple[Ancestor, ...]:
    lineage = Lineage.from_metadata(metadata)
    youngest = Ancestor(sha256=sha256, metrics=ModelSpec.from_metadata(metadata).metrics)
    if lineage is None:
        return (youngest,)
    date, command, data = lineage.date, lineage.command, lineage.data
    return replace(youngest, date=date, command=command, data=data), *lineage.ancestors


def descend(parent: Path, command: str, data: Mapping[str, str]) -> Lineage:
    """Return the `Lineage` of a model that is trained now from the model.onnx `parent`.

    It has the latest 1000 ancestors.

    Raises:
        ModelError: see `generations`; or `command` or `data` is not printable.
    """
    now = datetime.now(timezone.utc)
    return Lineage(
        date=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        command=command,
        data=data,
        ancestors=generations(parent)[:_MAX_ANCESTORS],
    )


def family_tree(model: Path) -> str:
    """Return the family tree as text; ModelError: the file or its lineage is unusable."""
    sha256, metadata = _read(model)
    youngest, *ancestors = _generations(sha256, metadata)
    ancestry = _ancestry(metadata)
    further = [f"  ancestry: {ancestry}"] if ancestry else []
    if not youngest.date:
        known = f"{one_line(model)} ({youngest.sha256[:_SHOWN_DIGITS]})"
        return "\n".join([f"{known} has no lineage in its metadata", *further])
    lines = _describe(youngest, "", "  ") + further
    for depth, ancestor in enumerate(ancestors):
        indent = "   " * depth
        lines += _describe(ancestor, f"{indent}└─ ", f"{indent}     ")
    return "\n".join(lines)


def _describe(model: Ancestor, first: str, further: str) -> list[str]:
    date = model.date or "no lineage"
    lines = [f"{first}{model.sha256[:_SHOWN_DIGITS]}  {date}  {_map_text(model.metrics)}"]
    if model.command:
        lines.append(f"{further}{model.command}")
    hashes = [f"{name} {digest[:_SHOWN_DIGITS]}" for name, digest in model.data.items()]
    if hashes:
        lines.append(f"{further}data: {', '.join(hashes)}")
    return lines


def _map_text(metrics: Mapping[str, float]) -> str:
    if "map50_95" not in metrics:
        return "mAP50-95 not measured"
    fp32 = metrics.get("map50_95_fp32")
    suffix = f" (in FP32 {100 * fp32:.1f})" if fp32 is not None else ""
    return f"mAP50-95 {100 * metrics['map50_95']:.1f}{suffix}"


def _check_origin(date: str, command: str, data: Mapping[str, str]) -> None:
    for key, text in (("date", date), ("command", command)):
        # The text is printed: control characters could steer the terminal.
        _require(is_text(text, _MAX_COMMAND), key, "one line of text", text)
    known = isinstance(data, Mapping) and len(data) <= _MAX_DATA
    _require(known, "data", f"names, at most {_MAX_DATA}, each with a SHA-256", data)
    for name, digest in data.items():
        _require(is_text(name), "data", "printable names", name)
        _require(is_sha256(digest), f"data: {one_line(name)}", "64 hex digits", digest)


def _require(condition: bool, key: str, expected: str, got: object) -> None:
    if not condition:
        problem = f"{key}: expected {expected}, got {one_line(repr(got))}"
        raise ModelError(f"model metadata: {LINEAGE_KEY}: {problem}")
