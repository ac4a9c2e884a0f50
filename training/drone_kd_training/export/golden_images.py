# SPDX-License-Identifier: AGPL-3.0-or-later
"""Golden images of an export: the parts of images that excite the detector most.

    python -m drone_kd_training.export.golden_images model.onnx IMAGE [IMAGE ...]

adds them to a model file that has none, and keeps its graph and weights.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from drone_kd.backends import Backend
from drone_kd.backends.golden import GOLDEN_KEY, LEVEL, GoldenImage, write_golden
from drone_kd.backends.model_file import read_model_file
from drone_kd.backends.onnx_runtime import OrtBackend
from drone_kd.core.model_spec import ModelError
from drone_kd.core.preprocess import letterbox
from drone_kd.files import write_bytes
from drone_kd.media.image_files import SourceError, read_image
from drone_kd.text import one_line

# Magnifications, one golden image for each: objects for every level of the head.
ZOOMS = (1, 2, 4)
# Side of a part in pixels: three take 55 kB of metadata.
SIDE = 96
# Parts of each frame and magnification that are tried.
PARTS = 3
# Best rows of each that are stored, most of them background: their boxes show faults of levels
# whose objects are missing here.
ROWS = 100


def golden_images(backend: Backend, canvases: list[np.ndarray]) -> list[GoldenImage]:
    """Return a golden image per magnification: the part of a frame with the best score.

    ``backend`` runs the exported file; ``canvases`` are letterboxed frames, uint8 (H, W, 3) BGR of
    its input size. Returns nothing if no row is finite.
    """
    tried: dict[int, list[GoldenImage]] = {zoom: [] for zoom in ZOOMS}
    for canvas in canvases:
        rows = _infer(backend, canvas)
        for _ in range(PARTS):
            if not len(rows):
                break
            for zoom, images in tried.items():
                images.append(_part(backend, canvas, rows[0], zoom))
            # The next part shows another object.
            centres = (rows[:, :2] + rows[:, 2:4]) / 2
            rows = rows[(abs(centres - centres[0]) >= SIDE / 2).any(axis=1)]
    found = [[image for image in images if len(image.rows)] for images in tried.values()]
    return [max(images, key=lambda image: image.rows[0, 4]) for images in found if images]


def _part(backend: Backend, canvas: np.ndarray, row: np.ndarray, zoom: int) -> GoldenImage:
    """Return the part of a canvas around a box, magnified, with its rows."""
    bounds = []
    for low, high, size in ((row[0], row[2], canvas.shape[1]), (row[1], row[3], canvas.shape[0])):
        side = min(SIDE, size // zoom)
        first = int(np.clip((low + high - side) / 2, 0, size - side))
        bounds.append((first, first + side, min(first, size - zoom * side)))
    (x1, x2, x), (y1, y2, y) = bounds
    levels = np.rint(canvas[y1:y2, x1:x2] / LEVEL).astype(np.uint8)
    image = GoldenImage(x, y, zoom, levels, np.zeros((0, 6), np.float32))
    return replace(image, rows=_infer(backend, image.canvas(backend.spec))[:ROWS])


def _infer(backend: Backend, canvas: np.ndarray) -> np.ndarray:
    """Return the rows (N, 6) for a canvas, without those that are not finite."""
    rows = backend.infer(np.stack([canvas] * backend.spec.batch))[0]
    return rows[np.isfinite(rows).all(axis=1)]


def add_golden_images(path: Path, sources: list[Path]) -> int:
    """Add golden images to a model file in place; return their number.

    Raises ModelError if the file is no model, has golden images already or returns no finite rows,
    SourceError if an image cannot be read.
    """
    file = read_model_file(path)
    if GOLDEN_KEY in file.metadata:
        raise ModelError(f"{one_line(path)}: expected a file without golden images, got some")
    backend = OrtBackend(file)
    size = backend.spec.input_width, backend.spec.input_height
    canvases = [letterbox(read_image(source), *size)[0] for source in sources]
    images = golden_images(backend, canvases)
    if not images:
        raise ModelError(f"{one_line(path)}: expected rows of finite numbers, got none")
    extra = onnx.ModelProto()
    onnx.helper.set_model_props(extra, write_golden(images))
    write_bytes(path, file.content + extra.SerializeToString())  # joined, both are one message
    return len(images)


def main() -> int:
    """Add golden images to a model file; 2: wrong input, one line on standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("model", type=Path, help="model.onnx, which is replaced")
    parser.add_argument("images", type=Path, nargs="+", help="images with objects")
    a = parser.parse_args()
    try:
        print(f"{a.model}: {add_golden_images(a.model, a.images)} golden images")
    except (ModelError, SourceError, OSError) as error:
        print(f"golden_images: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
