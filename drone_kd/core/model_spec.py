"""Model spec: the description that a model file carries as JSON under one ONNX metadata key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

METADATA_KEY = "drone_kd"
SCHEMA = 2
HEADS = ("dense", "end2end")
PRECISIONS = ("fp32", "fp16", "int8")
# Layout, dtype and colour order of the input: our own, and the one that other programs expect.
INPUTS = {"uint8-nhwc": ("NHWC", "uint8", "BGR"), "float32-nchw": ("NCHW", "float32", "RGB")}

_EXPORT_HINT = "export it with: drone-kd export best.pt --output model.onnx"


class ModelError(ValueError):
    """Unusable model; the message is one line and says what to do."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Contract between a model file and the code that runs it.

    The output is float32 (batch, K, 6): per frame K rows of x1, y1, x2, y2 in network pixels,
    score after sigmoid, class id; best first. K is fixed in the graph.

    ModelError: a field has a value that this version does not support.
    """

    classes: tuple[str, ...]  # the index is the class id
    input_width: int
    input_height: int
    # "dense": the rows are the best class of the best anchors, and need NMS; "end2end": the rows
    # are the detections.
    head: str
    source_sha256: str  # of the checkpoint the model was exported from, 64 hex digits
    tools: dict[str, str]  # name to version of each tool used for the export
    metrics: dict[str, float]  # measured on the exported model
    licence: str  # of the weights (an SPDX identifier where there is one)
    attribution: str = ""  # credit that the licence asks for
    batch: int = 1  # frames per inference, fixed in the graph
    precision: str = "fp32"  # parts of an int8 graph stay in floating point
    # INT8 calibration: "frames" (number), "data" (data set) and "names_sha256" (of the frames'
    # names, one per line). Empty for other precisions.
    calibration: dict[str, int | str] = field(default_factory=dict)
    # Checks of the export: name to "measured", which is ≤ "limit".
    gates: dict[str, dict[str, float]] = field(default_factory=dict)
    layout: str = "NHWC"  # layout, dtype and colour are one of INPUTS
    dtype: str = "uint8"
    colour: str = "BGR"
    normalisation: str = "in graph: /255"  # informative text

    def __post_init__(self) -> None:
        layouts = " or ".join(" ".join(known) for known in INPUTS.values())
        received = (self.layout, self.dtype, self.colour)
        _require(received in INPUTS.values(), "layout, dtype, colour", layouts, received)
        entries = {"frames", "data", "names_sha256"} if self.precision == "int8" else set()
        calibrated = isinstance(self.calibration, dict) and set(self.calibration) == entries
        gated = _are_values(self.gates, dict) and all(
            set(gate) == {"measured", "limit"} for gate in self.gates.values()
        )
        for key, valid, expected in (
            ("classes", _are_names(self.classes), "a list of distinct names"),
            ("input_width", _is_positive(self.input_width), "a number of pixels > 0"),
            ("input_height", _is_positive(self.input_height), "a number of pixels > 0"),
            ("batch", _is_positive(self.batch), "a number of frames > 0"),
            ("head", self.head in HEADS, " or ".join(HEADS)),
            ("precision", self.precision in PRECISIONS, " or ".join(PRECISIONS)),
            ("source_sha256", is_sha256(self.source_sha256), "64 hex digits"),
            ("tools", _are_values(self.tools, str), "names and version strings"),
            ("metrics", are_finite(self.metrics), "names and finite numbers"),
            ("calibration", calibrated, "frames, data and names_sha256 for int8, else nothing"),
            ("gates", gated, "names, each with measured and limit"),
            ("licence", isinstance(self.licence, str), "a string"),
            ("attribution", isinstance(self.attribution, str), "a string"),
            ("normalisation", isinstance(self.normalisation, str), "a string"),
        ):
            _require(valid, key, expected, getattr(self, key))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of the graph's input, in `layout`."""
        height, width = self.input_height, self.input_width
        shape = (height, width, 3) if self.layout == "NHWC" else (3, height, width)
        return self.batch, *shape

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of the float32 output; None where any size is allowed."""
        return self.batch, None, 6

    def to_metadata(self) -> dict[str, str]:
        """Return the ONNX metadata entry that `from_metadata` reads."""
        record = {"schema": SCHEMA, **asdict(self)}
        return {METADATA_KEY: json.dumps(record, allow_nan=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelSpec:
        """Read the spec; ModelError: there is none, or this version does not support it."""
        if METADATA_KEY not in metadata:
            expected_key = f"expected a model with {METADATA_KEY!r} metadata"
            raise ModelError(f"{expected_key}, got one without; {_EXPORT_HINT}")
        try:
            record = json.loads(metadata[METADATA_KEY])
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ModelError(f"{METADATA_KEY!r} metadata: expected a JSON object; {_EXPORT_HINT}")
        schema = record.pop("schema", None)
        _require(schema == SCHEMA, "schema", str(SCHEMA), schema)
        expected = {field.name for field in fields(cls)}
        unknown, missing = record.keys() - expected, expected - record.keys()
        for problem, keys in (("unknown", unknown), ("missing", missing)):
            if keys:
                names = ", ".join(sorted(keys))
                raise ModelError(f"model metadata: {problem} {names}; {_EXPORT_HINT}")
        if isinstance(record["classes"], list):
            record["classes"] = tuple(record["classes"])
        return cls(**record)


def shape_matches(shape: Sequence[object], expected: Sequence[int | None]) -> bool:
    """Return whether a shape is the expected one; None in `expected` matches any size."""
    return len(shape) == len(expected) and all(
        size is None or size == got for size, got in zip(expected, shape, strict=True)
    )


def is_sha256(text: object) -> bool:
    """Return whether a value is a SHA-256 as 64 lower-case hex digits."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def are_finite(mapping: object) -> bool:
    """Return whether a value is a dict of finite numbers."""
    return isinstance(mapping, dict) and all(
        type(value) in (int, float) and math.isfinite(value) for value in mapping.values()
    )


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0


def _are_names(values: object) -> bool:
    return (
        isinstance(values, tuple)
        and bool(values)
        and all(isinstance(value, str) and value for value in values)
        and len(set(values)) == len(values)
    )


def _are_values(mapping: object, kind: type) -> bool:
    return isinstance(mapping, dict) and all(isinstance(v, kind) for v in mapping.values())


def _require(condition: bool, key: str, expected: str, got: object) -> None:
    if not condition:
        problem = f"{key}: expected {expected}, got {got!r}"
        raise ModelError(f"model metadata: {problem}; {_EXPORT_HINT}")
