# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checkpoints: loading, class matching, weight interpolation, inference with torch."""
