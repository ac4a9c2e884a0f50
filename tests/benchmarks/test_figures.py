"""Measured figures in a text."""

import pytest

from benchmarks.figures import by_link, in_tables, measured


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("mAP of 32.9 against 22.2", ["32.9", "22.2"]),
        ("gains +2.0 [-1.3, +5.3] in three seeds", ["+2.0 [-1.3, +5.3]"]),
        ("42 % of 3 seeds, 8 ms, 7 \u00d7, 1,500 MB", ["42", "8", "7", "1,500"]),
        ("12 of 18 buses", ["12"]),
        ("0.35, then 49.", ["0.35"]),
        ("320 px, seeds 0 1 2, 640x640, 2026-11-30, 18:19", []),
        ("Fast DDS 2.14.3 at 127.0.0.1 and `lr0=0.002`", []),
        ("## 3.4 M parameters\n\n    command --lr 0.01\n\n```\n0.5 %\n```", []),
        ("[table 0.5](export.md#0.7)", ["0.5"]),
        ("<!-- table: a -->\n\n| 1.5 |\n\n<!-- end -->\n<!-- 2.5 -->", []),
    ],
)
def test_measured_figures(text, figures):
    assert [figure.text for figure in measured(text, "docs")] == figures


def test_a_figure_has_its_line_and_the_pages_linked_beside_it():
    text = (
        "# Title\n\nSpeed 1.5\n([node](../benchmarks/node.md)).\n\n"
        "| [a](../benchmarks/export.md#start) | 2.5 |\n| b | 3.5 |\n\n[guide](export.md) 4.5\n"
    )
    assert [(f.line, f.text, set(f.pages)) for f in measured(text, "docs")] == [
        (3, "1.5", {"node"}),
        (6, "2.5", {"export#start"}),
        (7, "3.5", {"node"}),
        (9, "4.5", set()),
    ]


def test_a_figure_has_the_numbers_of_its_section_and_the_summary_those_of_the_page():
    table = "<!-- table: {} -->\n\n| {} |\n\n<!-- end -->\n"
    page = f"# T\n9.1\n## A\n9.2\n{table.format('a', '1.5')}## B\n9.3\n{table.format('b', '2.5')}"
    assert [(f.line, f.text, set(f.own)) for f in measured(page, "benchmarks")] == [
        (2, "9.1", {"1.5", "2.5"}),
        (4, "9.2", {"1.5"}),
        (11, "9.3", {"2.5"}),
    ]


def test_a_link_names_a_page_or_a_section():
    page = "# T\n## A (b)\n<!-- table: a -->\n\n| 1.5 |\n\n<!-- end -->\n## C\n"
    found = {name: set(numbers) for name, numbers in by_link("x", page).items()}
    assert found == {"x": {"1.5"}, "x#a-b": {"1.5"}, "x#c": set()}
    (figure,) = measured("2.5 ([a](x.md#c))", "benchmarks")
    assert figure.pages == {"x#c"}
    (figure,) = measured("[x](x.md), 2.5 ([a](x.md#c))", "benchmarks")
    assert figure.pages == {"x#c"}


def test_numbers_of_tables_with_and_without_sign():
    page = "1.0\n<!-- table: a -->\n\n| -0.35 | 1,491 | 24.6 (23.0 to 26.1) |\n\n<!-- end -->\n"
    assert in_tables(page) == {"-0.35", "0.35", "1,491", "24.6", "23.0", "26.1"}
