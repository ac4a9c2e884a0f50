from pathlib import Path

import numpy as np
import pytest

from drone_kd.metrics import annotation
from drone_kd_training.evaluation.evaluate import SplitPredictions
from drone_kd_training.retraining import guard
from drone_kd_training.retraining.guard import (
    ANCESTOR,
    FEW,
    FEW_FLIGHTS,
    HOLDS,
    NOT_SHOWN,
    WORSE,
    Row,
    accepted,
)
from drone_kd_training.retraining.guard_report import (
    ACCEPTED,
    REFUSED,
    as_dicts,
    as_table,
    outcome,
    too_few_frames,
)
from drone_kd_training.teachers.teachers import Predictions

NAMES = ("car", "person")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(guard, "RESAMPLES", 50)


def predictions(
    frames: int, share: float, shift_px: float = 0.0, swap: bool = False, seed=0, flights=20
):
    """Return two cars and a person per frame; a share is found, moved or misclassified."""
    rng, chance = np.random.default_rng(0), np.random.default_rng(seed)
    truth, boxes = [], []
    for frame in range(frames):
        for class_id in (0, 0, 1):
            x, y = rng.uniform(0, 500, 2)
            box = np.array([x, y, x + 24, y + 24])
            truth.append(annotation(len(truth) + 1, frame, box, class_id))
            if chance.random() < share:
                predicted = 1 - class_id if swap else class_id
                boxes.append({**annotation(0, frame, box + shift_px, predicted), "score": 0.9})
    images = [{"id": i, "width": 640, "height": 640} for i in range(frames)]
    paths = [Path(f"{chr(97 + i % flights)}{i:03d}.jpg") for i in range(frames)]
    return SplitPredictions(NAMES, [0, 1], paths, images, truth, boxes, 0)


def verdicts(rows: list[Row]) -> dict[str, str]:
    return {row.part: row.verdict for row in rows}


def test_gain_on_the_new_flight_without_loss_on_the_base_is_accepted():
    new = guard._compare("new", predictions(60, 0.4), predictions(60, 0.9))
    base = guard._compare("base", predictions(60, 0.8), predictions(60, 0.8))
    assert verdicts(new) == {
        "all": HOLDS, "car": HOLDS, "person": HOLDS, "tiny": FEW, "small": HOLDS,
        "medium": FEW, "large": FEW,
    }  # fmt: skip
    assert new[0].objects == 180 and new[0].low > 0 and new[0].high > new[0].low
    assert accepted(new + base)
    assert not accepted(new)  # the base was not compared
    assert not accepted(new + guard._compare("base", predictions(60, 0.8), predictions(60, 0.6)))


@pytest.mark.parametrize("fault", [{"shift_px": 20.0}, {"swap": True}])
def test_candidate_trained_on_wrong_labels_is_refused(fault):
    new = guard._compare("new", predictions(60, 0.6), predictions(60, 0.9, **fault))
    assert new[0].verdict == WORSE
    base = guard._compare("base", predictions(60, 0.8), predictions(60, 0.8))
    assert not accepted(new + base)


def test_gain_within_the_interval_is_refused():
    new = guard._compare("new", predictions(30, 0.6), predictions(30, 0.6, seed=4))
    assert new[0].verdict == NOT_SHOWN
    assert verdicts(new)["person"] == FEW
    # The person, with 30 objects, is not in the mean of all.
    assert (new[0].objects, new[0].after) == (new[1].objects, new[1].after)
    assert not accepted(new + guard._compare("base", predictions(60, 0.8), predictions(60, 0.8)))


def test_no_change_is_no_gain():
    same = guard._compare("new", predictions(40, 0.6), predictions(40, 0.6))
    assert same[0].verdict == WORSE  # its gain is exactly 0, and must be above
    assert not accepted(same)


def test_predictions_in_uncertain_boxes_of_the_teacher_are_dropped():
    result = predictions(3, 1.0, flights=1)
    extra = np.array([600.0, 600, 630, 630])
    for frame in (0, 1):
        result.predictions.append({**annotation(0, frame, extra, 0), "score": 0.8})
    centre = [615 / 640, 615 / 640, 30 / 640, 30 / 640]
    first = np.array(result.truth[0]["bbox"])
    beside = [*(first[:2] + first[2:] / 2) / 640, *first[2:] / 640]
    uncertain = Predictions(
        NAMES,
        {
            # Frame 0: the extra box and one at a labelled object. Frame 2: a confident one.
            "a000": (np.array([centre, beside]), np.array([[0.0, 0.3], [0.4, 0.0]], np.float32)),
            "a001": (np.array([centre]), np.array([[0.0, 0.3]], np.float32)),
            "a002": (np.array([centre]), np.array([[0.9, 0.0]], np.float32)),
        },
        pixels=False,
    )
    left = guard.drop_uncertain(result, uncertain, corrected={"a001"})
    assert [box["image_id"] for box in left.predictions].count(0) == 3  # the extra one is dropped
    assert [box["image_id"] for box in left.predictions].count(
        1
    ) == 4  # corrected labels are complete
    assert [box["image_id"] for box in left.predictions].count(2) == 3


def test_table_shows_bounds_and_verdicts():
    rows = guard._compare("base", predictions(60, 0.8), predictions(60, 0.6))
    table = as_table(rows)
    assert all(text in table for text in ("base all", "> -1.0", WORSE, FEW, "base: accuracy"))
    assert as_dicts(rows)[-1]["low"] is None  # JSON has no NaN


