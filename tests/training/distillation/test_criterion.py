from copy import copy, deepcopy

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from drone_kd_training.distillation.criterion import (
    TERMS,
    Balance,
    DistillationLoss,
    InFloat32,
    average_over_processes,
    make_adapters,
    match_levels,
    raw_predictions,
    schedule,
)
from drone_kd_training.models.checkpoints import load_model, match_classes, resolve_model
from drone_kd_training.teachers.soft_labels import Areas, Boxes
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
    student_yaml: str,
    teacher: DetectionModel,
    terms=("class", "box"),
    scale: int = 1,
    amp: bool = False,
):
    torch.manual_seed(0)
    student = DetectionModel(resolve_model(student_yaml), nc=2, verbose=False)
    student.args = DEFAULT_CFG
    detection = student.train().init_criterion()
    heads = student.model[-1], teacher.model[-1]
    levels = match_levels(*heads, scale)
    return student, DistillationLoss(
        detection,
        DetectTeacher(teacher),
        student,
        match_classes(NAMES, NAMES),
        levels,
        make_adapters(terms, levels, *heads, seed=0),
        terms,
        1.0,
        Balance(0.2),
        amp=amp,
    )


def wrapped(inner: DistillationLoss, terms) -> DistillationLoss:
    """The same teacher once more, round ``inner``."""
    outer = copy(inner)
    outer.detection, outer.chosen, outer.prefix = inner, terms, "kd_outer"
    outer.balance = Balance(0.2)
    return outer


def loss_on_one_batch(
    student_yaml: str, teacher_yaml: str, terms=("class", "box"), half: bool = False
) -> dict:
    teacher = DetectionModel(resolve_model(teacher_yaml), nc=2, verbose=False)
    with torch.no_grad():  # an untrained head says "nothing" everywhere: let it say something
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
    assert all(p.grad is not None for p in criterion.adapters.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert type(deepcopy(criterion)) is type(criterion.innermost)
    return items


def test_the_student_comes_closer_to_its_teacher(tiny_teacher):
    """Same student, same frames: with the distillation terms its answers move to the teacher's."""
    teacher, _ = load_model(str(tiny_teacher))
    batch = one_batch()
    wanted = raw_predictions(teacher(batch["img"]))
    distances = {}
    for weight in (0.0, 300.0):
        student, criterion = student_and_loss("aerial-student.yaml", teacher)
        sums = {"kd_cls_loss": [weight, 1.0], "kd_dfl_loss": [weight, 1.0]}
        criterion.balance = Balance(1.0, {"batches": 10**6, "sums": sums})
        criterion.steps = (0, 0, 10**6, False)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            predictions = student(batch["img"])
            criterion(predictions, batch)[0].sum().backward()
            optimizer.step()
        distances[weight] = [
            (predictions[key].softmax(1) - wanted[key].softmax(1)).abs().mean().item()
            if key == "boxes"
            else (predictions[key].sigmoid() - wanted[key].sigmoid()).abs().mean().item()
            for key in ("scores", "boxes")
        ]
    assert distances[300.0][0] < 0.5 * distances[0.0][0]
    assert distances[300.0][1] < 0.9 * distances[0.0][1]


def test_yolo26_has_no_distribution_so_that_boxes_are_compared():
    items = loss_on_one_batch("yolo26n.yaml", "yolo11n.yaml")
    assert {"kd_cls_loss", "kd_box_loss"} <= set(items) and "kd_dfl_loss" not in items
    assert items["kd_box_loss"] > 0


def test_a_frame_without_labels_is_taught_by_what_the_teacher_is_sure_of(monkeypatch):
    teacher = DetectionModel(resolve_model("aerial-student.yaml"), nc=2, verbose=False)
    student, criterion = student_and_loss("aerial-student.yaml", teacher)
    monkeypatch.setattr(
        "drone_kd_training.distillation.criterion.schedule", lambda *_: 0.0
    )  # mosaic is closed
    answers = Boxes(
        torch.tensor([1, 1]),
        torch.tensor([[0.25, 0.25, 0.2, 0.2], [0.7, 0.7, 0.4, 0.4]]),
        torch.tensor([[0.9, 0.0], [0.3, 0.0]]),
    )
    monkeypatch.setattr(criterion, "teacher", lambda picture, batch: answers)
    batch = one_batch()
    true = batch["batch_idx"] == 0  # the labels of frame 1 are not known
    batch |= {key: batch[key][true] for key in ("cls", "bboxes", "batch_idx")}
    batch["areas"] = Areas(
        torch.tensor([0, 1]),
        torch.tensor([[0.5, 0.5, 1.0, 1.0]] * 2),
        torch.tensor([[True, True], [False, False]]),
        torch.tensor([[True, True]] * 2),
    )
    seen = {}
    detection, plain = criterion.innermost, criterion.innermost.bce

    class Seen(type(detection)):
        def __call__(self, preds, given):
            seen.update(given, kept=self.bce.kept)
            return super().__call__(preds, given)

    detection.__class__ = Seen
    criterion(student(batch["img"]), batch)
    assert seen["batch_idx"].tolist() == [0.0, 1.0]
    assert seen["bboxes"][1].tolist() == pytest.approx([0.25, 0.25, 0.2, 0.2])
    kept = seen["kept"]
    # 64 + 16 anchors; the second box, of 26 px, covers 3 x 3 of stride 8 and 1 or more of 16.
    assert kept[0].min() == 1 and kept[1, :, 1].min() == 1
    assert 9 <= int((kept[1, :, 0] == 0).sum()) <= 16
    assert detection.bce is plain  # what is copied into a checkpoint


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
def test_each_term_can_be_switched_on_alone(term, half):
    items = loss_on_one_batch("aerial-nano.yaml", "yolo11n.yaml", (term,), half)
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
def test_the_teacher_computes_in_half_precision_where_that_is_quick(
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


def test_half_precision_hardly_moves_what_the_teacher_says(tiny_teacher):
    found = {}
    for half in (False, True):
        teacher, _ = load_model(str(tiny_teacher))
        student, criterion = student_and_loss("aerial-student.yaml", teacher, ("class", "box"))
        criterion.half = half
        found[half] = criterion(student(one_batch()["img"]), one_batch())[1]
    for name in ("kd_cls_loss", "kd_dfl_loss"):
        assert float(found[True][name]) == pytest.approx(float(found[False][name]), rel=0.02)


def test_anchors_beyond_the_128th_cell_are_where_they_are_in_half_precision():
    student = DetectionModel(resolve_model("aerial-nano.yaml"), nc=2, verbose=False)
    student.args = DEFAULT_CFG
    detection = student.train().init_criterion()
    far = torch.tensor([[0.97, 0.97, 0.04, 0.04], [0.98, 0.5, 0.03, 0.03]])
    batch = {**one_batch(), "img": torch.rand(2, 3, 1088, 1088), "bboxes": far}
    with torch.no_grad():
        predictions = student(batch["img"])
        expected = detection(predictions, batch)[0]
        half = {**predictions, "feats": [x.bfloat16() for x in predictions["feats"]]}
        assert torch.equal(InFloat32(detection)(half, batch)[0], expected)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("yolo11n.yaml", "yolo26n.yaml"), ("yolo26n.yaml", "yolo26s.yaml")],
)
def test_cross_head_compares_boxes_through_yolo26(student, teacher):
    items = loss_on_one_batch(student, teacher, ("cross",))
    assert items["kd_cross_cls_loss"] > 0 and items["kd_cross_box_loss"] > 0


