"""Weight updates, resumed runs, checkpoints and the log of `DistillTrainer`."""

from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import polars
import pytest
import torch
from ultralytics.models.yolo.detect import DetectionTrainer

from drone_kd_training.distillation import trainer as trainer_module
from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.distillation.distill import prepare_data, train, validate
from drone_kd_training.distillation.train_loader import View
from drone_kd_training.distillation.trainer import STATE, DistillTrainer
from tiny_training import SIZE, draw_set

pytestmark = pytest.mark.slow  # trainings

BATCH = 6
WEIGHT_DECAY = 0.0005
SHORT = {
    "warmup_epochs": 0.0,
    "mosaic": 0.0,
    "close_mosaic": 0,
    "optimizer": "SGD",
    "lr0": 0.01,
    "nbs": BATCH,
    "weight_decay": WEIGHT_DECAY,
}
TRAINER = "drone_kd_training.distillation.distill.DistillTrainer"


class Stop(Exception):  # noqa: N818 - an interruption at a known place, not an error
    pass


def config(data: Path, teacher: Path | str, epochs: int, **overrides: object) -> Config:
    return Config(
        data=str(data),
        teacher=str(teacher),
        student="aerial-student.yaml",
        epochs=epochs,
        imgsz=SIZE,
        batch=BATCH,
        terms=("class", "feature"),
        val=False,
        overrides={**SHORT, **overrides},
    )


def train_with(
    trainer: type[DistillTrainer], run: Config, output: Path, resume: bool = False
) -> None:
    """Train without evaluating."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TRAINER, trainer)
        train(*prepare_data(validate(run, output, resume)))


def interrupt_after(
    epochs: int, run: Config, output: Path, trainer: type[DistillTrainer] = DistillTrainer
) -> None:
    """Train, and stop once the state after so many epochs is saved."""

    class Interrupted(trainer):  # type: ignore[misc,valid-type]
        def _save_state(self) -> None:
            super()._save_state()
            if self.epoch + 1 == epochs:
                raise Stop

    with pytest.raises(Stop):
        train_with(Interrupted, run, output)


FIXED_BATCH = dict.fromkeys(("fliplr", "hsv_h", "hsv_s", "hsv_v", "translate", "scale"), 0.0)


def test_training_updates_the_weights_and_lowers_the_loss_of_a_fixed_batch(tiny_teacher, tmp_path):
    data = draw_set(tmp_path / "data", train=BATCH, val=2)
    start: dict[str, torch.Tensor] = {}

    class KeepsItsStart(DistillTrainer):
        def _load_state(self) -> None:
            super()._load_state()
            for name, parameter in self.student.named_parameters():
                if parameter.requires_grad:
                    start[name] = parameter.detach().clone()

    run = config(data, tiny_teacher, epochs=6, optimizer="AdamW", lr0=0.02, **FIXED_BATCH)
    train_with(KeepsItsStart, run, tmp_path / "out")
    student = torch.load(tmp_path / "out" / "weights" / STATE, weights_only=True)["student"]
    unchanged = [name for name, values in start.items() if torch.equal(values, student[name])]
    assert start
    assert not unchanged
    losses = polars.read_csv(tmp_path / "out" / "results.csv")["train/kd_cls_loss"]
    assert losses[-1] < 0.95 * losses[0]


def test_resumed_run_ends_in_the_state_of_an_uninterrupted_one(tiny_data, tiny_teacher, tmp_path):
    class AveragesFast(DistillTrainer):
        """At first Ultralytics' average equals the student almost: it would hide its past."""

        def _load_state(self) -> None:
            super()._load_state()
            self.ema.decay = lambda _: 0.99

    run = config(tiny_data, tiny_teacher, epochs=4)
    train_with(AveragesFast, run, tmp_path / "whole")
    interrupt_after(2, run, tmp_path / "halves", AveragesFast)
    train_with(AveragesFast, run, tmp_path / "halves", resume=True)
    whole, halves = (
        torch.load(tmp_path / name / "weights" / STATE, weights_only=True)
        for name in ("whole", "halves")
    )
    optimizers = halves.pop("optimizer"), whole.pop("optimizer")
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    assert optimizers[1]["state"]  # SGD's momentum
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-9)
    close(optimizers[0]["state"], optimizers[1]["state"])
    close(halves["student"], whole["student"])
    close(halves["average"], whole["average"])


