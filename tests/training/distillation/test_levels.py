from types import SimpleNamespace

import pytest
import torch

from drone_kd_training.distillation.levels import match_levels
from drone_kd_training.distillation.terms import BOX_TERMS
from drone_kd_training.models.checkpoints import UnusableModelError


def head(*strides: int) -> SimpleNamespace:
    return SimpleNamespace(stride=torch.tensor([float(s) for s in strides]))


def test_levels_are_matched_by_grid_size():
    assert match_levels(head(8, 16), head(8, 16, 32)).pairs == ((0, 0), (1, 1))
    p2 = match_levels(head(8, 16, 32), head(4, 8, 16, 32))
    assert p2.pairs == ((0, 1), (1, 2), (2, 3))
    assert (p2.student, p2.teacher) == ([0, 1, 2], [1, 2, 3])
    larger = match_levels(head(8, 16, 32), head(8, 16, 32), 2)
    # The teacher's stride 16 at twice the size is the student's stride 8.
    assert larger.pairs == ((0, 1), (1, 2))
    assert "stride 16 of an image 2 times as large" in larger.table()
    assert "stride 32                - (labels only)" in larger.table()


def test_without_a_common_level_the_teacher_teaches_with_its_boxes():
    between = match_levels(head(8, 16, 32), head(8, 16, 32), 1.5)
    assert between.pairs == ()
    assert "stride 8                 - (the teacher's boxes)" in between.table()
    no_head = match_levels(head(8, 16), None)
    assert no_head.pairs == ()
    assert "the teacher has no levels" in no_head.table()
    between.check_terms(("class", "box", "assign"), "t.pt", BOX_TERMS)
    with pytest.raises(
        UnusableModelError, match=r"t\.pt has no level in common .* not cross; use"
    ):
        between.check_terms(("class", "cross"), "t.pt", BOX_TERMS)
