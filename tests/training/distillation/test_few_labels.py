"""The few-labels protocol on tiny data."""

import json
import math

import polars
import pytest

from drone_kd_training.data.dataset import image_paths, load_data
from drone_kd_training.distillation import few_labels
from drone_kd_training.distillation.claims import claim
from drone_kd_training.distillation.compare import SCORES
from drone_kd_training.distillation.config import NO_TEACHER, Config, read_config
from drone_kd_training.distillation.few_labels import compare_few_labels, training_seconds
from drone_kd_training.distillation.run_report import read_metrics
from tiny_training import SIZE

SHORT = {"mosaic": 0.0, "close_mosaic": 0, "optimizer": "AdamW", "lr0": 0.002, "nbs": 6}
TEACHER = {
    "map50_95": 0.9,
    "map50": 0.9,
    "at_teacher_imgsz": None,
    "parameters": 9,
    "imgsz": SIZE,
    "per_class": {"car": {"ap50_95": 0.9}, "person": {"ap50_95": 0.9}},
    "classes_not_in_model": [],
}


def figures(score: float) -> dict:
    """What `evaluate` returns of a student with equal scores for both classes."""
    ap = {"ap50_95": score, "ap50": score}
    return dict.fromkeys(SCORES, score) | {"per_class": {"car": ap, "person": ap}}


