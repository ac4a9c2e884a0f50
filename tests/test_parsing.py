import io
import os
from pathlib import Path

import pytest
import yaml

from drone_kd import parsing
from drone_kd.parsing import ParseError, parse_json, parse_yaml, read_json, read_limited, read_yaml


def test_files_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, NaN]}')
    (tmp_path / "a.yaml").write_text("a: [1, two]\n")
    assert read_json(tmp_path / "a.json")["a"][0] == 1
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, "two"]}


def test_a_file_at_the_limit_is_read_and_a_larger_one_is_not(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(ParseError, match=r"file: expected at most 4e-06 MB, got more"):
        read_limited(path, 4)


def test_a_file_that_grows_is_not_read_past_the_limit():
    """The kernel's files declare no size, as a file that was empty a moment ago."""
    assert Path("/proc/self/status").stat().st_size == 0
    with pytest.raises(ParseError, match=r"status: expected at most 1e-05 MB, got more"):
        read_limited("/proc/self/status", 10)


def test_a_file_of_the_kernel_without_data_is_empty(tmp_path, monkeypatch):
    """Such as /proc/kmsg, which only root may open."""

    class Silent(io.BytesIO):
        def fileno(self):
            return 0

        def read(self, *_):
            return None

    monkeypatch.setattr(parsing, "open_regular", lambda _: Silent())
    assert read_limited(tmp_path) == b""


def test_yaml_has_a_limit_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("yaml.compose", pytest.fail)
    path = tmp_path / "a.yaml"
    with path.open("wb") as file:
        file.truncate(4_000_001)
    with pytest.raises(ParseError, match=r"a\.yaml: expected at most 4 MB, got more"):
        read_yaml(path)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(ParseError, match="expected a file, got another kind"):
            read_limited(path)


@pytest.mark.parametrize("name", ["missing", "x" * 5000, "nul\0"])
def test_unusable_names_are_one_short_line(tmp_path, name):
    with pytest.raises(ParseError) as caught:
        read_limited(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_hostile_json_is_one_short_line():
    for content in ("[" * 200_000, "{", b"\xff\xfe\xff", '"\x1b[31m', "9" * 5000):
        with pytest.raises(ParseError, match=r"^f: expected JSON") as caught:
            parse_json(content, "f")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "content",
    [
        "!!python/object/apply:os.system ['true']",
        "a0: &a0 [x, x]\n"
        + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30)),
        "[" * 20_000,
        "a: [",
        b"\xff\xfe\xff",
        "\x1b: 1",
        "&a [*a]",
        "1" * 5000,
        "2024-99-99",
        "? {a: 1}\n: 2",
        "a: 1" + ":1" * 100,
        "a: 1" + ":1" * 100 + ".5",
        "a: !!int '1" + ":1" * 100 + "'",
        "!!bool x",
        "!!timestamp x",
        "!!int ''",
        "!!float ''",
        "? !!bool [x]\n: 1",
        "{2305843009213693951: a}",
    ],
)
def test_hostile_yaml_is_one_short_line(content):
    with pytest.raises(ParseError, match=r"^f: expected YAML") as caught:
        parse_yaml(content, "f")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_numbers_are_read():
    content = "{0: -1.5e-3, 0x10: 1_000, time: 1:30, big: 12345678901234567890, long: '"
    values = parse_yaml(content + "1" * 500 + "'}", "f")
    assert values == {
        0: -1.5e-3, 16: 1000, "time": 90, "big": 12345678901234567890, "long": "1" * 500,
    }  # fmt: skip


def test_aliases_are_read():
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: &c x\nd: *c\n", "f") == {
        "a": [1, 2], "b": [1, 2], "c": "x", "d": "x",
    }  # fmt: skip


def test_an_unsafe_loader_is_a_fault_of_the_caller():
    with pytest.raises(TypeError, match="SafeLoader"):
        parse_yaml("a: 1", "f", yaml.UnsafeLoader)


@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_text_in_latin_1_is_refused_with_the_remedy(parse):
    with pytest.raises(ParseError, match=r"^data: expected \w+ in UTF-8, .*; save it as UTF-8$"):
        parse('{"names": ["grün"]}'.encode("latin-1"), "data")


@pytest.mark.parametrize("text", ["[0, 0, 0, 0]", '[[], {}, {"a": 0}]'])
def test_number_of_json_values_has_a_limit(text, monkeypatch):
    assert parse_json(text, "it", 6) == parse_json(text.encode(), "it", 6)
    monkeypatch.setattr("json.loads", pytest.fail)
    for content in (text, text.encode()):
        with pytest.raises(ParseError, match="it: expected JSON, got too many values"):
            parse_json(content, "it", 3)
