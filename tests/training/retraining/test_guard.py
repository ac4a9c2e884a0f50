from pathlib import Path

import numpy as np
import pytest

from drone_kd.metrics import annotation
from drone_kd_training.evaluation.evaluate import SplitPredictions
from drone_kd_training.retraining import guard
from drone_kd_training.retraining.guard import (
    FEW,
    HOLDS,
    NOT_SHOWN,
    WORSE,
    Row,
    accepted,
    as_dicts,
    as_table,
)
from drone_kd_training.teachers.teachers import Predictions

NAMES = ("car", "person")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(guard, "RESAMPLES", 200)


def predictions(frames: int, share: float, shift_px: float = 0.0, swap: bool = False, seed=0):
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
    paths = [Path(f"{i:03d}.jpg") for i in range(frames)]
    return SplitPredictions(NAMES, [0, 1], paths, images, truth, boxes, 0)


def verdicts(rows: list[Row]) -> dict[str, str]:
    return {row.part: row.verdict for row in rows}


@pytest.mark.slow
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


@pytest.mark.slow
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
    result = predictions(3, 1.0)
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
            "000": (np.array([centre, beside]), np.array([[0.0, 0.3], [0.4, 0.0]], np.float32)),
            "001": (np.array([centre]), np.array([[0.0, 0.3]], np.float32)),
            "002": (np.array([centre]), np.array([[0.9, 0.0]], np.float32)),
        },
        pixels=False,
    )
    left = guard.drop_uncertain(result, uncertain, corrected={"001"})
    assert [box["image_id"] for box in left.predictions].count(0) == 3  # the extra one is dropped
    assert [box["image_id"] for box in left.predictions].count(
        1
    ) == 4  # corrected labels are complete
    assert [box["image_id"] for box in left.predictions].count(2) == 3


def test_table_shows_bounds_and_verdicts():
    rows = guard._compare("base", predictions(60, 0.8), predictions(60, 0.6))
    table = as_table(rows)
    assert all(text in table for text in ("base all", "> -1.0", WORSE, FEW))
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
