import json

import pytest

from drone_kd.core.model_spec import ModelError
from drone_kd.lineage import LINEAGE_KEY, Ancestor, Lineage

DIGEST = "ab" * 32
PARENT = Ancestor(
    sha256=DIGEST,
    metrics={"map50_95": 0.25},
    date="2026-11-24T18:30:00Z",
    command="python -m training retrain a.onnx",
    data={"base": DIGEST},
)
CHILD = Lineage(
    date="2026-11-25T18:30:00Z",
    command="python -m training retrain 'Fußgänger.onnx'",
    data={"base": DIGEST, "flight 7": "0" * 64},
    ancestors=(PARENT, Ancestor(sha256=DIGEST, metrics={})),
)


def test_round_trip_through_metadata():
    assert Lineage.from_metadata(CHILD.to_metadata()) == CHILD
    assert Lineage.from_metadata({"drone_kd": "{}"}) is None


def changed(**changes):
    record = {**json.loads(CHILD.to_metadata()[LINEAGE_KEY]), **changes}
    return {LINEAGE_KEY: json.dumps({k: v for k, v in record.items() if v is not None})}


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({LINEAGE_KEY: "not JSON"}, "not a lineage"),
        ({LINEAGE_KEY: "[" * 100_000}, "not a lineage"),
        ({LINEAGE_KEY: "[]"}, "not a lineage"),
        (changed(schema=2), "schema: expected 1, got 2"),
        (changed(ancestors=3), "not iterable"),
        (changed(ancestors=[{"sha256": "abc", "metrics": {}}]), "expected 64 hex digits"),
        (changed(ancestors=[{"sha256": DIGEST}]), "missing"),
        (changed(ancestors=[{"sha256": DIGEST, "metrics": {"a": "b"}}]), "finite numbers"),
        (changed(command=None), "missing"),
        (changed(date=""), "date: expected one, got ''"),
        (changed(command="\x1b[2J"), "command: expected one line of text"),
        (changed(colour="red"), "colour"),
        (changed(data={"base": "abc"}), "data: base: expected 64 hex digits"),
        (changed(data=["base"]), "data: expected names"),
    ],
)
def test_metadata_that_cannot_be_honoured(metadata, says):
    with pytest.raises(ModelError) as error:
        Lineage.from_metadata(metadata)
    assert says in str(error.value) and "\n" not in str(error.value)
