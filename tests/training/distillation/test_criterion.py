from copy import deepcopy

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from drone_kd_training.distillation.aligned_predictions import LevelComparison
from drone_kd_training.distillation.criterion import (
    WANTED,
    DistillationLoss,
    InFloat32,
    Settings,
    make_adapters,
)
from drone_kd_training.distillation.heads import raw_predictions
from drone_kd_training.distillation.levels import match_levels
from drone_kd_training.distillation.loss_balancing import Balance
from drone_kd_training.distillation.terms import TERMS
from drone_kd_training.models.checkpoints import load_model, match_classes, resolve_model
from drone_kd_training.teachers.soft_labels import PSEUDO_LABELS, Areas, Boxes
from drone_kd_training.teachers.teachers import DetectTeacher
from tiny_training import NAMES, SIZE


def one_batch() -> dict:
    return {
        "img": torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.1]]),
    }


def student_and_loss(
    student_yaml: str, teacher: DetectionModel, terms=("class", "box"), amp: bool = False
):
    torch.manual_seed(0)
    student = DetectionModel(resolve_model(student_yaml), nc=2, verbose=False)
    student.args = DEFAULT_CFG
    detection = student.train().init_criterion()
    return student, distillation_loss(detection, student, DetectTeacher(teacher), terms, amp=amp)


def distillation_loss(
    detection, student: DetectionModel, teacher: DetectTeacher, terms, **options
) -> DistillationLoss:
    heads = student.model[-1], teacher.head
    levels = match_levels(*heads)
    return DistillationLoss(
        detection,
        teacher,
        student,
        match_classes(NAMES, NAMES),
        levels,
        make_adapters(terms, levels, *heads, seed=0),
        terms,
        Settings(),
        Balance(0.2),
        **options,
    )


def loss_on_one_batch(
    student_yaml: str, teacher_yaml: str, terms=("class", "box"), half: bool = False
) -> dict:
    teacher = DetectionModel(resolve_model(teacher_yaml), nc=2, verbose=False)
    with torch.no_grad():  # an untrained head predicts no objects
        for branch in teacher.model[-1].cv3:
            branch[-1].bias.fill_(-1.0)
    student, criterion = student_and_loss(student_yaml, teacher, terms)
    batch = one_batch()
    criterion.half = half
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        predictions = student(batch["img"])
        loss, items = criterion(predictions, batch)
    assert {x.dtype for x in (loss, *items.values())} == {torch.float32}
    features = raw_predictions(predictions)["feats"]
    assert {x.dtype for x in features} == {torch.bfloat16 if half else torch.float32}
    loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in criterion.pair.adapters.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert type(deepcopy(criterion)) is type(criterion.innermost)
    return items


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_class_gradient_points_from_student_to_teacher(temperature, tiny_teacher):
    """At every anchor and class a descent step moves the logit towards the teacher's."""
    teacher, _ = load_model(str(tiny_teacher))
    student, criterion = student_and_loss("aerial-student.yaml", teacher, ("class",))
    criterion.pair.temperature = temperature
    images = one_batch()["img"]
    predictions = student(images)
    predictions["scores"].retain_grad()
    comparison = LevelComparison(criterion.pair, predictions, criterion.teacher(images, {}))
    TERMS["class"].compute(comparison)["kd_cls_loss"].backward()
    difference = comparison.student_logits - comparison.teacher_logits
    gradient = predictions["scores"].grad.transpose(1, 2)
    clear = difference.abs() > 1e-3
    assert clear.any()
    assert torch.equal(gradient[clear].sign(), difference[clear].sign())


