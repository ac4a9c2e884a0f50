# SPDX-License-Identifier: AGPL-3.0-or-later
"""python -m training generate | distill | compare | evaluate | predict | mine | labels | retrain |
export: every offline step as one command.

Exit codes: 0 done; 1 the work failed; 2 the input cannot work (one line says why); 3 the retrained
model was refused; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from drone_kd.core.model_spec import INPUTS, PRECISIONS
from drone_kd_training.quiet import log_to_terminal
from drone_kd_training.tables import format_score, format_table


def main(argv: list[str] | None = None) -> int:
    """Run one command; ``argv`` without the program's name. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    arguments.typed = sys.argv[1:] if argv is None else argv
    log_to_terminal()
    try:
        return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print(f"\ninterrupted; {arguments.interrupted}", file=sys.stderr)
        return 130
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        return _fail(error, 2)
    except (RuntimeError, OSError) as error:
        return _fail(error, 1)


def _fail(error: BaseException, code: int) -> int:
    if os.environ.get("DRONE_KD_TRACEBACK"):
        raise error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    print(f"error: {lines[0] if lines else type(error).__name__}", file=sys.stderr)
    return code


def _generate(a: argparse.Namespace) -> None:
    from drone_kd_training.data.generate import generate

    print(generate(a.output, train=a.train, val=a.val, imgsz=a.imgsz, seed=a.seed))


def _config(a: argparse.Namespace, seed: int):
    from drone_kd_training.distillation.config import Config

    return Config(
        data=a.data,
        teacher=a.teacher,
        teachers=a.teachers,
        student=a.student or a.from_,
        epochs=a.epochs,
        imgsz=a.imgsz,
        batch=a.batch,
        device=a.device,
        seed=seed,
        temperature=a.temperature,
        terms=a.terms,
        balance=a.balance,
        teacher_scale=a.teacher_scale,
        teacher_tiles=a.teacher_tiles,
        unlabelled=a.unlabelled,
        quantize=a.quantize,
        fraction=a.fraction,
        val=a.val and not a.teachers,  # each source is measured by itself, at the end
        overrides=dict(a.set),
    )


def _distill(a: argparse.Namespace) -> None:
    from drone_kd_training.distillation.distill import distill

    if bool(a.teachers) == bool(a.data) or bool(a.teachers) == bool(a.teacher):
        raise ValueError("distill needs --data and --teacher, or --teachers instead of both")
    if bool(a.quantize) != bool(a.from_):
        raise ValueError("--quantize int8 goes with --from best.pt, the student it starts from")
    config = _config(a, a.seed)
    metrics = distill(config, a.output, resume=a.resume)
    if not metrics:
        return
    names = {"student": "student", "teacher": "teacher"}
    print(format_table({names[k]: metrics[k] for k in names if metrics[k]}))
    print(f"student: {a.output / 'best.pt'}")
    if config.quantize:
        from drone_kd_training.export.qat import export_both

        print(export_both(config, a.output))


def _compare(a: argparse.Namespace) -> None:
    from drone_kd_training.distillation.compare import compare, default_arms

    config = _config(a, a.seeds[0])
    arms = a.arms or default_arms(config)
    compare(config, a.output, tuple(a.seeds), arms, a.select, a.cluster)
    print((a.output / "compare.md").read_text(encoding="utf-8"))


def _evaluate(a: argparse.Namespace) -> None:
    from drone_kd_training.data.dataset import write_text
    from drone_kd_training.evaluation.evaluate import evaluate

    metrics = evaluate(a.model, a.data, split=a.split, imgsz=a.imgsz, tiling=a.tiling)
    if a.json:
        write_text(a.json, json.dumps(metrics, indent=1))
    for key in ("map50_95", "map50", "ap_tiny", "ap_small", "ap_medium", "ap_large"):
        print(f"{key:<10} {format_score(metrics[key])}")
    for name, scores in metrics["per_class"].items():
        print(
            f"  {name:<16} AP50-95 {format_score(scores['ap50_95'])}  "
            f"AP50 {format_score(scores['ap50'])}"
        )
    for name in metrics["classes_not_in_model"]:
        print(f"  {name:<16} not a class of the model, left out of the means")
    ignored = f", {metrics['images_ignored']} ignored" if metrics["images_ignored"] else ""
    print(f"{metrics['images']} pictures{ignored}, {metrics['boxes']} boxes")


def _predict(a: argparse.Namespace) -> None:
    from drone_kd_training.teachers.predict import predict

    frames = predict(a.model, a.data, a.output, split=a.split, imgsz=a.imgsz)
    print(f"{frames} frames: {a.output}")


