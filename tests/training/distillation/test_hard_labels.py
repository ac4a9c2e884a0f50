"""A teacher's boxes as labels of unlabelled images."""

import numpy as np
import pytest
import yaml

from drone_kd.core.boxes import iou
from drone_kd.parsing import read_yaml
from drone_kd_training.data.dataset import image_paths, label_path, load_data, read_sample
from drone_kd_training.distillation.hard_labels import write_hard_labels
from drone_kd_training.distillation.label_subsets import write_subset
from tiny_training import NAMES, SIZE, draw_set


def write(root, square_detector, threshold: float):
    dataset = load_data(root / "data" / "data.yaml")
    subset = write_subset(dataset, 2, 0, root / "subsets" / "2-0")
    folder = root / "subsets" / "2-0" / f"hard-{threshold}"
    data = write_hard_labels(subset, str(square_detector), SIZE, threshold, 0.5, folder)
    paths = image_paths(load_data(data).train)
    assert write_hard_labels(subset, "none", SIZE, threshold, 0.5, folder) == data  # kept
    return subset, paths, [p for p in dict.fromkeys(paths) if folder in p.parents]


@pytest.mark.parametrize("names", [("car", "person"), ("person", "car")])
def test_confident_boxes_are_labels_of_links(names, tmp_path, square_detector):
    data = draw_set(tmp_path / "data", train=8)
    data.write_text(yaml.safe_dump({**read_yaml(data), "names": list(names)}))
    subset, listed, links = write(tmp_path, square_detector, 0.9)
    labelled = image_paths(load_data(subset.data).train)
    assert len(listed) == 12 and len(links) == 6  # the two labelled ones three times
    assert [listed.count(path) for path in labelled] == [3, 3]
    assert [p.resolve() for p in links] == image_paths(subset.unlabelled)
    found = []
    for link in links:
        truth, own = read_sample(link.resolve(), 2), read_sample(link, 2)
        for box, class_id in zip(truth.xyxy, truth.class_ids, strict=True):
            same = own.class_ids == names.index(NAMES[class_id])  # matched by name
            found.append((iou(box[None], own.xyxy)[0] * same).max())
    assert len(found) == 12 and np.median(found) > 0.4


def test_a_higher_threshold_gives_fewer_labels(tmp_path, square_detector):
    draw_set(tmp_path / "data", train=8)
    counts = []
    for threshold in (0.05, 0.99):
        _, _, links = write(tmp_path, square_detector, threshold)
        counts.append(sum(len(label_path(p).read_text().splitlines()) for p in links))
    assert counts[0] > counts[1]
