"""Model spec: the description that a model file carries as JSON under one ONNX metadata key."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from drone_kd.parsing import ParseError, parse_json
from drone_kd.text import is_plain, one_line, unsafe_character

METADATA_KEY = "drone_kd"
# Entry of its own, which earlier versions do not read: they refuse further keys of a gate.
EVIDENCE_KEY = "drone_kd_gates"
SCHEMA = 2
HEADS = ("dense", "end2end")
PRECISIONS = ("fp32", "fp16", "int8")
# Layout, dtype and colour order of the input: our own, and the one that other programs expect.
INPUTS = {"uint8-nhwc": ("NHWC", "uint8", "BGR"), "float32-nchw": ("NCHW", "float32", "RGB")}

MAX_CLASSES, MAX_NAME = 10_000, 100  # characters of a name
MAX_SIDE_PX, MAX_BATCH = 8192, 64
MAX_INPUT_PX = 1 << 25  # of a whole batch: 400 MB as float32
MAX_ENTRIES, MAX_TEXT = 1000, 2000  # of a table; characters of a text
_LARGEST = 1e15  # of a number
_GATE = ("measured", "limit")  # what each gate has

_EXPORT_HINT = "export it with: drone-kd export best.pt --output model.onnx"
# Another export of the same checkpoint would be refused alike.
_NAMES_HINT = "rename the classes in the checkpoint, then: drone-kd export best.pt"


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
    # Checks of the export: name to "measured" and "limit", to compare it with; as far as they are
    # known "low" and "high" (95 % interval of "measured"), "count" (of objects) and "missing": how
    # many more objects decide whether it holds, 0 if it is decided.
    gates: dict[str, dict[str, float]] = field(default_factory=dict)
    layout: str = "NHWC"  # layout, dtype and colour are one of INPUTS
    dtype: str = "uint8"
    colour: str = "BGR"
    normalisation: str = "in graph: /255"  # informative text

    def __post_init__(self) -> None:
        layouts = " or ".join(" ".join(known) for known in INPUTS.values())
        received = (self.layout, self.dtype, self.colour)
        _require(received in INPUTS.values(), "layout, dtype, colour", layouts, received)
        pixels = f"a number of pixels, 1 to {MAX_SIDE_PX}"
        text = f"one line of at most {MAX_TEXT} characters"
        if problem := _names_problem(self.classes):
            raise ModelError(f"model metadata: classes: {problem}; {_NAMES_HINT}")
        for key, valid, expected in (
            ("input_width", _is_count(self.input_width, MAX_SIDE_PX), pixels),
            ("input_height", _is_count(self.input_height, MAX_SIDE_PX), pixels),
            ("batch", _is_count(self.batch, MAX_BATCH), f"a number of frames, 1 to {MAX_BATCH}"),
            ("head", self.head in HEADS, " or ".join(HEADS)),
            ("precision", self.precision in PRECISIONS, " or ".join(PRECISIONS)),
            ("source_sha256", is_sha256(self.source_sha256), "64 hex digits"),
            ("tools", _are_values(self.tools, is_text), "names and version strings"),
            ("metrics", are_finite(self.metrics), "names and finite numbers"),
            (
                "calibration",
                _is_calibration(self.calibration, self.precision),
                "frames, data and names_sha256 for int8, else nothing",
            ),
            ("gates", _are_values(self.gates, _is_gate), "names, each with measured and limit"),
            ("licence", is_text(self.licence), text),
            ("attribution", is_text(self.attribution), text),
            ("normalisation", is_text(self.normalisation), text),
        ):
            _require(valid, key, expected, getattr(self, key))
        size = self.batch, self.input_height, self.input_width
        _require(math.prod(size) <= MAX_INPUT_PX, "input", f"up to {MAX_INPUT_PX} pixels", size)

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
        """Return the ONNX metadata entries that `from_metadata` reads."""
        gates = {name: {key: gate[key] for key in _GATE} for name, gate in self.gates.items()}
        record = {"schema": SCHEMA, **asdict(self), "gates": gates}
        entries = {METADATA_KEY: json.dumps(record, allow_nan=False)}
        if gates != self.gates:
            entries[EVIDENCE_KEY] = json.dumps(self.gates, allow_nan=False)
        return entries

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelSpec:
        """Read the spec; ModelError: there is none, or this version does not support it."""
        if METADATA_KEY not in metadata:
            expected_key = f"expected a model with {METADATA_KEY!r} metadata"
            raise ModelError(f"{expected_key}, got one without; {_EXPORT_HINT}")
        try:
            record = parse_json(metadata[METADATA_KEY], METADATA_KEY)
        except ParseError:
            record = None
        if not isinstance(record, dict):
            raise ModelError(f"{METADATA_KEY!r} metadata: expected a JSON object; {_EXPORT_HINT}")
        schema = record.pop("schema", None)
        _require(schema == SCHEMA, "schema", str(SCHEMA), schema)
        expected = {field.name for field in fields(cls)}
        unknown, missing = record.keys() - expected, expected - record.keys()
        for problem, keys in (("unknown", unknown), ("missing", missing)):
            if keys:
                names = one_line(", ".join(sorted(keys)))
                raise ModelError(f"model metadata: {problem} {names}; {_EXPORT_HINT}")
        if isinstance(record["classes"], list):
            record["classes"] = tuple(record["classes"])
        if EVIDENCE_KEY in metadata:
            record["gates"] = _with_evidence(record["gates"], metadata[EVIDENCE_KEY])
        return cls(**record)


def shape_matches(shape: Sequence[object], expected: Sequence[int | None]) -> bool:
    """Return whether a shape is the expected one; None in `expected` matches any size."""
    return len(shape) == len(expected) and all(
        size is None or size == got for size, got in zip(expected, shape, strict=True)
    )


def is_sha256(text: object) -> bool:
    """Return whether a value is a SHA-256 as 64 lower-case hex digits."""
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


def is_text(value: object, limit: int = MAX_TEXT) -> bool:
    """Return whether a value is one line of at most `limit` characters; see `is_plain`."""
    return isinstance(value, str) and len(value) <= limit and is_plain(value)


def are_finite(mapping: object) -> bool:
    """Return whether a value is a dict of at most 1000 short names and finite numbers."""
    return _are_values(mapping, _is_number)


def _is_number(value: object) -> bool:
    # Limited, because an int may be too large for a float.
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 < value <= most


def class_name_problem(name: object) -> str:
    """Return why a value cannot be a class name: "expected X, got Y"; "": it can."""
    if not isinstance(name, str):
        return f"expected a name, got {type(name).__name__}"
    if not name.strip() or len(name) > MAX_NAME:
        got = f"{len(name)} characters" if name.strip() else "an empty one"
        return f"expected a name of 1 to {MAX_NAME} characters, got {got}"
    if character := unsafe_character(name):
        expected = "a name without control and text direction characters"
        return f"expected {expected}, got {character} in {one_line(repr(name), 60)}"
    return ""


def _names_problem(values: object) -> str:
    if not isinstance(values, tuple) or not 0 < len(values) <= MAX_CLASSES:
        got = f"{len(values)} names" if isinstance(values, tuple) else one_line(repr(values), 60)
        return f"expected a list of 1 to {MAX_CLASSES} names, got {got}"
    for number, name in enumerate(values):
        if problem := class_name_problem(name):
            return f"class {number}: {problem}"
        # Blanks at the ends stay: exports of earlier versions have them.
    return _repeated(values)


def _repeated(names: Sequence[str]) -> str:
    twice = [name for name, times in Counter(names).items() if times > 1]
    return f"expected distinct names, got {one_line(twice[0], 60)} more than once" if twice else ""


def _are_values(mapping: object, is_valid: Callable[[object], bool]) -> bool:
    return (
        isinstance(mapping, dict)
        and len(mapping) <= MAX_ENTRIES
        and all(is_text(name, MAX_NAME) and is_valid(mapping[name]) for name in mapping)
    )


def _is_gate(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {*_GATE} <= set(value) <= {*_GATE, "low", "high", "count", "missing"}
        and are_finite(value)
    )


def _with_evidence(gates: object, text: str) -> object:
    """Return the gates of the second entry, if it is about the same gates as the first."""
    try:
        evidence = parse_json(text, EVIDENCE_KEY)
    except ParseError:
        evidence = None
    same = (
        isinstance(gates, dict) and isinstance(evidence, dict) and evidence.keys() == gates.keys()
    )
    _require(same, EVIDENCE_KEY, "the evidence of each gate", text)
    return evidence


def _is_calibration(value: object, precision: str) -> bool:
    if not isinstance(value, dict) or precision != "int8":
        return value == {}
    return (
        set(value) == {"frames", "data", "names_sha256"}
        and _is_number(value["frames"])
        and is_text(value["data"])
        and is_text(value["names_sha256"], 64)
    )


def _require(condition: bool, key: str, expected: str, got: object) -> None:
    if not condition:
        problem = f"{key}: expected {expected}, got {one_line(repr(got))}"
        raise ModelError(f"model metadata: {problem}; {_EXPORT_HINT}")
