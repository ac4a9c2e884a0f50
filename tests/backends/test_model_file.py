import hashlib
import os
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from drone_kd.backends import model_file, onnx_runtime, open_backend
from drone_kd.backends.model_file import read_model_file
from drone_kd.backends.onnx_runtime import OrtBackend, read_metadata, read_spec
from drone_kd.core.model_spec import METADATA_KEY, ModelError
from drone_kd.paths import default_model_path
from tiny_model import tiny_spec, write_bright_cell_model


def external(location="weights.bin", *, only=""):
    """Return a tensor whose data are in another file; `only` sets one of its two marks."""
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "weights")
    tensor.ClearField("raw_data")
    if only != "entry":
        tensor.data_location = TensorProto.EXTERNAL
    if only != "location":
        tensor.external_data.add(key="location", value=location)
    return tensor


def subgraph(tensor):
    """Return a graph with a tensor among its initializers."""
    return helper.make_graph([], "inner", [], [], [tensor])


def add_initializer(model, tensor):
    model.graph.initializer.append(tensor)


def add_sparse(model, tensor):
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def add_sparse_indices(model, tensor):
    model.graph.sparse_initializer.add().indices.CopyFrom(tensor)


def add_constant(model, tensor):
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def add_branch(model, tensor):
    inner = helper.make_node("If", ["x"], ["y"], then_branch=subgraph(tensor))
    outer = helper.make_graph([inner], "outer", [], [])
    model.graph.node.append(helper.make_node("Loop", ["x"], ["z"], body=outer))


def add_function(model, tensor):
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(helper.make_function("own", "F", [], ["c"], [node], []))


def add_training(model, tensor):
    model.training_info.add().algorithm.CopyFrom(subgraph(tensor))


PLACES = [add_initializer, add_sparse, add_sparse_indices, add_constant, add_branch]
PLACES += [add_training]


def test_content_is_read_with_its_hash_and_metadata(model):
    file = read_model_file(model)
    assert (file.path, file.content) == (model, model.read_bytes())
    assert file.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert dict(file.metadata) == tiny_spec().to_metadata() == dict(read_metadata(model))
    session = ort.InferenceSession(default_model_path(), providers=["CPUExecutionProvider"])
    expected = session.get_modelmeta().custom_metadata_map
    assert dict(read_model_file(default_model_path()).metadata) == expected


def test_model_that_is_replaced_after_reading_is_not_run(model, tmp_path):
    file = read_model_file(model)
    write_bright_cell_model(model, tiny_spec(input_width=32))
    assert open_backend(file).spec == tiny_spec() == read_spec(file)
    assert open_backend(model).spec.input_width == 32
    assert OrtBackend(file).infer(np.full((1, 64, 64, 3), 255, np.uint8))[0, 0, 4] == 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["weights.bin", "../x/weights.bin", "/etc/passwd", ""])
def test_weights_in_another_file_are_refused(model, monkeypatch, place, location):
    (model.parent / "weights.bin").write_bytes(bytes(8))
    monkeypatch.chdir(model.parent)  # where ONNX Runtime would look
    proto = onnx.load(model)
    place(proto, external(location))
    model.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="its weights are in another file") as raised:
        read_model_file(model)
    assert str(model) in str(raised.value)


def test_functions_of_a_model_are_refused(model):
    """ONNX Runtime takes gigabytes for thirty that call each other twice."""
    proto = onnx.load(model)
    add_function(proto, numpy_helper.from_array(np.zeros(2, np.float32)))
    model.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="it has functions of its own"):
        read_model_file(model)


@pytest.mark.parametrize("only", ["entry", "location"])
def test_either_mark_of_external_weights_is_refused(model, only):
    proto = onnx.load(model)
    proto.graph.initializer.append(external(only=only))
    model.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="its weights are in another file"):
        read_model_file(model)


def test_every_path_of_the_format_to_a_tensor_is_followed():
    """The table of messages against the format's own description."""
    kinds = {
        "ModelProto": "model",
        "GraphProto": "graph",
        "NodeProto": "node",
        "AttributeProto": "attribute",
        "SparseTensorProto": "sparse tensor",
        "FunctionProto": "function",
        "TrainingInfoProto": "training",
        "TensorProto": "tensor",
    }

    def leads_to_tensor(descriptor, seen=()):
        inner = [f.message_type for f in descriptor.fields if f.message_type]
        return descriptor.name == "TensorProto" or any(
            leads_to_tensor(child, (*seen, descriptor.name))
            for child in inner
            if child.name not in seen
        )

    waiting, seen = [onnx.ModelProto.DESCRIPTOR], set()
    while waiting:
        descriptor = waiting.pop()
        if descriptor.name in seen:
            continue
        seen.add(descriptor.name)
        table = model_file._CHILDREN[kinds[descriptor.name]]
        for field in descriptor.fields:
            if field.message_type and leads_to_tensor(field.message_type):
                assert table[field.number] == kinds[field.message_type.name]
                waiting.append(field.message_type)
    assert seen == set(kinds)
    numbers = TensorProto.DESCRIPTOR.fields_by_name
    assert (
        numbers["external_data"].number,
        numbers["data_location"].number,
    ) == model_file._EXTERNAL


def varint(number):
    encoded = b""
    while number > 127:
        encoded += bytes([number & 127 | 128])
        number >>= 7
    return encoded + bytes([number])


def message(number, content, tag=None):
    """Return a field with a message; `tag` encodes number and wire type in another way."""
    return (tag or varint(number << 3 | 2)) + varint(len(content)) + content


