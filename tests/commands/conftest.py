import cv2
import numpy as np
import pytest


@pytest.fixture
def images(tmp_path):
    """A folder with one image of one white square, and one without."""
    folder = tmp_path / "images"
    folder.mkdir()
    image = np.zeros((128, 256, 3), np.uint8)
    cv2.imwrite(str(folder / "empty.png"), image)
    image[32:64, 96:128] = 255
    cv2.imwrite(str(folder / "one.png"), image)
    return folder
