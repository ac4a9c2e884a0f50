# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hard pseudo-labels: a teacher's confident boxes as labels of the unlabelled images.

The usual way to use unlabelled images without distillation, and so a baseline of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from ultralytics.utils import LOGGER

from drone_kd.files import atomic_folder, write_text
from drone_kd_training.data.dataset import (
    centre_and_size,
    image_paths,
    label_lines,
    load_data,
    write_list,
)
from drone_kd_training.distillation.label_subsets import Subset
from drone_kd_training.distillation.train_data import mixed
from drone_kd_training.models.checkpoints import (
    class_names,
    load_model,
    match_classes,
    resolve_model,
)
from drone_kd_training.teachers.prediction_cache import PredictionCache
from drone_kd_training.teachers.teaching_plan import Teacher


def write_hard_labels(
    subset: Subset, teacher: str, imgsz: int, threshold: float, share: float, folder: Path
) -> Path:
    """Write a data set of a subset's labelled images and the others with pseudo-labels.

    The unlabelled images are links, their labels the teacher's boxes after NMS with a score of at
    least ``threshold``. A finished folder is left as it is. The result is its data.yaml.

    Args:
        subset: with unlabelled images.
        teacher: checkpoint; its predictions are kept in ``predictions`` beside the subset's
            folder.
        imgsz: the teacher's square input in pixels.
        share: of the labelled images among all, as ``Config.labelled_share``.
        folder: absolute.

    Raises:
        DataError, UnusableModelError: an image or the teacher cannot be used.
    """
    data = folder / "data.yaml"
    if data.is_file():
        return data
    assert subset.unlabelled is not None  # else there is nothing to label
    dataset = load_data(subset.data)
    images = image_paths(subset.unlabelled)
    names = class_names(load_model(teacher)[0])
    own_class = {there: here for here, there in match_classes(dataset.names, names).pairs}
    described = Teacher("teacher", Path(resolve_model(teacher)), names, (), {}, imgsz)
    cache = PredictionCache(described, subset.data.parents[1] / "predictions", dataset.names)
    cache.compute(images)
    links, boxes = [], 0
    with atomic_folder(folder) as new:
        for part in ("images", "labels"):
            (new / part).mkdir()
        for number, path in enumerate(images):
            table = cache.of(path, (1, 1))
            kept = [r for r in table if r[4] >= threshold and int(r[5]) in own_class]
            xyxy = np.array([row[:4] for row in kept]).reshape(-1, 4).clip(0, 1)
            lines = label_lines([own_class[int(r[5])] for r in kept], centre_and_size(xyxy))
            name = f"{number:06d}"
            write_text(new / "labels" / f"{name}.txt", lines)
            link = Path("images", name).with_suffix(path.suffix)
            (new / link).symlink_to(path)
            links.append(folder / link)
            boxes += len(kept)
        write_list(new / "train.txt", mixed(image_paths(dataset.train), links, share))
        replace(dataset, train=folder / "train.txt").write_resolved(new / data.name)
    LOGGER.info(f"Pseudo-labels from a score of {threshold:g}: {boxes} on {len(images)} images")
    return data
