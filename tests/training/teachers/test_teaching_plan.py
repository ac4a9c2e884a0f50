from pathlib import Path

import pytest
import yaml

from drone_kd.cli import main
from drone_kd_training.data.crops import Crops
from drone_kd_training.data.names import DataError
from drone_kd_training.teachers.teaching_plan import read_plan
from tiny_training import draw_set, save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A labelled set (car, person), unlabelled images, a teacher of auto and human."""
    root = tmp_path_factory.mktemp("sources")
    draw_set(root / "streets")
    draw_set(root / "more", train=3, seed=7)
    (root / "nothing").mkdir()
    save_checkpoint(root / "teacher.pt", names=("auto", "human"))
    return root


def content() -> dict:
    return {
        "names": ["person", "car", "bus"],
        "sources": {
            "streets": {"data": "streets/data.yaml", "labelled": ["car"], "repeat": 2},
            "fields": {"images": "more/images/train"},
        },
        "teachers": {
            "big": {
                "weights": "teacher.pt",
                "imgsz": 64,
                "sources": ["fields", "streets"],
                "classes": {"auto": "car", "human": "person"},
                "pseudo_threshold": {"person": 0.8},
                "pseudo_threshold_on": {"streets": {"person": 0.9}},
            }
        },
    }


def write(folder: Path, values: dict) -> Path:
    path = folder / "teachers.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_sources_teachers_and_table_of_a_plan(folder):
    plan = read_plan(write(folder, content()))
    streets, fields = plan.sources
    assert plan.names == ("person", "car", "bus") and streets.labelled == ("car",)
    assert streets.classes == {"car": "car", "person": "person"}  # by the same name
    assert len(streets.train) == 12 and len(streets.val) == 6 and len(fields.train) == 3
    (big,) = plan.teachers
    assert big.taught_classes == ("car", "person") and plan.taught(fields) == ("person", "car")
    assert big.threshold("streets", "person") == 0.9 and big.threshold("fields", "person") == 0.8
    assert big.threshold("streets", "car") == 0.6  # the default: the ignore band's edge
    rows = [line.split() for line in plan.table().splitlines()]
    assert rows[1:] == [
        ["streets", "12", "x", "2", "labels", "car"],
        ["big", "car,", "person"],
        ["unlabelled:", "masked", "bus"],
        ["fields", "3", "big", "car,", "person"],
        ["unlabelled:", "masked", "bus"],
    ]


def test_empty_images_count_as_labelled(folder):
    values = content()
    values["sources"]["fields"]["empty"] = True
    values["teachers"]["big"]["sources"] = ["streets"]
    assert read_plan(write(folder, values)).sources[1].labelled == ("person", "car", "bus")


def changed(*path: str, value) -> dict:
    values = content()
    entry = values
    for key in path[:-1]:
        entry = entry[key]
    if value is None:
        del entry[path[-1]]
    else:
        entry[path[-1]] = value
    return values


BIG = ("teachers", "big")


def test_names_of_version_0_1_are_read(folder):
    new = content()
    new["predictions"] = "cache"
    old = content()
    old["answers"] = "cache"
    for key in ("pseudo_threshold", "pseudo_threshold_on"):
        old_key = key.replace("pseudo_threshold", "sure")
        old["teachers"]["big"][old_key] = old["teachers"]["big"].pop(key)
    plans = []
    for values in (new, old):
        (folder / "plan.yaml").write_text(yaml.safe_dump(values))
        plans.append(read_plan(folder / "plan.yaml"))
    assert plans[0] == plans[1]
    old["predictions"] = "other"
    (folder / "plan.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(DataError, match="answers is the old name of predictions"):
        read_plan(folder / "plan.yaml")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (changed(*BIG, "classes", value={}), "none of its classes is one of the student's"),
        (changed(*BIG, "classes", value={"autos": "car"}), "'autos', which is none of its"),
        (changed(*BIG, "classes", value={"auto": "tram"}), "to 'tram', which is none of"),
        (changed(*BIG, "sources", value=["streets"]), "source fields teaches nothing"),
        (changed(*BIG, "sources", value=["sky"]), "names no source of this file: sky"),
        (
            changed(*BIG, "pseudo_threshold", value=7),
            "pseudo_threshold must be a number above 0 and at most 1",
        ),
        (
            changed(*BIG, "pseudo_threshold_on", value={"sky": {"car": 0.5}}),
            "which it does not teach",
        ),
        (changed(*BIG, "weigth", value=1), "unknown weigth; known: classes"),
        (changed(*BIG, "weights", value="gone.pt"), "no checkpoint at"),
        (changed(*BIG, "weights", value=["a"]), "weights: expected a path"),
        (changed(*BIG, "sources", value="streets"), "sources: expected a list"),
        (changed(*BIG, "classes", value=["auto"]), "classes: expected key: value"),
        (changed(*BIG, "imgsz", value=10**9), "imgsz: expected 32 to 8192 pixels"),
        (changed(*BIG, "tiles", value="x"), "tiles: expected"),
        (changed("sources", "fields", "crops", value={"size": 10**9}), "≤ 8192"),
        (changed("sources", "fields", "crops", value={"size": float("inf")}), "whole numbers"),
        (changed("sources", "fields", "repeat", value=10**9), "repeat ≤ 1000"),
        (changed("sources", "fields", "images", value="a\x1b[31m"), "control characters"),
        (changed("sources", "fields", "images", value="a" * 300), "at most 255 bytes"),
        (changed("predictions", value="../elsewhere"), "predictions: expected a path in"),
        (changed("predictions", value="/tmp/elsewhere"), "predictions: expected a path in"),
        (changed("names", value=["car", "a\x1b[2Jb"]), "without control"),
        (changed("names", value=["car", "a" * 5000]), "1 to 100 characters"),
        (changed("sources", "fields", "images", value="nothing"), "no image in"),
        (changed("sources", "fields", "images", value="gone"), "gone does not exist"),
        (changed("sources", "fields", "labelled", value=["car"]), "labelled needs labels"),
        (changed("sources", "fields", "crops", value={"size": 8}), "expected size ≥ 32"),
        (changed("sources", "streets", "labelled", value=["bus"]), "to which no label maps"),
        (changed("sources", "streets", "data", value="gone.yaml"), "no data.yaml at"),
        (changed("sources", "streets", value=None), "nothing can be evaluated"),
        (changed("names", value=None), "lacks names"),
        (changed("names", value=["car", "car"]), "must be unique"),
    ],
)
def test_invalid_plan_is_refused_in_one_line(folder, values, expected, capsys):
    if "streets" not in values["sources"]:
        values["teachers"]["big"] |= {"sources": ["fields"], "pseudo_threshold_on": {}}
    path = write(folder, values)
    output = folder / "out"
    command = ["distill", "--teachers", str(path), "--student", "aerial-student.yaml"]
    assert main([*command, "--output", str(output)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and expected in error, error
    assert not output.exists()


@pytest.mark.parametrize("kind", ["sources", "teachers"])
@pytest.mark.parametrize(
    "name",
    ["../out", "/tmp/out", "a/b", "..", ".hidden", "a\\b", "a\x1b[31mb", "a\nb", "*", "con.x",
     " a", "a.", "", "\u202egnp", "x" * 101, "x" * 5000],
)  # fmt: skip
def test_name_that_cannot_begin_a_file_name_is_refused(folder, kind, name):
    """Frames and cached predictions are named after sources and teachers."""
    values = content()
    values[kind][name] = values[kind].pop(next(iter(values[kind])))
    with pytest.raises(ValueError, match=f"{kind}: expected a name") as error:
        read_plan(write(folder, values))
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_contradicting_class_mappings_are_refused(folder):
    """Within one mapping (where yaml itself would take the last), and between two."""
    path = write(folder, content())
    twice = path.read_text().replace("human: person", "human: person\\n      human: car")
    path.write_text(twice.replace("\\n", "\n"))
    with pytest.raises(ValueError, match="'human' is given twice: as 'person' and as 'car'"):
        read_plan(path)
    values = content()
    save_checkpoint(folder / "other.pt", names=("car", "man"))
    values["teachers"]["other"] = {
        "weights": "other.pt", "sources": ["fields"], "classes": {"car": "bus", "man": "person"},
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"maps 'car' to 'bus', but .*source streets to 'car'"):
        read_plan(write(folder, values))


def test_image_in_train_and_val_is_refused(folder):
    data = yaml.safe_load((folder / "streets" / "data.yaml").read_text())
    (folder / "streets" / "same.yaml").write_text(yaml.safe_dump({**data, "val": "images/train"}))
    values = content()
    values["sources"]["streets"]["data"] = "streets/same.yaml"
    with pytest.raises(ValueError, match=r"000\.png is in both train and val"):
        read_plan(write(folder, values))


def test_teacher_and_teachers_exclude_each_other(folder, capsys):
    command = ["distill", "--teachers", "t.yaml", "--teacher", "t.pt", "--student", "s.yaml"]
    assert main([*command, "--output", str(folder / "out")]) == 2
    assert "or --teachers instead of these" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["[a, b]", "{a: b}"])
def test_key_of_a_plan_that_is_no_name_is_refused(key, tmp_path):
    (tmp_path / "plan.yaml").write_text(f"names: [car]\nsources:\n  ? {key}\n  : {{images: x}}\n")
    with pytest.raises(ValueError, match="expected a name as key"):
        read_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize("scales", [(), (1,) * 101])
def test_windows_have_a_limited_number_of_scales(scales):
    with pytest.raises(ValueError, match="some scales"):
        Crops(64, scales)
