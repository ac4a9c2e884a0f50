"""Arms of the few-labels protocol."""

import pytest

from drone_kd_training.distillation.config import NO_TEACHER, Config
from drone_kd_training.distillation.few_labels_arms import default_arms, parse_arm

BASE = Config("d.yaml", "t.pt", "s.pt", steps=1000, views=4, val=False, overrides={"lr0": 0.01})


def test_default_arms_are_all_baselines_and_ours_without_each_part():
    arms = default_arms(BASE)
    assert arms[:8] == [
        *("few", "few:half", "ours", "hard:0.4", "hard:0.3", "hard:0.5", "all", "few-time")
    ]
    assert arms[8:] == [
        *("builtin:1", "builtin-hard:1"),
        *("ours;terms=box+assign", "ours;terms=class+assign", "ours;terms=class+box"),
        *("ours;beta=1", "ours;schedule=cosine;rebalance=0", "ours;pseudo_threshold=0.6"),
        "ours;keep_labels=false",
    ]
    for arm in arms:
        assert parse_arm(arm, BASE).name == arm


def test_arms_without_ours_have_no_teacher_and_no_stored_views():
    for name, images in (("few", "few"), ("all", "all"), ("hard:0.4", "hard")):
        arm = parse_arm(name, BASE)
        assert (arm.images, arm.timed) == (images, False)
        assert (arm.config.teacher, arm.config.views, arm.config.steps) == (NO_TEACHER, 0, 1000)
    assert parse_arm("hard:0.4", BASE).threshold == 0.4
    assert parse_arm("few:half", BASE).config.steps == 500
    assert parse_arm("few:2000", BASE).config.steps == 2000
    assert parse_arm("few-time", BASE).timed


@pytest.mark.parametrize(
    ("name", "images", "weight", "threshold"),
    [
        ("builtin:2", "few", 2.0, 0.0),
        ("builtin-hard:1", "hard", 1.0, 0.4),
        ("builtin-hard:6:0.3", "hard", 6.0, 0.3),
    ],
)
def test_builtin_distils_by_ultralytics(name, images, weight, threshold):
    arm = parse_arm(name, BASE)
    assert (arm.images, arm.threshold, arm.config.teacher) == (images, threshold, NO_TEACHER)
    assert arm.config.overrides == {"lr0": 0.01, "distill_model": "t.pt", "dis": weight}


def test_ours_takes_changes():
    assert parse_arm("ours", BASE).config == BASE
    changed = parse_arm("ours;terms=class+box;pseudo_threshold=0.6;keep_labels=false", BASE)
    assert changed.images == "ours"
    config = changed.config
    assert (config.terms, config.pseudo_threshold) == (("class", "box"), "0.6")
    assert config.keep_labels is False and config.views == 4


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "plain",
            "few:",
            "few:0",
            "few:-3",
            "few:x",
            "few:nan",
            "few:inf",
            "few:1:2",
            "all:3",
        ),
        *("hard", "hard:2", "hard:-1", "hard:nan", "hard:0.3:1", "builtin", "builtin:x"),
        *("builtin-hard", "builtin-hard:1:2", "ours:3", "ours;colour=red", "\x1b[2J"),
    ],
)
def test_unknown_arms_are_refused(name):
    with pytest.raises(ValueError, match="few-time") as error:
        parse_arm(name, BASE)
    assert str(error.value).isprintable()
