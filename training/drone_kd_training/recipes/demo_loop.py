# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make demo-loop`: a flight today, a better model tomorrow; what is finished is not done again.

The student that `make demo` starts from flies at night, over procedural places that a thermal
camera sees: a scene that it never learnt. The node records its hard frames over real DDS; they
are mined, the model is retrained, judged and exported, and goes into the node, which flew on all
the while. Both models are scored over the same flight, of a place that nothing was recorded of.

No model of this repository has learnt the night, and the demo's teacher finds little of it: so
the demo first trains that teacher on procedural frames of other places at night, and on the
base, whose boxes are known. This is the part that a user has from elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2

from drone_kd.dds import carry_large_images, stay_on_this_machine
from drone_kd.detector import load_detector
from drone_kd.files import write_text
from drone_kd.processes import running
from drone_kd.simulation.rehearse import detector_command, rehearse
from drone_kd.simulation.scene import CLASSES, FlightPlan
from drone_kd.simulation.scene import fly as scenery
from drone_kd.simulation.scoring.text import rows
from drone_kd.simulation.simulate import ros_arguments
from drone_kd.visualization import contact_sheet, draw_detections
from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.data.generate import generate, write_data_yaml, write_drawn
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config
from drone_kd_training.distillation.distill import distill
from drone_kd_training.export.export import export
from drone_kd_training.export.quantize import spread
from drone_kd_training.mining.mine import Settings, mine
from drone_kd_training.models.checkpoints import PACKAGED_MODELS, class_names, load_model
from drone_kd_training.recipes.demo import SHORT_RUN, show
from drone_kd_training.retraining.retrain import Plan as Retraining
from drone_kd_training.retraining.retrain import retrain

SCENE = "night"
COMMAND = "make demo-loop"
# The detector publishes weak boxes, too, so that the whole curve is scored.
CONFIDENCE = 0.05
WAIT_S = 60.0
# Of the flight that is scored; others are recorded, and others again teach the teacher.
SCORED_SEED, RECORDED_SEED, TEACHER_SEED = 900, 500, 100


@dataclass(frozen=True)
class Plan:
    """One demonstration; the values here are those of `make demo-loop`."""

    output: Path = Path("runs/demo-loop")
    teacher: str = str(PACKAGED_MODELS / "demo-teacher.pt")
    model: str = str(PACKAGED_MODELS / "demo-student.pt")
    imgsz: int = 640
    teacher_places: int = 10
    teacher_frames: int = 8  # of each place
    teacher_epochs: int = 3
    base_train: int = 150
    base_val: int = 240
    places: int = 4
    seconds: float = 25.0  # over each place that is recorded
    scored_seconds: float = 30.0
    rate_hz: float = 5.0
    mined: int = 50
    epochs: int = 4
    batch: int = 4


def run(plan: Plan) -> dict:
    """Run what is not done yet; returns the summary that is also in ``summary.json``."""
    started = time.time()
    out = plan.output
    out.mkdir(parents=True, exist_ok=True)
    print("[1/6] a teacher that knows the night, and the base", flush=True)
    base = _base(plan)
    teacher = _teacher(plan, base)
    flying = out / "flying.onnx"
    if not flying.is_file():
        export(Path(plan.model), flying, data=str(base))
    with _node(plan, flying, out / "bags") as node:
        print("[2/6] the student of make demo flies, and records", flush=True)
        before = _scored(plan, node, out / "before")
        if not (out / "mined").is_dir():
            bags = _record(plan, node, out / "bags")
            print("[3/6] mine", flush=True)
            settings = Settings(str(teacher), str(flying), plan.mined, 5)
            mine([str(bag) for bag in bags], out / "mined", settings)
        print("[4/6] retrain and judge", flush=True)
        retraining = Retraining(
            model=plan.model,
            mined=str(out / "mined"),
            data=str(base),
            teacher=str(teacher),
            epochs=plan.epochs,
            batch=plan.batch,
            imgsz=plan.imgsz,
            parent=str(flying),
        )
        found = retrain(retraining, out / "retrained", COMMAND)
        print(found["table"], flush=True)
        if not found["accepted"]:
            raise RuntimeError(f"the candidate was refused: {out / 'retrained' / 'refused.json'}")
        print(f"[5/6] into the flying node: {found['model']}", flush=True)
        node.swap(Path(found["model"]))
        after = _scored(plan, node, out / "after")
    print("[6/6] before and after", flush=True)
    picture = _picture(plan, flying, Path(found["model"]))
    table = as_table(before, after)
    summary = {"before": before, "after": after, "guard": found, "picture": str(picture)}
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    print(f"\n{table}\n\npicture pair: {picture}; family tree: drone-kd lineage {found['model']}")
    print(f"all: {out} ({time.time() - started:.0f} s; delete the folder to start anew)")
    return summary


