"""Refuse and record every attempt of this process to leave the machine.

A test puts a folder with a ``sitecustomize.py`` that imports this module first on PYTHONPATH, so
that its child processes and theirs obey. Python's audit events see what libraries catch and hide.
"""

import os
import re
import socket
import sys
from pathlib import Path

LOG = "RECORDED_NETWORK"
_LOCAL = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::")
# Programs that fetch something.
_PROGRAMS = {"curl", "wget", "git", "pip", "uv", "ping", "conda"}
# What git does in the checkout alone: provenance asks for the commit.
_LOCAL_GIT = {"ls-files", "rev-parse", "status"}
_SHELLS = {"sh", "bash", "dash"}


def environment(folder: Path) -> dict[str, str]:
    """Return the variables for a child process; ``folder``: a new one, for `attempts`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import recorded_network\nrecorded_network.start()\n")
    path = os.pathsep.join([str(folder), *sys.path])
    return {"PYTHONPATH": path, LOG: str(folder / "attempts.txt")}


def attempts(folder: Path) -> str:
    """Return what the processes tried, one line each."""
    record = folder / "attempts.txt"
    return record.read_text() if record.exists() else ""


def start() -> None:
    """Start to refuse and record, for the rest of this process."""
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        _check(event, arguments[0].family, arguments[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        _check(event, socket.AF_INET, arguments)
    elif event == "socket.getnameinfo":
        _check(event, socket.AF_INET, arguments[0])
    elif event == "os.system":
        _check_program(event, ["sh", "-c", os.fsdecode(arguments[0])])
    elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
        words = [arguments[0] or "", *(arguments[1] or [])]
        _check_program(event, [os.fsdecode(word) for word in words])


def _check_program(event: str, words: list[str]) -> None:
    """Refuse a program that fetches something, also in the command of a shell."""
    names = {os.path.basename(word) for word in words[:4]}  # noqa: PTH119
    if names & _SHELLS:
        names |= {name for word in words for name in re.split(r"[^\w.-]+", word)}
    local = names & _PROGRAMS == {"git"} and len(words) > 4 and words[4] in _LOCAL_GIT
    if names & _PROGRAMS and not local:
        _refuse(event, words)


def _check(event: str, family: int, address: object) -> None:
    if family == socket.AF_UNIX:
        return
    host = address[0] if isinstance(address, tuple) else address
    if host is not None and str(host) not in _LOCAL:
        _refuse(event, address)


def _refuse(event: str, what: object) -> None:
    with open(os.environ[LOG], "a") as file:  # noqa: PTH123
        file.write(f"{event} {what}\n")
    raise OSError(f"{event}: no network in this test")
