import errno
import fcntl
import hashlib
import json
import os
import pwd
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from drone_kd.backends.tensorrt import engine_cache
from drone_kd.backends.tensorrt.engine_cache import EngineKey, EngineStore

KEY = EngineKey(
    model_sha256="0" * 64,
    tensorrt="10.3.0",
    device="Orin",
    compute_capability="8.7",
    multiprocessors=8,
    board="NVIDIA Jetson Orin Nano",
    power_mode="15W",
    driver="540.4.0",
    precision="fp16",
    optimisation_level=3,
)
PLANTED = b"planted"


def ignore(line):
    pass


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return a cache entry that holds the engine b"plan"."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = EngineStore(KEY, ignore)
    with store.locked():
        store.write(b"plan", b"timings", {})
    return store


def plant(folder, mode=0o600):
    """Write an engine with a matching record, as somebody with access to the folder could."""
    digest = hashlib.sha256(PLANTED).hexdigest()
    record = {"key": asdict(KEY), "plan_bytes": len(PLANTED), "plan_sha256": digest}
    name = EngineStore(KEY, ignore).plan_path.name
    for path, content in (
        (folder / name, PLANTED),
        ((folder / name).with_suffix(".json"), json.dumps(record).encode()),
    ):
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        path.chmod(mode)


def read(store):
    with store.locked():
        return store.read()


def test_every_field_of_the_key_changes_the_digest():
    digests = {KEY.digest()}
    for field in fields(EngineKey):
        value = getattr(KEY, field.name)
        other: Any = value + 1 if isinstance(value, int) else f"{value}x"
        digests.add(replace(KEY, **{field.name: other}).digest())
    assert len(digests) == 1 + len(fields(EngineKey))


def test_engine_and_timings_are_read_back_and_private(store):
    with store.locked():
        assert store.read() == (b"plan", "") and store.read_timings() == b"timings"
    folder = store.plan_path.parent
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert {p.suffix for p in folder.iterdir()} == {".plan", ".json", ".timings", ".lock"}


def test_notes_and_refusals_are_kept_in_the_record(store):
    with store.locked():
        store.note("mode", "copies")
        assert store.read() == (b"plan", "") and store.entry("mode") == "copies"
        assert store.entry("refused") == store.entry("plan_bytes") == ""
        store.refuse("it is wrong")
        assert store.read() == (None, "") and store.entry("refused") == "it is wrong"
        store.write(b"new", b"", {})
        assert store.read() == (b"new", "") and store.entry("refused") == ""


def test_differences_are_to_engines_of_the_same_model(store):
    other = EngineStore(replace(KEY, power_mode="MAXN"), ignore)
    with other.locked():
        assert other.differences() == "power_mode 15W, now MAXN"
    third = EngineStore(replace(KEY, model_sha256="1" * 64), ignore)
    with third.locked():
        assert third.differences() == ""
        third.refuse("it is wrong")
    with store.locked():
        assert store.differences() == ""


def test_folder_that_others_can_write_is_refused(store):
    folder = store.plan_path.parent
    folder.chmod(0o777)
    plant(folder)
    with pytest.raises(PermissionError, match="its content is not trusted"):
        read(store)


def test_link_in_place_of_the_folder_is_refused(store, tmp_path):
    folder = store.plan_path.parent
    folder.rename(tmp_path / "moved")
    (tmp_path / "planted").mkdir(mode=0o700)
    plant(tmp_path / "planted")
    folder.symlink_to(tmp_path / "planted")
    with pytest.raises(OSError, match="no file and no link"):
        read(store)


def test_folder_swapped_after_the_check_is_not_used(store, tmp_path):
    folder = store.plan_path.parent
    (tmp_path / "planted").mkdir(mode=0o700)
    plant(tmp_path / "planted")
    before = sorted((tmp_path / "planted").iterdir())
    with store.locked():
        folder.rename(tmp_path / "moved")
        (tmp_path / "planted").rename(folder)
        assert store.read() == (b"plan", "")
        store.write(b"new", b"", {})
        assert store.read() == (b"new", "")
    assert [p.name for p in sorted(folder.iterdir())] == [p.name for p in before]
    assert (folder / store.plan_path.name).read_bytes() == PLANTED


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_engine_that_others_can_write_is_not_loaded(store, mode):
    plant(store.plan_path.parent, mode)
    plan, problem = read(store)
    assert plan is None and "expected a file of your own" in problem and f"{mode:04o}" in problem