@pytest.mark.parametrize("fault", [{"shift_px": 20.0}, {"swap": True}])
def test_labels_that_contradict_confident_predictions_are_refused(fault):
    """Wrong labels in the held-out frames, too, favour the candidate that was trained on them."""
    right, wrong = predictions(60, 0.8), predictions(60, 0.8, **fault)
    row = guard._agreement(wrong, right, corrected=set())
    assert row.verdict == WORSE
    assert not accepted([row])
    assert guard._agreement(right, right, corrected=set()).verdict == HOLDS
    # Corrected labels may contradict the model.
    everywhere = {path.stem for path in wrong.paths}
    assert guard._agreement(wrong, right, everywhere).verdict == FEW
    assert "labels agree with" in as_table([row])


@pytest.mark.parametrize("flights", [1, 4])
def test_gain_on_few_flights_is_not_judged(flights):
    new = [predictions(60, share, flights=flights) for share in (0.4, 0.9)]
    rows = guard._compare("new", *new)
    assert {row.unit for row in rows} == {"stretch"}
    assert rows[0].verdict == FEW_FLIGHTS and rows[0].blocks < guard.MIN_BLOCKS
    base = guard._compare("base", predictions(60, 0.8), predictions(60, 0.8))
    assert not accepted(rows + base)
    kind, line = outcome(rows + base)
    assert kind == FEW_FLIGHTS
    assert "new all has" in line and "record and mine more flights" in line
    assert len(line.splitlines()) == 1


def test_flights_that_differ_widen_the_interval():
    """A gain in half of the flights alone: by frames it would be beyond doubt."""
    before, after = predictions(120, 0.5, flights=8), predictions(120, 0.9, flights=8)
    lost = [b for b in after.predictions if b["image_id"] % 8 < 4]
    worse = [b for b in before.predictions if b["image_id"] % 8 < 4][: len(lost) // 3]
    mixed = guard.replace(
        after, predictions=[b for b in after.predictions if b["image_id"] % 8 >= 4] + worse
    )
    by_flight = guard._compare("new", before, mixed)[0]
    alone = guard.replace(before, paths=[Path(f"{chr(97 + i)}.x") for i in range(120)])
    assert by_flight.verdict == NOT_SHOWN
    assert by_flight.unit == "flight"
    assert guard._compare("new", alone, mixed)[0].verdict == FEW_FLIGHTS  # names tell nothing
    kind, line = outcome([by_flight])
    assert kind == REFUSED and line.startswith("not shown: new all")


def test_labels_of_a_teacher_are_called_agreement():
    both = predictions(60, 0.4), predictions(60, 0.9)
    stems = {path.stem for path in both[0].paths}
    by_teacher, by_person = (guard._compare("new", *both, own) for own in ({"a000"}, stems))
    assert all(row.teacher for row in by_teacher) and not any(row.teacher for row in by_person)
    assert "new: agreement with the teacher, not accuracy" in as_table(by_teacher)
    assert "agreement" not in as_table(by_person)
    base = guard._compare("base", predictions(60, 0.8), predictions(60, 0.8))
    judged = [[row for row in rows if row.part == "all"] for rows in (by_teacher, by_person)]
    base = [row for row in base if row.part == "all"]
    assert outcome(judged[0] + base) == (
        ACCEPTED, "a higher agreement with the teacher on the new flight, no loss on the base"
    )  # fmt: skip
    assert outcome(judged[1] + base)[1].startswith("a gain on the new flight")


def test_losses_that_add_up_over_rounds_are_refused():
    new = guard._compare("new", predictions(60, 0.4), predictions(60, 0.9))
    base = guard._compare("base", predictions(60, 0.8), predictions(60, 0.8))
    rows = [row for row in new + base if row.verdict == HOLDS]
    assert accepted(rows)
    since = guard._compare(ANCESTOR, predictions(60, 0.95), predictions(60, 0.8))
    assert since[0].verdict == WORSE
    assert outcome(rows + since)[0] == REFUSED
    assert "ancestor all" in outcome(rows + since)[1]
    assert "first model of the lineage" in as_table(rows + since)


def test_frames_of_one_flight_are_reported_before_training():
    one = [Path(f"road-{i:03d}.jpg") for i in range(10)]
    assert "got 1 (10 frames), so none can be accepted" in too_few_frames("new", one)
    assert "validation split" in too_few_frames("base", one[:1])
    many = [Path(f"{chr(97 + i)}-{k}.jpg") for i in range(guard.MIN_BLOCKS) for k in range(2)]
    assert too_few_frames("new", many) == ""


def test_frames_in_which_the_models_differ_are_labelled_next():
    before, after = predictions(6, 1.0, flights=1), predictions(6, 1.0, flights=1)
    gone = [box for box in after.predictions if box["image_id"] == 4]
    one = [box for box in after.predictions if box["image_id"] == 2][:1]
    weak = {**annotation(0, 5, np.array([1.0, 1, 30, 30]), 0), "score": 0.05}
    left = [box for box in after.predictions if box not in gone + one]
    after = guard.replace(after, predictions=[*left, weak])
    assert guard._most_telling(before, after, set()) == ["a004", "a002"]
    assert guard._most_telling(after, before, {"a004"}) == ["a002"]