def _mine(a: argparse.Namespace) -> None:
    from drone_kd_training.mining.mine import Settings, mine

    settings = Settings(a.teacher, a.student, a.frames, a.per_scene, sure=a.sure)
    done = mine(a.flights, a.output, settings, tuple(a.topic), a.cluster)
    print(
        f"{done['frames']} frames looked at, {done['train']} to learn from, {done['val']} held "
        f"out: {a.output}"
    )


def _labels(a: argparse.Namespace) -> None:
    from drone_kd_training.mining.annotation_formats import FORMATS, export_labels, import_labels

    format_, path = a.to or a.from_
    if format_ not in FORMATS:
        raise ValueError(f"expected one of {', '.join(FORMATS)}, got {format_!r}")
    if a.to:
        print(f"{export_labels(a.mined, format_, Path(path))} frames: {path}")
        return
    frames, corrected = import_labels(a.mined, format_, Path(path), a.checked)
    print(f"{corrected} of {frames} frames have a person's labels now: {a.mined}")


def _retrain(a: argparse.Namespace) -> int:
    from drone_kd_training.retraining.retrain import Plan, retrain

    plan = Plan(
        model=a.model,
        mined=a.mined,
        data=a.data,
        teacher=a.teacher,
        replay=a.replay,
        keep=a.keep,
        epochs=a.epochs,
        batch=a.batch,
        imgsz=a.imgsz,
        device=a.device,
        seed=a.seed,
        precision=a.precision,
        parent=a.parent,
        overrides=dict(a.set),
    )
    found = retrain(plan, a.output, shlex.join(["python", "-m", "training", *a.typed]))
    print(found["table"])
    if not found["accepted"]:
        print(f"refused: {a.output / 'refused.json'}; keep flying the model that flies")
        return 3
    print(f"accepted: {found['model']}")
    return 0


def _export(a: argparse.Namespace) -> None:
    from drone_kd_training.export.export import export, gate_table

    output, spec = export(
        Path(a.checkpoint),
        a.output,
        precision=a.precision,
        data=a.data,
        imgsz=a.imgsz,
        batch=a.batch,
        input_=a.input,
        force=a.force,
        before=a.from_,
        licence=a.licence,
        attribution=a.attribution,
    )
    print(gate_table(spec))
    for name, value in spec.metrics.items():
        print(f"{name:<28}{100 * value:>12.2f}")
    if output != a.output:
        print(f"a gate failed: written as {output}, since --force was given", file=sys.stderr)
    print(output)


def _setting(text: str) -> tuple[str, object]:
    from drone_kd_training.distillation.config import read_value

    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, read_value(value)


