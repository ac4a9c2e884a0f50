import json

import pytest

import class_names
from drone_kd.core.model_spec import EVIDENCE_KEY, METADATA_KEY, ModelError, ModelSpec
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


EVIDENCE = {"measured": 0.5, "limit": 1.0, "low": 0.1, "high": 1.2, "count": 40, "missing": 9}


def test_evidence_of_gates_is_an_entry_of_its_own():
    """Earlier versions accept gates with a measured value and a limit, and nothing else."""
    spec = tiny_spec(gates={"box": {"measured": 0.1, "limit": 1}, "boxes lost": EVIDENCE})
    entries = spec.to_metadata()
    for gate in json.loads(entries[METADATA_KEY])["gates"].values():
        assert set(gate) == {"measured", "limit"}
    assert ModelSpec.from_metadata(entries) == spec
    old = ModelSpec.from_metadata({METADATA_KEY: entries[METADATA_KEY]})
    assert old.gates["boxes lost"] == {"measured": 0.5, "limit": 1.0}
    assert EVIDENCE_KEY not in old.to_metadata()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"box": {"measured": 1}}', '{"box": {"measured": 1, "x": 1}}']
)
def test_damaged_evidence_is_rejected_in_one_line(text):
    entries = tiny_spec(gates={"box": EVIDENCE}).to_metadata()
    with pytest.raises(ModelError, match="gates: expected") as error:
        ModelSpec.from_metadata({**entries, EVIDENCE_KEY: text})
    assert "\n" not in str(error.value)


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
        ({"classes": []}, "classes: expected a list of 1 to 10000 names, got 0 names"),
        ({"classes": ["car", "car"]}, "classes: expected distinct names, got car more than once"),
        ({"classes": "car"}, "classes: expected a list of 1 to 10000 names, got 'car'"),
        ({"input_width": 0}, "input_width: expected a number of pixels"),
        ({"input_height": "640"}, "input_height: expected a number of pixels"),
        ({"source_sha256": "abc"}, "source_sha256: expected 64 hex digits"),
        ({"metrics": {"map50": "high"}}, "metrics: expected names and finite numbers"),
        ({"tools": ["torch"]}, "tools: expected names"),
        ({"licence": 3}, "licence: expected one line of at most 2000 characters"),
    ],
)
def test_invalid_metadata_is_rejected_in_one_line(changes, message):
    with pytest.raises(ModelError) as error:
        ModelSpec.from_metadata(metadata(**changes))
    assert message in str(error.value)
    assert "drone-kd export" in str(error.value)
    assert "\n" not in str(error.value)


INT8 = {"precision": "int8"}
CALIBRATION = {"frames": 5, "data": "cars", "names_sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"classes": ["car", name]}, f"classes: class 1: expected {problem}")
            for name, problem in (
                ("", "a name of 1 to 100 characters, got an empty one"),
                (" ", "a name of 1 to 100 characters, got an empty one"),
                ("c" * 101, "a name of 1 to 100 characters, got 101 characters"),
                ("c" * 1_000_000, "a name of 1 to 100 characters, got 1000000 characters"),
                ("c\x1b[2J", "a name without control and text direction characters, got U+001B"),
                ("c\ud800", "a name without control and text direction characters, got U+D800"),
                ("c\u202e", "a name without control and text direction characters, got U+202E"),
                ("a\nb", "a name without control and text direction characters, got U+000A"),
                ("a\u2028b", "a name without control and text direction characters, got U+2028"),
                ("\ufeffa", "a name without control and text direction characters, got U+FEFF"),
                (["car"], "a name, got list"),
                (None, "a name, got NoneType"),
            )
        ),
        ({"classes": [str(n) for n in range(10_001)]}, "1 to 10000 names, got 10001 names"),
        ({"classes": {"car": 1}}, "expected a list of 1 to 10000 names, got {'car': 1}"),
        ({"input_width": 8193}, "input_width: expected a number of pixels, 1 to 8192, got 8193"),
        ({"input_height": True}, "input_height: expected a number of pixels, 1 to 8192, got True"),
        ({"input_height": 64.0}, "input_height: expected a number of pixels"),
        ({"input_height": 10**400}, "input_height: expected a number of pixels"),
        ({"input_width": 8000, "input_height": 8000}, "input: expected up to 33554432 pixels"),
        ({"input_width": 2048, "input_height": 2048, "batch": 9}, "got (9, 2048, 2048)"),
        ({"batch": 65}, "batch: expected a number of frames, 1 to 64, got 65"),
        ({"metrics": {"map50": 10**400}}, "metrics: expected names and finite numbers"),
        ({"metrics": {"map50": True}}, "metrics: expected names and finite numbers"),
        ({"metrics": {"m\x1b": 1}}, "metrics: expected names and finite numbers"),
        ({"metrics": {str(n): 1 for n in range(1001)}}, "metrics: expected names and finite"),
        ({"tools": {"torch": "2\x1b[2J"}}, "tools: expected names and version strings"),
        ({"gates": {"box": {"measured": "x", "limit": 1}}}, "gates: expected names, each with"),
        ({"gates": {"b\x07": {"measured": 1, "limit": 1}}}, "gates: expected names, each with"),
        ({"licence": "MIT\n"}, "licence: expected one line"),
        ({"attribution": "x" * 2001}, "attribution: expected one line of at most 2000"),
        ({"normalisation": "\x9b2J"}, "normalisation: expected one line"),
        ({**INT8, "calibration": {**CALIBRATION, "data": "\x1b"}}, "calibration: expected frames"),
        ({**INT8, "calibration": {**CALIBRATION, "frames": "x"}}, "calibration: expected frames"),
        ({**INT8, "calibration": {**CALIBRATION, "names_sha256": 1}}, "calibration: expected"),
        ({"k\x1b" * 1000: 1}, r"unknown k\x1bk\x1b"),
    ],
)
def test_hostile_metadata_is_one_short_printable_line(changes, message):
    with pytest.raises(ModelError) as error:
        ModelSpec.from_metadata(metadata(**changes))
    assert message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '"\\ud800"', "{" + " " * 4_000_000]
)
def test_hostile_json_is_one_line(text):
    with pytest.raises(ModelError, match="expected a JSON object") as error:
        ModelSpec.from_metadata({METADATA_KEY: text})
    assert str(error.value).isprintable()


def test_largest_values_are_accepted():
    tiny_spec(input_width=8192, input_height=4096, classes=("c" * 100,), attribution="é" * 2000)
    tiny_spec(batch=64, input_width=640, input_height=640, metrics={"loss": -1e15, "n": 5})
    tiny_spec(classes=("two-wheeler", "Fußgänger", "車", "a (b)", "it's", "100 %", "🚗"))


@pytest.mark.parametrize("name", class_names.UNUSUAL)
def test_unusual_class_names_are_kept_as_stored(name):
    spec = tiny_spec(classes=("car", name))
    assert ModelSpec.from_metadata(spec.to_metadata()).classes == ("car", name)


def test_advice_for_a_class_name_is_to_rename_it():
    with pytest.raises(ModelError, match="rename the classes in the checkpoint"):
        ModelSpec.from_metadata(metadata(classes=["car", ""]))


@pytest.mark.parametrize("foreign", [{}, {"names": "{0: 'car'}"}, {METADATA_KEY: "not JSON"}])
def test_foreign_model_is_rejected_with_the_export_command(foreign):
    with pytest.raises(ModelError, match=r"drone-kd export best\.pt --output model\.onnx"):
        ModelSpec.from_metadata(foreign)
