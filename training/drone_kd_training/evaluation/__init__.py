# SPDX-License-Identifier: AGPL-3.0-or-later
"""Measure a detector on a labelled split."""
