# SPDX-License-Identifier: AGPL-3.0-or-later
"""Margins by which the guard accepts or refuses a candidate."""

RESAMPLES = 1000
CONFIDENCE = 0.95
# Bounds for the lower end of the interval of the gain, in mAP50-95 in [0, 1]: new flight as a
# whole, base as a whole, and each class and size (which have fewer objects, so wider intervals).
GAIN, MARGIN, PART_MARGIN = 0.0, -0.01, -0.03
# Classes and sizes with fewer objects are shown, but neither judged nor part of a mean.
MIN_OBJECTS = 50
# Effective number of flights or stretches below which nothing is judged. The standard error of
# fewer is itself uncertain by more than a third (1 / sqrt(2 (n - 1))), and the quantile of t that
# pays for it leaves only gains of many points; see benchmarks/retraining.md, "Operating curve".
MIN_BLOCKS = 5
# The teacher's labels may be wrong in the held-out frames, too, where no gain can reveal it.
# Confident predictions of the deployed model must agree with labels at least this many times as
# often as they do on the base.
AGREEMENT = 0.5