@pytest.mark.parametrize(
    "tag", [b"\xba\x80\x00", b"\xba\x80\x80\x80\x10", b"\xba\x80\x80\x80\x70"]
)
def test_unusual_encoding_hides_nothing(tmp_path, tag):
    """A tag may be longer than needed, and its highest bits are ignored by Protocol Buffers."""
    path = tmp_path / "model.onnx"
    path.write_bytes(message(7, message(5, external().SerializeToString()), tag))
    with pytest.raises(ModelError, match=r"in another file|truncated, or no ONNX model\?"):
        read_model_file(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "truncated, or no ONNX model?"),
        (b"\x14\0\0\0ORTM" + bytes(64), "truncated, or no ONNX model?"),  # ONNX Runtime's format
        (b"\x3b\x3c", "truncated, or no ONNX model?"),  # a group, an old part of the format
        (b"\xff" * 20, "truncated, or no ONNX model?"),
        (b"\x3a\xff\xff\xff\xff\x07", "truncated, or no ONNX model?"),  # 2 GB follow
        (b"\x38\x01", "truncated, or no ONNX model?"),  # a number as graph
        (message(14, message(1, b"\xff\xfe")), "expected metadata in UTF-8"),
        (message(14, message(1, b"k\x1b")) * 2, r"got k\x1b twice"),
        (message(14, message(2, bytes(4_000_000))), "expected at most 4 MB of metadata"),
        (message(7, b"\x10\x01" * 2_000_001), "too many parts or levels"),
    ],
)
def test_damaged_or_absurd_file_is_refused(tmp_path, content, problem):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError) as raised:
        open_backend(path)
    assert str(raised.value).startswith(f"{path}: cannot load it (")
    assert problem in str(raised.value)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "content",
    [
        b"\x0a\x7f",  # 127 bytes
        b"\x09\x00",  # eight bytes
        b"\x0d\x00",  # four bytes
        message(7, b"\x2a\x64") + b"\x08\x01" * 100,  # a tensor longer than its graph
        message(7, b"\x0a\x64") + b"\x08\x01" * 100,  # a node
        message(14, b"\x0a\x64") + b"\x08\x01" * 100,  # a key longer than its entry
        message(7, b"\x10") + b"\x08\x01",  # a number
    ],
)
def test_field_that_ends_after_its_message_is_refused(tmp_path, content):
    """Other readers may find other fields in the rest."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"truncated, or no ONNX model\?"):
        read_model_file(path)


def test_deep_nesting_is_refused(tmp_path):
    content = b""
    for _ in range(100):
        content = message(1, message(5, message(6, content)))
    path = tmp_path / "model.onnx"
    path.write_bytes(message(7, content))
    with pytest.raises(ModelError, match="too many parts or levels"):
        read_model_file(path)


def test_runtime_format_is_refused_by_the_runtime_as_well(model, tmp_path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    content = (tmp_path / "model.ort").read_bytes()
    assert content[4:8] == b"ORTM"
    file = model_file.ModelFile(model, content, "0" * 64, tiny_spec().to_metadata())
    with pytest.raises(ModelError, match="cannot load it"):
        OrtBackend(file)


def make_pipe(path):
    os.mkfifo(path)


def make_link_to_device(path):
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [make_pipe, make_link_to_device, os.mkdir])
def test_file_of_another_kind_is_refused(tmp_path, make):
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(ModelError, match="expected a model file: expected a file, got another"):
        read_model_file(path)


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 5000, "a\0b", "\x1b[2J", "\ud800"])
def test_unusable_name_is_one_printable_line(name):
    with pytest.raises(ModelError, match=r"expected a (model )?file") as raised:
        open_backend(f"{name}.onnx")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 500


def test_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(model_file.MAX_BYTES + 1)
    with pytest.raises(ModelError, match="expected at most 500 MB, got more"):
        read_model_file(path)
    with pytest.raises(ModelError, match="expected at most 1e-05 MB, got more"):
        read_model_file(default_model_path(), limit=10)


@pytest.mark.parametrize("name", ["", "c\x1b[2J", "c\ud800", "c" * 101, "c\u202ed", "a\nb"])
def test_class_name_that_cannot_be_shown_is_refused_before_loading(model, monkeypatch, name):
    proto = onnx.load(model)
    entry = next(e for e in proto.metadata_props if e.key == METADATA_KEY)
    entry.value = entry.value.replace(
        '"car"', ascii(name).replace("'", '"').replace("\\x", "\\u00")
    )
    onnx.save(proto, model)
    monkeypatch.setattr(ort, "InferenceSession", partial(pytest.fail, "loaded"))
    with pytest.raises(ModelError, match="classes: class 0: expected a name") as raised:
        open_backend(model)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 700


def test_input_of_absurd_size_is_refused_before_loading(tmp_path, model, monkeypatch):
    proto = onnx.load(model)
    entry = next(e for e in proto.metadata_props if e.key == METADATA_KEY)
    for side in ("width", "height"):
        entry.value = entry.value.replace(f'"input_{side}": 64', f'"input_{side}": 8000')
    onnx.save(proto, model)
    monkeypatch.setattr(ort, "InferenceSession", partial(pytest.fail, "loaded"))
    with pytest.raises(
        ModelError, match=r"input: expected up to 33554432 pixels, got \(1, 8000, 8"
    ):
        open_backend(model)


def test_more_rows_than_any_image_has_objects_are_refused(model, monkeypatch):
    monkeypatch.setattr(onnx_runtime, "_MAX_ROWS", 64)
    open_backend(model)
    monkeypatch.setattr(onnx_runtime, "_MAX_ROWS", 63)
    with pytest.raises(ModelError, match="graph output: expected at most 63 rows, got 64"):
        open_backend(model)
