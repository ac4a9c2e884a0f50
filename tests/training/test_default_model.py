import numpy as np

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


def test_card_names_what_the_licences_ask_for():
    scores = {"map50_95": 0.2, "map50": 0.4, "ap_tiny": None, "images": 3, "per_class": {}}
    text = card({"hit-uav": scores}, Recipe(), {"parameters": 1000, "gflops": 1.0})
    assert "| hit-uav, 3 frames | 20.0 | 40.0 | - |" in text
    for name in ("Kharuzhy", "HIT-UAV", "Zaborowski", "CC BY-SA", "DroneTM"):
        assert name in text