def config(data="d.yaml", teacher="t.pt", **changes) -> Config:
    values = {"student": "aerial-student.yaml", "steps": 3, "imgsz": SIZE, "batch": 4}
    return Config(str(data), str(teacher), **{**values, "overrides": SHORT, **changes})


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, Config]]:
    """Runs that were made, in the place of training: 10 s, with a teacher 16 s."""
    made: list[tuple[str, Config]] = []

    def distill(run, folder, resume, measure_teacher):
        assert not measure_teacher
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        steps = math.prod(run.epochs_and_steps)
        seconds = steps * (16 if run.distils else 10)
        (folder / "results.csv").write_text(f"epoch,time\n1,{seconds}\n")
        score = 0.5 if run.distils else 0.4
        student = figures(score) | {"parameters": 7}
        metrics = {"student": student, "seconds": 1.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        made.append((folder.name, run))
        return metrics

    monkeypatch.setattr(few_labels, "distill", distill)
    monkeypatch.setattr(few_labels, "evaluate_teacher", lambda *_: TEACHER)
    monkeypatch.setattr(few_labels, "write_page", lambda *_: None)
    monkeypatch.setattr(few_labels, "evaluate", lambda *_, **__: figures(0.3))

    monkeypatch.setattr(few_labels, "read_config", lambda folder: dict(made)[folder.name])
    return made


def test_each_arm_has_its_data_steps_and_seed(tiny_data, tmp_path, trained):
    arms = ["few", "few:half", "ours", "all", "few-time", "builtin:1"]
    base = config(tiny_data, steps=100, views=2, max_frames=1)
    content = compare_few_labels(base, tmp_path, (4,), arms, (3,))
    runs = dict(trained)
    assert list(runs) == [
        *("few-3labels-seed4", "few-half-3labels-seed4", "ours-3labels-seed4"),
        *("all-12labels-seed4", "few-time-3labels-seed4", "builtin-1-3labels-seed4"),
    ]
    assert len(runs) == 6
    assert not any(run.val for run in runs.values())
    few, ours = runs["few-3labels-seed4"], runs["ours-3labels-seed4"]
    assert (few.teacher, few.seed, few.steps, few.unlabelled) == (NO_TEACHER, 4, 100, ())
    assert (ours.teacher, ours.data) == ("t.pt", few.data)
    assert len(image_paths(load_data(few.data).train)) == 3
    listed = image_paths(tmp_path / "subsets" / "3-4" / "unlabelled.txt")
    assert ours.unlabelled == (str(tmp_path / "subsets" / "3-4" / "unlabelled.txt"),)
    assert len(listed) == 9 and not {*listed} & {*image_paths(load_data(few.data).train)}
    assert ours.max_frames == 9  # as the other arms have
    assert ours.view_cache == str(tmp_path / "views" / "seed4")
    assert runs["few-half-3labels-seed4"].steps == 50
    assert runs["few-time-3labels-seed4"].steps == 160
    assert len(image_paths(load_data(runs["all-12labels-seed4"].data).train)) == 12
    assert content["arms"]["ours"]["gap_share"] == pytest.approx(0.2)
    assert content["labels"] == 3

    compare_few_labels(base, tmp_path, (4,), arms, (3,))
    assert len(trained) == 6  # nothing was trained again
    compare_few_labels(base, tmp_path, (0,), ["ours;beta=1"], (3,))
    first = (tmp_path / "compare.md").read_text().splitlines()[0]
    assert first.endswith("px; NOT AS PLANNED: arms added later: ours;beta=1")
    found = json.loads((tmp_path / "provenance.json").read_text())
    assert (found["seeds"], found["classes"]) == ("0 4", "car person")
    rows = polars.read_csv(tmp_path / "compare.csv")
    assert len(rows) == 7  # with those of the arms that are not selected
    assert rows.columns == [
        *("arm", "subset", "labels", "steps", *SCORES, "seconds", "parameters"),
        *("seed", "classes", "imgsz"),
    ]
    assert set(rows["classes"]) == {"car;person"} and set(rows["imgsz"]) == {SIZE}


def test_ours_is_compared_with_the_first_hard_arm_of_the_first_command(
    tiny_data, tmp_path, trained, monkeypatch
):
    monkeypatch.setattr(few_labels, "write_hard_labels", lambda files, *_: files.data)
    base = config(tiny_data)
    arms = ["few", "ours", "hard:0.5", "hard:0.4", "ours;beta=0", "few:3"]
    content = compare_few_labels(base, tmp_path, (0, 1), arms, (3,))
    assert content["primary"]["named"]["other"] == "hard:0.5"
    assert "ours;beta=0" not in content["arms"] and "few:3" not in content["arms"]  # the same
    content = compare_few_labels(base, tmp_path, (0, 1), ["ours", "hard:0.3"], (3,))
    assert content["primary"]["named"]["other"] == "hard:0.5"
    hard = next(d for d in content["secondary"] if d["role"] == "hard pseudo-labels")
    assert (hard["candidates"], hard["units"]) == (3, 2)
    other = compare_few_labels(base, tmp_path / "no-hard", (0,), ["few", "ours"], (3,))
    assert other["primary"]["named"]["other"] == "few"


def test_few_with_all_labels_is_not_trained_twice(tiny_data, tmp_path, trained):
    compare_few_labels(config(tiny_data), tmp_path, (0,), ["all", "few", "ours"], (None,))
    assert [name for name, _ in trained] == ["few-12labels-seed0", "ours-12labels-seed0"]


def forget_columns(output):
    """Turn an experiment into one of the version before."""
    (output / "primary.json").unlink(missing_ok=True)
    for file in (output / "runs").glob("*.json"):
        record = json.loads(file.read_text())
        for column in ("seed", "classes", "imgsz"):
            record["row"].pop(column, None)
        file.write_text(json.dumps(record))


def test_an_experiment_of_an_earlier_version_is_continued(
    tiny_data, tmp_path, trained, monkeypatch
):
    base = config(tiny_data)
    compare_few_labels(base, tmp_path, (0, 1), ["few", "ours"], (3,))
    before = polars.read_csv(tmp_path / "compare.csv")
    forget_columns(tmp_path)
    content = compare_few_labels(base, tmp_path, (0, 1), ["few", "ours"], (3,))
    assert polars.read_csv(tmp_path / "compare.csv").equals(before) and len(trained) == 4
    assert content["primary"]["refusal"].startswith("named after 4 runs")

    lacking = TEACHER | {"per_class": {"car": {"ap50_95": 0.9}}}
    lacking |= {"classes_not_in_model": ["person"]}
    monkeypatch.setattr(few_labels, "evaluate_teacher", lambda *_: lacking)
    forget_columns(tmp_path)
    metrics = tmp_path / "runs" / "ours-3labels-seed0" / "metrics.json"
    found = json.loads(metrics.read_text())
    found["student"]["per_class"]["car"] = {"ap50_95": 0.7, "ap50": 0.8}
    metrics.write_text(json.dumps(found))
    compare_few_labels(base, tmp_path, (0, 1), ["few", "ours"], (3,))
    row = polars.read_csv(tmp_path / "compare.csv").row(1, named=True)
    assert (row["arm"], row["classes"], row["map50_95"], row["map50"]) == ("ours", "car", 0.7, 0.8)

    forget_columns(tmp_path)
    found["student"]["per_class"] = {}
    metrics.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"seed0\.json: measured over classes that the") as error:
        compare_few_labels(base, tmp_path, (0, 1), ["few", "ours"], (3,))
    assert "\n" not in str(error.value)


