# SPDX-License-Identifier: AGPL-3.0-or-later
import json
import shutil
from pathlib import Path

import pytest

from drone_kd_training.data.names import DataError
from drone_kd_training.mining.flight_ledger import JUDGE, LEARN, assign_sides, split_flights


def flight(root: Path, name: str, files: int = 2, suffix: str = ".mcap") -> str:
    """Write a folder of recordings; their content follows from the name."""
    folder = root / name
    folder.mkdir()
    for i in range(files):
        (folder / f"{name}_{i}{suffix}").write_text(f"{name} part {i}")
    (folder / "metadata.yaml").write_text("the same in every flight")
    return str(folder)


@pytest.fixture
def flights(tmp_path) -> list[str]:
    return [flight(tmp_path, f"flight{i}") for i in range(7)]


def test_a_fifth_of_the_flights_judges_and_the_first_one_learns(flights, tmp_path):
    sides = assign_sides(flights, tmp_path / "ledger.json")
    assert [sides[f] for f in flights] == [LEARN, JUDGE, *[LEARN] * 4, JUDGE]


def test_flights_without_a_ledger_have_its_sides_where_five_judge(tmp_path):
    flights = [flight(tmp_path, f"f{number}") for number in range(22)]
    sides = split_flights(flights)
    assert sides == assign_sides(flights, tmp_path / "ledger.json")
    assert [*sides.values()].count(JUDGE) == 5
    assert split_flights(flights[:21]) == {}


def test_flight_keeps_its_side_as_a_folder_as_its_files_and_renamed(flights, tmp_path):
    ledger = tmp_path / "ledger.json"
    sides = assign_sides(flights, ledger)
    written = ledger.read_bytes()
    files = {str(file): sides[f] for f in flights for file in sorted(Path(f).glob("*.mcap"))}
    assert assign_sides(list(reversed(files)), ledger) == files
    renamed = shutil.copytree(flights[1], tmp_path / "renamed")
    for i, file in enumerate(sorted(renamed.glob("*.mcap"))):
        file.rename(renamed / f"x{i}.mcap")
    assert assign_sides([str(renamed)], ledger) == {str(renamed): JUDGE}
    assert ledger.read_bytes() == written
    # Its first file alone came first: the rest of the flight follows.
    other, part = tmp_path / "other.json", sorted(Path(flights[0]).glob("*.mcap"))[0]
    assert assign_sides([str(part)], other) == {str(part): LEARN}
    assert assign_sides([flights[0], flights[2]], other) == {flights[0]: LEARN, flights[2]: JUDGE}
    assert len(json.loads(other.read_text())["flights"]) == 2


def test_images_of_a_flight_are_known_in_another_folder(tmp_path):
    whole = flight(tmp_path, "images", files=6, suffix=".jpg")
    ledger = tmp_path / "ledger.json"
    assign_sides([flight(tmp_path, "first"), whole], ledger)
    half = tmp_path / "half"
    half.mkdir()
    for file in sorted(Path(whole).glob("*.jpg"))[3:]:
        shutil.copyfile(file, half / file.name)
    assert assign_sides([str(half)], ledger) == {str(half): JUDGE}


def test_folder_with_flights_of_both_sides_is_refused(flights, tmp_path):
    ledger = tmp_path / "ledger.json"
    assign_sides(flights, ledger)
    written = ledger.read_bytes()
    both = tmp_path / "both"
    both.mkdir()
    for f in flights[:2]:
        shutil.copytree(f, both / Path(f).name)
    with pytest.raises(DataError, match="mine them one by one"):
        assign_sides([str(both)], ledger)
    assert ledger.read_bytes() == written


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": 2, "flights": []}',
        '{"format": 1, "flights": [{"side": 1}]}',
        '{"format": 1, "flights": [{"side": "both", "files": []}]}',
        "\0",
    ],
)
def test_another_file_is_no_ledger(content, flights, tmp_path):
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(DataError, match="expected a ledger of flights"):
        assign_sides(flights, file)
    assert file.read_text() == content
