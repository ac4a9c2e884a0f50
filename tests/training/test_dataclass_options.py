import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from drone_kd_training.dataclass_options import (
    add_config_options,
    add_option,
    from_arguments,
    option,
    read_value,
)


@dataclass(frozen=True)
class Settings:
    name: str = option(help="required")
    size: int | None = option(None, help="a number or none")
    share: float = option(0.5, help="a share", group="more", metavar="SHARE")
    kind: str = option("a", help="one of some", choices=("a", "b"))
    check: bool = option(True, help="on by default")
    tiles: bool = option(False, help="off by default")
    terms: tuple[str, ...] = option(("x", "y"), help="names")
    overrides: Mapping[str, object] = option(factory=dict, flag="--set", help="pairs")
    hidden: int = 3


@pytest.fixture
def parse():
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_config_options(parser, Settings)
    return lambda *typed: from_arguments(Settings, parser.parse_args(typed))


def test_defaults_are_those_of_the_class(parse):
    assert parse("--name", "n") == Settings("n")


def test_values_have_the_types_of_the_fields(parse):
    typed = ["--name", "n", "--size", "3", "--share", "0.25", "--kind", "b", "--no-check"]
    typed += ["--tiles", "--terms", "p,q,r", "--set", "lr0=1e-3", "--set", "mosaic=0"]
    overrides = {"lr0": 0.001, "mosaic": 0}
    assert parse(*typed) == Settings("n", 3, 0.25, "b", False, True, ("p", "q", "r"), overrides)
    assert parse("--name", "n").overrides == {}  # no parse changes the default of the next


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["--kind", "c"], "invalid choice"),
        (["--share", "much"], "invalid float"),
        (["--set", "lr0"], "expected KEY=VALUE, got 'lr0'"),
        (["--set", "=1"], "expected KEY=VALUE, got '=1'"),
        (["--size", "1.5"], "invalid int"),
    ],
)
def test_wrong_values_are_refused(typed, says, parse):
    with pytest.raises(argparse.ArgumentError, match=says):
        parse("--name", "n", *typed)


def test_fields_can_be_left_out_changed_and_grouped():
    parser = argparse.ArgumentParser()
    changes = {"name": {"required": False, "default": "nobody"}}
    groups = add_config_options(parser, Settings, omit=("size",), changes=changes)
    assert list(groups) == ["", "more"] and groups["more"].title == "more"
    arguments = parser.parse_args([])
    assert not hasattr(arguments, "size") and not hasattr(arguments, "hidden")
    assert from_arguments(Settings, arguments, size=8) == Settings("nobody", 8)


def test_one_field_goes_into_any_group():
    parser = argparse.ArgumentParser()
    either = parser.add_mutually_exclusive_group(required=True)
    add_option(either, Settings, "name", required=False)
    either.add_argument("--from")
    assert parser.parse_args(["--name", "n"]).name == "n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("True", True),
        ("AdamW", "AdamW"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_settings_are_read_as_yaml(text, value):
    assert read_value(text) == value
