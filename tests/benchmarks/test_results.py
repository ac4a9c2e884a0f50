# SPDX-License-Identifier: AGPL-3.0-or-later
"""The results pages agree with their CSV files, and a changed figure is found."""

import itertools
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.figures import Figure, measured

ROOT = Path(__file__).resolve().parents[2]
PAGES_NOW = results.Pages(ROOT)
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
        ("README.md", "22.2 (11.3 in", "22.2 (22.2 in"),  # of another row
    ],
)
def test_a_changed_figure_in_a_text_is_found_at_its_line(copy, name, before, after):
    change(copy / name, before, after)
    line = (copy / name).read_text(encoding="utf-8").split(after)[0].count("\n") + 1
    (found,) = results.check(copy)
    assert re.match(rf"{name}:{line}: expected .+ \(table .+, row .+, column .+\), got .+", found)


def cited(name: str) -> list[Figure]:
    """Return the figures of a page that count."""
    guide = results.is_guide(name)
    return [f for f in measured(PAGES_NOW.texts[name]) if f.linked or not guide]


def number(figure: Figure) -> str:
    """Return the number of a figure without its sign and interval."""
    return figure.text.partition(" ")[0].lstrip("+-")


def replaced(text: str, *changes: tuple[Figure, str]) -> str:
    """Return a text with other figures; the last comes first."""
    lines = text.splitlines(keepends=True)
    for figure, new in changes:
        line = lines[figure.line - 1]
        lines[figure.line - 1] = (
            line[: figure.start] + new + line[figure.start + len(figure.text) :]
        )
    return "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, found in PAGES_NOW.sources.items() if found])
def test_every_changed_digit_and_every_swapped_pair_is_found(name):
    figures, text = cited(name), PAGES_NOW.texts[name]
    assert figures
    survivors = []
    for figure in figures:
        for i in (i for i, letter in enumerate(figure.text) if letter.isdigit()):
            digit = (int(figure.text[i]) + 1) % 10
            new = f"{figure.text[:i]}{digit}{figure.text[i + 1 :]}"
            if not list(PAGES_NOW.wrong(name, replaced(text, (figure, new)))):
                survivors.append((figure, new))
    for first, second in itertools.pairwise(figures):
        swapped = replaced(text, (second, first.text), (first, second.text))
        same = number(first) == number(second)  # one of them with its interval
        if not same and not list(PAGES_NOW.wrong(name, swapped)):
            survivors.append((first, second.text))
    assert survivors == []


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("benchmarks/distillation.md", "+2.0 [-1.3, +5.3] |", "+2.0 [+0.1, +3.9] |"),
        ("docs/guides/your-data.md", "| 16.8 | 20.6 |", "| 20.6 | 16.8 |"),
        ("docs/start/robot.md", "| 345 |", "| 344 |"),
    ],
)
def test_a_changed_figure_in_a_table_is_found(copy, name, before, after):
    change(copy / name, before, after)
    (found,) = results.check(copy)
    assert found == f"{name}: tables differ from the CSV files; run make results"


def test_a_changed_value_in_a_csv_is_found_and_written(copy):
    change(copy / "benchmarks/distillation/hit-uav-epyc.csv", "distilled,0,0.1", "distilled,0,0.2")
    page = copy / "benchmarks/distillation.md"
    before = page.read_text(encoding="utf-8")
    assert next(iter(results.check(copy))).startswith("benchmarks/distillation.md: tables differ")
    name = "benchmarks/distillation.md"
    page.write_text(results.Pages(copy).written(name), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != before
    assert results.Pages(copy).written(name) == page.read_text(encoding="utf-8")


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


def test_a_row_of_cited_without_a_figure_is_found(copy):
    with (copy / "benchmarks/cited.csv").open("a", encoding="utf-8") as file:
        file.write("docs/security.md,,,,,8.88,none\n")
    (found,) = results.check(copy)
    assert found.startswith("docs/security.md: expected 1 figures, as in cited.csv, got 0;")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("benchmarks/node/start.csv", b"", "start.csv: expected a header and rows"),
        ("benchmarks/node/start.csv", b"a,b\n", "start.csv: expected a header and rows"),
        ("benchmarks/node/start.csv", b"a\n\xff\n", "start.csv: expected UTF-8, got "),
        ("benchmarks/node/start.csv", b"a\n" + b"1" * 200_000, "start.csv: expected CSV, got"),
        ("benchmarks/selection.csv", b"a\n1\n", "selection.csv: expected a column 'selection'"),
        ("benchmarks/retraining.csv", b"a\n1\n", "retraining.csv: expected a column 'arm'"),
        ("benchmarks/simulation/dds.csv", b"a\n1\n", "simulation/dds: expected a column 'fli"),
        ("benchmarks/runs.csv", b"a\n1\n", "runs.csv: expected a column 'run'"),
        ("benchmarks/cited.csv", b"page\nx\n", "cited.csv: expected a column 'table'"),
        ("benchmarks/node.md", b"\xff", "node.md: expected UTF-8"),
        ("README.md", b"\xff", "README.md: expected UTF-8"),
    ],
)
def test_a_broken_file_is_one_line(copy, monkeypatch, capsys, name, content, message):
    (copy / name).write_bytes(content)
    monkeypatch.setattr(results, "ROOT", copy)
    for arguments in (["--check"], []):
        if name.endswith("cited.csv") and not arguments:
            continue  # only the check reads it
        if name.endswith("runs.csv") and not arguments:
            continue
        assert results.main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


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
        results.Pages(copy).written("benchmarks/x.md")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_begins_with_its_summary(name):
    text = (ROOT / "benchmarks" / name).read_text(encoding="utf-8")
    assert re.match(r"# .+\n\n- Compared: (.|\n)+?\n- Result(.|\n)+?\n- Command: ", text)
