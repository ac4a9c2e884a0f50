"""Damaged descriptions inside a model file: a value, or ModelError."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drone_kd.core.model_spec import METADATA_KEY, SCHEMA, ModelError, ModelSpec
from drone_kd.lineage import LINEAGE_KEY, LINEAGE_SCHEMA, Lineage
from drone_kd.text import is_plain
from fuzzing import as_json, damaged, damaged_record, only

pytestmark = pytest.mark.slow

SHA = "0123456789abcdef" * 4
SPEC = {
    "schema": SCHEMA,
    "classes": ["car", "person"],
    "input_width": 640,
    "input_height": 480,
    "head": "dense",
    "source_sha256": SHA,
    "tools": {"torch": "2.14.1"},
    "metrics": {"map50_95": 0.25},
    "licence": "AGPL-3.0-or-later",
    "attribution": "",
    "batch": 1,
    "precision": "int8",
    "calibration": {"frames": 8, "data": "data", "names_sha256": SHA},
    "gates": {"boxes": {"measured": 0.1, "limit": 0.5}},
    "layout": "NHWC",
    "dtype": "uint8",
    "colour": "BGR",
    "normalisation": "in graph: /255",
}
ANCESTOR = {
    "sha256": SHA,
    "metrics": {"map50_95": 0.25},
    "date": "2026-11-25T18:30:00Z",
    "command": "drone-kd retrain",
    "data": {"flight": SHA},
}
LINEAGE = {
    "schema": LINEAGE_SCHEMA,
    "date": "2026-11-25T18:30:00Z",
    "command": "drone-kd retrain",
    "data": {"flight": SHA},
    "ancestors": [ANCESTOR, ANCESTOR],
}


def texts(record: Any) -> st.SearchStrategy[str]:
    """Return JSON of a damaged record, and damaged JSON of a sound one."""
    damaged_text = damaged([as_json(record).encode()])
    return damaged_record(record).map(as_json) | damaged_text.map(
        lambda data: data.decode("utf-8", "surrogateescape")
    )


@given(texts(SPEC))
def test_model_description_is_read_or_refused(text: str) -> None:
    with only(ModelError):
        spec = ModelSpec.from_metadata({METADATA_KEY: text})
        # They reach the terminal, and DDS, which takes UTF-8 only.
        assert all(name and is_plain(name) for name in spec.classes)
        assert ModelSpec.from_metadata(spec.to_metadata()) == spec


@given(texts(LINEAGE))
def test_lineage_is_read_or_refused(text: str) -> None:
    with only(ModelError):
        lineage = Lineage.from_metadata({LINEAGE_KEY: text})
        assert lineage is not None
        assert is_plain(lineage.command) and all(map(is_plain, lineage.data))


def test_undamaged_descriptions_are_read() -> None:
    assert ModelSpec.from_metadata({METADATA_KEY: as_json(SPEC)}).batch == 1
    lineage = Lineage.from_metadata({LINEAGE_KEY: as_json(LINEAGE)})
    assert lineage is not None and len(lineage.ancestors) == 2
