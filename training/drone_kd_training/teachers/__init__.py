# SPDX-License-Identifier: AGPL-3.0-or-later
"""Teachers, their predictions, and the data sets they label."""
