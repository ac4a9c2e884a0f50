"""Engines that compute something else are refused, on a simulated TensorRT and GPU."""

import numpy as np
import pytest

from drone_kd import cli
from drone_kd.backends import open_backend
from drone_kd.core.model_spec import ModelError
from simulated_tensorrt import VERSIONS
from tiny_model import tiny_spec, with_golden, write_bright_cell_model

REFUSED = r"TensorRT .* does not reproduce the golden images of the model, it computes something"


@pytest.fixture
def golden_model(model):
    return with_golden(model)


@pytest.fixture
def engines(tmp_path):
    return tmp_path / "cache" / "drone_kd" / "engines"


@pytest.fixture
def computes(simulated_tensorrt, monkeypatch):
    """Change what every engine computes: computes(change) of its rows, in place."""
    engine = simulated_tensorrt.module.ICudaEngine
    sound = engine._run

    def change_rows(change):
        def run(self, addresses):
            sound(self, addresses)
            (rows,) = self._session.get_outputs()
            change(simulated_tensorrt.gpu.array(addresses[rows.name], np.float32, rows.shape))

        monkeypatch.setattr(engine, "_run", run)

    return change_rows


def lower_scores(rows):
    rows[..., 4] *= 0.98


def swap_corners(rows):
    rows[..., :4] = rows[..., [2, 3, 0, 1]]


def not_a_number(rows):
    rows[...] = np.nan


class Stale:
    """The rows of the first image with any bright cell, for every image."""

    def __init__(self):
        self.first = None

    def __call__(self, rows):
        if self.first is None and rows[..., 4].max() > 0.1:
            self.first = rows.copy()
        if self.first is not None:
            rows[...] = self.first


@pytest.mark.parametrize("simulated_tensorrt", VERSIONS, indirect=True)
def test_sound_engine_is_used_without_a_line(simulated_tensorrt, golden_model):
    lines = []
    backend = open_backend(golden_model, progress=lines.append)
    assert backend.name.startswith("TensorRT") and lines[-1].startswith("engine built")
    lines.clear()
    open_backend(golden_model, progress=lines.append)
    assert lines == [] and simulated_tensorrt.builds == 1


@pytest.mark.parametrize("change", [lower_scores, swap_corners, not_a_number, Stale()])
def test_new_engine_that_computes_something_else_is_refused(
    simulated_tensorrt, golden_model, engines, computes, change
):
    computes(change)
    with pytest.raises(ModelError, match=rf"{golden_model}: {REFUSED}") as error:
        open_backend(golden_model, runtime="tensorrt")
    assert "\n" not in str(error.value)
    assert not list(engines.glob("*.plan"))


def test_refused_engine_is_built_again_on_request_only(
    simulated_tensorrt, golden_model, computes, capfd
):
    wrong = [True]
    computes(lambda rows: lower_scores(rows) if wrong[0] else None)
    with pytest.raises(ModelError, match=REFUSED):
        open_backend(golden_model)
    wrong.clear()
    wrong.append(False)
    for may_build in (True, False):
        with pytest.raises(
            ModelError, match=r"refused after an earlier build: .*golden images"
        ) as e:
            open_backend(golden_model, may_build=may_build)
        assert f"drone-kd build --rebuild {golden_model}" in str(e.value)
    lines: list[str] = []
    assert "CPU" in open_backend(golden_model, allow_fallback=True, progress=lines.append).name
    assert simulated_tensorrt.builds == 1
    assert cli.main(["build", "--rebuild", str(golden_model)]) == 0
    assert open_backend(golden_model).name.startswith("TensorRT")
    assert simulated_tensorrt.builds == 2


def test_refused_rebuild_keeps_the_sound_engine(
    simulated_tensorrt, golden_model, engines, computes
):
    open_backend(golden_model)
    before = {path: path.read_bytes() for path in engines.iterdir()}
    wrong = [True]
    computes(lambda rows: lower_scores(rows) if wrong else None)
    with pytest.raises(ModelError, match=REFUSED):
        open_backend(golden_model, rebuild=True)
    wrong.clear()
    assert {path: path.read_bytes() for path in engines.iterdir()} == before
    assert open_backend(golden_model, may_build=False).name.startswith("TensorRT")


def test_new_engine_that_cannot_be_checked_now_is_stored(simulated_tensorrt, golden_model):
    simulated_tensorrt.gpu.errors["cudaMalloc"] = 2
    with pytest.raises(ModelError, match="out of memory"):
        open_backend(golden_model)
    simulated_tensorrt.gpu.errors.clear()
    assert open_backend(golden_model, may_build=False).name.startswith("TensorRT")


def test_batch_in_another_order_is_refused(simulated_tensorrt, tmp_path, computes):
    model = with_golden(write_bright_cell_model(tmp_path / "m.onnx", tiny_spec(batch=3)))

    def reverse_batch(rows):
        rows[...] = rows[::-1].copy()

    computes(reverse_batch)
    with pytest.raises(ModelError, match=REFUSED):
        open_backend(model)


def test_fallback_is_used_only_if_allowed_and_runs_on_the_cpu(
    simulated_tensorrt, golden_model, computes
):
    computes(lower_scores)
    with pytest.raises(ModelError, match="runtime onnxruntime or allow_fallback avoids TensorRT"):
        open_backend(golden_model)
    lines = []
    backend = open_backend(golden_model, allow_fallback=True, progress=lines.append)
    assert "does not reproduce the golden images" in backend.fallback
    assert "CPU" in backend.name and "instead of TensorRT" in backend.name
    assert "TensorRT failed, using ONNX Runtime instead" in lines[-1]


def test_stored_engine_that_computes_something_else_is_built_again(
    simulated_tensorrt, golden_model, engines, computes
):
    open_backend(golden_model)

    def wrong_until_rebuilt(rows):
        if simulated_tensorrt.builds == 1:
            lower_scores(rows)

    computes(wrong_until_rebuilt)
    with pytest.raises(ModelError, match=rf"found one that is refused \({REFUSED}.*in flight"):
        open_backend(golden_model, may_build=False)
    assert simulated_tensorrt.builds == 1 and list(engines.glob("*.plan"))
    lines = []
    assert open_backend(golden_model, progress=lines.append).name.startswith("TensorRT")
    assert "is refused (TensorRT" in lines[0] and "building it again" in lines[0]
    assert simulated_tensorrt.builds == 2


def test_damaged_golden_images_are_found_before_the_build(
    simulated_tensorrt, golden_model, tmp_path
):
    content = golden_model.read_bytes()
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(content.replace(b'"zoom": 4', b'"zoom": 0'))
    with pytest.raises(ModelError, match=r"drone_kd_golden: expected schema 1"):
        open_backend(damaged)
    assert simulated_tensorrt.builds == 0


def test_build_command_names_the_refused_engine(simulated_tensorrt, golden_model, computes, capfd):
    computes(not_a_number)
    assert cli.main(["build", str(golden_model)]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("drone-kd: error: ") and "golden images" in line


def test_file_without_golden_images_is_used_with_one_line(simulated_tensorrt, model, computes):
    computes(lower_scores)
    lines = []
    open_backend(model, progress=lines.append)
    assert [line for line in lines if "has no golden images, so its engine is not ch" in line]
