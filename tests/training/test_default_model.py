import shutil

import numpy as np

import training.default_model as module
from drone_kd.backends import open_backend
from training.data import load_data, read_sample
from training.default_model import CLASSES, SAME, Recipe, _crop, _labelled, _write, _yaml, card


def test_every_source_name_maps_to_a_class():
    assert set(SAME.values()) == set(CLASSES)


def test_crop_keeps_what_is_mostly_inside():
    boxes = np.array([[10, 10, 30, 30], [90, 10, 120, 30], [95, 10, 105, 20], [96, 10, 106, 20]])
    clipped, kept = _crop(boxes.astype(float), 0, 0, 100, 100)
    assert kept.tolist() == [True, False, False, False]
    assert clipped.tolist() == [[10, 10, 30, 30]]
    shifted, kept = _crop(boxes.astype(float), 5, 5, 100, 100)
    assert shifted[0].tolist() == [5, 5, 25, 25]


def test_sources_are_written_with_one_class_list(tiny_data, tmp_path):
    data = load_data(tiny_data)
    paths = sorted(data.train.iterdir())[:3]
    folder = tmp_path / "images" / "train"
    written = _write(_labelled(paths, data.names), folder, tiles=False, title="")
    (tmp_path / "images" / "val").mkdir()
    again = load_data(_yaml(tmp_path / "data.yaml", "images/train", "images/val"))
    assert again.names == CLASSES and len(written) == 3
    before, after = read_sample(paths[0], 2), read_sample(written[0], len(CLASSES))
    assert [CLASSES[i] for i in after.class_ids] == [data.names[i] for i in before.class_ids]
    np.testing.assert_allclose(after.xyxy, before.xyxy, atol=0.01)


def test_the_command_leaves_model_card_and_checkpoint(
    tiny_data, tiny_teacher, tmp_path, monkeypatch
):
    """All but the hour of training, which is an untrained checkpoint here."""
    run = tmp_path / "run" / "train"

    def train(config, output, resume):
        assert output == run and config.overrides["pretrained"].endswith("yolov8n-coco.pt")
        run.mkdir(parents=True)
        shutil.copy(tiny_teacher, run / "best.pt")
        return {"student": {"parameters": 1000, "gflops": 1.0}}

    sets = {"train": tiny_data, "aerial-cars": tiny_data, "hit-uav": tiny_data}
    monkeypatch.setattr(module, "build_data", lambda *_: sets)
    monkeypatch.setattr(module, "distill", train)
    monkeypatch.setattr(module, "PACKAGED_MODELS", tmp_path / "checkpoints")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "models").mkdir()
    arguments = ["--shared", str(tmp_path), "--output", str(tmp_path / "run")]
    assert module.main([*arguments, "--models", str(tmp_path / "models")]) == 0
    assert open_backend(tmp_path / "models" / "default.onnx").spec.licence == "AGPL-3.0"
    assert "| hit-uav, 6 frames |" in (tmp_path / "models" / "README.md").read_text()
    kept = (tmp_path / "checkpoints" / "default.pt").read_bytes()
    assert kept == tiny_teacher.read_bytes()


def test_card_names_what_the_licences_ask_for():
    scores = {"map50_95": 0.2, "map50": 0.4, "ap_tiny": None, "images": 3, "per_class": {}}
    text = card({"hit-uav": scores}, Recipe(), {"parameters": 1000, "gflops": 1.0})
    assert "| hit-uav, 3 frames | 20.0 | 40.0 | - |" in text
    for name in ("Kharuzhy", "HIT-UAV", "Zaborowski", "CC BY-SA", "DroneTM"):
        assert name in text