@pytest.mark.slow
@pytest.mark.parametrize("student_yaml", ["aerial-student.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_teacher_that_sees_nothing_lowers_labelled_anchors_only_if_it_may(keeps, student_yaml):
    blind = DetectionModel(resolve_model("yolo11n.yaml"), nc=2, verbose=False)
    with torch.no_grad():
        for branch in blind.model[-1].cv3:
            branch[-1].bias.fill_(-12.0)
    student, criterion = student_and_loss(student_yaml, blind, ("class",))
    criterion.keeps_labels = keeps
    # As large as the boxes of an untrained student nearly, so that some are assigned.
    batch = {**one_batch(), WANTED: [], "bboxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]] * 2)}
    predictions = student(batch["img"])
    scores = raw_predictions(predictions)["scores"]
    loss, _ = criterion(predictions, batch)
    (gradient,) = torch.autograd.grad(loss[-1], scores, retain_graph=True)
    wanted = batch[WANTED][0].transpose(1, 2)
    labelled = wanted > 1e-3
    assert labelled.any()
    assert (gradient[wanted == 0] > 0).all()  # down to the teacher
    assert (gradient[labelled] == 0).all() if keeps else (gradient[labelled] > 0).all()


def test_decoded_boxes_are_compared_if_the_student_has_no_distribution():
    items = loss_on_one_batch("yolo26n.yaml", "yolo11n.yaml")
    assert "kd_cls_loss" in items
    assert "kd_dfl_loss" not in items
    assert items["kd_box_loss"] > 0


def test_the_head_without_nms_learns_one_anchor_per_box(tiny_teacher):
    """The one-to-one branch of YOLO26 is the one that flies."""
    teacher, _ = load_model(str(tiny_teacher))
    student, criterion = student_and_loss("yolo26n.yaml", teacher)
    boxes = Boxes(
        torch.tensor([0, 0, 1]),
        torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.7, 0.7, 0.3, 0.3]]),
        torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7]]),
    )
    criterion._run_teacher = lambda images, batch: boxes
    criterion.balance.sums = {"kd_cls_loss": [1.0, 1.0], "kd_box_loss": [1.0, 1.0]}
    criterion.balance.batches = 1  # no measurement: its weights are those above
    predictions = student(one_batch()["img"])
    scores = predictions["one2one"]["scores"]
    gradients = {}
    for labelled in (True, False):
        batch = one_batch()
        batch["areas"] = Areas(
            torch.tensor([0, 1]),
            torch.tensor([[0.5, 0.5, 1.0, 1.0]] * 2),
            torch.full((2, 2), labelled),
            torch.full((2, 2), True),
        )
        single = criterion._compare_one_to_one(predictions, boxes, SIZE, batch)
        taught = single.targets.amax(-1) > 0
        assert taught.sum(-1).tolist() == [1, 1]  # the duplicate is gone
        loss, items = criterion(predictions, batch)
        assert items["kd_single_box_loss"] > 0
        (found,) = torch.autograd.grad(loss[-1], scores, retain_graph=True)
        gradients[labelled] = found.transpose(1, 2)[taught]
    assert (gradients[False] < 0).any()  # up to the teacher, where it alone teaches
    # Where there are labels, they choose the anchor: another one would be a duplicate.
    assert (gradients[True] == 0).all()


class Recorded(InFloat32):
    """A detection criterion that keeps the batch it is given."""

    def loss(self, preds, batch):
        self.batch = batch
        return super().loss(preds, batch)


@pytest.mark.parametrize("of_frames", [False, True])
def test_unlabelled_image_is_learned_from_confident_predictions(
    of_frames, tiny_teacher, monkeypatch
):
    """Those on the frame itself decide, if there are any, whatever the teacher sees here."""
    teacher, _ = load_model(str(tiny_teacher))
    student, criterion = student_and_loss("aerial-student.yaml", teacher)
    criterion.detection = recorded = Recorded(criterion.innermost)
    predicted = Boxes(
        torch.tensor([1, 1]),
        torch.tensor([[0.25, 0.25, 0.2, 0.2], [0.7, 0.7, 0.4, 0.4]]),
        torch.tensor([[0.9, 0.0], [0.3, 0.0]]),
    )
    seen = predicted[predicted.image == 0] if of_frames else predicted
    monkeypatch.setattr(criterion, "teacher", lambda images, batch: seen)
    batch = one_batch()
    if of_frames:
        batch[PSEUDO_LABELS] = predicted
    labelled = batch["batch_idx"] == 0
    batch |= {key: batch[key][labelled] for key in ("cls", "bboxes", "batch_idx")}
    batch["areas"] = Areas(
        torch.tensor([0, 1]),
        torch.tensor([[0.5, 0.5, 1.0, 1.0]] * 2),
        torch.tensor([[True, True], [False, False]]),
        torch.tensor([[True, True]] * 2),
    )
    criterion(student(batch["img"]), batch)
    given = recorded.batch
    assert given["batch_idx"].tolist() == [0.0, 1.0]
    assert given["bboxes"][1].tolist() == pytest.approx([0.25, 0.25, 0.2, 0.2])
    mask = given["negatives_mask"]
    # 64 + 16 anchors; the second box, of 26 px, covers 3 x 3 of stride 8 and 1 or more of 16.
    assert mask[0].min() == 1
    assert mask[1, :, 1].min() == 1
    assert 9 <= int((mask[1, :, 0] == 0).sum()) <= 16


