# SPDX-License-Identifier: AGPL-3.0-or-later
"""Write a checkpoint as a self-describing ONNX file that passes its gates."""
