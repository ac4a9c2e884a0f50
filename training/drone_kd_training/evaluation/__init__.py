# SPDX-License-Identifier: AGPL-3.0-or-later
"""Evaluation of a detector on a labelled split."""
