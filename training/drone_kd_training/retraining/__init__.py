# SPDX-License-Identifier: AGPL-3.0-or-later
"""Retraining of the deployed model on mined frames, and the guard that judges the candidate."""
