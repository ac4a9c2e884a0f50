# SPDX-License-Identifier: AGPL-3.0-or-later
"""Complete runs: the demos and the default model, with their checkpoints."""
