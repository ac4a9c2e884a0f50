"""Errors of the readers; a module of its own, since the node starts without the readers."""

from __future__ import annotations


class SourceError(ValueError):
    """An image, video or stream cannot be used; the message is one line and names it."""