def test_a_student_that_is_its_teacher_has_no_cross_head_loss(tiny_teacher):
    teacher, _ = load_model(str(tiny_teacher))
    weights = deepcopy(teacher.state_dict())  # the criterion fuses its layers
    student, criterion = student_and_loss("aerial-student.yaml", teacher, ("cross",))
    student.load_state_dict(weights)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = one_batch()
    items = criterion(student(batch["img"]), batch)[1]
    assert items["kd_cross_cls_loss"].item() == pytest.approx(0, abs=1e-4)
    assert items["kd_cross_dfl_loss"].item() == pytest.approx(0, abs=1e-4)


def heads(student: str, teacher: str) -> list:
    return [DetectionModel(resolve_model(name), verbose=False).model[-1] for name in
            (student, teacher)]  # fmt: skip


def test_levels_are_matched_by_the_size_of_their_grids():
    assert match_levels(*heads("aerial-nano.yaml", "yolo11n.yaml")).pairs == ((0, 0), (1, 1))
    p2 = match_levels(*heads("yolo11n.yaml", "yolov8n-p2.yaml"))
    assert p2.pairs == ((0, 1), (1, 2), (2, 3))
    larger = match_levels(*heads("yolo11n.yaml", "yolo11n.yaml"), 2)
    # The teacher's stride 16 at twice the size is the student's stride 8.
    assert larger.pairs == ((0, 1), (1, 2))
    assert "stride 16 of a picture 2 times as large" in larger.table()
    assert "stride 32                - (labels only)" in larger.table()


def test_where_no_level_meets_the_teacher_teaches_with_its_boxes():
    pair = heads("yolo11n.yaml", "yolo11n.yaml")
    between = match_levels(*pair, 1.5)
    assert between.pairs == () and "stride 8                 - (the teacher's boxes)" in (
        between.table()
    )
    assert match_levels(pair[0], None).pairs == ()


