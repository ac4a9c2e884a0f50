# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables from CSV files."""

import pytest

from benchmarks import tables
from benchmarks.result_tables import TABLES
from benchmarks.tables import Table
from drone_kd_training.distillation.arm_figures import ratio_interval, summarise


def render(table, folder):
    """Return a table as a page shows it."""
    return tables.markdown(tables.cells(table, folder))


ARMS = """arm,seed,map50_95,seconds
teacher,,0.5,
plain,0,0.1,10
plain,1,0.2,20
ours,0,0.2,15
ours,1,0.4,30
single,0,0.2,20
"""


@pytest.fixture
def arms(tmp_path):
    (tmp_path / "arms.csv").write_text(ARMS, encoding="utf-8")
    return tmp_path


def cells(text: str) -> dict[str, list[str]]:
    """Return the cells of each line by its first one."""
    rows = [line[2:-2].split(" | ") for line in text.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


def test_a_csv_as_it_is(tmp_path):
    (tmp_path / "a.csv").write_text('what,"p50, ms"\na|b,1.50\n', encoding="utf-8")
    assert render(Table("a"), tmp_path) == "| what | p50, ms |\n| --- | --- |\n| a\\|b | 1.50 |\n"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{map50_95:mean}", "30.0 ± 14.1"),
        ("{map50_95:points}", "30.0"),
        ("{map50_95:each}", "20.0, 40.0"),
        ("{map50_95:gains plain}", "+10.0, +20.0"),
        ("{map50_95:gain plain}", "+15.0 [-48.5, +78.5]"),  # t(1) = 12.706, error 5
        ("{map50_95:lead plain}", "-15.0 [-78.5, +48.5]"),
        ("{map50_95:holm plain}", "0.20"),  # t = 3 with one degree of freedom; single has one pair
        ("{map50_95:gain single}", "+0.0"),  # one pair: no interval
        ("{map50_95:gain ours}", ""),
        ("{map50_95:share plain}", "43 %"),  # the gap scatters too much for an interval
        ("{map50_95:of plain}", "200 %"),
        ("{map50_95:times single}", "1.00"),
        ("{map50_95:minus plain}", "+0.15"),
        ("{map50_95:range}", "20.0 to 40.0"),
        ("{seconds:ratio plain}", "1.50"),
        ("{seconds:.1f}", "22.5"),
        ("{map50_95:n}", "2"),
        ("{seconds:signs}", "+1500.0, +3000.0"),
    ],
)
def test_formats(arms, template, expected):
    table = Table("arms", {"arm": "{arm}", "value": template}, by=("arm",))
    assert cells(render(table, arms))["ours"] == [expected]


def test_runs_of_one_seed_count_once(arms):
    with (arms / "arms.csv").open("a", encoding="utf-8") as file:
        file.write("ours,0,0.4,15\n")
    table = Table("arms", {"arm": "{arm}", "gains": "{map50_95:gains plain}"}, by=("arm",))
    assert cells(render(table, arms))["ours"] == ["+20.0, +20.0"]


def test_runs_without_a_score_do_not_count(arms):
    with (arms / "arms.csv").open("a", encoding="utf-8") as file:
        file.write("ours,1,0.4,15\nours,2,,15\n")
    columns = {"arm": "{arm}", "runs": "{seed:n}", "seeds": "{map50_95:units}"}
    found = cells(render(Table("arms", columns, by=("arm",)), arms))
    assert found["ours"] == ["4", "2"]
    assert found["teacher"] == ["", ""]


@pytest.mark.parametrize(("teacher", "shown"), [(0.5, True), (0.33, False)])
def test_gap_share_is_that_of_compare(teacher, shown, tmp_path):
    scores = {"plain": [0.30, 0.31, 0.32], "ours": [0.34, 0.35, 0.37]}
    rows = [
        {"arm": arm, "seed": seed, "map50_95": score, "map50": 0.5, "steps": 1, "seconds": 1.0}
        for arm, own in scores.items()
        for seed, score in enumerate(own)
    ]
    lines = [f"{row['arm']},{row['seed']},{row['map50_95']}" for row in rows]
    text = "\n".join(["arm,seed,map50_95", f"teacher,,{teacher}", *lines])
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    table = Table("a", {"arm": "{arm}", "share": "{map50_95:share plain}"}, by=("arm",))
    _, ours = summarise(rows, teacher, "plain", "seed")
    assert (ours.gap_share is not None) == shown
    expected = ""
    if ours.gap_share and ours.gap_share_interval:
        low, high = (100 * limit for limit in ours.gap_share_interval)
        expected = f"{100 * ours.gap_share:.0f} % [{low:.0f}, {high:.0f}]"
    assert cells(render(table, tmp_path))["ours"] == [expected]


