"""Golden images: their entry in the metadata, and which outputs do not reproduce them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drone_kd.backends import golden, open_backend
from drone_kd.backends.golden import GOLDEN_KEY, read_golden, reproduce, require_golden
from drone_kd.backends.model_file import read_model_file
from drone_kd.core.model_spec import ModelError, ModelSpec
from drone_kd.core.postprocess import InferenceError
from drone_kd.paths import default_model_path
from tiny_model import tiny_spec, with_golden, write_bright_cell_model, write_fixed_model

RECORDED = Path(__file__).parents[1] / "data" / "golden_rows_arm_fp16.npz"


@pytest.fixture
def golden_model(model):
    return with_golden(model)


class Changed:
    """A backend whose rows are changed."""

    name = "changed"
    fallback = ""

    def __init__(self, backend, change):
        self.spec, self._backend, self._change = backend.spec, backend, change

    def infer(self, batch):
        return self._change(self._backend.infer(batch))


def images_of(path):
    file = read_model_file(path)
    return read_golden(file.metadata, open_backend(file, runtime="onnxruntime").spec)


def test_file_reproduces_its_own_golden_images(golden_model):
    backend = open_backend(golden_model, runtime="onnxruntime")
    images = images_of(golden_model)
    assert [image.zoom for image in images] == [1, 2, 4]
    found = reproduce(backend, images)
    assert found.holds and found.off == 0 and found.rows >= 60
    assert found.box_px < 0.001 and found.score < 1e-4
    require_golden(backend, images)


@pytest.mark.parametrize("batch", [1, 3])
def test_canvases_differ_by_place_in_the_batch(tmp_path, batch):
    path = with_golden(write_bright_cell_model(tmp_path / "m.onnx", tiny_spec(batch=batch)))
    backend = open_backend(path, runtime="onnxruntime")
    require_golden(backend, images_of(path))
    if batch > 1:
        swapped = Changed(backend, lambda rows: rows[::-1])
        assert not reproduce(swapped, images_of(path)).holds


def test_magnified_part_is_smooth_and_in_its_place(golden_model):
    image = images_of(golden_model)[2]
    canvas = image.canvas(tiny_spec()).astype(int)
    outside = canvas.copy()
    outside[16:48, 8:40] = 114
    assert (outside == 114).all()
    part = canvas[16:48, 8:40]
    assert abs(np.diff(part, axis=0)).max() <= 255 / 4 + 1
    assert part.mean() == pytest.approx(image.levels.mean() * golden.LEVEL, abs=6)


def first_rows_for_every_image():
    kept = []
    return lambda rows: (kept.append(rows), kept[0])[1]


def rows_of_the_image_before():
    kept = [np.zeros((1, 64, 6), np.float32)]
    return lambda rows: (kept.append(rows), kept[-2])[1]


def times(*columns):
    return lambda rows: rows * np.float32(columns)


def nan_in_one_row(rows):
    rows = rows.copy()
    rows[0, 5, 2] = np.nan
    return rows


@pytest.mark.parametrize(
    "change",
    [
        times(1, 1, 1, 1, 0.98, 1),
        times(1.01, 1.01, 1.01, 1.01, 1, 1),
        lambda rows: rows[..., [1, 0, 3, 2, 4, 5]],
        lambda rows: rows[..., [0, 1, 2, 3, 5, 4]],
        lambda rows: rows + np.float32([0, 0, 0, 0, 0, 1]),
        lambda rows: np.full_like(rows, np.nan),
        lambda rows: np.zeros_like(rows),
        nan_in_one_row,
        first_rows_for_every_image(),
        rows_of_the_image_before(),
    ],
    ids=[
        "scores 2 % lower",
        "boxes 1 % larger",
        "x and y swapped",
        "score and class swapped",
        "class off by one",
        "NaN",
        "zeros",
        "one NaN",
        "stale buffer",
        "one image late",
    ],
)
def test_changed_output_is_refused(golden_model, change):
    backend = Changed(open_backend(golden_model, runtime="onnxruntime"), change)
    with pytest.raises(ModelError, match=r"changed does not reproduce the golden images .* rows"):
        require_golden(backend, images_of(golden_model))


def test_detections_that_the_model_does_not_have_are_refused(tmp_path):
    rows = np.zeros((1, 10, 6), np.float32)
    rows[0, :, 2:4], rows[0, 0, 4] = 9, 0.3
    path = with_golden(write_fixed_model(tmp_path / "m.onnx", rows))
    images = [replace(image, rows=image.rows[:1]) for image in images_of(path)]
    more = rows.copy()
    more[0, 1:3] = [30, 30, 40, 40, 0.9, 0]
    other = write_fixed_model(tmp_path / "other.onnx", more[:, [1, 2, 0, *range(3, 10)]])
    assert reproduce(open_backend(path, runtime="onnxruntime"), images).holds
    assert not reproduce(open_backend(other, runtime="onnxruntime"), images).holds


def test_single_rows_may_differ(golden_model):
    def move_one(rows):
        rows = rows.copy()
        rows[0, 3, :4] += 9
        return rows

    images = images_of(golden_model)
    found = reproduce(Changed(open_backend(golden_model, runtime="onnxruntime"), move_one), images)
    assert found.off >= 3 and found.holds == (found.off <= golden.LIMITS["fp32"].share * 60)


class Recorded:
    """A backend that returns recorded rows."""

    name = "recorded"

    def __init__(self, spec, rows):
        self.spec, self._rows = spec, rows

    def infer(self, batch):
        return self._rows[None]


@pytest.mark.parametrize("version", ["1.23.2", "1.32.0"])
def test_fp16_arithmetic_of_arm_reproduces_the_default_model(version):
    """Rows of ONNX Runtime for its second golden image, recorded under qemu-aarch64 -cpu max."""
    file = read_model_file(default_model_path())
    spec = ModelSpec.from_metadata(file.metadata)
    image = read_golden(file.metadata, spec)[1]
    with np.load(RECORDED) as recorded:
        rows = recorded[version].astype(np.float32)
    found = reproduce(Recorded(spec, rows), [image])
    assert found.holds and found.off > 0.08 * found.rows
    # Wrong detections stay refused, whatever the background.
    wrong = rows.copy()
    wrong[::2, :4] += np.where(rows[::2, 4:5] >= 0.25, np.float32(1), np.float32(0))
    assert not reproduce(Recorded(spec, wrong), [image]).holds


def test_failed_inference_is_one_line(golden_model):
    def fail(rows):
        raise InferenceError("no memory")

    backend = Changed(open_backend(golden_model, runtime="onnxruntime"), fail)
    with pytest.raises(ModelError, match="changed: the golden images cannot be run: no memory"):
        require_golden(backend, images_of(golden_model))


def test_without_golden_images_nothing_is_required(model):
    assert images_of(model) == []
    require_golden(open_backend(model, runtime="onnxruntime"), [])


def change(**changes):
    return lambda record: record["images"][0].update(changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.update(schema=2),
        lambda record: record.update(images=[]),
        lambda record: record.update(images=7),
        lambda record: record.update(images=record["images"] * 3),
        lambda record: record["images"][0].pop("rows"),
        change(x=-1),
        change(x=33),
        change(x=1.5),
        change(y=True),
        change(zoom=0),
        change(zoom=10**30),
        change(width=0),
        change(height=10**9),
        change(pixels="?"),
        change(pixels=""),
        change(pixels=None),
        change(rows=[]),
        change(rows=[[1, 2, 3]]),
        change(rows=[[0, 0, 1, 1, float("nan"), 0]]),
        change(rows=[[0, 0, 1, 1, 10**400, 0]]),
        change(rows=[[0, 0, 1, 1, 0.5, 0]] * 101),
        change(rows="text"),
    ],
)
def test_damaged_entry_is_one_line(golden_model, damage):
    record = json.loads(read_model_file(golden_model).metadata[GOLDEN_KEY])
    damage(record)
    with pytest.raises(
        ModelError, match=r"drone_kd_golden: expected schema 1 .*; export the"
    ) as e:
        read_golden({GOLDEN_KEY: json.dumps(record)}, tiny_spec())
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("text", ["", "[]", "7", "{", '{"schema": 1}', "null"])
def test_entry_of_another_kind_is_one_line(text):
    with pytest.raises(ModelError, match=r"drone_kd_golden: expected schema 1"):
        read_golden({GOLDEN_KEY: text}, tiny_spec())
