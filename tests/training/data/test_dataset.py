import logging
import os
import re

import cv2
import numpy as np
import pytest
import yaml

from drone_kd_training.data.dataset import (
    DataError,
    image_paths,
    label_path,
    load_data,
    read_labels,
    read_sample,
)


def test_relative_paths_are_taken_from_the_yaml(tiny_data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    data = load_data(tiny_data)
    assert data.names == ("car", "person")
    assert data.train == tiny_data.parent / "images" / "train"
    assert len(image_paths(data.val)) == 6
    resolved = yaml.safe_load(data.write_resolved(tmp_path / "out.yaml").read_text())
    assert resolved["train"] == str(data.train)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("train: images/train\nval: nowhere\nnames: [car]", "val is nowhere"),
        ("train: images/train\nnames: [car]", "lacks val"),
        ("train: images/train\nval: images/val\nnames: {1: car}", "numbered 0 to 0"),
        ("train: images/train\nval: images/val\nnames: [car, car]", "unique"),
        ("just text", "must hold keys"),
        ("a: [", "expected YAML"),
        ("train: images/train\nval: images/val\nnames: car", "a list of class names"),
        ("train: images/train\nval: images/val\nnames: [[car]]", "a list of class names"),
        ("train: images/train\nval: images/val\nnames: {0: a, x: b}", "numbered 0 to 1"),
        (
            'train: images/train\nval: images/val\nnames: ["a\\x1b[2J"]',
            "control and text direction",
        ),
        ('train: images/train\nval: "images\\0"\nnames: [car]', "without control characters"),
        ("train: images/train\nval: [images/val]\nnames: [car]", "one folder or list file"),
        (f"train: images/train\nval: {'x' * 300}\nnames: [car]", "at most 255 bytes"),
        ("path: 5\ntrain: images/train\nval: images/val\nnames: [car]", "path must be one"),
        ("train: loop\nval: images/val\nnames: [car]", "loop"),
        ("train: !!python/object/apply:os.getcwd []\nval: a\nnames: [a]", "expected YAML"),
        ("#" * 5_000_000, "at most 4 MB"),
    ],
)
def test_invalid_yaml_is_rejected_with_the_reason(tmp_path, content, expected):
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/val").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(DataError, match=expected) as error:
        load_data(tmp_path / "data.yaml")
    assert str(error.value).isprintable() and len(str(error.value)) < 700


def test_list_of_images_that_is_no_list_is_refused(tmp_path):
    listed = tmp_path / "train.txt"
    listed.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="got another kind"):
        image_paths(listed)
    listed.unlink()
    for content, expected in ((b"\xff\xfe", "UTF-8"), (b"a\x1b.png", "control characters")):
        listed.write_bytes(content)
        with pytest.raises(DataError, match=expected):
            image_paths(listed)


def test_list_of_too_many_images_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("drone_kd_training.data.dataset.MAX_IMAGES", 3)
    listed = tmp_path / "train.txt"
    listed.write_text("a.png\n\n" * 3)
    assert len(image_paths(listed)) == 3
    listed.write_text("a.png\n" * 4)
    with pytest.raises(DataError, match="at most 3 images, got 4"):
        image_paths(listed)


def test_image_whose_name_would_break_a_list_is_refused(tmp_path):
    (tmp_path / "a\n..\n.png").touch()
    with pytest.raises(DataError, match="without control characters") as error:
        image_paths(tmp_path)
    assert str(error.value).isprintable()


def test_pipe_as_an_image_or_label_is_ignored(tmp_path, caplog):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    os.mkfifo(tmp_path / "labels" / "b.txt")
    cv2.imwrite(str(tmp_path / "images" / "b.png"), np.zeros((8, 8, 3), np.uint8))
    assert len(read_sample(tmp_path / "images" / "b.png", 2).xyxy) == 0


def test_missing_yaml_is_rejected(tmp_path):
    with pytest.raises(DataError, match=r"no data\.yaml at"):
        load_data(tmp_path / "data.yaml")


def test_sample_has_boxes_in_pixels(tiny_data):
    sample = read_sample(tiny_data.parent / "images/val/000.png", 2)
    x1, y1, x2, y2 = sample.xyxy[0].round().astype(int)
    assert (x2 - x1, y2 - y1) == (14, 14)
    assert (sample.image[y1:y2, x1:x2] == 240).mean() > 0.9  # the bar may lie over it
    assert sample.class_ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("5 0.5 0.5 0.1 0.1", "class outside 0..1"),
        ("-1 0.5 0.5 0.1 0.1", "class outside"),
        ("0 1.5 0.5 0.1 0.1", "outside \\[0, 1\\]"),
        ("0 0.5 0.5 0.1", "class cx cy w h"),
        ("car 0.5 0.5 0.1 0.1", "class cx cy w h"),
        ("0 nan 0.5 0.1 0.1", "outside \\[0, 1\\]"),
        ("0 1e308 0.5 0.1 0.1", "outside \\[0, 1\\]"),
        ("nan 0.5 0.5 0.1 0.1", "class outside"),
        ("1e308 0.5 0.5 0.1 0.1", "class outside"),
        ("0.5 0.5 0.5 0.1 0.1", "class outside"),
        ("0 0.5 0.5 0.1 -0.1", "outside \\[0, 1\\]"),
        ("0 " * 2_500_000, "at most 4 MB"),
        ("\x1b[31m", "class cx cy w h"),
    ],
)
def test_image_with_invalid_labels_is_ignored_with_one_warning(tmp_path, caplog, label, expected):
    image = tmp_path / "images" / "a.png"
    image.parent.mkdir()
    cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    labels = label_path(image)
    labels.parent.mkdir()
    labels.write_text(label + "\n")
    with caplog.at_level(logging.WARNING):
        assert read_sample(image, 2) is None
    (record,) = caplog.records
    assert re.search(expected, record.getMessage())


def test_byte_order_mark_in_labels_and_lists_is_skipped(tmp_path):
    labels = tmp_path / "a.txt"
    labels.write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-8-sig")
    assert read_labels(labels, 1).tolist() == [[0, 0.5, 0.5, 0.1, 0.1]]
    (tmp_path / "train.txt").write_text("a.png\n", encoding="utf-8-sig")
    assert image_paths(tmp_path / "train.txt") == [tmp_path / "a.png"]


def test_text_in_another_encoding_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "train.txt").write_bytes("grün.png\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"expected text in UTF-8; save it as UTF-8$"):
        image_paths(tmp_path / "train.txt")


def test_corrupt_image_is_ignored_and_missing_labels_mean_no_object(tmp_path, caplog):
    image = tmp_path / "images" / "a.png"
    image.parent.mkdir()
    image.write_bytes(b"not an image")
    assert read_sample(image, 2) is None
    assert "expected a BMP, JPEG" in caplog.text
    cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    assert len(read_sample(image, 2).xyxy) == 0


def test_label_path_replaces_the_last_images_folder(tmp_path):
    assert (
        label_path(tmp_path / "images/run/images/val/a.jpg")
        == tmp_path / "images/run/labels/val/a.txt"
    )


def test_list_file_keeps_the_names_of_links(tmp_path):
    """An image's labels and predictions are found by the name in the list."""
    (tmp_path / "elsewhere.png").touch()
    (tmp_path / "images").mkdir()
    link = tmp_path / "images/new-1.png"
    link.symlink_to(tmp_path / "elsewhere.png")
    listed = tmp_path / "lists/train.txt"
    listed.parent.mkdir()
    listed.write_text(f"{link}\n../images/new-1.png\n")
    assert image_paths(listed) == [link, link]
