# SPDX-License-Identifier: AGPL-3.0-or-later
"""Checkpoints: load, compare classes, run as a detector, interpolate weights."""