def _image_size(text: str) -> int | tuple[int, int]:
    try:
        sides = tuple(int(side) for side in text.split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"expected pixels, or HEIGHTxWIDTH, got {text!r}")
    return sides if len(sides) == 2 else sides[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run, help_: str, interrupted: str = "nothing was written"
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(run=run, interrupted=interrupted)
        return sub

    sub = command(
        "generate", _generate, "Draw a procedural aerial data set in Ultralytics' layout."
    )
    sub.add_argument("--output", type=Path, required=True, help="folder to make")
    sub.add_argument("--train", type=int, required=True, help="number of training frames")
    sub.add_argument("--val", type=int, required=True, help="number of validation frames")
    sub.add_argument(
        "--imgsz", type=int, default=640, help="side of the square frames in pixels (%(default)s)"
    )
    sub.add_argument("--seed", type=int, default=0, help="same seed, same pictures (%(default)s)")

    sub = command(
        "distill",
        _distill,
        "Train a student with its teacher.",
        "the last finished epoch is kept: the same command with --resume goes on from there",
    )
    _add_run_options(sub, needed=False)
    sub.add_argument(
        "--teachers",
        default="",
        metavar="FILE.yaml",
        help="several sources of frames and several teachers, each for its own of them, in the "
        "place of --data and --teacher; teachers/plan.py has the form",
    )
    sub.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    student = sub.add_mutually_exclusive_group(required=True)
    student.add_argument("--student", help="checkpoint or model yaml")
    student.add_argument(
        "--from", dest="from_", metavar="best.pt", help="with --quantize: the trained student"
    )
    sub.add_argument(
        "--quantize",
        choices=("int8",),
        default="",
        help="go on training with INT8 simulated, the teacher and the student as it was as "
        "teachers; exported beside what calibration alone gives",
    )
    sub.add_argument(
        "--resume", action="store_true", help="go on with the interrupted run in --output"
    )

    sub = command(
        "compare",
        _compare,
        "Train student alone, built-in distillation and ours on paired seeds, and compare.",
        "finished runs are kept: the same command goes on from there",
    )
    _add_run_options(sub)
    sub.add_argument("--student", required=True, help="checkpoint or model yaml")
    sub.set_defaults(quantize="", teachers="")
    sub.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    sub.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help="plain, distilled, builtin:WEIGHT, or changes to distilled such as "
        "'terms=class+box;balance=0.1' (default: plain, the built-in at 0.5, 1, 2 and 6, "
        "distilled, and distilled without each of its terms)",
    )
    sub.add_argument(
        "--select",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="measure on this share of the training frames, kept apart in stretches, instead of "
        "the validation split: for choosing settings",
    )
    sub.add_argument(
        "--cluster",
        metavar="HOST:PORT",
        help="of a Ray cluster that sees all these paths: a task per run",
    )

    sub = command("evaluate", _evaluate, "Measure a .pt or .onnx model on a split.")
    sub.add_argument("model", metavar="MODEL", help=".pt or .onnx")
    sub.add_argument("--data", required=True, help="data.yaml in Ultralytics' format")
    sub.add_argument("--split", default="val", help="train, val or test (%(default)s)")
    sub.add_argument("--imgsz", type=int, help="input of a .pt (default: as trained)")
    sub.add_argument(
        "--tiling", default="off", help="off, auto or ROWSxCOLUMNS, as the node does (%(default)s)"
    )
    sub.add_argument("--json", type=Path, metavar="OUT", help="write the figures there, too")

    sub = command(
        "predict", _predict, "Write down a teacher's answers once, for many runs to learn from."
    )
    sub.add_argument("model", metavar="teacher.pt")
    sub.add_argument("--data", required=True, help="data.yaml in Ultralytics' format")
    sub.add_argument("--output", type=Path, required=True, help="folder to make, for --teacher")
    sub.add_argument("--split", default="train", help="train, val or test (%(default)s)")
    sub.add_argument("--imgsz", type=int, help="square input in pixels (default: as trained)")

    sub = command(
        "mine",
        _mine,
        "Choose a flight's frames that are worth learning from, and let a teacher label them.",
        "what is done is kept: the same command goes on from there",
    )
    sub.add_argument(
        "flights",
        nargs="+",
        metavar="FLIGHT",
        help="bag (MCAP, sqlite3), video or folder of pictures; a path or a URL that fsspec reads",
    )
    sub.add_argument("--teacher", required=True, help=".pt (YOLO or RT-DETR) or .onnx")
    sub.add_argument("--student", help=".onnx or .pt that flies (default: the package's model)")
    sub.add_argument("--output", type=Path, required=True, help="data set to make")
    sub.add_argument("--frames", type=int, required=True, help="how many to learn from, at most")
    sub.add_argument(
        "--per-scene", type=int, default=5, help="frames of one scene, at most (%(default)s)"
    )
    sub.add_argument(
        "--sure",
        type=float,
        default=0.6,
        metavar="SCORE",
        help="above which a box of the teacher is a label (%(default)s)",
    )
    sub.add_argument(
        "--topic",
        action="append",
        default=[],
        help="of the bags' cameras; repeatable (default: all that hold images)",
    )
    sub.add_argument("--cluster", metavar="HOST:PORT", help="of a Ray cluster that does the work")

    sub = command("labels", _labels, "Take mined frames' labels to an annotation tool, and back.")
    sub.add_argument("mined", type=Path, metavar="MINED", help="what the mine command made")
    way = sub.add_mutually_exclusive_group(required=True)
    formats = ("coco|cvat|labelme", "PATH")
    way.add_argument("--to", nargs=2, metavar=formats, help="write the labels there")
    way.add_argument(
        "--from", dest="from_", nargs=2, metavar=formats, help="take corrected labels over"
    )
    sub.add_argument(
        "--checked",
        action="store_true",
        help="with --from: a person has looked at every frame in it (default: at those that have "
        "changed)",
    )

    sub = command(
        "retrain",
        _retrain,
        "Train the flying model on with mined frames; export it only if it is shown to be better.",
        "the same command goes on where it was",
    )
    sub.add_argument("model", metavar="MODEL.pt", help="checkpoint of the model that flies")
    sub.add_argument("--mined", required=True, metavar="DIR", help="folder of `training mine`")
    sub.add_argument("--data", required=True, help="data.yaml of what it learnt from so far")
    sub.add_argument(
        "--teacher",
        required=True,
        help="the one that labelled the mined frames: a checkpoint, or a folder of its answers "
        "to the base's training frames",
    )
    sub.add_argument("--output", type=Path, required=True, help="folder of the run")
    sub.add_argument(
        "--replay",
        type=float,
        default=0.75,
        metavar="SHARE",
        help="of base frames among those of an epoch, against forgetting (%(default)s)",
    )
    sub.add_argument(
        "--keep",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of the flying model in the candidate's weights, against forgetting (%(default)s)",
    )
    sub.add_argument(
        "--parent", default="", metavar="ONNX", help="the file that flies, for the lineage"
    )
    sub.add_argument("--epochs", type=int, default=10, help="(%(default)s)")
    sub.add_argument("--batch", type=int, default=8, help="frames per step (%(default)s)")
    sub.add_argument("--imgsz", type=int, help="square input in pixels (default: as trained)")
    sub.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    _add_device_option(sub)
    _add_set_option(sub)
    sub.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of the file (%(default)s)"
    )

    sub = command("export", _export, "Write a checkpoint as a self-describing ONNX file.")
    sub.add_argument("checkpoint", metavar="best.pt")
    sub.add_argument("--output", type=Path, required=True, help="the .onnx to write")
    sub.add_argument(
        "--imgsz",
        type=_image_size,
        metavar="PX|HEIGHTxWIDTH",
        help="input, such as 384x640 for frames of 16:9 (default: the square as trained)",
    )
    sub.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the graph: fp16 and int8 keep decoding in float (%(default)s)",
    )
    sub.add_argument(
        "--data",
        help="calibrate on this data set's training frames, compare and measure on its validation "
        "frames (default: compare on noise)",
    )
    sub.add_argument(
        "--from",
        dest="from_",
        type=Path,
        metavar="float.pt",
        help="of a checkpoint trained for INT8: the one it was trained from, to compare with",
    )
    sub.add_argument(
        "--force",
        action="store_true",
        help="write a file that fails a gate, as NAME.failed.onnx",
    )
    sub.add_argument("--batch", type=int, default=1, help="frames per inference (%(default)s)")
    sub.add_argument(
        "--input",
        choices=tuple(INPUTS),
        default="uint8-nhwc",
        help="uint8-nhwc: BGR frames, scaled in the graph; float32-nchw: RGB, 0 to 1, for other "
        "programs (%(default)s)",
    )
    sub.add_argument(
        "--licence", default="AGPL-3.0", help="of the weights, for the metadata (%(default)s)"
    )
    sub.add_argument(
        "--attribution",
        default="",
        help="what the training data ask to be named, for the metadata",
    )
    return parser


