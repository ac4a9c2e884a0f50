# SPDX-License-Identifier: AGPL-3.0-or-later
from pathlib import Path

import pytest

import class_names
from drone_kd_training.data.names import DataError, class_list, usable_path


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["car"] * 100_000,
        [str(i) for i in range(100_000)],
        ["car", ""],
        ["bus", "bus "],
        ["car\u202e"],
        ["x" * 1_000_000],
        ["car", "a\x1b]0;title\x07"],
        ["a\nb"],
        ["\udcff"],
        ["bus", "bus"],
    ],
    ids=lambda names: repr(names)[:30],
)
def test_unusable_class_names_are_refused_in_one_short_line(names):
    with pytest.raises(DataError) as error:
        class_list(names, "data.yaml")
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_class_names_in_any_script_are_kept():
    names = ("Fußgänger", "автомобиль", "車", "two wheeler", "other_vehicle", "a/b", "..")
    assert class_list(names, "data.yaml") == names


def test_unusual_class_names_are_kept_without_blanks_at_the_ends(caplog):
    assert class_list(class_names.UNUSUAL, "data.yaml") == ("car", *class_names.UNUSUAL[1:])
    (record,) = caplog.records
    message = "data.yaml: removed blanks at the ends of class names: 'car '"
    assert record.getMessage() == message


def test_empty_class_name_is_named_by_its_index():
    with pytest.raises(DataError, match=r"^data\.yaml: class 1: expected .*, got an empty one"):
        class_list(["car", " ", "bus"], "data.yaml")


@pytest.mark.parametrize(
    "path",
    ["a\udcff.png", "\ud800", "a\nb", "a\x1b[2J", "a\x85b", "a\u2028b", "a\u2029b", "a\0"]
    + ["x" * 256, "a/" + "ü" * 128 + "/b"],
)
def test_unusable_path_is_refused_in_one_short_line(path):
    with pytest.raises(DataError, match=r"list.txt: expected a path without control") as error:
        usable_path(path, "list.txt")
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@pytest.mark.parametrize("path", ["/a b/ü 車.png", "../a", "x" * 255, "a/\u202e/🚗.jpg"])
def test_path_in_any_script_is_kept(path):
    assert usable_path(path, "list.txt") == Path(path)
