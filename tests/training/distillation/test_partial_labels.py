"""A class that a data set does not label gets no gradient there, shown on one backward pass."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from drone_kd_training.data.dataset import image_paths, load_data, read_sample
from drone_kd_training.distillation.criterion import DistillationLoss, Settings
from drone_kd_training.distillation.heads import anchor_centers, raw_predictions
from drone_kd_training.distillation.levels import match_levels
from drone_kd_training.distillation.loss_balancing import Balance
from drone_kd_training.models.checkpoints import match_classes, resolve_model
from drone_kd_training.teachers.soft_labels import Coverage, extend_labels, split_batch
from drone_kd_training.teachers.teachers import Predictions
from tiny_training import NAMES, SIZE, draw_set

CAR, PERSON = 0, 1
EVERYTHING = Coverage((True, True), (False, False))
CARS_ONLY = Coverage((True, False), (False, False))


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list:
    data = load_data(draw_set(tmp_path_factory.mktemp("drawn"), train=6))
    return [read_sample(path, 2) for path in image_paths(data.train)]


def as_batch(samples: list, kind: Coverage) -> dict:
    """Return what the trainer makes of images of one kind."""
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


def distillation_criterion(student: DetectionModel) -> DistillationLoss:
    """Return the criterion of a run whose teachers predict nothing."""
    return DistillationLoss(
        student.init_criterion(),
        Predictions(NAMES, {}, pixels=False),
        student,
        match_classes(NAMES, NAMES),
        match_levels(student.model[-1], None),
        nn.ModuleDict(),
        ("class", "box"),
        Settings(),
        Balance(1.0),
    )


def test_a_person_in_a_cars_only_set_is_not_unlearned(samples):
    """The class logit of an unlabelled person has no gradient; without the mask it goes down."""
    torch.manual_seed(0)
    student = DetectionModel(resolve_model("aerial-student.yaml"), nc=2, verbose=False)
    student.args = DEFAULT_CFG
    student.train()

    with torch.no_grad():
        raw = raw_predictions(student(as_batch(samples, CARS_ONLY)["img"]))

    def logit_gradient(criterion, kind: Coverage) -> Tensor:
        """Return the gradient of the loss with respect to the class logits, (B, C, N)."""
        feats = [x.clone().requires_grad_() for x in raw["feats"]]
        leaves = {key: raw[key].clone().requires_grad_() for key in ("boxes", "scores")}
        criterion({**leaves, "feats": feats}, as_batch(samples, kind))[0].sum().backward()
        return leaves["scores"].grad

    masked = logit_gradient(distillation_criterion(student), CARS_ONLY)
    unmasked = logit_gradient(student.init_criterion(), CARS_ONLY)
    labelled = logit_gradient(distillation_criterion(student), EVERYTHING)
    expected = logit_gradient(student.init_criterion(), EVERYTHING)

    centers = anchor_centers(raw["feats"], student.model[-1].stride)
    persons = torch.stack([inside(centers, s, PERSON, margin=0) for s in samples])
    # Ultralytics enlarges boxes below 16 px before it assigns them.
    cars = torch.stack([inside(centers, s, CAR, margin=2) for s in samples])
    only_persons = persons & ~cars
    assert only_persons.any(dim=1).sum() == 5  # in one of the six images a car covers the person

    assert (masked[:, PERSON][~cars] == 0).all()
    assert (unmasked[:, PERSON][only_persons] > 0).all()  # a descent step lowers the logit
    assert torch.equal(masked[:, CAR], unmasked[:, CAR])  # cars are learned as before
    assigned = masked[:, PERSON] != 0  # a car is no person, whether persons are labelled or not
    assert assigned.any()
    assert torch.equal(masked[:, PERSON][assigned], unmasked[:, PERSON][assigned])
    assert torch.equal(labelled, expected)  # where everything is labelled there is no mask


def inside(centers: Tensor, sample: SimpleNamespace, class_id: int, margin: float) -> Tensor:
    """Return which anchors (N,) lie in a box of the class, enlarged by ``margin`` pixels."""
    boxes = torch.from_numpy(sample.xyxy[sample.class_ids == class_id])
    low, high = boxes[:, None, :2] - margin, boxes[:, None, 2:] + margin
    return ((centers >= low) & (centers <= high)).all(dim=-1).any(dim=0)