def _add_run_options(sub: argparse.ArgumentParser, needed: bool = True) -> None:
    """What a training run is made of, but for its seed; ``needed``: data and teacher are."""
    sub.add_argument(
        "--data", required=needed, default="", help="data.yaml in Ultralytics' format"
    )
    sub.add_argument(
        "--teacher",
        required=needed,
        default="",
        help="checkpoint (YOLO or RT-DETR), or predictions: a folder of YOLO .txt with "
        "confidences, or a COCO results .json; 'none' trains the student alone",
    )
    sub.add_argument("--output", type=Path, required=True, help="folder of the run")
    sub.add_argument("--epochs", type=int, default=100, help="(%(default)s)")
    sub.add_argument("--imgsz", type=int, default=640, help="square input in pixels (%(default)s)")
    sub.add_argument(
        "--batch",
        type=int,
        default=16,
        help="frames per step; -1: what fits into the GPU beside the teacher (%(default)s)",
    )
    _add_device_option(sub)
    sub.add_argument(
        "--terms",
        type=lambda text: tuple(text.split(",")),
        default=("class", "assign"),
        help="what is compared with the teacher, joined by commas: class, softmax (Hinton's form "
        "of class), box, cross, feature, assign (class,assign)",
    )
    sub.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="softens the class probabilities (%(default)s)",
    )
    sub.add_argument(
        "--teacher-scale",
        type=float,
        choices=(1, 1.5, 2, 4),
        default=1,
        help="the teacher sees the frame this many times as large as the student (%(default)s)",
    )
    sub.add_argument(
        "--teacher-tiles",
        action="store_true",
        help="the teacher looks at its larger frame in tiles: less memory, a little more time",
    )
    sub.add_argument(
        "--balance",
        type=float,
        default=1.0,
        help="gradient of each distillation term as a share of the detection loss's (%(default)s)",
    )
    sub.add_argument(
        "--unlabelled",
        default="",
        metavar="DIR",
        help="further training frames without labels: the teacher labels what it is sure of, and "
        "what it is unsure of counts neither as an object nor as background",
    )
    sub.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        help="share of the training frames used (%(default)s)",
    )
    sub.add_argument(
        "--val",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="validate every epoch and keep the best, or only once at the end",
    )
    _add_set_option(sub)


def _add_device_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--device", default="", help="cpu, 0, or 0,1 (default: the GPU if there is one)"
    )


def _add_set_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one of Ultralytics' training settings, such as lr0=0.01; repeatable",
    )


if __name__ == "__main__":
    sys.exit(main())
