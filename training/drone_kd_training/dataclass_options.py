# SPDX-License-Identifier: AGPL-3.0-or-later
"""Command-line options from the fields of a configuration class.

A field made with `option` becomes ``--its-name``; its default is written in the class alone.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from drone_kd.parsing import parse_yaml

T = TypeVar("T")
Container = argparse._ActionsContainer


def option(
    default: Any = MISSING,
    *,
    help: str,
    factory: Callable[[], Any] | None = None,
    group: str = "",
    flag: str = "",
    aliases: Collection[str] = (),
    **settings: Any,
) -> Any:
    """Return a dataclass field that `add_config_options` makes an option of.

    Without a default (or a ``factory`` of a mutable one) the option is required. ``group``: title
    of its argument group. ``flag``: default ``--`` and the field's name. ``aliases``: other flags,
    which no help shows. ``settings``: of
    `argparse.ArgumentParser.add_argument`, e.g. metavar or choices.
    """
    metadata = {
        "help": help,
        "group": group,
        "flag": flag,
        "aliases": aliases,
        "settings": settings,
    }
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def add_config_options(
    parser: argparse.ArgumentParser,
    config: type,
    *,
    omit: Collection[str] = (),
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Container]:
    """Add an option for every field of a configuration class that was made with `option`.

    ``omit``: names of fields without an option. ``changes``: field name to settings of
    `add_option` that differ from the class. Returns title to argument group, for further options.
    """
    groups: dict[str, Container] = {}
    for item in fields(config):
        if item.name in omit or "help" not in item.metadata:
            continue
        title = item.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title) if title else parser
        add_option(groups[title], config, item.name, **(changes or {}).get(item.name, {}))
    return groups


def add_option(container: Container, config: type, name: str, **changes: Any) -> None:
    """Add the option of one field; ``changes`` are settings of `add_argument` that differ."""
    item = next(item for item in fields(config) if item.name == name)
    flag = item.metadata["flag"] or f"--{name.replace('_', '-')}"
    settings: dict[str, Any] = {"dest": name, "help": item.metadata["help"]}
    if item.default_factory is not MISSING:
        settings["default"] = item.default_factory()
    elif item.default is not MISSING:
        settings["default"] = item.default
    else:
        settings["required"] = True
    settings |= _by_type(get_type_hints(config)[name], item)
    container.add_argument(flag, **settings | item.metadata["settings"] | changes)
    for alias in item.metadata["aliases"]:
        hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        container.add_argument(alias, **settings | item.metadata["settings"] | changes | hidden)


def from_arguments(config: type[T], arguments: argparse.Namespace, **changes: Any) -> T:
    """Return the configuration that parsed arguments describe; ``changes`` have precedence.

    Raises ValueError if the configuration refuses a value.
    """
    names = [item.name for item in fields(config)]  # type: ignore[arg-type]
    given = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    return config(**given | changes)


def read_value(text: str) -> object:
    """Read a setting as YAML does, and 1e-3, which YAML takes for text, as a number.

    ParseError if it is no YAML.
    """
    value = parse_yaml(text, text)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _by_type(hint: Any, item: Field) -> dict[str, Any]:
    """Return the settings of `add_argument` that follow from a field's type."""
    if hint is bool:
        on = item.default is True
        return {"action": argparse.BooleanOptionalAction if on else "store_true"}
    if get_origin(hint) is Mapping:
        return {"action": _AddPair, "metavar": "KEY=VALUE"}
    if hint == tuple[str, ...] and "nargs" in item.metadata["settings"]:
        return {"type": str}
    if hint == tuple[str, ...]:
        return {"type": lambda text: tuple(text.split(","))}
    known: tuple[Callable[[str], Any], ...] = (int, float, str)
    return {"type": next(kind for kind in known if kind in (hint, *get_args(hint)))}


class _AddPair(argparse.Action):
    """Adds KEY=VALUE to a dict."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: Any = None
    ) -> None:
        key, separator, text = values.partition("=")
        if not separator or not key:
            raise argparse.ArgumentError(self, f"expected KEY=VALUE, got {values!r}")
        # A new dict: the default is that of every parser.
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), key: read_value(text)})