def test_engine_of_another_user_is_not_loaded(store, monkeypatch):
    plant(store.plan_path.parent)
    own = os.fstat

    def foreign_files(descriptor):
        status = own(descriptor)
        if not Path(f"/proc/self/fd/{descriptor}").is_file():
            return status
        return os.stat_result((*status[:4], status.st_uid + 1, *status[5:10]))

    with store.locked():
        monkeypatch.setattr(os, "fstat", foreign_files)
        plan, problem = store.read()
    assert plan is None and "expected a file of your own, got one of uid" in problem


@pytest.mark.parametrize("suffix", [".plan", ".json", ".timings", ".lock"])
def test_link_in_place_of_a_file_is_not_followed(store, tmp_path, suffix):
    secret = tmp_path / "secret"
    secret.write_bytes(b"plan")
    (path,) = store.plan_path.parent.glob(f"*{suffix}")
    path.unlink()
    path.symlink_to(secret)
    if suffix == ".lock":
        with pytest.raises(OSError, match="symbolic links"):
            read(store)
    else:
        with store.locked():
            plan, problem = store.read()
            assert (plan is None and "cannot be read" in problem) or suffix == ".timings"
            assert store.read_timings() == (b"" if suffix == ".timings" else b"timings")
            store.write(b"new", b"new", {})
            assert (store.read(), store.read_timings()) == ((b"new", ""), b"new")
    assert secret.read_bytes() == b"plan"


@pytest.mark.timeout(30)
def test_pipe_in_place_of_an_engine_is_not_waited_for(store):
    store.plan_path.unlink()
    os.mkfifo(store.plan_path)
    assert read(store)[0] is None


@pytest.mark.parametrize("record", ["[" * 100_000, "[]", '{"key": NaN}', '{"plan_bytes": 1e999}'])
def test_hostile_record_is_one_short_line(store, record):
    store.plan_path.with_suffix(".json").write_text(record)
    plan, problem = read(store)
    assert plan is None and problem.isprintable() and len(problem) < 500


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_one_line(store, monkeypatch, code):
    def no_locks(descriptor, flags):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lines: list[str] = []
    store = EngineStore(KEY, lines.append)
    with store.locked():
        assert store.read() == (b"plan", "")
    assert len(lines) == 1 and "has no locks" in lines[0]


def test_other_errors_of_the_lock_are_not_hidden(store, monkeypatch):
    def fail(descriptor, flags):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"), store.locked():
        pass


@pytest.mark.parametrize("full_after", [0, 1])
def test_full_disk_keeps_the_old_engine(store, monkeypatch, full_after):
    """With room for the new engine but not for its record, too."""
    synced = []

    def fsync(descriptor):
        if len(synced) == full_after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with store.locked():
        with pytest.raises(OSError, match="No space left"):
            store.write(b"PLAN", b"", {})
        assert store.read() == (b"plan", "")
    assert not list(store.plan_path.parent.glob(".*"))


@pytest.mark.parametrize(("failing", "found"), [(0, (b"plan", "")), (1, (None, "was altered"))])
def test_interrupted_write_yields_the_old_engine_or_none(store, monkeypatch, failing, found):
    """The record is written after the engine, so that it never vouches for one not yet there."""
    replace_file, names = os.replace, []

    def fail(source, target, **options):
        if len(names) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        names.append(target)
        replace_file(source, target, **options)

    monkeypatch.setattr(os, "replace", fail)
    with store.locked():
        with pytest.raises(OSError, match="Input/output error"):
            store.write(b"PLAN", b"", {})
        assert store.read() == found
    assert names == [store.plan_path.name][:failing]


def test_timings_that_cannot_be_stored_are_one_line(store, monkeypatch):
    def full(folder, name, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine_cache, "write_private", full)
    lines: list[str] = []
    store = EngineStore(KEY, lines.append)
    with store.locked():
        store.write(b"new", b"new", {})
        assert store.read() == (b"new", "") and store.read_timings() == b"timings"
    assert len(lines) == 1 and "timings for the next build are not stored: [Errno 28]" in lines[0]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_engine_is_read_from_a_folder_that_cannot_be_written(store, monkeypatch, code):
    open_file = os.open

    def read_only(path, flags, *args, **options):
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(code, os.strerror(code))
        return open_file(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", read_only)
    with store.locked():
        assert store.read() == (b"plan", "")
        with pytest.raises(OSError, match="expected a folder that can be written, got"):
            store.require_space(1)


def test_user_without_a_home_has_a_private_folder(tmp_path, monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    lines: list[str] = []
    store = EngineStore(KEY, lines.append)
    with store.locked():
        store.write(b"plan", b"", {})
    folder = tmp_path / f"drone_kd-{os.geteuid()}" / "engines"
    assert store.plan_path.parent == folder and folder.stat().st_mode & 0o777 == 0o700
    assert "no home folder" in lines[0] and "XDG_CACHE_HOME" in lines[0]
