"""What a model file says of itself, stored as JSON under one ONNX metadata key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

METADATA_KEY = "drone_kd"
SCHEMA = 1
HEADS = ("dense", "end2end")

_EXPORT_HINT = "export it with: python -m training export best.pt --output model.onnx"


class ModelError(ValueError):
    """A model cannot be used; the message is one line and says what to do."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The contract between a model file and the code that runs it.

    Attributes:
        classes: class names; the index is the class id.
        input_width: network input width in pixels.
        input_height: network input height in pixels.
        head: "dense": float32 (1, 4 + classes, A) of cx, cy, w, h in network pixels and one
            score per class after sigmoid, which needs non-maximum suppression; "end2end":
            float32 (1, K, 6) of x1, y1, x2, y2 in network pixels, score, class id.
        source_sha256: SHA-256 of the checkpoint the model was exported from, 64 hex digits.
        tools: tool name to version, as used for the export.
        metrics: metric name to value, as measured on the exported model.
        licence: licence of the weights (an SPDX identifier where there is one).
        attribution: credit that licence asks for; may be empty.
        layout, dtype, colour: the input is uint8 (1, H, W, 3) in BGR order.
        normalisation: text for people; the arithmetic is part of the graph.

    Raises:
        ModelError: a field has a value this version cannot honour.
    """

    classes: tuple[str, ...]
    input_width: int
    input_height: int
    head: str
    source_sha256: str
    tools: dict[str, str]
    metrics: dict[str, float]
    licence: str
    attribution: str = ""
    layout: str = "NHWC"
    dtype: str = "uint8"
    colour: str = "BGR"
    normalisation: str = "in graph: /255"

    def __post_init__(self) -> None:
        names = self.classes
        _require(
            isinstance(names, tuple)
            and bool(names)
            and all(isinstance(name, str) and name for name in names)
            and len(set(names)) == len(names),
            "classes",
            "a list of distinct names",
            names,
        )
        for key in ("input_width", "input_height"):
            size = getattr(self, key)
            _require(type(size) is int and size > 0, key, "a number of pixels > 0", size)
        for key, known in (
            ("head", HEADS),
            ("layout", ("NHWC",)),
            ("dtype", ("uint8",)),
            ("colour", ("BGR",)),
        ):
            _require(getattr(self, key) in known, key, " or ".join(known), getattr(self, key))
        digest = self.source_sha256
        _require(
            isinstance(digest, str)
            and len(digest) == 64
            and all(character in "0123456789abcdef" for character in digest),
            "source_sha256",
            "64 hex digits",
            digest,
        )
        _require(
            isinstance(self.tools, dict)
            and all(isinstance(version, str) for version in self.tools.values()),
            "tools",
            "names and version texts",
            self.tools,
        )
        _require(
            isinstance(self.metrics, dict)
            and all(
                type(value) in (int, float) and math.isfinite(value)
                for value in self.metrics.values()
            ),
            "metrics",
            "names and finite numbers",
            self.metrics,
        )
        for key in ("licence", "attribution", "normalisation"):
            _require(isinstance(getattr(self, key), str), key, "a text", getattr(self, key))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the uint8 input."""
        return 1, self.input_height, self.input_width, 3

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of the float32 output; None where any size will do."""
        return (1, 4 + len(self.classes), None) if self.head == "dense" else (1, None, 6)

    def to_metadata(self) -> dict[str, str]:
        """Return the ONNX metadata entry that `from_metadata` reads back."""
        record = {"schema": SCHEMA, **asdict(self)}
        return {METADATA_KEY: json.dumps(record, allow_nan=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelSpec:
        """Read the spec from a model's metadata map.

        Raises:
            ModelError: there is no spec, or this version cannot honour it.
        """
        if METADATA_KEY not in metadata:
            raise ModelError(
                f"the model does not describe itself (no {METADATA_KEY!r} metadata); "
                f"{_EXPORT_HINT}"
            )
        try:
            record = json.loads(metadata[METADATA_KEY])
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ModelError(f"the {METADATA_KEY!r} metadata is not a JSON object; {_EXPORT_HINT}")
        schema = record.pop("schema", None)
        _require(schema == SCHEMA, "schema", str(SCHEMA), schema)
        expected = {field.name for field in fields(cls)}
        for problem, keys in (
            ("unknown", record.keys() - expected),
            ("missing", expected - record.keys()),
        ):
            if keys:
                raise ModelError(
                    f"model metadata: {problem} {', '.join(sorted(keys))}; {_EXPORT_HINT}"
                )
        if isinstance(record["classes"], list):
            record["classes"] = tuple(record["classes"])
        return cls(**record)


def shape_matches(shape: Sequence[object], expected: Sequence[int | None]) -> bool:
    """Tell whether a shape is the expected one, where None stands for any size."""
    return len(shape) == len(expected) and all(
        want is None or want == got for want, got in zip(expected, shape, strict=True)
    )


def _require(condition: bool, key: str, expected: str, got: object) -> None:
    if not condition:
        raise ModelError(
            f"model metadata: {key}: expected {expected}, got {got!r}; {_EXPORT_HINT}"
        )
