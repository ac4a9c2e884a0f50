import json

import pytest
from tiny_model import tiny_spec

from drone_kd.core.spec import METADATA_KEY, ModelError, ModelSpec


def metadata(**changes):
    """The tiny spec's metadata with some JSON keys changed; None removes a key."""
    record = {**json.loads(tiny_spec().to_metadata()[METADATA_KEY]), **changes}
    return {METADATA_KEY: json.dumps({k: v for k, v in record.items() if v is not None})}


def test_round_trip_through_metadata():
    spec = tiny_spec(
        classes=("car", "Fußgänger"), head="end2end", attribution="VisDrone", input_width=96
    )
    assert ModelSpec.from_metadata(spec.to_metadata()) == spec


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": 2}, "schema: expected 1, got 2"),
        ({"schema": None}, "schema: expected 1, got None"),
        ({"layout": "NCHW"}, "layout: expected NHWC, got 'NCHW'"),
        ({"dtype": "float32"}, "dtype: expected uint8"),
        ({"colour": "RGB"}, "colour: expected BGR"),
        ({"head": "detr"}, "head: expected dense or end2end, got 'detr'"),
        ({"threshold": 3}, "unknown threshold"),
        ({"licence": None}, "missing licence"),
        ({"classes": []}, "classes: expected a list of distinct names"),
        ({"classes": ["car", "car"]}, "classes: expected a list of distinct names"),
        ({"classes": "car"}, "classes: expected a list of distinct names"),
        ({"input_width": 0}, "input_width: expected a number of pixels"),
        ({"input_height": "640"}, "input_height: expected a number of pixels"),
        ({"source_sha256": "abc"}, "source_sha256: expected 64 hex digits"),
        ({"metrics": {"map50": "high"}}, "metrics: expected names and finite numbers"),
        ({"tools": ["torch"]}, "tools: expected names"),
        ({"licence": 3}, "licence: expected a text"),
    ],
)
def test_metadata_that_cannot_be_honoured(changes, says):
    with pytest.raises(ModelError) as error:
        ModelSpec.from_metadata(metadata(**changes))
    assert says in str(error.value)
    assert "python -m training export" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("foreign", [{}, {"names": "{0: 'car'}"}, {METADATA_KEY: "not JSON"}])
def test_a_foreign_model_is_told_how_to_become_ours(foreign):
    with pytest.raises(ModelError, match="python -m training export best.pt --output model.onnx"):
        ModelSpec.from_metadata(foreign)