def as_table(before: dict, after: dict) -> str:
    """Both scores of the same flight side by side, offline and streaming."""
    lines = [f"{'':<26}{'offline':>22}{'streaming':>22}"]
    lines.append(f"{'a flight at ' + SCENE:<26}" + f"{'before':>12}{'after':>10}" * 2)
    for (name, *first), (_, *second) in zip(rows(before), rows(after), strict=True):
        cells = (f"{a:>12}{b:>10}" for a, b in zip(first, second, strict=True))
        lines.append(f"{name:<26}" + "".join(cells))
    return "\n".join(lines)


def _teacher(plan: Plan, base: Path) -> Path:
    """Trained on night and day: of the base, too, it must not forget what it knew."""
    night = plan.output / "night" / "data.yaml"
    if not night.is_file():
        _draw_night(plan, night.parent)
    data = load_data(night)
    frames = image_paths(data.train)
    frames += spread(image_paths(load_data(base).train), len(frames))
    listed = (plan.output / "teacher.txt").resolve()
    write_text(listed, "".join(f"{path}\n" for path in frames))
    data = replace(data, train=listed).write_resolved(plan.output / "teacher.yaml")
    config = Config(
        data=str(data.resolve()),
        teacher=NO_TEACHER,
        student=plan.teacher,
        epochs=plan.teacher_epochs,
        imgsz=plan.imgsz,
        batch=2,
        val=False,
        overrides={**SHORT_RUN, "nbs": 2},
    )
    folder = plan.output / "teacher"
    started = (folder / "config.yaml").is_file()
    if started and read_config(folder) != config:
        raise ValueError(f"{folder} is of a run with other settings: delete {plan.output}")
    distill(config, folder, resume=started)
    return folder / "best.pt"


def _draw_night(plan: Plan, folder: Path) -> None:
    """Labelled frames of places at night; the last place is for validation."""
    for place in range(plan.teacher_places):
        split = "val" if place == plan.teacher_places - 1 else "train"
        seed = TEACHER_SEED + place
        # A frame every three seconds: what is in one has left the next.
        flight = scenery(FlightPlan(seed=seed, scene=SCENE, fps=1 / 3))
        for number, frame in enumerate(islice(flight, plan.teacher_frames)):
            write_drawn(folder, split, f"night-{seed}-{number:03d}", frame)
    write_data_yaml(folder)


def _base(plan: Plan) -> Path:
    """What the model knows by day, in its own list of classes, which begins with the scene's."""
    drawn = generate(plan.output / "base", plan.base_train, plan.base_val, imgsz=plan.imgsz)
    names = class_names(load_model(plan.model)[0])
    if names[: len(CLASSES)] != CLASSES:
        raise ValueError(f"the model's classes {names} do not begin with the scene's {CLASSES}")
    return replace(load_data(drawn), names=names).write_resolved(plan.output / "base.yaml")


def _record(plan: Plan, node: _Node, folder: Path) -> list[Path]:
    """Fly over places with the recorder on; returns the bags."""
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    node.record(True)
    for place in range(plan.places):
        camera = _camera(plan, RECORDED_SEED + place, plan.seconds)
        command = [
            sys.executable,
            "-m",
            "drone_kd.simulation.camera_node",
            *camera,
            "-p",
            "listeners:=1",
        ]
        with running(command) as flown:
            if flown.wait(plan.seconds + WAIT_S):
                raise RuntimeError(f"the camera ended with exit code {flown.returncode}")
    node.record(False)
    bags = sorted(folder.iterdir())
    node.wait(lambda: all((bag / "metadata.yaml").is_file() for bag in bags), "the last bag")
    return bags


