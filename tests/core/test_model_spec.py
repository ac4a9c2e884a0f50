import json

import pytest

from drone_kd.core.model_spec import METADATA_KEY, ModelError, ModelSpec
from tiny_model import tiny_spec


def metadata(**changes):
    """Return the tiny spec's metadata with some JSON keys changed; None removes a key."""
    record = {**json.loads(tiny_spec().to_metadata()[METADATA_KEY]), **changes}
    return {METADATA_KEY: json.dumps({k: v for k, v in record.items() if v is not None})}


def test_round_trip_through_metadata():
    spec = tiny_spec(
        classes=("car", "Fußgänger"),
        head="end2end",
        attribution="VisDrone",
        input_width=96,
        batch=4,
        precision="int8",
        calibration={"frames": 512, "data": "cars", "names_sha256": "0" * 64},
        gates={"box": {"measured": 0.5, "limit": 1.0}},
    )
    assert ModelSpec.from_metadata(spec.to_metadata()) == spec


def test_shapes():
    spec = tiny_spec(input_width=96, batch=2)
    assert spec.input_shape == (2, 64, 96, 3) and spec.output_shape == (2, None, 6)
    assert tiny_spec(layout="NCHW", dtype="float32", colour="RGB").input_shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 1}, "schema: expected 2, got 1"),
        ({"schema": None}, "schema: expected 2, got None"),
        ({"layout": "NCHW"}, "expected NHWC uint8 BGR or NCHW float32 RGB, got ('NCHW', 'uint8'"),
        ({"colour": "RGB"}, "layout, dtype, colour: expected"),
        ({"batch": 0}, "batch: expected a number of frames"),
        ({"precision": "bf16"}, "precision: expected fp32 or fp16 or int8, got 'bf16'"),
        ({"precision": "int8"}, "calibration: expected frames, data and names_sha256 for int8"),
        ({"gates": {"box": 1}}, "gates: expected names, each with measured and limit"),
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
        ({"licence": 3}, "licence: expected a string"),
    ],
)
def test_invalid_metadata_is_rejected_in_one_line(changes, message):
    with pytest.raises(ModelError) as error:
        ModelSpec.from_metadata(metadata(**changes))
    assert message in str(error.value)
    assert "drone-kd export" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("foreign", [{}, {"names": "{0: 'car'}"}, {METADATA_KEY: "not JSON"}])
def test_foreign_model_is_rejected_with_the_export_command(foreign):
    with pytest.raises(ModelError, match=r"drone-kd export best\.pt --output model\.onnx"):
        ModelSpec.from_metadata(foreign)
