# SPDX-License-Identifier: AGPL-3.0-or-later
import io
import json
import os
import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from drone_kd.cli import main
from drone_kd_training.data.names import DataError
from drone_kd_training.mining import annotation_formats
from drone_kd_training.mining.annotation_formats import FORMATS, _same, import_labels, read_mined
from folder_contents import contents
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


def assert_same(found, expected, atol: float) -> None:
    """Assert that two lists of (class, xyxy in pixels) are equal up to `atol` pixels."""
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, box), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_allclose(box, other, atol=atol)


def move_first_box(format_: str, path: Path) -> None:
    """Change frame 001 as a person would: its first box becomes a person at (1, 2, 21, 32)."""
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
        assert (path / content["imagePath"]).is_file()  # where labelme finds the image
        content["shapes"][0].update(label="person", points=[[21, 2], [1, 32]])  # other corners
        (path / "001.json").write_text(json.dumps(content))


@pytest.mark.parametrize("format_", FORMATS)
def test_export_and_import_round_trip(mined, tmp_path, format_, capsys):
    out = tmp_path / "out"
    before = read_mined(mined)[0]
    assert labels(mined, "--to", format_, out) == 0
    assert labels(mined, "--from", format_, out) == 0
    assert "0 of 3 frames" in capsys.readouterr().out and corrected(mined) == []

    move_first_box(format_, out)
    assert labels(mined, "--from", format_, out) == 0
    assert corrected(mined) == ["001"]
    after = read_mined(mined)[0]
    assert_same(after["001"].labels[:1], [("person", [1, 2, 21, 32])], atol=0.01)
    for name in ("000", "002"):
        assert_same(after[name].labels, before[name].labels, atol=0)
    # A second import changes nothing; --checked declares every frame corrected.
    assert labels(mined, "--from", format_, out) == 0 and corrected(mined) == ["001"]
    assert labels(mined, "--from", format_, out, "--checked") == 0
    assert corrected(mined) == ["000", "001", "002"]
    for name, frame in read_mined(mined)[0].items():
        assert_same(frame.labels, after[name].labels, atol=0.02)


def test_removed_box_and_box_beyond_the_edge(mined, tmp_path):
    before = read_mined(mined)[0]
    out = tmp_path / "out.json"
    assert labels(mined, "--to", "coco", out) == 0
    content = json.loads(out.read_text())
    content["images"] = content["images"][:2]
    first, second = (
        [a for a in content["annotations"] if a["image_id"] == image["id"]]
        for image in content["images"]
    )
    first[0]["bbox"] = [-5, 50, 20, 90]  # partly outside
    first[1]["bbox"] = [SIZE + 5, 0, 20, 90]  # outside
    content["annotations"] = [*first, second[0]]
    out.write_text(json.dumps(content))
    assert labels(mined, "--from", "coco", out) == 0
    after = read_mined(mined)[0]
    assert_same(after["000"].labels, [(before["000"].labels[0][0], [0, 50, 15, SIZE])], atol=0.01)
    assert_same(after["001"].labels, before["001"].labels[:1], atol=0.01)
    assert corrected(mined) == ["000", "001"]


def test_cvats_zip_is_imported_and_pycocotools_reads_the_export(mined, tmp_path):
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
def test_invalid_source_is_refused_and_nothing_changes(mined, tmp_path, format_, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "000.json").write_text('{"shapes": [{"shape_type": "polygon"}]}')
    (tmp_path / "bad.json").write_text("[1, 2]")
    (tmp_path / "polygon.xml").write_text(
        "<annotations><image id='0' name='000.png'><polygon label='car'/></image></annotations>"
    )
    for bad in ("bad", "bad.json", "polygon.xml", "missing"):
        assert labels(mined, "--from", format_, tmp_path / bad) == 2
        error = capsys.readouterr().err.strip()
        assert re.match(r"drone-kd: error: .*expected ", error) and "\n" not in error
    assert corrected(mined) == []


