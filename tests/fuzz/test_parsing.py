"""Any bytes as JSON and YAML: plain values, or ParseError."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from drone_kd.parsing import ParseError, parse_json, parse_yaml
from fuzzing import as_json, damaged, only, values

pytestmark = pytest.mark.slow

SEEDS = [
    b'{"a": [1, 2.5, true, null, "\\u0041"], "b": {"c": -1e5}}',
    b"a: &x [1, 2]\nb: {c: *x}\nd: !!binary aGVsbG8=\ne: 2026-11-30T01:02:03Z\n<<: {f: ~}\n",
    b"- 0x10\n- 1_000\n- .inf\n- 190:20:30\n- ? [k]\n  : v\n- !!set {a, b}\n",
]


@given(damaged(SEEDS) | st.binary(max_size=100) | values.map(as_json).map(str.encode))
@example(b"[" * 100_000)
@example(b"\xff\xfe\x00\x00")
@example(b"1" * 5000)
@example(b'{"a":' * 50_000)
def test_json_is_parsed_or_refused(content: bytes) -> None:
    with only(ParseError):
        parse_json(content, "file\x1b.json")


@given(damaged(SEEDS) | st.binary(max_size=100) | values.map(as_json).map(str.encode))
@example(b"[" * 10_000)
@example(b"a: !!python/object/apply:os.system [true]")
@example(b"a: !!timestamp 2026-99-99")
@example(b"a: !!int x")
@example(b"? {a: b}\n: c\n")
def test_yaml_is_parsed_or_refused(content: bytes) -> None:
    with only(ParseError):
        parse_yaml(content, "file\x1b.yaml")
