# SPDX-License-Identifier: AGPL-3.0-or-later
import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest

from drone_kd_training.home import ensure_home


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def no_user() -> str:
    raise KeyError("getpwuid(): uid not found")


def test_user_without_a_home_gets_a_private_one_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(getpass, "getuser", no_user)
    at_exit = Mock()
    monkeypatch.setenv("USER", "")
    monkeypatch.setattr("atexit.register", at_exit)
    ensure_home()
    home = Path(os.environ["HOME"])
    assert home.parent == tmp_path and home.stat().st_mode & 0o777 == 0o700
    assert at_exit.call_args.args == (shutil.rmtree, str(home))
    assert os.environ["USER"] == str(os.getuid())


def test_home_of_a_user_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "pilot")
    ensure_home()
    assert os.environ["HOME"] == str(tmp_path) and os.environ["USER"] == "pilot"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (util-linux)")
def test_package_is_imported_as_a_user_id_without_an_account():
    command = (
        "import drone_kd_training, pathlib, getpass; print(pathlib.Path.home(), getpass.getuser())"
    )
    capabilities = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    user = ["setpriv", "--reuid", "54321", "--clear-groups", *capabilities]
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    run = subprocess.run(
        [*user, sys.executable, "-c", command], capture_output=True, text=True, env=environment
    )
    if "setpriv" in run.stderr:
        pytest.skip(f"this container has no such capability: {run.stderr.strip()}")
    home, name = run.stdout.split()
    assert "drone_kd-home-" in home and name == "54321" and not Path(home).exists()
