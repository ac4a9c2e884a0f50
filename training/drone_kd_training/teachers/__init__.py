# SPDX-License-Identifier: AGPL-3.0-or-later
"""Teachers, their predictions, and the data sets they label."""

# Scores of a teacher's box of a class without labels: above the band the box is a pseudo-label,
# below it is background, within it is ignored in the loss (else the teacher's misses become
# negatives).
IGNORE_BAND = (0.1, 0.6)
