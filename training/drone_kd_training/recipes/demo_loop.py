# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make demo-loop`: fly, record hard frames, mine, retrain, swap the model in flight, fly again.

The student of `make demo` flies at night over rendered places seen by a thermal camera: a domain
that it was not trained on. The node records hard frames over DDS; they are mined, the model is
retrained, judged and exported, and replaces the deployed model in the running node. Both models
are scored over the same flight, of a place that was not recorded.

The teacher of `make demo` knows the night, but only people and vehicles, and larger ones. So the
demo first fine-tunes it on rendered images of other places at night and on the base, whose boxes
are known. Users bring such a teacher. A second run repeats only missing steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from drone_kd.detector import load_detector
from drone_kd.files import write_text
from drone_kd.processes import running
from drone_kd.progress import Progress, duration, track
from drone_kd.simulation.rehearse import detector_command, rehearse
from drone_kd.simulation.scene import CLASSES, FlightPlan
from drone_kd.simulation.scene import fly as render_flight
from drone_kd.simulation.scoring.text import rows
from drone_kd.simulation.simulate import ros_arguments
from drone_kd.visualization import contact_sheet, draw_detections
from drone_kd_training.data.dataset import image_paths, load_data, write_list
from drone_kd_training.data.folders import write_image
from drone_kd_training.data.generate import generate, write_data_yaml, write_drawn
from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.export.calibration import spread
from drone_kd_training.export.export import export
from drone_kd_training.mining.mine import Settings, mine
from drone_kd_training.models.checkpoints import PACKAGED_MODELS, class_names, load_model
from drone_kd_training.recipes.detector_client import DetectorClient, detector_client
from drone_kd_training.recipes.runner import SHORT_RUN, TIMEOUT_S, run_recipe, train
from drone_kd_training.retraining.retrain import Plan as Retraining
from drone_kd_training.retraining.retrain import retrain

COMMAND = "make demo-loop"
# The detector publishes weak boxes, too, so that the whole precision-recall curve is scored.
CONFIDENCE = 0.05
# Places of the scored flight, of the recorded flights and of the teacher's images differ.
SCORED_SEED, RECORDED_SEED, TEACHER_SEED = 900, 500, 100


@dataclass(frozen=True)
class Plan:
    """Settings of one demonstration; the defaults are those of `make demo-loop`."""

    output: Path = Path("runs/demo-loop")
    teacher: str = str(PACKAGED_MODELS / "night-teacher.pt")
    model: str = str(PACKAGED_MODELS / "demo-student.pt")
    scene: str = "night"
    imgsz: int = 640
    teacher_places: int = 10
    teacher_frames: int = 8  # per place
    teacher_epochs: int = 3
    base_train: int = 150
    base_val: int = 400  # 20 stretches for the guard
    places: int = 24  # each a flight, with two held-out stretches
    seconds: float = 12.0  # per recorded place
    scored_seconds: float = 30.0
    rate_hz: float = 5.0
    mined: int = 120
    per_scene: int = 5
    epochs: int = 4
    batch: int = 4
    keep: float = 0.7  # of the deployed model in the candidate's weights


def run(plan: Plan) -> dict[str, Any]:
    """Run the missing steps; return the summary that is also in ``summary.json``.

    Raises RuntimeError if the candidate model was refused, or a process failed.
    """
    started = time.monotonic()
    out = plan.output
    out.mkdir(parents=True, exist_ok=True)
    print(f"[1/6] Train a teacher for the scene {plan.scene}, prepare the base", flush=True)
    base = _prepare_base(plan)
    teacher = _train_teacher(plan, base)
    deployed = _export_deployed(plan, base)
    with detector_client(_detector(plan, deployed), out / "node.log") as client:
        print("[2/6] Fly and score the deployed model; record other flights", flush=True)
        before = _score(plan, client, out / "before")
        bags = _record(plan, client)
        print("[3/6] Mine the recorded frames", flush=True)
        _mine(plan, bags, teacher, deployed)
        print("[4/6] Retrain and judge the candidate model", flush=True)
        result = _retrain(plan, base, teacher, deployed)
        print(f"[5/6] Deploy {result['model']} in the running node", flush=True)
        client.swap(Path(result["model"]))
        after = _score(plan, client, out / "after")
    print("[6/6] Compare", flush=True)
    pair_image = _draw_pair(plan, deployed, Path(result["model"]))
    summary = {"before": before, "after": after, "guard": result, "image": str(pair_image)}
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    print(f"\n{as_table(plan.scene, before, after)}\n")
    print(f"Image pair: {pair_image}\nLineage: drone-kd lineage {result['model']}")
    elapsed = duration(time.monotonic() - started)
    print(f"All results: {out} ({elapsed}; delete the folder to start again)")
    return summary


