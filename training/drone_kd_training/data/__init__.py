# SPDX-License-Identifier: AGPL-3.0-or-later
"""Data sets in Ultralytics' layout: read, check, render."""