def test_hard_pseudo_labels_are_of_the_input_at_which_the_teacher_teaches(
    tiny_data, tmp_path, trained, monkeypatch
):
    sizes = []

    def write(files, teacher, imgsz, *_):
        sizes.append(imgsz)
        return files.data

    monkeypatch.setattr(few_labels, "write_hard_labels", write)
    base = config(tiny_data, teacher_scale=2)
    compare_few_labels(base, tmp_path, (0,), ["hard:0.4"], (3,))
    assert sizes == [2 * SIZE]


def test_learning_curve_trains_few_and_ours_at_each_number(tiny_data, tmp_path, trained):
    numbers = (0, 3, 6, None)
    content = compare_few_labels(config(tiny_data), tmp_path, (0,), ["few"], numbers)
    assert [name for name, _ in trained] == [
        *("few-3labels-seed0", "ours-0labels-seed0", "ours-3labels-seed0"),
        *("few-6labels-seed0", "ours-6labels-seed0", "all-12labels-seed0", "ours-12labels-seed0"),
    ]
    runs = dict(trained)
    without = runs["ours-0labels-seed0"]
    assert (without.data, without.classes, without.tile) == ("", ("car", "person"), "off")
    assert len(image_paths(tmp_path / "subsets" / "0-0" / "unlabelled.txt")) == 12
    assert runs["ours-12labels-seed0"].unlabelled == ()
    curve = [(p["labels"], p["few"], p["ours"]) for p in content["learning_curve"]]
    assert curve == [(0, None, 0.3), (3, 0.4, 0.5), (6, 0.4, 0.5), (12, 0.4, 0.5)]


def test_a_run_of_another_process_is_left_to_it(tiny_data, tmp_path, trained, capsys):
    with claim(tmp_path / "locks" / "ours-3labels-seed0"):
        compare_few_labels(config(tiny_data), tmp_path, (0,), ["few-time", "all"], (3,))
    assert [name for name, _ in trained] == ["all-12labels-seed0", "few-3labels-seed0"]
    assert "2 runs are left to other processes: few-time-3labels" in capsys.readouterr().out
    compare_few_labels(config(tiny_data), tmp_path, (0,), ["few-time", "all"], (3,))
    assert len(trained) == 4


def test_without_a_finished_run_there_are_no_tables(tiny_data, tmp_path, trained, capsys):
    with claim(tmp_path / "locks" / "few-3labels-seed0"):
        assert compare_few_labels(config(tiny_data), tmp_path, (0,), ["few"], (3,)) == {}
    assert "1 runs are left" in capsys.readouterr().out and not trained


def test_an_experiment_of_a_version_with_fewer_settings_continues(tiny_data, tmp_path, trained):
    compare_few_labels(config(tiny_data), tmp_path, (0,), ["few"], (3,))
    path = tmp_path / "experiment.json"
    content = json.loads(path.read_text())
    del content["baseline"], content["terms"]
    path.write_text(json.dumps(content))
    compare_few_labels(config(tiny_data), tmp_path, (0,), ["few", "ours"], (3,))
    assert len(trained) == 2


def test_time_counts_over_all_starts_of_a_run(tmp_path):
    csv = tmp_path / "results.csv"
    csv.write_text("epoch,time,loss\n1,10,1\n2,21,1\n3,12,1\n4,20,1\n")
    assert training_seconds(csv, [0, 2]) == 41
    assert training_seconds(csv, [0, 0, 2, 2]) == 41  # starts that finished no epoch
    assert training_seconds(csv, [0]) == 20


@pytest.mark.parametrize("select", [0.0, 0.25])
def test_held_out_frames_may_be_of_the_unlabelled_flights(select, tiny_data, tmp_path, trained):
    compare_few_labels(config(tiny_data), tmp_path, (0,), ["ours"], (3,), select)
    assert trained[0][1].same_flights == (select > 0)


