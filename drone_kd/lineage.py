"""Where a model comes from, stored as JSON under an ONNX metadata key of its own.

A child carries what its parents said of themselves, so that the family tree can be read from one
file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from drone_kd.core.model_spec import ModelError

LINEAGE_KEY = "drone_kd_lineage"
LINEAGE_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A model file that others were trained from.

    Attributes:
        sha256: of the model file, 64 hex digits.
        metrics: as its `ModelSpec` has them.
        date, command, data: as its `Lineage` had them; empty where it had none.

    Raises:
        ModelError: a field has a value this version cannot honour.
    """

    sha256: str
    metrics: Mapping[str, float]
    date: str = ""
    command: str = ""
    data: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_sha256("sha256", self.sha256)
        _require(
            isinstance(self.metrics, Mapping)
            and all(
                isinstance(name, str)
                and isinstance(value, (int, float))
                and not isinstance(value, bool)
                and math.isfinite(value)
                for name, value in self.metrics.items()
            ),
            "metrics",
            "names and finite numbers",
            self.metrics,
        )
        _check_origin(self.date, self.command, self.data)


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """How a model file came to be. Its own hash and figures are not here: the file has them.

    Attributes:
        date: UTC, as in 2026-11-25T18:30:00Z.
        command: the command line that made it.
        data: name of each set of data that it learnt from to a SHA-256, 64 hex digits.
        ancestors: its parent, the parent's parent and so on; empty: it has none.

    Raises:
        ModelError: a field has a value this version cannot honour.
    """

    date: str
    command: str
    data: Mapping[str, str]
    ancestors: tuple[Ancestor, ...] = ()

    def __post_init__(self) -> None:
        _check_origin(self.date, self.command, self.data)
        _require(bool(self.date), "date", "one", self.date)

    def to_metadata(self) -> dict[str, str]:
        """Return the ONNX metadata entry that `from_metadata` reads back."""
        record = {"schema": LINEAGE_SCHEMA, **asdict(self)}
        return {LINEAGE_KEY: json.dumps(record, allow_nan=False)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Lineage | None:
        """Read the lineage from a model's metadata map; None: it has none.

        Raises:
            ModelError: this version cannot honour it.
        """
        if LINEAGE_KEY not in metadata:
            return None
        try:
            record = json.loads(metadata[LINEAGE_KEY])
            schema = record.pop("schema")
            ancestors = record.pop("ancestors")
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            raise ModelError(f"model metadata: {LINEAGE_KEY}: not a lineage") from None
        _require(schema == LINEAGE_SCHEMA, "schema", str(LINEAGE_SCHEMA), schema)
        try:
            return cls(**record, ancestors=tuple(Ancestor(**each) for each in ancestors))
        except TypeError as error:  # a key is missing or unknown
            raise ModelError(f"model metadata: {LINEAGE_KEY}: {error}") from None


def _check_origin(date: str, command: str, data: Mapping[str, str]) -> None:
    for key, text in (("date", date), ("command", command)):
        # A terminal shows it: nothing in it may steer one.
        _require(isinstance(text, str) and text.isprintable(), key, "one line of text", text)
    _require(isinstance(data, Mapping), "data", "names, each with a SHA-256", data)
    for name, digest in data.items():
        _require(isinstance(name, str) and name.isprintable(), "data", "printable names", name)
        _check_sha256(f"data: {name}", digest)


def _check_sha256(key: str, digest: object) -> None:
    _require(
        isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef"),
        key,
        "64 hex digits",
        digest,
    )


def _require(condition: bool, key: str, expected: str, got: object) -> None:
    if not condition:
        raise ModelError(f"model metadata: {LINEAGE_KEY}: {key}: expected {expected}, got {got!r}")