BOX = "<box label='car' xtl='1' ytl='1' xbr='2' ybr='2'/>"
COCO_BOX = '{"categories": [{"id": 1, "name": "car"}], '
COCO_BOX += '"images": [{"id": 1, "file_name": "000.png"}], '
COCO_BOX += '"annotations": [{"image_id": 1, "category_id": 1, "bbox": [%s, 1, 2, 2]}]}'
LABELME_BOX = '{"shapes": [{"shape_type": "rectangle", "label": "car", "points": %s}]}'


def zipped(content: bytes, method: int = zipfile.ZIP_DEFLATED, files: int = 1) -> bytes:
    """A zip of annotations.xml, and of further files with long names."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for number in range(files - 1):
            archive.writestr(f"{number}-{'x' * 1000}", b"")
        archive.writestr("annotations.xml", content)
    return data.getvalue()


def changed(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """A zip with other bytes at an offset of its last header with a signature."""
    at = content.rindex(signature) + offset
    return content[:at] + value + content[at + len(value) :]


SMALL = zipped(b"<annotations/>" + b" " * 50_000)
HOSTILE = {
    "zip that unpacks to 70 MB": ("cvat", zipped(b" " * 70_000_000), "at most 64 MB"),
    "bzip2": ("cvat", zipped(b" " * 70_000, zipfile.ZIP_BZIP2), "stored or deflated"),
    "4000 files": ("cvat", zipped(b"", files=4000), "list of files has more than 4000000"),
    "zip in a zip": ("cvat", zipped(SMALL), "not well-formed"),
    "encrypted": ("cvat", changed(SMALL, b"PK\1\2", 8, b"\1"), "without a password"),
    "another size": ("cvat", changed(SMALL, b"PK\1\2", 24, b"\5\0\0\0"), "expected a zip"),
    "long list": ("cvat", changed(SMALL, b"PK\5\6", 12, b"\xf0\xff\xff\xff"), "expected a zip"),
    "cut zip": ("cvat", SMALL[:-9], "not well-formed"),
    "entities": (
        "cvat",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>&b;</annotations>",
        "DOCTYPE",
    ),
    "other file": (
        "cvat",
        b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/hostname'>]><annotations>&b;</annotations>",
        "DOCTYPE",
    ),
    "levels": ("cvat", b"<annotations>" + b"<a>" * 2_000_000, "too many levels"),
    "encoding": ("cvat", b"<?xml version='1.0' encoding='x-no'?><annotations/>", "x-no"),
    "NaN": (
        "cvat",
        f"<annotations><image name='000.png'>{BOX.replace('1', 'nan')}</image></annotations>",
        "no numbers",
    ),
    "JSON levels": ("coco", "[" * 1_000_000, "too many levels"),
    "JSON values": ("coco", "[" + "[]," * 8_000_000 + "0]", "too many values"),
    "JSON NaN": ("coco", COCO_BOX % "NaN", "no numbers"),
    "JSON 1e400": ("coco", COCO_BOX % "1e400", "no numbers"),
    "JSON long number": ("coco", COCO_BOX % ("9" * 4000), "int too large"),
    "JSON longer number": ("coco", COCO_BOX % ("9" * 5000), "4300 digits"),
    "long name": ("coco", (COCO_BOX % 1).replace("000", r"\u001b" + "0" * 100_000), "is no frame"),
    "JSON null": ("coco", '{"categories": null}', "TypeError"),
    "labelme name": ("labelme", (LABELME_BOX % "[]").replace("rect", r"\u001b"), "found a"),
    "labelme number": ("labelme", LABELME_BOX % f"[[{'9' * 4000}, 1], [2, 2]]", "int too large"),
    "labelme NaN": ("labelme", LABELME_BOX % "[[NaN, 1], [2, 2]]", "no numbers"),
}


@pytest.mark.parametrize(("format_", "content", "expected"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_annotations_are_refused_in_one_short_line(
    mined, tmp_path, format_, content, expected
):
    source = tmp_path / "hostile"
    file = source / "000.json" if format_ == "labelme" else source
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = contents(tmp_path)
    with pytest.raises(DataError) as error:
        import_labels(mined, format_, source, checked=True)
    message = str(error.value)
    assert expected in message and message.isprintable() and len(message) < 500
    assert contents(tmp_path) == before


@pytest.mark.parametrize("valid", [True, False])
def test_xml_is_parsed_in_pieces_up_to_the_first_error(mined, tmp_path, monkeypatch, valid):
    """The parser itself goes on after an error, and expands entities on its way."""
    pieces: list[bytes] = []

    class Parser(ElementTree.XMLParser):
        def feed(self, data):
            pieces.append(data)
            super().feed(data)

    path = tmp_path / "labels.xml"
    assert labels(mined, "--to", "cvat", path) == 0
    content = path.read_bytes()
    if not valid:
        content = content.replace(b"<annotations>", b"<!DOCTYPE a><annotations>")
        path.write_bytes(content)
    monkeypatch.setattr(ElementTree, "XMLParser", Parser)
    monkeypatch.setattr(annotation_formats, "_PIECE", 7)
    if valid:
        assert import_labels(mined, "cvat", path, checked=False) == (3, 0)
        assert b"".join(pieces) == content
    else:
        with pytest.raises(DataError, match="DOCTYPE"):
            import_labels(mined, "cvat", path, checked=False)
        assert len(b"".join(pieces)) <= content.index(b"<annotations>") + 7
    assert {len(piece) for piece in pieces[:-1]} == {7}


def test_too_many_boxes_and_elements_are_refused(mined, tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_formats, "MAX_BOXES", 10)
    monkeypatch.setattr(annotation_formats, "MAX_ELEMENTS", 100)
    for inside, expected in ((BOX * 11, "more than 10 boxes"), ("<a/>" * 100, "elements")):
        source = tmp_path / "hostile.xml"
        image = f"<image name='000.png'>{inside}</image>" if "box" in inside else inside
        source.write_text(f"<annotations>{image}</annotations>")
        with pytest.raises(DataError, match=expected):
            import_labels(mined, "cvat", source, checked=False)


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("format_", FORMATS)
def test_annotations_that_are_no_file_are_not_read(mined, tmp_path, format_, kind):
    source = tmp_path / "hostile"
    source.mkdir()
    file = source / "000.json"
    os.mkfifo(file) if kind == "fifo" else file.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="got another kind"):
        import_labels(mined, format_, source if format_ == "labelme" else file, checked=False)


@pytest.mark.parametrize("linked", ["labels", "labels/train"])
def test_labels_are_not_written_through_a_link(mined, tmp_path, linked):
    (mined / linked).rename(tmp_path / "elsewhere")
    (mined / linked).symlink_to(tmp_path / "elsewhere")
    assert labels(mined, "--to", "coco", tmp_path / "out.json") == 0
    move_first_box("coco", tmp_path / "out.json")
    before = contents(tmp_path)
    with pytest.raises(DataError, match="a link that leads elsewhere"):
        import_labels(mined, "coco", tmp_path / "out.json", checked=False)
    assert contents(tmp_path) == before


def test_data_set_that_is_a_link_is_corrected(mined, tmp_path):
    (tmp_path / "link").symlink_to(mined)
    assert labels(mined, "--to", "coco", tmp_path / "out.json") == 0
    move_first_box("coco", tmp_path / "out.json")
    assert labels(tmp_path / "link", "--from", "coco", tmp_path / "out.json") == 0
    assert corrected(mined) == ["001"]


def test_unknown_frames_and_classes_are_refused(mined, tmp_path, capsys):
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


def test_labels_in_another_order_are_the_same_in_any_number():
    """Each box was compared with every other in Python: 15 s for these."""
    boxes = [("car", np.array([i, 0.0, i + 1, 1])) for i in range(3000)]
    assert _same(boxes[::-1], boxes)
    assert not _same(boxes[:-1], boxes) and not _same(boxes, boxes[:-1])
    assert not _same([*boxes[:-1], ("bus", boxes[-1][1])], boxes)
    assert not _same([*boxes[:-1], boxes[0]], boxes) and _same([], [])