def as_table(scene: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return both scores of the same flight side by side, offline and streaming."""
    lines = [f"{'':<26}{'offline':>22}{'streaming':>22}"]
    lines.append(f"{'a flight at ' + scene:<26}" + f"{'before':>12}{'after':>10}" * 2)
    for (name, *first), (_, *second) in zip(rows(before), rows(after), strict=True):
        cells = (f"{a:>12}{b:>10}" for a, b in zip(first, second, strict=True))
        lines.append(f"{name:<26}" + "".join(cells))
    return "\n".join(lines)


def _prepare_base(plan: Plan) -> Path:
    """Render the base: images by day, with the model's classes, which begin with the scene's."""
    rendered = generate(plan.output / "base", plan.base_train, plan.base_val, imgsz=plan.imgsz)
    names = class_names(load_model(plan.model)[0])
    if names[: len(CLASSES)] != CLASSES:
        raise ValueError(f"expected a model whose classes begin with {CLASSES}, got {names}")
    return replace(load_data(rendered), names=names).write_resolved(plan.output / "base.yaml")


def _train_teacher(plan: Plan, base: Path) -> Path:
    """Fine-tune the teacher on the scene, and on as much of the base against forgetting."""
    data = load_data(_render_scene(plan))
    images = image_paths(data.train)
    images += spread(image_paths(load_data(base).train), len(images))
    listed = (plan.output / "teacher.txt").resolve()
    write_list(listed, images)
    data_yaml = replace(data, train=listed).write_resolved(plan.output / "teacher.yaml")
    config = Config(
        data=str(data_yaml.resolve()),
        teacher=NO_TEACHER,
        student=plan.teacher,
        epochs=plan.teacher_epochs,
        imgsz=plan.imgsz,
        batch=2,
        val=False,
        overrides={**SHORT_RUN, "nbs": 2},
    )
    train(config, plan.output / "teacher")
    return plan.output / "teacher" / "best.pt"


def _render_scene(plan: Plan) -> Path:
    """Render labelled images of places in the scene; the last place is for validation."""
    folder = plan.output / plan.scene
    if (folder / "data.yaml").is_file():
        return folder / "data.yaml"
    for place in track(range(plan.teacher_places), f"Render {plan.scene}", "place"):
        split = "val" if place == plan.teacher_places - 1 else "train"
        seed = TEACHER_SEED + place
        # One image per three seconds: what is in one has left the next.
        flight = render_flight(FlightPlan(seed=seed, scene=plan.scene, fps=1 / 3))
        for number, frame in enumerate(islice(flight, plan.teacher_frames)):
            write_drawn(folder, split, f"{plan.scene}-{seed}-{number:03d}", frame)
    return write_data_yaml(folder)


def _export_deployed(plan: Plan, base: Path) -> Path:
    model = plan.output / "deployed.onnx"
    if not model.is_file():
        export(Path(plan.model), model, data=str(base))
    return model


def _detector(plan: Plan, model: Path) -> list[str]:
    folder = str((plan.output / "bags").resolve())
    recording = {"record_directory": folder, "record_per_minute": 240.0}
    return [*detector_command(str(model), CONFIDENCE), *ros_arguments(recording)[1:]]


def _score(plan: Plan, client: DetectorClient, output: Path) -> dict[str, Any]:
    """Score the model that the node flies, over a flight that is not recorded."""
    client.check()
    output.mkdir(parents=True, exist_ok=True)
    camera = _camera(plan, SCORED_SEED, plan.scored_seconds)
    return rehearse(camera, output, None, plan.scored_seconds)


def _record(plan: Plan, client: DetectorClient) -> list[Path]:
    """Fly over places with the recorder on; return the bags, one per place.

    To the guard each is a flight of its own.
    """
    folder = plan.output / "bags"
    if (plan.output / "mined").is_dir():
        return []
    shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
    with Progress("Record", plan.places, "place") as progress:
        for place in range(plan.places):
            camera = [sys.executable, "-m", "drone_kd.simulation.camera_node"]
            arguments = [*_camera(plan, RECORDED_SEED + place, plan.seconds), "-p", "listeners:=1"]
            client.record(True)
            with running([*camera, *arguments]) as p:
                if p.wait(plan.seconds + TIMEOUT_S):
                    raise RuntimeError(f"the camera ended with exit code {p.returncode}")
            client.record(False)
            progress.update()
    bags = sorted(folder.iterdir())
    client.wait(lambda: all((bag / "metadata.yaml").is_file() for bag in bags), "complete bag")
    return bags


def _camera(plan: Plan, seed: int, seconds: float) -> list[str]:
    values = {"scene": plan.scene, "seed": seed, "seconds": seconds, "rate": plan.rate_hz}
    return ros_arguments(values)


def _mine(plan: Plan, bags: list[Path], teacher: Path, deployed: Path) -> None:
    if not (plan.output / "mined").is_dir():
        settings = Settings(str(teacher), str(deployed), plan.mined, plan.per_scene)
        mine([str(bag) for bag in bags], plan.output / "mined", settings)


def _retrain(plan: Plan, base: Path, teacher: Path, deployed: Path) -> dict[str, Any]:
    retraining = Retraining(
        model=plan.model,
        mined=str(plan.output / "mined"),
        data=str(base),
        teacher=str(teacher),
        keep=plan.keep,
        epochs=plan.epochs,
        batch=plan.batch,
        imgsz=plan.imgsz,
        parent=str(deployed),
    )
    output = plan.output / "retrained"
    result = retrain(retraining, output, COMMAND)
    print(result["table"], flush=True)
    if not result["accepted"]:
        raise RuntimeError(f"the candidate model was refused: {output / 'refused.json'}")
    return result


def _draw_pair(plan: Plan, before: Path, after: Path) -> Path:
    """Draw the detections of both models in one image of the scored flight, before on the left."""
    flight = render_flight(FlightPlan(seed=SCORED_SEED, scene=plan.scene, fps=0.2))
    image = next(islice(flight, 2, None)).image
    sides = []
    for path in (before, after):
        detector = load_detector(path)
        sides.append(draw_detections(image, detector(image), detector.backend.spec.classes))
    pair_image = plan.output / "before-after.jpg"
    write_image(pair_image, contact_sheet(sides, columns=2, width=2560))
    return pair_image


def main(argv: list[str] | None = None) -> int:
    """Parse what `make demo-loop` passes on; return the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Plan.output, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    return run_recipe(lambda: run(Plan(output=arguments.output)))


if __name__ == "__main__":
    sys.exit(main())