def _scored(plan: Plan, node: _Node, output: Path) -> dict:
    """The score of a flight that nobody recorded, with whatever model the node flies."""
    node.check()
    output.mkdir(parents=True, exist_ok=True)
    camera = _camera(plan, SCORED_SEED, plan.scored_seconds)
    return rehearse(camera, output, None, plan.scored_seconds)


def _camera(plan: Plan, seed: int, seconds: float) -> list[str]:
    values = {"scene": SCENE, "seed": seed, "seconds": seconds, "rate": plan.rate_hz}
    return ros_arguments(values)


def _picture(plan: Plan, before: Path, after: Path) -> Path:
    """The same frame with the boxes of both models, before on the left."""
    flight = scenery(FlightPlan(seed=SCORED_SEED, scene=SCENE, fps=0.2))
    frame = next(islice(flight, 2, None)).image
    sides = []
    for path in (before, after):
        detector = load_detector(path)
        sides.append(draw_detections(frame, detector(frame), detector.backend.spec.classes))
    picture = plan.output / "before-after.jpg"
    cv2.imwrite(str(picture), contact_sheet(sides, columns=2, width=2560))
    return picture


@contextlib.contextmanager
def _node(plan: Plan, model: Path, bags: Path) -> Iterator[_Node]:
    """The detector as a process of its own, until all is done."""
    import rclpy  # not needed by anything else offline, and absent where ROS 2 is

    stay_on_this_machine()
    carry_large_images()
    os.environ["ROS_DOMAIN_ID"] = str(random.randint(1, 100))
    values = {"record_directory": str(bags.resolve()), "record_per_minute": 240.0}
    extra = ros_arguments(values)[1:]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((plan.output / "node.log").open("w", encoding="utf-8"))
        command = [*detector_command(str(model), CONFIDENCE), *extra]
        process = stack.enter_context(running(command, stdout=log, stderr=log))
        rclpy.init()
        stack.callback(rclpy.try_shutdown)
        yield _Node(process)


class _Node:
    """What is asked of the flying detector."""

    def __init__(self, process) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray

        self.process = process
        self.ros = rclpy.create_node("demo_loop")
        self.flies = ""  # the hash of the model
        self.ros.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.wait(lambda: self.flies, "diagnostics of the detector")

    def _on_diagnostics(self, message) -> None:
        for status in message.status:
            for value in status.values:
                if value.key == "model sha256":
                    self.flies = value.value

    def record(self, on: bool) -> None:
        """Switch recording on or off."""
        from std_srvs.srv import SetBool

        answer = self._call(SetBool, "detector/record", SetBool.Request(data=on))
        if not answer.success:
            raise RuntimeError(answer.message)

    def swap(self, model: Path) -> None:
        """Let it fly another model, and wait until it does."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        flew = self.flies
        parameter = Parameter("model", value=str(model.resolve())).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        for result in self._call(SetParameters, "detector/set_parameters", request).results:
            if not result.successful:
                raise RuntimeError(result.reason)
        self.wait(lambda: self.flies != flew, f"{model.name} to fly")

    def check(self) -> None:
        """Make sure that it still flies.

        Raises:
            RuntimeError: it ended.
        """
        if self.process.poll() is not None:
            raise RuntimeError(
                f"the detector ended with exit code {self.process.returncode}: see node.log"
            )

    def _call(self, kind, name: str, request):
        client = self.ros.create_client(kind, name)
        self.wait(client.service_is_ready, name)
        future = client.call_async(request)
        self.wait(future.done, f"an answer of {name}")
        self.ros.destroy_client(client)
        return future.result()

    def wait(self, until, what: str) -> None:
        """Wait until something is so, and listen to the node meanwhile."""
        import rclpy

        deadline = time.monotonic() + WAIT_S
        while not until():
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {WAIT_S:.0f} s for {what}")
            rclpy.spin_once(self.ros, timeout_sec=0.1)


def main(argv: list[str] | None = None) -> int:
    """Parse what `make demo-loop` passes on. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Plan.output)
    arguments = parser.parse_args(argv)
    return show(lambda: run(Plan(output=arguments.output)))


if __name__ == "__main__":
    sys.exit(main())