def test_the_row_of_a_continued_run_counts_both_processes(
    tiny_data, tmp_path, trained, monkeypatch
):
    pretend = few_labels.distill

    def interrupted(run, folder, **options):
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        (folder / "results.csv").write_text("epoch,time\n1,5\n")
        raise KeyboardInterrupt

    def continued(run, folder, resume, measure_teacher):
        assert resume
        (folder / "results.csv").rename(tmp_path / "before.csv")
        (folder / "config.yaml").unlink()
        folder.rmdir()
        metrics = pretend(run, folder, resume, measure_teacher)
        (folder / "results.csv").write_text("epoch,time\n1,5\n2,7\n")
        return metrics

    base = config(tiny_data)
    monkeypatch.setattr(few_labels, "distill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare_few_labels(base, tmp_path, (0,), ["few"], (3,))
    monkeypatch.setattr(few_labels, "distill", continued)
    content = compare_few_labels(base, tmp_path, (0,), ["few"], (3,))
    assert content["runs"][0]["seconds"] == 12


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher": "none"}, "expects a teacher"),
        ({"steps": 0}, "expects --steps"),
        ({"unlabelled": ("x",)}, "expects no --unlabelled"),
        ({"fraction": 0.5}, "expects no --fraction"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        compare_few_labels(config(**changes), tmp_path / "out", (0,))
    assert not (tmp_path / "out").exists()


def test_impossible_labels_and_another_experiment_are_refused(tiny_data, tmp_path, trained):
    base = config(tiny_data)
    for labels in ((13,), (-1, 3), (0,)):
        with pytest.raises(ValueError, match="expected 0 to 12 labelled frames"):
            compare_few_labels(base, tmp_path, (0,), ["few"], labels)
    with pytest.raises(ValueError, match=r"arm hard:0\.4: expected frames without labels"):
        compare_few_labels(base, tmp_path, (0,), ["hard:0.4"], (None,))
    with pytest.raises(ValueError, match=r"experiment with another batch, steps: choose another"):
        compare_few_labels(config(tiny_data, batch=2, steps=4), tmp_path, (0,), ["few"], (3,))
    with pytest.raises(ValueError, match=r"experiment with another select"):
        compare_few_labels(base, tmp_path, (0,), ["few"], (3,), select=0.5)


@pytest.mark.slow
def test_experiment_is_interrupted_and_continued(
    tiny_data, square_detector, tmp_path, monkeypatch
):
    arms = ["few", "hard:0.3", "ours"]
    base = config(tiny_data, square_detector, views=1)
    distill, made = few_labels.distill, []

    def stop_at_the_third(run, folder, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(folder.name)
        return distill(run, folder, **options)

    monkeypatch.setattr(few_labels, "distill", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        compare_few_labels(base, tmp_path, (0, 1), arms, (4,))
    assert len(polars.read_csv(tmp_path / "compare.csv")) == 2

    again = []
    monkeypatch.setattr(
        few_labels, "distill", lambda run, f, **o: again.append(f.name) or distill(run, f, **o)
    )
    content = compare_few_labels(base, tmp_path, (0, 1), arms, (4,))
    assert len(again) == 4 and not {*again} & {*made}
    assert [arm["units"] for arm in content["arms"].values()] == [2, 2, 2]
    rows = polars.read_csv(tmp_path / "compare.csv")
    assert set(rows["steps"]) == {3} and set(rows["labels"]) == {4}
    assert (rows["seconds"] > 0).all() and (rows["parameters"] > 0).all()
    for name in (*made, *again):
        folder = tmp_path / "runs" / name
        assert read_config(folder).steps == 3
        assert read_metrics(folder / "metrics.json")["student"]["images"] == 6
    page = (tmp_path / "report.html").read_text()
    first = (tmp_path / "compare.md").read_text().splitlines()[0]
    assert first.startswith("Primary: ours - hard:0.3 = ")
    assert first.endswith(f"n = 2 subsets, mAP50-95 on 2 classes (car, person), {SIZE} px")
    assert page.index(f"<p>{first}</p>") < page.index("<table>")
    assert "<td>ours - few</td>" in page
    assert page.count("data:image/png;base64,") == 1
    assert content["teacher"]["map50_95"] > 0.05
