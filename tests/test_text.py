import unicodedata

import pytest

from drone_kd.text import is_plain, one_line


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


@pytest.mark.parametrize("text", ["", "car", "two words", "Größe", "车", "🚗"])
def test_plain_text(text):
    assert is_plain(text)


@pytest.mark.parametrize(
    "text",
    ["\x1b[0m", "a\nb", "\ud800", "\u202e", "a\x00", "\x7f", "\u2028", "\u2029"]
    + ["\ue000", "\u0378", "\U000f0000"],
)
def test_text_that_is_not_plain(text):
    assert not is_plain(text)
