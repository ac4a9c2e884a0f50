# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train a student with its teacher."""
