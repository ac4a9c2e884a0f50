# SPDX-License-Identifier: AGPL-3.0-or-later
"""drone-kd export: a checkpoint as an ONNX file that describes itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drone_kd.core.model_spec import INPUTS, PRECISIONS
from drone_kd_training.isolation import add_trust_option


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("checkpoint", metavar="best.pt", help="trained checkpoint")
    add("--output", type=Path, required=True, metavar="ONNX", help="file to write")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the graph")
    data = "its training frames calibrate INT8, its validation frames compare and evaluate"
    add("--data", help=f"data.yaml: {data} (default: compare on noise)")
    size = "input, such as 384x640 for frames of 16:9 (default: the square as trained)"
    add("--imgsz", type=_image_size, metavar="PX|HxW", help=size)
    add("--batch", type=int, default=1, metavar="N", help="images per inference")
    inputs = "BGR images, scaled in the graph; float32-nchw: RGB, 0 to 1, for other programs"
    add("--input", choices=INPUTS, default="uint8-nhwc", help=f"uint8-nhwc: {inputs}")
    add("--force", action="store_true", help="write a file that fails a gate, as NAME.failed.onnx")
    golden = "store no parts of validation images, which every runtime must reproduce"
    add("--no-golden", action="store_true", help=golden)
    add_trust_option(parser)
    add = parser.add_argument_group("metadata").add_argument
    add("--licence", default="AGPL-3.0", help="of the weights")
    add("--attribution", default="", metavar="TEXT", help="credit that the training data require")
    limits = "teachers and their data, if these limit the use of the weights; lineage prints it"
    add("--ancestry", default="", metavar="TEXT", help=limits)


def run(arguments: argparse.Namespace) -> int:
    """Export and print the gates, the metrics and the file's name."""
    from drone_kd_training.export.export import export
    from drone_kd_training.export.gate_table import gate_table, undecided

    a = arguments
    output, spec = export(
        Path(a.checkpoint),
        a.output,
        precision=a.precision,
        data=a.data,
        imgsz=a.imgsz,
        batch=a.batch,
        input_=a.input,
        force=a.force,
        licence=a.licence,
        attribution=a.attribution,
        ancestry=a.ancestry,
        golden=not a.no_golden,
    )
    print(gate_table(spec))
    for name, value in spec.metrics.items():
        print(f"{name:<27}{100 * value:>10.2f}")
    if line := undecided(spec):
        print(line, file=sys.stderr)
    if output != a.output:
        print(f"a gate failed: written as {output}, because of --force", file=sys.stderr)
    print(output)
    return 0


def _image_size(text: str) -> int | tuple[int, int]:
    try:
        sides = tuple(int(side) for side in text.split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"expected pixels, or HEIGHTxWIDTH, got {text!r}")
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]
