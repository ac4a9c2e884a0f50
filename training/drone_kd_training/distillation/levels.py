# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which level of the student's head is compared with which level of the teacher's head."""

from __future__ import annotations

from dataclasses import dataclass

from ultralytics.nn.modules.head import Detect

from drone_kd_training.models.checkpoints import UnusableModelError


@dataclass(frozen=True)
class LevelMatch:
    """Pairs of level indices (student, teacher) whose grids have the same size.

    ``scale`` is how much larger the teacher's image is: its stride 16 at twice the size is the
    same grid as the student's stride 8. Without pairs, the teacher's boxes are assigned to the
    student's anchors as labels are.
    """

    pairs: tuple[tuple[int, int], ...]
    student_strides: tuple[int, ...]
    teacher_strides: tuple[int, ...]
    scale: float

    @property
    def student(self) -> list[int]:
        """Matched levels of the student, in order."""
        return [i for i, _ in self.pairs]

    @property
    def teacher(self) -> list[int]:
        """Matched levels of the teacher, in the order of ``student``."""
        return [j for _, j in self.pairs]

    def table(self) -> str:
        """Return one line per level of the student."""
        if not self.teacher_strides:
            return "the teacher has no levels: its boxes are assigned to the student's anchors"
        teacher = dict(self.pairs)
        scaled = f" of an image {self.scale:g} times as large" if self.scale > 1 else ""
        lines = [f"{'student level':<24} teacher level"]
        unmatched = "- (labels only)" if self.pairs else "- (the teacher's boxes)"
        for i, stride in enumerate(self.student_strides):
            matched = f"stride {self.teacher_strides[teacher[i]]}{scaled}" if i in teacher else ""
            lines.append(f"{f'stride {stride}':<24} {matched or unmatched}")
        return "\n".join(lines)

    def check_terms(self, terms: tuple[str, ...], teacher: str, box_terms: frozenset[str]) -> None:
        """Refuse terms that compare anchors if no level matches; ``teacher``: its source.

        Raises:
            UnusableModelError: a term needs matched levels and there are none.
        """
        impossible = set(terms) - box_terms
        if self.pairs or not impossible:
            return
        raise UnusableModelError(
            f"{teacher} has no level in common with the student (strides "
            f"{list(self.teacher_strides)} of an image {self.scale:g} times as large, against "
            f"{list(self.student_strides)}): it can teach with its boxes, but not "
            f"{', '.join(sorted(impossible))}; use --terms {','.join(sorted(box_terms))}"
        )


def match_levels(
    student_head: Detect, teacher_head: Detect | None, scale: float = 1
) -> LevelMatch:
    """Match the levels of two Detect heads by grid size.

    ``teacher_head`` is None for a teacher without one; ``scale`` is the size of the teacher's
    image divided by the size of the student's.
    """
    student, teacher = (
        () if head is None else tuple(int(s) for s in head.stride)
        for head in (student_head, teacher_head)
    )
    pairs = tuple(
        (i, teacher.index(int(stride * scale)))
        for i, stride in enumerate(student)
        if stride * scale in teacher
    )
    return LevelMatch(pairs, student, teacher, scale)
