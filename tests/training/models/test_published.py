"""Paths of this machine do not go into checkpoints; the whole commands: test_isolation.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from drone_kd_training.models import published
from drone_kd_training.models.published import without_folders


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/jo/data.yaml", "data.yaml"),
        ("/home/jo/", "jo"),
        (r"C:\Users\jo\data.yaml", "data.yaml"),
        ("https://jo:token@host/model.pt", "model.pt"),
        (Path("/home/jo/model.pt"), "model.pt"),
        ("yolo11n.yaml", "yolo11n.yaml"),
        ("AdamW", "AdamW"),
        (0.5, 0.5),
        (None, None),
        ({"data": ["/a/b", {"c": "/d/e"}]}, {"data": ["b", {"c": "e"}]}),
        ({"project": "/home/jo", "name": "jo", "save_dir": "jo"}, dict.fromkeys(
            ("project", "name", "save_dir"))),
        (SimpleNamespace(model="/a/b.pt"), SimpleNamespace(model="b.pt")),
    ],
    ids=str,
)  # fmt: skip
def test_of_a_path_the_last_part_is_kept(value, expected):
    assert without_folders(value) == expected


def test_settings_of_lists_of_the_same_lists_end():
    value = ["/home/me/data.yaml"]
    for _ in range(40):  # 2 ** 40 values
        value = [value, value]
    found = without_folders({"classes": value})["classes"]
    for _ in range(40):
        found = found[0]
    assert found == ["data.yaml"]


def test_file_that_is_no_checkpoint_is_not_finished(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    path.write_bytes(b"no checkpoint")
    monkeypatch.setattr(published, "strip_optimizer", lambda *_, **__: {})  # as of a damaged file
    with pytest.raises(ValueError, match=r"last\.pt is no checkpoint of a training run: start"):
        published.finish_checkpoint(path)
    assert path.read_bytes() == b"no checkpoint"