def test_adapters_leave_the_run_s_random_numbers_alone():
    pair = heads("aerial-nano.yaml", "yolo11n.yaml")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make_adapters(("cross", "feature"), match_levels(*pair), *pair, seed=1)
    assert torch.equal(torch.rand(3), expected)
    again = make_adapters(("cross", "feature"), match_levels(*pair), *pair, seed=1)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_balance_gives_a_term_its_share_of_the_gradient():
    feature = torch.tensor([1.0, 2.0], requires_grad=True)
    balance = Balance(0.2)
    detection, term = 3 * feature.sum(), (feature**2).sum() * 100
    balance.measure(detection, {"kd": term}, [feature])
    share = torch.autograd.grad(balance.weight("kd") * term, feature)[0].norm() / (3 * 2**0.5)
    assert share.item() == pytest.approx(0.2)
    assert Balance(0.2, balance.state()).weight("kd") == balance.weight("kd")
    assert Balance(0.2).weight("kd") == 0.0


def _process(rank: int, meeting: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    balance = Balance(0.5)
    feature = torch.tensor([1.0], requires_grad=True)
    # Rank 0 sees gradients of 1 and 2, rank 1 of 3 and 6.
    balance.measure(
        (1 + 2 * rank) * feature.sum(), {"kd": (2 + 4 * rank) * feature.sum()}, [feature]
    )
    gradient = average_over_processes(torch.tensor([float(rank), 10.0]))
    torch.save((balance.sums, gradient), f"{results}{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_of_one_run_weigh_alike(tmp_path):
    torch.multiprocessing.spawn(_process, (str(tmp_path / "m"), str(tmp_path / "r")), nprocs=2)
    results = [torch.load(tmp_path / f"r{rank}.pt") for rank in (0, 1)]
    assert results[0][0] == results[1][0] == {"kd": [2.0, 4.0]}
    assert results[0][1].tolist() == results[1][1].tolist() == [0.5, 10.0]
    assert average_over_processes(torch.tensor([3.0])).tolist() == [3.0]  # alone


def test_schedule_ramps_decays_and_closes():
    values = [schedule(step, 10, 100, True) for step in range(120)]
    assert values[0] == pytest.approx(0.1, abs=0.01)
    assert max(values) > 0.95 and values.index(max(values)) in range(9, 12)
    assert values[10:100] == sorted(values[10:100], reverse=True)
    assert values[99] == pytest.approx(0.1, abs=0.01) and values[100:] == [0.0] * 20
    assert schedule(110, 10, 100, False) == pytest.approx(0.1)


def test_labels_are_given_inside_of_a_further_teachers_criterion(tiny_teacher):
    """As quantization-aware training nests them."""
    teacher, _ = load_model(str(tiny_teacher))
    student, inner = student_and_loss("aerial-student.yaml", teacher)
    inner.half = False  # for equal digits on every processor
    outer = wrapped(inner, ("class", "assign"))
    batch, seen = one_batch(), []
    own = inner.innermost.assigner

    def remember(scores, *rest):
        seen.append(scores.clone())
        return own(scores, *rest)

    inner.innermost.assigner = remember
    outer(student(batch["img"]), batch)
    answer = outer.teacher(batch["img"], batch)
    assert torch.allclose(seen[0], answer["scores"].sigmoid().transpose(1, 2))


def test_labels_go_to_the_anchors_that_the_teacher_answers_best(tiny_teacher, monkeypatch):
    teacher, _ = load_model(str(tiny_teacher))
    student, criterion = student_and_loss("aerial-student.yaml", teacher, ("class", "assign"))
    criterion.half = False  # for equal digits on every processor
    batch = one_batch()
    given = {}
    own = criterion.innermost.assigner
    for name in ("teacher", "student"):
        criterion.chosen = ("class", "assign") if name == "teacher" else ("class",)

        def remember(scores, xyxy, *rest, to=name):
            given[to] = scores.clone(), xyxy.clone()
            return own(scores, xyxy, *rest)

        criterion.innermost.assigner = remember
        criterion(student(batch["img"]), batch)
        assert criterion.innermost.assigner is remember  # for one call only
    answer = criterion.teacher(batch["img"], batch)
    assert torch.allclose(given["teacher"][0], answer["scores"].sigmoid().transpose(1, 2))
    assert (given["teacher"][1] - given["student"][1]).abs().max() > 1
    assert not torch.allclose(given["teacher"][0], given["student"][0], atol=1e-3)


def test_a_teacher_that_sees_nothing_leaves_the_labels_where_they_were(tiny_teacher):
    teacher, _ = load_model(str(tiny_teacher))
    with torch.no_grad():
        for branch in teacher.model[-1].cv3:
            branch[-1].bias.fill_(-15.0)
    student, criterion = student_and_loss("aerial-student.yaml", teacher, ("class", "assign"))
    batch = one_batch()
    predictions = student(batch["img"])
    with_teacher = criterion(predictions, batch)[1]
    criterion.chosen = ("class",)
    alone = criterion(predictions, batch)[1]
    for name in ("box_loss", "cls_loss", "dfl_loss"):
        assert with_teacher[name].item() == pytest.approx(alone[name].item())
