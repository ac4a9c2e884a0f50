# SPDX-License-Identifier: AGPL-3.0-or-later
"""Export of a checkpoint to an ONNX file that describes itself and passed its gates."""
