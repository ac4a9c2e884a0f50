"""Validation images that are copies of training images."""

import shutil
from dataclasses import replace

from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.data.repeated_images import repeated_images, repeated_note
from tiny_training import draw_set


def test_copies_are_found_whatever_their_name(tmp_path):
    dataset = load_data(draw_set(tmp_path, train=4, val=3))
    assert repeated_images(dataset) == [] and repeated_note(dataset) == ""
    copy = dataset.val / "another-name.png"
    shutil.copy(image_paths(dataset.train)[2], copy)
    # As many bytes, other content.
    content = bytearray(copy.read_bytes())
    content[-20] ^= 1
    (dataset.val / "other.png").write_bytes(content)
    assert repeated_images(dataset) == [copy]
    note = repeated_note(dataset)
    assert note.startswith("1 of 5 validation images are copies of training images, such as ano")
    assert "\n" not in note


def test_images_of_a_list_that_do_not_exist_are_left_out(tmp_path):
    dataset = load_data(draw_set(tmp_path, train=2, val=2))
    listed = tmp_path / "val.txt"
    listed.write_text("nowhere.png\nimages/train/000.png\n")
    found = repeated_images(replace(dataset, val=listed))
    assert [path.name for path in found] == ["000.png"]
