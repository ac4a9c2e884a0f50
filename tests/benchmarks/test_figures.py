"""Measured figures in a text, and what they must be."""

import pytest

from benchmarks.figures import Source, compare, measured, sources

TABLES = {
    "a": [
        ["arm", "alpha", "gain", "time"],
        ["ours", "0", "+2.0 [-1.3, +5.3]", "49, 55"],
        ["ours", "1", "-0.35", "none"],
    ]
}
COLUMNS = ("page", "table", "row", "column", "number", "figure", "reason")


def row(text: str) -> dict[str, str]:
    """Return a row of cited.csv; its cells are parted by semicolons."""
    return dict(zip(COLUMNS, text.split(";"), strict=True))


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("mAP of 32.9 against 22.2", ["32.9", "22.2"]),
        ("gains +2.0 [-1.3, +5.3] in three seeds", ["+2.0 [-1.3, +5.3]"]),
        ("42 % of 3 seeds, 8 ms, 7 \u00d7, 1,500 MB", ["42", "8", "7", "1,500"]),
        ("78 to 81 % and 3 to 5 seeds", ["78", "81"]),
        ("12 of 18 buses", ["12"]),
        ("0.35, then 49.", ["0.35"]),
        ("320 px, seeds 0 1 2, 640x640, 2026-11-30, 18:19", []),
        ("Fast DDS 2.14.3 at 127.0.0.1 and `lr0=0.002`", []),
        (
            "18 minutes, 1 GB for 4 to 60 min, 30 Hz, 12 fps, 25 s, 2 hours, 3 x, 5 percent",
            ["18", "1", "4", "60", "30", "12", "25", "2", "3", "5"],
        ),
        ("640 x 480, 3 seeds, 40 steps, 25 scenes, 7 Git", []),
        ("Loses 17\n% of it, 3\nto 5 ms, 8 seeds\n\n% 9\n\nms", ["17", "3", "5"]),
        ("## 3.4 M parameters, 60 s\n\n    command --lr 0.01\n\n```\n0.5 %\n```", ["3.4", "60"]),
        ("[table 0.5](export.md#0.7)", ["0.5"]),
        ("<!-- table: a -->\n\n| 1.5 |\n\n<!-- end -->\n<!-- 2.5 -->", []),
    ],
)
def test_measured_figures(text, figures):
    found = list(measured(text))
    assert [figure.text for figure in found] == figures
    for figure in found:
        line = text.splitlines()[figure.line - 1]
        assert line[figure.start :].startswith(figure.text)


def test_a_figure_has_its_line_and_whether_its_paragraph_links_a_results_page():
    text = (
        "# Title\n\nSpeed 1.5\n([node](../benchmarks/node.md)).\n\n"
        "| [a](../../benchmarks/export.md#start) | 2.5 |\n| b | 3.5 |\n\n[guide](export.md) 4.5\n"
    )
    assert [(f.line, f.text, f.linked) for f in measured(text)] == [
        (3, "1.5", True),
        (6, "2.5", True),
        (7, "3.5", True),
        (9, "4.5", False),
    ]


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("p;a;ours | 0;gain;;;", ("+2.0", "2.0", "+2.0 [-1.3, +5.3]")),
        ("p;a;ours | 0;gain;3;;", ("+5.3", "5.3")),
        ("p;a;ours | 0;time;2;;", ("55", "55")),
        ("p;a;ours | 1;gain;;;", ("-0.35", "0.35")),
    ],
)
def test_a_row_names_one_number_of_a_table(line, texts):
    (found,) = sources(row(line), TABLES)
    assert found.texts == texts


def test_a_figure_without_a_table_stands_in_the_row():
    found = list(sources(row("p;;;;;3.10 3.13;versions"), TABLES))
    assert found == [Source("versions", ("3.10",)), Source("versions", ("3.13",))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("p;b;ours;gain;;;", "table b, .*: expected a table of a page, got none"),
        ("p;a;ours;gain;;;", "expected one row and a column of arm, .*, got 2 rows"),
        ("p;a;other;gain;;;", "got 0 rows"),
        ("p;a;ours | 0;loss;;;", "expected one row and a column of arm, alpha, gain, time"),
        ("p;a;ours | 0;time;3;;", "expected number 3 in '49, 55'"),
        ("p;a;ours | 0;time;x;;", "expected a place from 1 in the column number, got 'x'"),
        ("p;a;ours | 1;time;;;", "expected number 1 in 'none'"),
        ("p;;;;;95;", "expected a table, or a figure and a reason"),
    ],
)
def test_a_row_that_names_no_number_is_one_line(line, message):
    with pytest.raises(ValueError, match=message) as error:
        list(sources(row(line), TABLES))
    assert "\n" not in str(error.value)


TWO = [Source("here", ("1.5",)), Source("there", ("-2.5", "2.5"))]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("1.5 and\n2.5", []),
        ("1.5 and\n2.6", ["p.md:2: expected -2.5 (there), got 2.6; correct"]),
        (
            "2.5 and 1.5",
            ["p.md:1: expected 1.5 (here), got 2.5;", "p.md:1: expected -2.5 (there), got 1.5;"],
        ),
        ("1.5 and 0.5 and 2.5", ["p.md: expected 2 figures, as in cited.csv, got 3; the first "
                                 "difference is at line 1, 0.5, its row: there;"]),
        ("1.5", ["p.md: expected 2 figures, as in cited.csv, got 1; the first difference is at "
                 "its end, its row: there;"]),
    ],
)  # fmt: skip
def test_figures_are_compared_in_their_order(text, lines):
    found = list(compare("p.md", text, TWO, guide=False))
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(start)


def test_a_figure_of_a_guide_counts_beside_a_link():
    text = "9.5\n\n1.5 and 2.5 ([measured](../../benchmarks/node.md#start))\n"
    assert list(compare("docs/p.md", text, TWO, guide=True)) == []
    (found,) = compare("docs/p.md", text, TWO, guide=False)
    assert "got 3" in found
