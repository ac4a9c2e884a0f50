"""Message definitions for bags, generated from the message classes in use."""

from __future__ import annotations

import importlib
import re
from typing import Any, NamedTuple

# IDL names to .msg names, where they differ.
_BASIC = {"boolean": "bool", "octet": "byte", "float": "float32", "double": "float64"}


class MessageType(NamedTuple):
    """Message type as described in a bag."""

    name: str  # such as sensor_msgs/msg/Image
    definition: str  # text of the .msg file and of all types that it uses
    digest: str  # its hash (REP-2011, RIHS01)


def message_type(message_class: Any) -> MessageType:
    """Return the type description of a message class, without constants and defaults."""
    from rosbags.typesys import Stores, get_typestore  # deferred: only bags need it

    store = get_typestore(Stores.EMPTY)
    types: dict[str, Any] = {}
    name = _collect(message_class, types)
    store.register(types)
    definition, _ = store.generate_msgdef(name, ros_version=2)
    return MessageType(name, definition, store.hash_rihs01(name))


def _collect(message_class: Any, types: dict[str, Any]) -> str:
    """Add the types of a class and its fields to `types`; return the name of the class's own."""
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
    """Split "sequence<double>" or "double[36]" into element type and .msg array suffix."""
    if sequence := re.fullmatch(r"sequence<([^,]*)(?:, (\d+))?>", kind):
        bound = f"<={sequence[2]}" if sequence[2] else ""
        return sequence[1], f"[{bound}]"
    if array := re.fullmatch(r"(.*)\[(\d+)\]", kind):
        return array[1], f"[{array[2]}]"
    return kind, ""
