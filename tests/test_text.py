import io
import unicodedata

import pytest

import class_names
from drone_kd.text import PrintableStream, is_plain, one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\t c", "a b c"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("car\u202egpj.exe", "car\\u202egpj.exe"),
        ("\ud800", "\\ud800"),
        ("größe 车", "größe 车"),
        ("", ""),
        (ValueError("no\nway"), "no way"),
        ("a\x85\u2028b\u2029c", "a b c"),
        ("\ue000\u0378", "\\ue000\\u0378"),  # for private use, unassigned
    ],
)
def test_text_becomes_one_printable_line(text, line):
    assert one_line(text) == line


@pytest.mark.parametrize("text", ["x" * 5_000_000, "\x1b" * 5_000_000, "x " * 5_000_000])
def test_long_text_is_cut_before_the_work(text, monkeypatch):
    category, seen = unicodedata.category, []
    monkeypatch.setattr(unicodedata, "category", lambda c: seen.append(c) or category(c))
    line = one_line(text, 50)
    assert len(seen) < 1000
    assert len(line) == 50
    assert line.endswith("…")


def test_text_at_the_limit_is_complete():
    assert one_line("x" * 50, 50) == "x" * 50


@pytest.mark.parametrize(
    "text", ["", "car", "two words", "Größe", "车", "🚗", *class_names.UNUSUAL]
)
def test_plain_text(text):
    assert is_plain(text)


@pytest.mark.parametrize(
    "text",
    ["\x1b[0m", "a\nb", "\ud800", "\u202e", "a\x00", "\x7f", "\u2028", "\u2029"]
    + ["\ufeff", "\u2066", "\u200f"],
)
def test_text_that_is_not_plain(text):
    assert not is_plain(text)


def test_stream_escapes_what_does_not_print():
    stream = io.StringIO()
    output = PrintableStream(stream)
    print("größe\t车\r", "a\x1b[2J\u202e", file=output)
    print("\ud800", file=output)
    assert stream.getvalue() == "größe\t车\\r a\\x1b[2J\\u202e\n\\ud800\n"


def test_nested_containers_are_shown_with_their_first_values_only():
    """Whole, these 40 lists would be 10 TB of text."""
    value = ["x", "x"]
    for _ in range(40):
        value = [value, value]
    assert one_line(value).isprintable() and len(one_line(value)) <= 200
    assert (
        one_line({0: value, 1: [1, "a"]}) == "{0: [[[...], [...]], [[...], [...]]], 1: [1, 'a']}"
    )
    assert one_line([1, 0.5, "a"]) == "[1, 0.5, 'a']"
