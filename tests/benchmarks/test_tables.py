# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables from CSV files."""

import pytest

from benchmarks.tables import Table, render
from drone_kd_training.distillation.arm_figures import ratio_interval

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
        ("{map50_95:share plain}", "43 %"),
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
    ],
)
def test_a_template_that_does_not_fit(arms, template, message):
    table = Table("arms", {"arm": "{arm}", "value": template}, by=("arm",))
    with pytest.raises(ValueError, match=message):
        render(table, arms)


def test_a_ratio_has_its_interval(tmp_path):
    rows = [("a", 2.1), ("a", 2.4), ("a", 2.3), ("b", 2.0), ("b", 2.1), ("b", 2.2)]
    lines = [f"{arm},{number % 3},{value}" for number, (arm, value) in enumerate(rows)]
    (tmp_path / "a.csv").write_text("\n".join(["arm,seed,gain", *lines]), encoding="utf-8")
    table = Table("a", {"arm": "{arm}", "ratio": "{gain:times b}"}, by=("arm",))
    low, high = ratio_interval([2.1, 2.4, 2.3], [2.0, 2.1, 2.2])
    assert low < 1.08 < high
    assert cells(render(table, tmp_path))["a"] == [f"1.08 [{low:.2f}, {high:.2f}]"]
