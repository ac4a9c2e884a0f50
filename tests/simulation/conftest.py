"""Processes of nodes that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from node_process import NodeProcess


@pytest.fixture
def start() -> Iterator[Callable[..., NodeProcess]]:
    """Start a module as a process; it is killed at the end of the test."""
    from node_process import NodeProcess

    started: list[NodeProcess] = []

    def run(module: str, *arguments: str, **environment: str) -> NodeProcess:
        started.append(NodeProcess(module, *arguments, **environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()
