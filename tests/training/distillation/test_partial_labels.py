"""A class that a set does not label is not unlearned there: a real, very short training."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from drone_kd_training.data.dataset import image_paths, load_data, read_sample
from drone_kd_training.distillation.criterion import Balance, DistillationLoss, match_levels
from drone_kd_training.models.checkpoints import match_classes, resolve_model
from drone_kd_training.teachers.soft_labels import Coverage, extend_labels, split_batch
from drone_kd_training.teachers.teachers import Predictions
from tiny_training import NAMES, SIZE, draw_set

CAR, PERSON = 0, 1
EVERYTHING = Coverage((True, True), (False, False))
CARS_ONLY = Coverage((True, False), (False, False))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list:
    data = load_data(draw_set(tmp_path_factory.mktemp("drawn"), train=6))
    return [read_sample(path, 2) for path in image_paths(data.train)]


def as_batch(samples: list, kind: Coverage) -> dict:
    """What the trainer makes of pictures that are all of one kind."""
    labels = []
    for number, sample in enumerate(samples):
        boxes = torch.from_numpy(sample.xyxy) / SIZE
        cxcywh = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        labels.append({
            "im_file": str(number), "shape": (SIZE, SIZE),
            "cls": sample.class_ids[:, None], "bboxes": cxcywh.numpy(),
        })  # fmt: skip
    kind_of = {str(number): 0 for number in range(len(samples))}
    scores, _ = extend_labels(labels, 2, [kind], kind_of)
    images = [torch.from_numpy(s.image[..., ::-1].copy()).permute(2, 0, 1) for s in samples]
    counts = torch.tensor([len(label["cls"]) for label in labels])
    rows = {key: torch.cat([torch.from_numpy(lb[key]) for lb in labels])
            for key in ("cls", "bboxes")}  # fmt: skip
    index = torch.repeat_interleave(torch.arange(len(samples)), counts).float()
    batch = {"img": torch.stack(images).float() / 255, "batch_idx": index, **rows}
    return split_batch(batch, 2, [kind], scores)


def train(student: DetectionModel, batch: dict, steps: int, rate: float) -> DetectionModel:
    """Some steps on one batch, with the criterion that `distill` trains with."""
    student.train()
    nobody = Predictions(NAMES, {}, pixels=False)
    criterion = DistillationLoss(
        student.init_criterion(),
        nobody,
        student,
        match_classes(NAMES, NAMES),
        match_levels(student.model[-1], None),
        nn.ModuleDict(),
        ("class", "box"),
        1.0,
        Balance(1.0),
    )
    criterion.steps = (0, 1, steps, False)
    optimizer = torch.optim.AdamW(student.parameters(), rate)
    for _ in range(steps):
        loss, _ = criterion(student(batch["img"]), batch)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return student


def person_score(student: DetectionModel, samples: list) -> float:
    """The best score of person within each person's box, on average (batch norms as in training:
    after so few steps their averages are not there yet).
    """
    batch = as_batch(samples, EVERYTHING)
    with torch.no_grad():
        raw = deepcopy(student).train()(batch["img"])
    grids = [f.shape[-1] for f in raw["feats"]]
    scores = raw["scores"][:, PERSON].sigmoid()[:, : grids[0] ** 2].unflatten(1, (grids[0],) * 2)
    cell = SIZE // grids[0]
    best = []
    for frame, sample in zip(scores, samples, strict=True):
        for box in sample.xyxy[sample.class_ids == PERSON].astype(int) // cell:
            best.append(frame[box[1] : box[3] + 1, box[0] : box[2] + 1].max())
    return float(torch.stack(best).mean())


@pytest.fixture(scope="module")
def student(pictures) -> DetectionModel:
    torch.manual_seed(1)  # from 0 it hardly learns people, and then little tells them from noise
    model = DetectionModel(resolve_model("aerial-student.yaml"), nc=2, verbose=False)
    model.args = DEFAULT_CFG
    return train(model, as_batch(pictures, EVERYTHING), steps=120, rate=0.01)


def test_a_person_in_a_cars_only_set_is_not_unlearned(student, pictures, monkeypatch):
    batch = as_batch(pictures, CARS_ONLY)
    assert batch["cls"].unique().tolist() == [CAR]
    before = person_score(student, pictures)
    after = person_score(train(deepcopy(student), batch, 15, 0.001), pictures)
    monkeypatch.setattr(
        "drone_kd_training.distillation.criterion.masked_negatives", lambda *_: nullcontext()
    )
    unmasked = person_score(train(deepcopy(student), batch, 15, 0.001), pictures)
    assert before > 0.5, before
    assert after > 0.7 * before, (before, after, unmasked)
    assert unmasked < 0.5 * before, (before, after, unmasked)
