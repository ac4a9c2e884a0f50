# SPDX-License-Identifier: AGPL-3.0-or-later
import os
from unittest import mock

import cv2
import numpy as np
import pytest

from drone_kd.simulation.scene import draw_frame
from drone_kd_training.data.folders import (
    check_inside,
    empty_folder,
    open_new,
    own_folder,
    real_folder,
    write_image,
)
from drone_kd_training.data.generate import write_drawn
from drone_kd_training.data.names import DataError
from folder_contents import contents


@pytest.mark.parametrize("make", [real_folder, own_folder])
def test_folder_is_made_or_accepted_but_no_link_and_no_file(tmp_path, make):
    assert make(tmp_path / "a" / "b") == tmp_path / "a" / "b" == make(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("file", "link", "dangling"):
        with pytest.raises(DataError, match="expected a folder, got a link or a file"):
            make(tmp_path / name)
    assert not (tmp_path / "nothing").exists()


def test_folder_of_another_user_is_not_ones_own(tmp_path):
    with mock.patch("os.geteuid", return_value=os.geteuid() + 1):
        with pytest.raises(DataError, match="expected a folder of your own, got one of uid"):
            own_folder(tmp_path)
        own_folder(tmp_path / "new")  # some file systems give every folder to one user


def test_new_files_and_folders_replace_links(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    before = contents(precious)
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.jpg", "log", "folder"):
        (out / name).symlink_to(precious if name == "folder" else precious / "file")
    write_image(out / "a.jpg", np.full((8, 8, 3), 200, np.uint8), 90)
    with open_new(out / "log") as file:
        file.write("line")
    empty_folder(out / "folder")
    (out / "images").symlink_to(precious)
    with pytest.raises(DataError, match="got a link"):
        write_drawn(out, "train", "0", draw_frame(0, 64))
    assert contents(precious) == before
    assert cv2.imread(str(out / "a.jpg")).shape == (8, 8, 3)
    assert (out / "log").read_text() == "line" and not list((out / "folder").iterdir())


def test_parent_that_leads_elsewhere_is_found(tmp_path):
    (tmp_path / "data" / "labels").mkdir(parents=True)
    (tmp_path / "data" / "other").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    check_inside(tmp_path / "link" / "labels" / "a.txt", tmp_path / "data")
    with pytest.raises(DataError, match="a link that leads elsewhere"):
        check_inside(tmp_path / "data" / "other" / "a.txt", tmp_path / "data")
