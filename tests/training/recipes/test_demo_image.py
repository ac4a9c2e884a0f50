"""The image of the demo: labels and models side by side on the same frames."""

import cv2
import numpy as np

from drone_kd_training.recipes.demo_image import CELL_PX, ROWS, compare_models
from tiny_training import SIZE, draw_set, save_checkpoint


def cells(path, columns):
    """Return the cells of the image, (rows, columns) of BGR images."""
    image = cv2.imread(str(path))
    assert image.shape == (ROWS * CELL_PX[0], columns * CELL_PX[0], 3)
    return [np.hsplit(row, columns) for row in np.vsplit(image, ROWS)]


def white(image):
    """Count white pixels outside the headings and labels."""
    return int((image[60:] > 240).all(-1).sum())


def test_a_model_that_finds_more_has_fewer_rings(tmp_path, square_detector):
    data = draw_set(tmp_path / "set", train=1, val=8)
    blind = save_checkpoint(tmp_path / "blind.pt")
    models = {"blind": blind, "good": square_detector}
    compare_models(models, data, SIZE, tmp_path / "sides.jpg")
    shown = cells(tmp_path / "sides.jpg", 3)
    rings = [sum(white(row[column]) for row in shown) for column in (1, 2)]
    assert rings[0] > rings[1]


def test_each_part_of_the_split_shows_its_richest_image(tmp_path, square_detector):
    data = draw_set(tmp_path / "set", train=1, val=8)
    images = tmp_path / "set" / "images" / "val"
    for number in range(8):
        if number % 2:  # of each pair the first keeps its labels
            (tmp_path / "set" / "labels" / "val" / f"{number:03d}.txt").write_text("")
            cv2.imwrite(str(images / f"{number:03d}.png"), np.zeros((SIZE, SIZE, 3), np.uint8))
    compare_models({"good": square_detector}, data, SIZE, tmp_path / "sides.jpg")
    assert all(row[0][100:].mean() > 50 for row in cells(tmp_path / "sides.jpg", 2))