def test_arms_as_columns(arms):
    columns = {"seed": "{seed}", "plain": "{map50_95[plain]:points}"}
    columns["gain"] = "{map50_95[single]:gain plain}"
    table = Table("arms", columns, where={"seed": ("0", "1")}, by=("seed",))
    assert cells(render(table, arms)) == {"0": ["10.0", "+10.0"], "1": ["20.0", ""]}


def test_differences_and_counts(tmp_path):
    (tmp_path / "a.csv").write_text(
        "arm,before,after,accepted\na,0.1,0.3,True\na,0.2,0.3,False\n", encoding="utf-8"
    )
    columns = {"arm": "{arm}", "gain": "{gain:signed} [{gain:signs}]", "ok": "{accepted:true}"}
    table = Table(
        "a", columns, by=("arm",), differences={"gain": ("after", "before")}, names={"a": "A"}
    )
    assert cells(render(table, tmp_path)) == {"A": ["+15.0 [+20.0, +10.0]", "1 of 2"]}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{seed}", "arms, seed: expected one value, got"),
        ("{map50_95:of none}", "arms: expected rows of 'none', got none"),
        ("{loss:mean}", "arms: expected a column 'loss', got arm, seed, map50_95, seconds"),
        ("{arm:mean}", "arms, arm: expected a number, got 'teacher'"),
        ("{zero:ratio plain}", "arms, zero: expected a divisor, got 0"),
        ("{zero:times plain}", "arms, zero: expected a divisor, got 0"),
        ("{zero:of plain}", "arms, zero: expected a divisor, got 0"),
    ],
)
def test_a_template_that_does_not_fit(arms, template, message):
    lines = (arms / "arms.csv").read_text(encoding="utf-8").splitlines()
    if "zero" in template:
        lines = [f"{lines[0]},zero", *(f"{line},0" for line in lines[1:])]
    (arms / "arms.csv").write_text("\n".join(lines), encoding="utf-8")
    table = Table("arms", {"arm": "{arm}", "value": template}, by=("arm",))
    with pytest.raises(ValueError, match=message):
        render(table, arms)


def test_few_labels_of_other_budgets_are_lines_of_their_own(tmp_path):
    (tmp_path / "distillation").mkdir()
    head = "arm,subset,labelled_frames,steps,map50_95,map50,ap_small,ap_medium"
    lines = [head, "teacher,,,,0.6,0.8,0.5,0.7"]
    for labels, steps, gain in (5, 1000, 0.1), (5, 500, 0.05), (20, 1000, 0.02):
        for subset in range(3):
            alone = 0.3 + 0.01 * labels + 0.01 * subset
            for arm, score in (("few", alone), ("ours", alone + gain)):
                lines.append(f"{arm},{subset},{labels},{steps},{score},0.5,0.1,0.2")
    file = tmp_path / "distillation/few-labels.csv"
    file.write_text("\n".join(lines), encoding="utf-8")
    means = render(TABLES["few-labels-means"], tmp_path)
    rows = [line.split(" | ") for line in means.splitlines() if line.startswith("| ours")]
    assert [(row[1], row[2], row[3], row[5].split()[0]) for row in rows] == [
        ("5", "1000", "3", "+10.0"),
        ("5", "500", "3", "+5.0"),
        ("20", "1000", "3", "+2.0"),
    ]
    assert len(render(TABLES["few-labels"], tmp_path).splitlines()) == 2 + 9


@pytest.mark.parametrize("value", ["nan", "inf", "1,000", "x"])
def test_a_value_that_is_no_number(tmp_path, value):
    (tmp_path / "a.csv").write_text(f'arm,gain\na,"{value}"\n', encoding="utf-8")
    table = Table("a", {"arm": "{arm}", "gain": "{gain:mean}"}, by=("arm",))
    with pytest.raises(ValueError, match=f"a, gain: expected a number, got '{value}'"):
        render(table, tmp_path)


def test_a_ratio_has_its_interval(tmp_path):
    rows = [("a", 2.1), ("a", 2.4), ("a", 2.3), ("b", 2.0), ("b", 2.1), ("b", 2.2)]
    lines = [f"{arm},{number % 3},{value}" for number, (arm, value) in enumerate(rows)]
    (tmp_path / "a.csv").write_text("\n".join(["arm,seed,gain", *lines]), encoding="utf-8")
    table = Table("a", {"arm": "{arm}", "ratio": "{gain:times b}"}, by=("arm",))
    low, high = ratio_interval([2.1, 2.4, 2.3], [2.0, 2.1, 2.2])
    assert low < 1.08 < high
    assert cells(render(table, tmp_path))["a"] == [f"1.08 [{low:.2f}, {high:.2f}]"]
