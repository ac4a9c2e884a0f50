import itertools
import json

import cv2
import numpy as np
import pytest

from drone_kd.simulation.scene import CLASSES, FRAMES_PER_WORLD, draw_frame
from drone_kd_training.data import generate as module
from drone_kd_training.data.dataset import load_data
from drone_kd_training.data.generate import generate


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("drawn") / "set", train=12, val=3, imgsz=160, seed=4)


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_layout_and_labels(made):
    for split, count in (("train", 12), ("val", 3)):
        images = sorted((made.parent / "images" / split).iterdir())
        labels = sorted((made.parent / "labels" / split).iterdir())
        assert [p.name for p in images] == [f"{i:06d}.jpg" for i in range(count)]
        assert [p.stem for p in labels] == [p.stem for p in images]
        assert cv2.imread(str(images[0])).shape == (160, 160, 3)
    _, first, _ = next(module._jobs({"train": 12, "val": 3}, seed=4))
    frame = draw_frame(first, 160)
    rows = np.loadtxt(made.parent / "labels/train/000000.txt", ndmin=2)
    centre, size = rows[:, 1:3] * 160, rows[:, 3:] * 160
    np.testing.assert_array_equal(rows[:, 0], frame.class_ids)
    np.testing.assert_allclose(
        np.hstack([centre - size / 2, centre + size / 2]), frame.xyxy, atol=1e-3
    )


@pytest.mark.slow
def test_same_arguments_give_identical_files_in_any_process(made, monkeypatch, tmp_path):
    def render_here(folder, counts, seed, draw):
        for job in module._jobs(counts, seed):
            module._render_world(folder, draw, job)

    monkeypatch.setattr(module, "_render", render_here)
    again = generate(tmp_path / "again", train=12, val=3, imgsz=160, seed=4)
    assert files(again.parent) == files(made.parent)


def test_no_world_is_in_both_splits_or_in_another_seed(monkeypatch, tmp_path):
    drawn = {}

    def draw(folder, counts, seed, _):
        for split, first, frames in module._jobs(counts, seed):
            worlds = drawn.setdefault((seed, split), set())
            worlds.update((first + i) // FRAMES_PER_WORLD for i in frames)

    monkeypatch.setattr(module, "_render", draw)
    for seed in (0, 1):
        generate(tmp_path / str(seed), train=1000, val=1000, seed=seed)
    expected = 1000 // FRAMES_PER_WORLD
    assert len(drawn) == 4 and all(len(worlds) >= expected for worlds in drawn.values())
    for a, b in itertools.combinations(drawn.values(), 2):
        assert not a & b


def test_complete_data_set_is_kept_and_other_content_is_refused(made, tmp_path):
    before = made.stat().st_mtime_ns
    assert generate(made.parent, train=12, val=3, imgsz=160, seed=4) == made
    assert made.stat().st_mtime_ns == before
    for change in ({"seed": 5}, {"seed": 4, "zoom": 2}, {"seed": 4, "thermal": True}):
        with pytest.raises(FileExistsError, match="holds something else"):
            generate(made.parent, train=12, val=3, imgsz=160, **change)
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else"):
        generate(tmp_path, train=1, val=1)
    assert (tmp_path / "mine").read_text() == "precious"


def test_folder_of_a_version_with_fewer_arguments_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_render", lambda *_: None)
    made = generate(tmp_path / "set", train=1, val=1)
    arguments = made.parent / "generated.json"
    old = {
        k: v
        for k, v in json.loads(arguments.read_text()).items()
        if k not in ("zoom", "thermal", "vehicles")
    }
    arguments.write_text(json.dumps(old))
    assert generate(tmp_path / "set", train=1, val=1) == made
    arguments.write_text("[]")
    with pytest.raises(FileExistsError, match="holds something else"):
        generate(tmp_path / "set", train=1, val=1)


def test_vehicles_are_one_class(tmp_path):
    ids = {}
    for vehicles in (False, True):
        data = generate(tmp_path / str(vehicles), train=8, val=1, imgsz=160, vehicles=vehicles)
        paths = sorted((data.parent / "labels/train").iterdir())
        ids[vehicles] = [int(line.split()[0]) for path in paths for line in path.open()]
    assert load_data(data).names == ("person", "vehicle")
    assert max(ids[False]) > 1
    np.testing.assert_array_equal(ids[True], np.minimum(ids[False], 1))


def test_interrupted_run_leaves_nothing(monkeypatch, tmp_path):
    def interrupted(folder, *_):
        (folder / "images").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", train=1, val=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change", [{"train": 0}, {"val": 0}, {"imgsz": 32}, {"seed": -1}, {"zoom": 0.5}], ids=str
)
def test_numbers_out_of_range_are_refused(change, tmp_path):
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"{name}: expected .* got {value}"):
        generate(tmp_path / "set", **{"train": 1, "val": 1, **change})
    assert not list(tmp_path.iterdir())


def test_ultralytics_reads_it_from_another_folder(made, monkeypatch, tmp_path):
    utils = pytest.importorskip("ultralytics.data.utils", reason="ultralytics is not installed")
    monkeypatch.chdir(tmp_path)
    # The font for plots would be downloaded.
    monkeypatch.setattr(utils, "check_font", lambda font: None)
    data = utils.check_det_dataset(made, autodownload=False)
    assert data["train"] == str((made.parent / "images/train").resolve())
    assert data["names"] == dict(enumerate(CLASSES))
    assert json.loads((made.parent / "generated.json").read_text())["train"] == 12
