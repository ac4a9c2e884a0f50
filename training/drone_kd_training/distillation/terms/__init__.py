# SPDX-License-Identifier: AGPL-3.0-or-later
"""The distillation terms that ``--terms`` can name.

To add a term, write a `Term` subclass in a file of this folder and add one line to ``TERMS``. The
training loop and the command-line help (so the generated page of commands) read this table.
Importing it does not import torch, so that the help stays fast.
"""

from __future__ import annotations

from drone_kd_training.distillation.terms.assignment import AssignmentTerm
from drone_kd_training.distillation.terms.base import Term
from drone_kd_training.distillation.terms.features import CrossHeadTerm, FeatureTerm
from drone_kd_training.distillation.terms.response import BoxTerm, ClassTerm, SoftmaxTerm

TERMS: dict[str, Term] = {
    "class": ClassTerm(),
    "softmax": SoftmaxTerm(),
    "box": BoxTerm(),
    "cross": CrossHeadTerm(),
    "feature": FeatureTerm(),
    "assign": AssignmentTerm(),
}
# One short help line per term, with the name of its method.
TERM_HELP = {name: f"{term.help} ({term.paper.split(',')[0]})" for name, term in TERMS.items()}
# Terms that a teacher without a Detect head can teach.
BOX_TERMS = frozenset(name for name, term in TERMS.items() if not term.needs_levels)
