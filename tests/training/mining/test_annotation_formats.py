# SPDX-License-Identifier: AGPL-3.0-or-later
import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from drone_kd.cli import main
from drone_kd_training.mining.annotation_formats import FORMATS, read_mined
from tiny_training import NAMES, SIZE, draw_set


@pytest.fixture
def mined(tmp_path) -> Path:
    """Three frames, the last one empty."""
    folder = draw_set(tmp_path / "mined", train=3, val=0).parent
    (folder / "labels" / "train" / "002.txt").write_text("")
    return folder


def labels(mined: Path, *arguments: object) -> int:
    return main(["labels", str(mined), *map(str, arguments)])


def corrected(mined: Path) -> list[str]:
    file = mined / "corrected.txt"
    return file.read_text().split() if file.exists() else []


def move_first_box(format_: str, path: Path) -> None:
    """What a person does with frame 001: its first box goes to (1, 2, 21, 32), as a person."""
    if format_ == "coco":
        content = json.loads(path.read_text())
        number = next(i["id"] for i in content["images"] if i["file_name"] == "train/001.png")
        box = next(a for a in content["annotations"] if a["image_id"] == number)
        box["bbox"], box["category_id"] = [1, 2, 20, 30], 2
        path.write_text(json.dumps(content))
    elif format_ == "cvat":
        tree = ElementTree.parse(path)
        box = tree.find("image[@name='001.png']/box")
        edges = {"xtl": "1", "ytl": "2", "xbr": "21", "ybr": "32"}
        box.attrib.update(edges, label="person", source="manual")
        tree.write(path)
    else:
        content = json.loads((path / "001.json").read_text())
        assert (path / content["imagePath"]).is_file()  # where labelme finds the picture
        content["shapes"][0].update(label="person", points=[[21, 2], [1, 32]])  # other corners
        (path / "001.json").write_text(json.dumps(content))


@pytest.mark.parametrize("format_", FORMATS)
def test_labels_go_out_and_come_back(mined, tmp_path, format_, capsys):
    out = tmp_path / "out"
    before = read_mined(mined)[0]
    assert labels(mined, "--to", format_, out) == 0
    assert labels(mined, "--from", format_, out) == 0
    assert "0 of 3 frames" in capsys.readouterr().out and corrected(mined) == []

    move_first_box(format_, out)
    assert labels(mined, "--from", format_, out) == 0
    assert corrected(mined) == ["001"]
    after = read_mined(mined)[0]
    assert after["001"].labels.names[0] == "person"
    np.testing.assert_allclose(after["001"].labels.xyxy[0], [1, 2, 21, 32], atol=0.01)
    for name in ("000", "002"):
        np.testing.assert_array_equal(after[name].labels.xyxy, before[name].labels.xyxy)
    # Again: nothing more has changed; and everything may be declared as checked.
    assert labels(mined, "--from", format_, out) == 0 and corrected(mined) == ["001"]
    assert labels(mined, "--from", format_, out, "--checked") == 0
    assert corrected(mined) == ["000", "001", "002"]
    for name, frame in read_mined(mined)[0].items():
        np.testing.assert_allclose(frame.labels.xyxy, after[name].labels.xyxy, atol=0.02)


def test_a_removed_box_and_one_beyond_the_edge(mined, tmp_path):
    out = tmp_path / "out.json"
    assert labels(mined, "--to", "coco", out) == 0
    content = json.loads(out.read_text())
    first = content["images"][0]["id"]
    own = [a for a in content["annotations"] if a["image_id"] == first]
    own[0]["bbox"] = [-5, 50, 20, 90]
    content["annotations"] = own[:1]
    content["images"] = content["images"][:1]
    out.write_text(json.dumps(content))
    assert labels(mined, "--from", "coco", out) == 0
    frame = read_mined(mined)[0]["000"]
    np.testing.assert_allclose(frame.labels.xyxy, [[0, 50, 15, SIZE]], atol=0.01)
    assert corrected(mined) == ["000"]


def test_cvats_zip_is_read_and_coco_by_pycocotools(mined, tmp_path):
    assert labels(mined, "--to", "cvat", tmp_path / "annotations.xml") == 0
    move_first_box("cvat", tmp_path / "annotations.xml")
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.write(tmp_path / "annotations.xml", "annotations.xml")
    assert labels(mined, "--from", "cvat", tmp_path / "task.zip") == 0
    assert corrected(mined) == ["001"]

    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not here")
    assert labels(mined, "--to", "coco", tmp_path / "out.json") == 0
    read = coco.COCO(str(tmp_path / "out.json"))
    assert [c["name"] for c in read.loadCats(read.getCatIds())] == list(NAMES)
    assert len(read.getAnnIds()) == 4


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_no_such_file_is_refused_and_nothing_changes(mined, tmp_path, format_, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "000.json").write_text('{"shapes": [{"shape_type": "polygon"}]}')
    (tmp_path / "bad.json").write_text("[1, 2]")
    (tmp_path / "polygon.xml").write_text(
        "<annotations><image id='0' name='000.png'><polygon label='car'/></image></annotations>"
    )
    for bad in ("bad", "bad.json", "polygon.xml", "missing"):
        assert labels(mined, "--from", format_, tmp_path / bad) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("drone-kd: error: ") and "\n" not in error
    assert corrected(mined) == []


def test_frames_and_classes_that_are_not_there_are_refused(mined, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert labels(mined, "--to", "coco", out) == 0
    good = out.read_text()
    for old, new, message in (
        ("train/001.png", "../../elsewhere.png", "is no frame of"),
        ('"car"', '"tank"', "has the class 'tank'; the classes are car, person"),
    ):
        out.write_text(good.replace(old, new))
        assert labels(mined, "--from", "coco", out) == 2
        assert message in capsys.readouterr().err
    assert corrected(mined) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mined", "out.json"]
    assert labels(mined, "--to", "coco", out) == 2  # it exists
    assert labels(mined, "--to", "voc", tmp_path / "voc") == 2
    assert labels(tmp_path / "nothing", "--to", "coco", tmp_path / "x.json") == 2
