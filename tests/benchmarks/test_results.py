# SPDX-License-Identifier: AGPL-3.0-or-later
"""The results pages agree with their CSV files, and a changed figure is found."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks import results

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (ROOT / "benchmarks").glob("*.md"))


@pytest.fixture
def copy(tmp_path):
    """Return a copy of what is checked."""
    for suffix in ("md", "csv"):
        for source in (*ROOT.glob(f"docs/**/*.{suffix}"), *ROOT.glob(f"benchmarks/**/*.{suffix}")):
            target = tmp_path / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


def test_the_repository_passes():
    assert list(results.check(ROOT)) == []


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("README.md", "| 32.9 |", "| 33.9 |"),
        ("README.md", "+2.0 [-1.3, +5.3]", "+2.0 [+1.3, +5.3]"),  # a sign alone
        ("docs/results.md", "**42 %", "**52 %"),
        ("docs/guides/retrain.md", "1.08 \u00d7", "1.98 \u00d7"),
        ("benchmarks/node.md", "(+1.6 %", "(+0.9 %"),
        ("benchmarks/mining.md", "78 to 81 %", "78 to 91 %"),
        (
            "benchmarks/retraining.md",
            "1.26 \u00d7 what 32",
            "1.14 \u00d7 what 32",
        ),  # of another section
    ],
)
def test_a_changed_figure_in_a_text_is_found_at_its_line(copy, name, before, after):
    change(copy / name, before, after)
    line = (copy / name).read_text(encoding="utf-8").split(after)[0].count("\n") + 1
    figure = max(re.findall(r"[+-]?[\d.]+(?: \[.*?\])?", after), key=lambda f: f not in before)
    (found,) = results.check(copy)
    assert found.startswith(f"{name}:{line}: {figure} is in no table")
    assert "correct it" in found


def test_a_changed_figure_in_a_table_is_found(copy):
    change(copy / "benchmarks/distillation.md", "+2.0 [-1.3, +5.3] |", "+2.0 [+0.1, +3.9] |")
    found = list(results.check(copy))
    assert found[0] == (
        "benchmarks/distillation.md: tables differ from the CSV files; run make results"
    )


def test_a_changed_value_in_a_csv_is_found_and_written(copy):
    change(copy / "benchmarks/distillation/hit-uav-epyc.csv", "distilled,0,0.1", "distilled,0,0.2")
    page = copy / "benchmarks/distillation.md"
    before = page.read_text(encoding="utf-8")
    assert next(iter(results.check(copy))).startswith("benchmarks/distillation.md: tables differ")
    page.write_text(results.written(page), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != before
    assert results.written(page) == page.read_text(encoding="utf-8")


def test_a_table_without_a_command_is_found(copy):
    with (copy / "benchmarks/mining.md").open("a", encoding="utf-8") as page:
        page.write("\n| what | speed |\n|---|---|\n| mined by hand | 8.77 |\n")
    (found,) = results.check(copy)
    assert "mining.md" in found
    assert "8.77" in found


def test_a_csv_without_provenance_is_found(copy):
    (copy / "benchmarks/node/new.csv").write_text("a\n1\n", encoding="utf-8")
    change(copy / "benchmarks/runs.csv", ",4a5cdb3,", ",,")
    new, gap = results.check(copy)
    assert new.startswith("benchmarks/node/new.csv: expected a row in runs.csv, got none")
    assert re.match(r"benchmarks/runs\.csv:\d+: commit: expected a value", gap)


def test_an_exception_that_nothing_needs_is_found(copy):
    with (copy / "benchmarks/unmatched.csv").open("a", encoding="utf-8") as file:
        file.write("README.md,8.88,none\n")
    (found,) = results.check(copy)
    assert found.startswith("benchmarks/unmatched.csv: README.md has no 8.88 without a table")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: node/none -->\n\n\n<!-- end -->", "x.md: table node/none: .*No such file"),
        ("<!-- table: node/start -->\n| a |\n<!-- end -->", "x.md: expected each table as"),
    ],
)
def test_a_broken_block_is_one_line(copy, text, message):
    page = copy / "benchmarks/x.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        results.written(page)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_begins_with_its_summary(name):
    text = (ROOT / "benchmarks" / name).read_text(encoding="utf-8")
    assert re.match(r"# .+\n\n- Compared: (.|\n)+?\n- Result(.|\n)+?\n- Command: ", text)
