"""Message definitions for bags, from the message classes that are in use."""

from __future__ import annotations

import importlib
import re
from typing import NamedTuple

# Names of IDL to those of .msg files; the others are the same.
_BASIC = {"boolean": "bool", "octet": "byte", "float": "float32", "double": "float64"}


class MessageType(NamedTuple):
    """What a bag says of a type of messages.

    Attributes:
        name: such as sensor_msgs/msg/Image.
        definition: text of the .msg file and of all that it names.
        digest: its hash (REP-2011, RIHS01).
    """

    name: str
    definition: str
    digest: str


def message_type(message_class: type) -> MessageType:
    """Return what a bag says of a message class. Constants and defaults are left out."""
    from rosbags.typesys import Stores, get_typestore  # deferred: only bags need it

    store, types = get_typestore(Stores.EMPTY), {}
    name = _collect(message_class, types)
    store.register(types)
    definition, _ = store.generate_msgdef(name, ros_version=2)
    return MessageType(name, definition, store.hash_rihs01(name))


def _collect(message_class: type, types: dict) -> str:
    """Add the types of a class and of its fields; returns the name of the class's own."""
    from rosbags.typesys import get_types_from_msg  # deferred: only bags need it

    package = message_class.__module__.partition(".")[0]
    name = f"{package}/msg/{message_class.__name__}"
    if name in types:
        return name
    lines = []
    for field, kind in message_class.get_fields_and_field_types().items():
        base, suffix = _element(kind)
        if "/" in base:
            inner_package, _, inner = base.partition("/")
            _collect(getattr(importlib.import_module(f"{inner_package}.msg"), inner), types)
        lines.append(f"{_BASIC.get(base, base)}{suffix} {field}")
    types.update(get_types_from_msg("\n".join(lines) + "\n", name))
    return name


def _element(kind: str) -> tuple[str, str]:
    """Read "sequence<double>" and "double[36]" as a type and what makes an array of it."""
    if sequence := re.fullmatch(r"sequence<([^,]*)(?:, (\d+))?>", kind):
        bound = f"<={sequence[2]}" if sequence[2] else ""
        return sequence[1], f"[{bound}]"
    if array := re.fullmatch(r"(.*)\[(\d+)\]", kind):
        return array[1], f"[{array[2]}]"
    return kind, ""
