from pathlib import Path

import numpy as np
import pytest

from drone_kd.metrics import annotation
from drone_kd_training.evaluation.evaluate import Answers
from drone_kd_training.retraining import guard
from drone_kd_training.retraining.guard import (
    FEW,
    HOLDS,
    UNSHOWN,
    WORSE,
    Row,
    accepted,
    as_dicts,
    as_table,
)
from drone_kd_training.teachers.teachers import Predictions

NAMES = ("car", "person")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(guard, "DRAWS", 200)


def answers(frames: int, found_share: float, shift_px: float = 0.0, swap: bool = False, seed=0):
    """Two cars and a person in each frame; of them a share is found, moved or called wrongly."""
    rng, chance = np.random.default_rng(0), np.random.default_rng(seed)
    truth, found = [], []
    for frame in range(frames):
        for class_id in (0, 0, 1):
            x, y = rng.uniform(0, 500, 2)
            box = np.array([x, y, x + 24, y + 24])
            truth.append(annotation(len(truth) + 1, frame, box, class_id))
            if chance.random() < found_share:
                said = 1 - class_id if swap else class_id
                found.append({**annotation(0, frame, box + shift_px, said), "score": 0.9})
    images = [{"id": i, "width": 640, "height": 640} for i in range(frames)]
    paths = [Path(f"{i:03d}.jpg") for i in range(frames)]
    return Answers(NAMES, [0, 1], paths, images, truth, found, 0)


def verdicts(rows: list[Row]) -> dict[str, str]:
    return {row.part: row.verdict for row in rows}


def test_better_on_the_new_flight_and_the_same_on_the_base_is_accepted():
    new = guard._compare("new", answers(60, 0.4), answers(60, 0.9))
    base = guard._compare("base", answers(60, 0.8), answers(60, 0.8))
    assert verdicts(new) == {
        "all": HOLDS, "car": HOLDS, "person": HOLDS, "tiny": FEW, "small": HOLDS,
        "medium": FEW, "large": FEW,
    }  # fmt: skip
    assert new[0].objects == 180 and new[0].low > 0 and new[0].high > new[0].low
    assert accepted(new + base)
    assert not accepted(new)  # nothing was seen of the base
    assert not accepted(new + guard._compare("base", answers(60, 0.8), answers(60, 0.6)))


@pytest.mark.parametrize("fault", [{"shift_px": 20.0}, {"swap": True}])
def test_a_candidate_that_learnt_wrong_labels_is_refused(fault):
    new = guard._compare("new", answers(60, 0.6), answers(60, 0.9, **fault))
    assert new[0].verdict == WORSE
    base = guard._compare("base", answers(60, 0.8), answers(60, 0.8))
    assert not accepted(new + base)


def test_a_gain_that_so_few_frames_cannot_show_is_refused():
    new = guard._compare("new", answers(30, 0.6), answers(30, 0.6, seed=4))
    assert new[0].verdict == UNSHOWN and verdicts(new)["person"] == FEW
    # The person, with 30 objects, is not in the mean of all.
    assert (new[0].objects, new[0].after) == (new[1].objects, new[1].after)
    assert not accepted(new + guard._compare("base", answers(60, 0.8), answers(60, 0.8)))


def test_no_change_is_no_gain():
    same = guard._compare("new", answers(40, 0.6), answers(40, 0.6))
    assert same[0].verdict == WORSE  # its gain is exactly 0, and must be above
    assert not accepted(same)


def test_what_the_teacher_is_unsure_of_is_neither_hit_nor_false_alarm():
    found = answers(3, 1.0)
    extra = np.array([600.0, 600, 630, 630])
    for frame in (0, 1):
        found.found.append({**annotation(0, frame, extra, 0), "score": 0.8})
    centre = [615 / 640, 615 / 640, 30 / 640, 30 / 640]
    first = np.array(found.truth[0]["bbox"])
    beside = [*(first[:2] + first[2:] / 2) / 640, *first[2:] / 640]
    unsure = Predictions(
        NAMES,
        {
            # Of frame 0 the extra box and one about a labelled object; of frame 2 a sure one.
            "000": (np.array([centre, beside]), np.array([[0.0, 0.3], [0.4, 0.0]], np.float32)),
            "001": (np.array([centre]), np.array([[0.0, 0.3]], np.float32)),
            "002": (np.array([centre]), np.array([[0.9, 0.0]], np.float32)),
        },
        pixels=False,
    )
    left = guard.leave_out_unsure(found, unsure, corrected={"001"})
    assert [box["image_id"] for box in left.found].count(0) == 3  # the extra one went
    assert [box["image_id"] for box in left.found].count(1) == 4  # a person's labels are complete
    assert [box["image_id"] for box in left.found].count(2) == 3


def test_the_table_says_what_was_compared():
    rows = guard._compare("base", answers(60, 0.8), answers(60, 0.6))
    table = as_table(rows)
    assert "base all" in table and "> -1.0" in table and WORSE in table and FEW in table
    assert as_dicts(rows)[-1]["low"] is None  # JSON has no NaN


@pytest.mark.parametrize("fault", [{"shift_px": 20.0}, {"swap": True}])
def test_labels_that_contradict_what_the_flying_model_is_sure_of_are_noticed(fault):
    """Wrong in the frames to judge by, too: there the candidate that learnt them shines."""
    right, wrong = answers(60, 0.8), answers(60, 0.8, **fault)
    row = guard._agreement(wrong, right, corrected=set())
    assert row.verdict == WORSE and not accepted([row])
    assert guard._agreement(right, right, corrected=set()).verdict == HOLDS
    # A person's labels need not be what the model believes.
    everywhere = {path.stem for path in wrong.paths}
    assert guard._agreement(wrong, right, everywhere).verdict == FEW
    assert "% are labelled so" in as_table([row])
