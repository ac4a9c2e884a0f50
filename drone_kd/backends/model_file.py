"""Model files: read once, hashed, and refused if they depend on other files.

A runtime gets the bytes that were hashed and checked here, so a file that is replaced meanwhile
makes no difference. The checks need no onnx package: the parts of a Protocol Buffers message are
found without it. Field numbers: onnx.proto, format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from drone_kd.core.model_spec import ModelError
from drone_kd.parsing import ParseError, read_limited
from drone_kd.text import one_line

MAX_BYTES = 500_000_000
MAX_METADATA_BYTES = 4_000_000
_MEGA = 1e6
_ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
# The default model has 5,000 fields and 4 levels.
_MAX_FIELDS = 2_000_000
_MAX_LEVELS = 64
# The messages that lead to tensors and metadata: the number of a field to the kind of its message.
_CHILDREN = {
    "model": {7: "graph", 14: "metadata", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"}
    | {22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {},
}
# Of a tensor: `external_data` names a file, `data_location` says that there is one.
_EXTERNAL = (13, 14)
_VARINT, _BYTES = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}


@dataclass(frozen=True)
class ModelFile:
    """Checked content of a model file."""

    path: Path  # where it was read from; the file may be another one by now
    content: bytes
    sha256: str  # of `content`, 64 hex digits
    metadata: Mapping[str, str]


def read_model_file(path: str | Path, limit: int = MAX_BYTES) -> ModelFile:
    """Read a model.onnx of at most `limit` bytes.

    ModelError: it is no regular file, an engine, too large, damaged, keeps data in other files or
    has functions of its own; the message is one line.
    """
    path = Path(path)
    if path.suffix in _ENGINE_SUFFIXES:
        raise ModelError(
            f"{one_line(path)}: engines made elsewhere (trtexec, Ultralytics) are not accepted: "
            "an engine runs native code when it is loaded, fits one TensorRT and one GPU, and has "
            "no class list; give the model.onnx, drone-kd build makes its engine on this device"
        )
    if path.suffix != ".onnx":
        raise ModelError(f"{one_line(path)}: expected a file that ends in .onnx")
    try:
        content = read_limited(path, limit)
    except ParseError as error:
        name = one_line(path)
        reason = str(error).removeprefix(f"{name}: ")
        raise ModelError(f"{name}: expected a model file: {reason}") from None
    try:
        metadata = _checked_metadata(content)
    except (ValueError, IndexError) as error:
        reason = str(error) if isinstance(error, ModelError) else "truncated, or no ONNX model?"
        raise ModelError(f"{one_line(path)}: cannot load it ({reason})") from None
    return ModelFile(path, content, hashlib.sha256(content).hexdigest(), metadata)


def _checked_metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a model.

    Raises:
        ModelError: it has external data, functions of its own, or too many parts.
        ValueError, IndexError: it is damaged.
    """
    metadata: dict[str, str] = {}
    size = fields = 0
    waiting = [("model", 0, len(content), 0)]
    if not content:
        raise ValueError("expected a model")
    while waiting:
        kind, start, end, level = waiting.pop()
        for number, wire, first, last in _fields(content, start, end):
            fields += 1
            if fields > _MAX_FIELDS or level > _MAX_LEVELS:
                raise ModelError("its graph has too many parts or levels")
            if kind == "tensor" and number in _EXTERNAL and (wire, first) != (_VARINT, 0):
                raise ModelError("its weights are in another file; store them in the model")
            child = _child(kind, number)
            if child is None:
                continue
            if wire != _BYTES:
                raise ValueError("expected a message")
            if child == "metadata":
                size += last - first
                if size > MAX_METADATA_BYTES:
                    limit = f"{MAX_METADATA_BYTES / _MEGA:g} MB"
                    raise ModelError(f"expected at most {limit} of metadata, got more")
                _add_entry(content, first, last, metadata)
            else:
                waiting.append((child, first, last, level + 1))
    return metadata


def _child(kind: str, number: int) -> str | None:
    """Return the kind of message in a field; ModelError: it is a function."""
    child = _CHILDREN[kind].get(number)
    # ONNX Runtime inlines functions: thirty, of which each calls the next twice, are 2**30 nodes.
    if child == "function":
        raise ModelError("it has functions of its own; export it without them")
    return child


def _add_entry(content: bytes, start: int, end: int, metadata: dict[str, str]) -> None:
    """Add an entry of the metadata, whose message has the key in field 1, the value in 2."""
    entry = {
        number: content[first:last] for number, _, first, last in _fields(content, start, end)
    }
    try:
        key, value = entry.get(1, b"").decode(), entry.get(2, b"").decode()
    except UnicodeDecodeError:
        raise ModelError("expected metadata in UTF-8, got other bytes") from None
    if key in metadata:
        raise ModelError(f"expected metadata with distinct keys, got {one_line(key)} twice")
    metadata[key] = value


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type, start and end of each field of a message.

    Of a field that is a number (_VARINT), the third value is the number. ValueError, IndexError:
    the bytes are no message.
    """
    position = start
    while position < end:
        tag, position = content[position], position + 1
        if tag >= 0x80:  # rarely, and a call takes longer than the rest: a model has many fields
            tag, position = _varint(content, position - 1)
        wire = tag & 7
        if wire == _VARINT:
            first, position = _varint(content, position)
        else:
            if wire == _BYTES:
                size, position = _varint(content, position)
            else:
                size = _FIXED_SIZES.get(wire, -1)
            first, position = position, position + size
        # Other readers may take a longer tag for that of another field.
        if not 8 <= tag < 1 << 32 or not (wire in (_VARINT, _BYTES) or wire in _FIXED_SIZES):
            raise ValueError("expected a field")
        if position > end:
            raise ValueError("expected more bytes")
        yield tag >> 3, wire, first, position


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Return a number with a variable number of bytes, and the position behind it."""
    byte = content[position]
    if byte < 0x80:
        return byte, position + 1
    value = shift = 0
    while shift < 70:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("expected a number of at most ten bytes")