COLUMNS = {
    "class": {"kd_cls_loss"},
    "softmax": {"kd_softmax_loss"},
    "box": {"kd_dfl_loss"},
    "cross": {"kd_cross_cls_loss", "kd_cross_dfl_loss"},
    "feature": {"kd_feature_loss"},
    "assign": set(),
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("half", [False, True])
def test_each_term_works_alone(term, half):
    items = loss_on_one_batch("aerial-student.yaml", "aerial-nano.yaml", (term,), half)
    assert {k for k in items if k.startswith("kd_") and k.endswith("_loss")} == COLUMNS[term]
    for name in COLUMNS[term]:
        assert items[name] > 0 and items[name.replace("_loss", "_scale")] > 0, name


@pytest.mark.parametrize(
    ("instructions", "amp", "half"),
    [
        ({}, False, False),
        ({"avx512_bf16": True}, False, True),
        ({"avx512_bf16": False}, True, True),
    ],
)
def test_teacher_computes_in_half_precision_where_that_is_fast(
    instructions, amp, half, tiny_teacher, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    teacher, _ = load_model(str(tiny_teacher))
    criterion = student_and_loss("aerial-student.yaml", teacher, amp=amp)[1]
    seen = set()
    criterion.teacher.module.model[0].register_forward_hook(lambda *call: seen.add(call[2].dtype))
    student, _ = load_model(str(tiny_teacher))
    criterion(student.train()(one_batch()["img"]), one_batch())
    assert seen == {torch.bfloat16 if half else torch.float32}


def test_half_precision_hardly_changes_the_teachers_predictions(tiny_teacher):
    found = {}
    for half in (False, True):
        teacher, _ = load_model(str(tiny_teacher))
        student, criterion = student_and_loss("aerial-student.yaml", teacher, ("class", "box"))
        criterion.half = half
        found[half] = criterion(student(one_batch()["img"]), one_batch())[1]
    for name in ("kd_cls_loss", "kd_dfl_loss"):
        assert float(found[True][name]) == pytest.approx(float(found[False][name]), rel=0.02)


def test_half_precision_keeps_the_anchors_beyond_the_128th_cell():
    student = DetectionModel(resolve_model("aerial-student.yaml"), nc=2, verbose=False)
    student.args = DEFAULT_CFG
    detection = student.init_criterion()
    head, size = student.model[-1], 1088
    grids = [size // int(stride) for stride in head.stride]
    assert max(grids) > 128
    anchors = sum(grid**2 for grid in grids)
    random = torch.Generator().manual_seed(0)
    predictions = {
        "boxes": torch.rand(2, 4 * head.reg_max, anchors, generator=random),
        "scores": torch.rand(2, 2, anchors, generator=random),
        "feats": [torch.zeros(2, 1, grid, grid) for grid in grids],
    }
    far = torch.tensor([[0.97, 0.97, 0.04, 0.04], [0.98, 0.5, 0.03, 0.03]])
    batch = {**one_batch(), "bboxes": far}
    expected = detection(predictions, batch)[0]
    half = {**predictions, "feats": [x.bfloat16() for x in predictions["feats"]]}
    assert torch.equal(InFloat32(detection)(half, batch)[0], expected)


def test_cross_head_compares_decoded_boxes_through_a_head_without_distribution():
    items = loss_on_one_batch("yolo11n.yaml", "yolo26n.yaml", ("cross",))
    assert items["kd_cross_cls_loss"] > 0
    assert items["kd_cross_box_loss"] > 0


def test_terms_are_zero_for_a_student_equal_to_its_teacher(tiny_teacher):
    teacher, _ = load_model(str(tiny_teacher))
    weights = deepcopy(teacher.state_dict())  # the criterion fuses its layers
    student, criterion = student_and_loss(
        "aerial-student.yaml", teacher, ("class", "softmax", "box", "cross")
    )
    criterion.half = False
    student.load_state_dict(weights)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = one_batch()
    items = criterion(student(batch["img"]), batch)[1]
    losses = {k: v.item() for k, v in items.items() if k[:3] == "kd_" and k.endswith("_loss")}
    assert len(losses) == 5
    assert losses == pytest.approx(dict.fromkeys(losses, 0.0), abs=1e-4)


def test_adapters_leave_the_random_numbers_of_the_run_alone():
    pair = [
        DetectionModel(resolve_model(name), verbose=False).model[-1]
        for name in ("aerial-student.yaml", "aerial-nano.yaml")
    ]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make_adapters(("cross", "feature"), match_levels(*pair), *pair, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again = make_adapters(("cross", "feature"), match_levels(*pair), *pair, seed=1)
    assert len(list(first.parameters())) > 0
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_assignment_reaches_ultralytics_through_a_nested_criterion(tiny_teacher):
    """Quantization-aware training nests two criteria."""
    teacher, _ = load_model(str(tiny_teacher))
    student, inner = student_and_loss("aerial-student.yaml", teacher)
    outer = distillation_loss(
        inner, student, inner.teacher, ("class", "assign"), prefix="kd_outer"
    )
    inner.half = outer.half = False  # for equal digits on every CPU
    batch, seen = one_batch(), []
    assigner = inner.innermost.assigner
    inner.innermost.assigner = lambda scores, *rest: (
        seen.append(scores),
        assigner(scores, *rest),
    )[1]
    items = outer(student(batch["img"]), batch)[1]
    prediction = outer.teacher(batch["img"], batch)
    assert torch.allclose(seen[0], prediction["scores"].sigmoid().transpose(1, 2))
    assert {"kd_cls_loss", "kd_dfl_loss", "kd_outer_cls_loss"} <= set(items)


def test_labels_are_assigned_to_the_anchors_that_the_teacher_predicts_best(tiny_teacher):
    teacher, _ = load_model(str(tiny_teacher))
    student, criterion = student_and_loss("aerial-student.yaml", teacher, ("class", "assign"))
    criterion.half = False  # for equal digits on every CPU
    batch, given = one_batch(), {}
    assigner = criterion.innermost.assigner
    for name, terms in (("teacher", ("class", "assign")), ("student", ("class",))):
        criterion.terms = terms

        def record(scores, xyxy, *rest, name=name):
            given[name] = scores.clone(), xyxy.clone()
            return assigner(scores, xyxy, *rest)

        criterion.innermost.assigner = record
        criterion(student(batch["img"]), batch)
    prediction = criterion.teacher(batch["img"], batch)
    assert torch.allclose(given["teacher"][0], prediction["scores"].sigmoid().transpose(1, 2))
    assert (given["teacher"][1] - given["student"][1]).abs().max() > 1
    assert not torch.allclose(given["teacher"][0], given["student"][0], atol=1e-3)


def test_a_teacher_that_predicts_nothing_leaves_the_assignment(tiny_teacher):
    teacher, _ = load_model(str(tiny_teacher))
    with torch.no_grad():
        for branch in teacher.model[-1].cv3:
            branch[-1].bias.fill_(-15.0)
    student, criterion = student_and_loss("aerial-student.yaml", teacher, ("class", "assign"))
    batch = one_batch()
    predictions = student(batch["img"])
    with_teacher = criterion(predictions, batch)[1]
    criterion.terms = ("class",)
    alone = criterion(predictions, batch)[1]
    for name in ("box_loss", "cls_loss", "dfl_loss"):
        assert with_teacher[name].item() == pytest.approx(alone[name].item())
