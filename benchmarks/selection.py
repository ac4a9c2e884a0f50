# SPDX-License-Identifier: AGPL-3.0-or-later
"""Gain of frame selections at an equal number of labelled boxes.

    python -m benchmarks.selection --data HIT-UAV/data.yaml --weights WEIGHTS --output OUT

Domains and models are those of `benchmarks.retraining`: the deployed model and the teacher know
the day alone, the frames to choose from are of night flights. Each seed draws half of the
stretches of these flights as its pool, so that seeds differ in flights, too. A selection orders
the pool, and frames are labelled (with the true labels) in this order until the budget of boxes is
spent. Each training has equally many steps: half of its images are new frames, repeated as often
as necessary, half are base frames. The first seeds choose a selection, judged by the flights
CHOOSE; the others are for quoting, judged by the flights QUOTE. Finished rows stay in the output
folder, and the same command continues.

    python -m benchmarks.selection --csv benchmarks/selection.csv

prints the tables of published rows.
"""