class Recorder(DistillTrainer):
    """Keeps the learning rate, the factor of the terms and the images of every step."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.rates: list[float] = []
        self.factors: list[float] = []
        self.images: list[torch.Tensor] = []
        self.views_drawn: list[tuple[View, ...]] = []
        self.add_callback("on_train_batch_end", type(self).record)
        self.add_callback("on_train_end", lambda trainer: seen.append(trainer))

    def preprocess_batch(self, batch: dict) -> dict:
        self.images.append(batch["img"].clone())
        self.views_drawn.append(batch["view"])
        return super().preprocess_batch(batch)

    def record(self) -> None:
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        if self.config.distils:
            self.factors.append(self.student.criterion.schedule.factor())


seen: list[Recorder] = []


def recorded(run: Config, output: Path) -> Recorder:
    seen.clear()
    train_with(Recorder, run, output)
    return seen.pop()


def test_steps_in_the_place_of_epochs(tiny_data, tmp_path):
    """12 frames, batches of 6: an epoch of one pass would have two steps."""
    run = replace(config(tiny_data, NO_TEACHER, epochs=1), steps=7)
    trainer = recorded(run, tmp_path / "out")
    assert len(trainer.images) == 7
    assert len(polars.read_csv(tmp_path / "out" / "results.csv")) == 1
    assert replace(run, steps=1000).epochs_and_steps == (10, 100)
    assert replace(run, steps=1034).epochs_and_steps == (11, 94)


def test_the_learning_rate_moves_at_every_step(tiny_data, tmp_path):
    run = config(tiny_data, NO_TEACHER, epochs=2, lrf=0.1)
    rates = recorded(run, tmp_path).rates
    assert rates == pytest.approx([0.01 * (1 - 0.9 * step / 4) for step in range(4)])


def test_terms_stay_on_when_mosaic_is_closed(tiny_data, tiny_teacher, tmp_path):
    run = config(tiny_data, tiny_teacher, epochs=2, mosaic=1.0, close_mosaic=1)
    trainer = recorded(run, tmp_path)
    assert trainer.factors == [1.0] * 4
    losses = polars.read_csv(tmp_path / "results.csv")["train/kd_cls_scale"]
    assert losses[-1] > 0


def test_weights_of_a_short_run_are_averaged(tiny_data, tmp_path):
    trainer = recorded(replace(config(tiny_data, NO_TEACHER, epochs=1), steps=200), tmp_path)
    window = 1 / (1 - trainer.ema.decay(200))
    assert window == pytest.approx(200 / 20, rel=0.01)  # the last twentieth
    assert trainer.ema.decay(1) < 0.1


def test_distilled_and_plain_runs_see_the_same_images(tiny_data, tiny_teacher, tmp_path):
    options = {"epochs": 2, "fliplr": 0.5, "mosaic": 0.5}
    pair = [
        recorded(config(tiny_data, teacher, **options), tmp_path / str(number)).images
        for number, teacher in enumerate((NO_TEACHER, tiny_teacher))
    ]
    assert len(pair[0]) == 4
    for plain, distilled in zip(*pair, strict=True):
        assert torch.equal(plain, distilled)
    assert not torch.equal(pair[0][0], pair[0][2])


def test_stored_views_spare_the_teacher_and_keep_the_loss(tiny_data, tiny_teacher, tmp_path):
    """12 frames, 2 views: the last 2 of 4 epochs need no teacher, and a second run none at all."""
    run = replace(
        config(tiny_data, tiny_teacher, epochs=4),
        terms=("class", "box"),
        views=2,
        view_cache=str(tmp_path / "views"),
    )
    first = recorded(run, tmp_path / "first")
    assert first.student.criterion.cost.times == 4
    second = recorded(run, tmp_path / "second")
    assert second.student.criterion.cost.times == 0
    tables = [polars.read_csv(tmp_path / name / "results.csv") for name in ("first", "second")]
    for name in ("train/kd_cls_loss", "train/kd_dfl_loss", "train/box_loss"):
        assert tables[0][name].to_list() == pytest.approx(tables[1][name].to_list(), rel=1e-4)
    other = recorded(replace(run, seed=1), tmp_path / "other")
    assert other.student.criterion.cost.times == 4


@pytest.mark.parametrize("changes", [{"close_mosaic": 2}, {"cache": False}], ids=str)
def test_a_view_shows_the_same_pixels_at_each_visit(changes, tiny_data, tiny_teacher, tmp_path):
    run = config(tiny_data, tiny_teacher, epochs=4, mosaic=1.0, **changes)
    trainer = recorded(replace(run, terms=("class",), views=1), tmp_path)
    by_view: dict[View, torch.Tensor] = {}
    visits = zip(chain(*trainer.views_drawn), chain(*trainer.images), strict=True)
    for view, image in visits:
        assert torch.equal(by_view.setdefault(view, image), image), view
    closed = "close_mosaic" in changes
    assert len(by_view) == 12 * (1 + closed)
    assert trainer.student.criterion.cost.times == len(by_view) / BATCH


class Bare(DistillTrainer):
    """A trainer without models and data."""

    def __init__(self, run: Config, epochs: int, **args: object) -> None:
        self.config, self.epochs = run, epochs
        self.args = SimpleNamespace(**args)


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(0, 5, 300), (1000, 10, 300), (500, 5, 150)]
)
def test_warm_up_of_a_run_in_steps_is_a_share_of_it(steps, epochs, expected):
    run = replace(config(Path("d"), NO_TEACHER, 1), steps=steps)
    assert Bare(run, epochs, warmup_epochs=3.0)._get_warmup_iterations(100) == expected


def test_the_optimizer_of_a_run_in_steps_does_not_depend_on_the_frames(monkeypatch):
    given: list[float] = []
    monkeypatch.setattr(
        DetectionTrainer,
        "build_optimizer",
        lambda self, model, iterations: given.append(iterations),
    )
    run = replace(config(Path("d"), NO_TEACHER, 1), steps=4000)
    for in_steps in (run, replace(run, steps=0)):
        trainer = Bare(in_steps, epochs=40, nbs=64)
        trainer.batch_size, trainer.train_loader = 8, range(100)
        trainer.build_optimizer(None, iterations=12_520)
    assert given == [500, 12_520]


class Frames(list):
    """A data set of which nothing is read."""

    collate_fn = None


def test_processes_of_several_machines_draw_different_frames(monkeypatch):
    """The second process of the second machine: number 3 of 4, but 1 on its machine."""
    monkeypatch.setattr(trainer_module, "RANK", 3)
    trainer = Bare(config(Path("d"), NO_TEACHER, 1), epochs=1, workers=0)
    trainer.world_size, trainer.device = 4, torch.device("cpu")
    monkeypatch.setattr(Bare, "build_dataset", lambda *_: Frames([0] * 8))
    sampler = trainer.get_dataloader("", 2, rank=1).sampler
    assert (sampler.rank, sampler.processes) == (3, 4)


def test_early_stopping_is_logged_with_the_best_epoch(tiny_data, tmp_path, caplog):
    class NeverImproves(DistillTrainer):
        def validate(self) -> tuple[dict, float]:
            return {}, 1.0 / (1 + self.epoch)

    run = replace(config(tiny_data, NO_TEACHER, epochs=5, patience=2), val=True)
    with caplog.at_level("INFO", logger="ultralytics"):
        train_with(NeverImproves, run, tmp_path)
    assert "Stopped early: no improvement in 2 epochs; best epoch 1" in caplog.messages
    assert len(polars.read_csv(tmp_path / "results.csv")) == 3


def test_checkpoints_are_written_atomically_and_leftovers_are_removed(tiny_data, tmp_path):
    weights = tmp_path / "weights"
    run = replace(config(tiny_data, NO_TEACHER, epochs=3), val=True)

    class GetsWorse(DistillTrainer):
        """Validates, so that the first epoch stays the best; fails to save the last one."""

        def validate(self) -> tuple[dict, float]:
            self.best_fitness = 1.0
            return {}, 1.0 / (1 + self.epoch)

        def read_results_csv(self) -> dict:
            if self.epoch == 2:
                raise Stop
            return super().read_results_csv()

    with pytest.raises(Stop):
        train_with(GetsWorse, run, tmp_path)
    assert sorted(path.name for path in weights.iterdir()) == ["best.pt", "last.pt", STATE]
    epochs = {
        name: torch.load(weights / name, weights_only=False)["epoch"]
        for name in ("best.pt", "last.pt")
    }
    assert epochs == {"best.pt": 0, "last.pt": 1}

    leftover = weights / ".last.pt.0123456789abcdef.tmp"
    leftover.touch()
    train_with(DistillTrainer, run, tmp_path, resume=True)
    assert not leftover.exists()


def test_out_of_memory_after_a_resume_halves_the_batch_and_keeps_the_step_size(
    tiny_data, tiny_teacher, tmp_path
):
    """Ultralytics' formulas: a step per ``nbs`` images, a decay in proportion to them."""
    nbs = 16
    run = config(tiny_data, tiny_teacher, epochs=3, nbs=nbs)
    interrupt_after(2, run, tmp_path)
    seen = []

    class OutOfMemoryOnce(DistillTrainer):
        batches = 0

        def preprocess_batch(self, batch: dict) -> dict:
            self.batches += 1
            if self.batches == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Simulated")
            return super().preprocess_batch(batch)

        def _report_cost(self) -> None:
            groups = {group["param_group"]: group for group in self.optimizer.param_groups}
            seen.append((self.batch_size, self.accumulate, groups["weight"]["weight_decay"]))

    train_with(OutOfMemoryOnce, run, tmp_path, resume=True)
    half = BATCH // 2
    accumulate = round(nbs / half)
    assert seen == [(half, accumulate, pytest.approx(WEIGHT_DECAY * half * accumulate / nbs))]
    assert accumulate != round(nbs / BATCH)  # otherwise the test could not tell


@pytest.mark.parametrize("instructions", [{}, {"avx512_bf16": True}])
def test_bfloat16_on_a_processor_without_it_is_warned_of(instructions, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    trainer = SimpleNamespace(
        config=SimpleNamespace(overrides={"amp": "bf16"}, distils=True),
        device=torch.device("cpu"),
        args=SimpleNamespace(amp=False),
    )
    with caplog.at_level("WARNING", logger="ultralytics"):
        DistillTrainer._mix_precision(trainer)
    assert trainer.amp
    assert ("has no bfloat16 instructions" in caplog.text) == (not instructions)
