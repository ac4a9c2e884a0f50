# SPDX-License-Identifier: AGPL-3.0-or-later
"""Train the deployed model on with mined frames, and judge the candidate."""
