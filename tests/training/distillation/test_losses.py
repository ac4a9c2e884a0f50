import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("torchvision", reason="the box loss is torchvision's")

from drone_kd_training.distillation import losses  # noqa: E402

RESPONSES = (losses.class_response_sigmoid, losses.class_response_softmax)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_response_is_zero_for_equal_logits_and_positive_otherwise(response, temperature):
    teacher = logits(0, 2, 30, 4)
    assert response(teacher.clone(), teacher, temperature).item() == pytest.approx(0, abs=1e-6)
    assert response(logits(1, 2, 30, 4), teacher, temperature).item() > 0.01


@pytest.mark.parametrize("response", RESPONSES)
def test_gradient_descent_brings_the_student_to_the_teacher(response):
    teacher, student = logits(0, 1, 20, 3), logits(1, 1, 20, 3).requires_grad_()
    before = response(student, teacher, 2.0).item()
    optimizer = torch.optim.Adam([student], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        response(student, teacher, 2.0).backward()
        optimizer.step()
    assert response(student, teacher, 2.0).item() < 0.01 * before


def test_softmax_form_is_hintons_kl_times_temperature_squared():
    # One anchor, so the weighting by confidence cancels and leaves the textbook formula.
    teacher, student, temperature = logits(0, 1, 1, 5), logits(1, 1, 1, 5), 3.0
    p = torch.softmax(teacher / temperature, -1)
    q = torch.softmax(student / temperature, -1)
    confidence = teacher.sigmoid().max()
    expected = (p * (p / q).log()).sum() * 9 * confidence / max(confidence.item(), 1.0)
    assert losses.class_response_softmax(student, teacher, temperature).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_softmax_gradient_does_not_shrink_with_temperature():
    teacher = logits(0, 1, 50, 4)
    norms = []
    for temperature in (8.0, 32.0):
        student = logits(1, 1, 50, 4).requires_grad_()
        losses.class_response_softmax(student, teacher, temperature).backward()
        norms.append(student.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


@pytest.mark.parametrize("response", RESPONSES)
def test_background_does_not_dilute_the_loss(response):
    teacher, student = logits(0, 1, 10, 3), logits(1, 1, 10, 3)
    background = torch.full((1, 5000, 3), -12.0)
    alone = response(student, teacher).item()
    with_background = response(
        torch.cat([student, background], 1), torch.cat([teacher, background], 1)
    ).item()
    assert with_background == pytest.approx(alone, rel=0.02)


def test_dfl_is_zero_for_equal_bins_and_ignores_anchors_without_confidence():
    teacher, student = logits(0, 1, 6, 4, 16), logits(1, 1, 6, 4, 16)
    confidence = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    assert losses.dfl_divergence(teacher.clone(), teacher, confidence).item() == pytest.approx(
        0, abs=1e-6
    )
    student[:, :3] = teacher[:, :3]
    assert losses.dfl_divergence(student, teacher, confidence).item() == pytest.approx(0, abs=1e-6)
    assert losses.dfl_divergence(student, teacher, 1 - confidence).item() > 0.1


def test_decoded_box_grows_with_the_distance_and_is_zero_for_the_same_box():
    box = torch.tensor([[[10.0, 10.0, 30.0, 20.0]]])
    weight = torch.ones(1, 1)
    values = [
        losses.decoded_box(box + shift, box, weight, 640).item()
        for shift in (0.0, 2.0, 10.0, 100.0)
    ]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values) and values[1] > 0.1


def test_feature_correlation_ignores_scale_and_offset_only():
    teacher, everywhere = logits(0, 2, 4, 8, 8), torch.ones(2, 8, 8)

    def loss(student, confidence=everywhere) -> float:
        return losses.feature_correlation(student, teacher, confidence).item()

    assert loss(3 * teacher + 7) == pytest.approx(0, abs=1e-4)
    assert loss(-teacher) == pytest.approx(2, abs=1e-3)
    other = logits(1, 2, 4, 8, 8)
    expected = (
        1
        - sum(
            torch.corrcoef(torch.stack([other[:, c].flatten(), teacher[:, c].flatten()]))[0, 1]
            for c in range(4)
        ).item()
        / 4
    )
    assert loss(other) == pytest.approx(expected, rel=1e-3)


def test_features_are_compared_where_the_teacher_is_confident():
    teacher, confidence = logits(0, 2, 4, 8, 8), torch.zeros(2, 8, 8)
    confidence[:, 2:4, 2:4] = 0.5
    ground = teacher.clone()
    ground[..., 5:, 5:] += 3
    objects = teacher.clone()
    objects[..., 2:4, 2:4] += 3
    on_ground, on_objects = (
        losses.feature_correlation(x, teacher, confidence) for x in (ground, objects)
    )
    assert on_objects > 5 * on_ground
    assert losses.feature_correlation(ground, teacher, torch.zeros(2, 8, 8)) == 0


def test_confidence_leaves_out_background():
    values = losses.teacher_confidence(torch.tensor([[[-6.0, -5.0], [0.0, -9.0]]]))
    assert values.tolist() == [[0.0, 0.5]]
