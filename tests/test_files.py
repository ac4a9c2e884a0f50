import errno
import os
import stat
from pathlib import Path

import pytest

from drone_kd.files import (
    atomic_file,
    atomic_folder,
    check_writable,
    file_sha256,
    open_private_folder,
    private_folder,
    read_private,
    write_bytes,
    write_private,
    write_text,
)


@pytest.fixture
def umask():
    """Set a umask that shows in the modes of new files."""
    old = os.umask(0o027)
    yield
    os.umask(old)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def test_sha256_of_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "file") == expected


def test_existing_file_is_replaced(tmp_path, umask):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with path.open("rb") as reader:
        write_bytes(path, b"new")
        assert reader.read() == b"old"  # whoever has it open goes on reading the old content
    assert tree(tmp_path) == {"file": b"new"}
    assert mode(path) == 0o600
    path.unlink()
    write_bytes(path, b"new")
    assert mode(path) == 0o640


def test_text_is_utf8_and_parents_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "file", "ü\n")
    assert tree(tmp_path / "a" / "b") == {"file": b"\xc3\xbc\n"}


def test_missing_parent_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_bytes(tmp_path / "a" / "file", b"new")
    assert tree(tmp_path) == {}


def write_half(path, error):
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_interrupted_write_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_half(path, error)
    assert tree(tmp_path) == {"file": b"old"}


def test_disk_full_at_sync_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_bytes(path, b"new")
    assert tree(tmp_path) == {"file": b"old"}


def test_content_is_on_disk_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    path = tmp_path / "file"
    synced = []

    def fsync(descriptor):
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(("folder" if opened == tmp_path else "file", path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes(path, b"new")
    assert synced == [("file", False), ("folder", True)]


def test_link_is_replaced_and_its_target_kept(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert not link.is_symlink()
    assert tree(tmp_path) == {"target": b"precious", "link": b"new"}


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a device"])
def test_only_a_file_is_replaced(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    before = path.lstat()
    with pytest.raises(OSError, match="expected a file to replace, or none, got another kind"):
        write_bytes(path, b"new")
    assert path.lstat() == before


def test_links_in_dev_are_not_replaced(tmp_path, monkeypatch):
    """Such as /dev/stdout, which leads to a file if the output is redirected to one."""
    device, output = tmp_path / "dev", tmp_path / "output"
    device.mkdir()
    output.touch()
    (device / "stdout").symlink_to(output)
    monkeypatch.setattr("drone_kd.files._DEVICES", device)
    with pytest.raises(OSError, match="expected a file to replace"):
        write_bytes(device / "stdout", b"new")
    assert (device / "stdout").is_symlink()


def test_read_only_file_keeps_its_mode(tmp_path):
    path = tmp_path / "file"
    path.touch(mode=0o400)
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and mode(path) == 0o400


def test_new_content_of_a_private_file_is_private_meanwhile(tmp_path, umask):
    path = tmp_path / "file"
    path.touch(mode=0o600)
    with atomic_file(path) as temporary:
        assert mode(temporary) == 0o600


def test_privileges_of_a_replaced_program_are_not_passed_on(tmp_path):
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o6755)
    write_bytes(path, b"new")
    assert mode(path) == 0o755


def test_link_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    """A name that somebody guessed is refused, and nothing is written through it."""
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * count)
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    link = tmp_path / ".file.00000000.tmp"
    link.symlink_to(target)
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "file", b"new")
    assert tree(tmp_path) == {"target": b"precious", link.name: b"precious"}


def test_temporary_names_differ_and_have_the_suffix(tmp_path):
    path = tmp_path / "model.onnx"
    with atomic_file(path, ".onnx") as one, atomic_file(path, ".onnx") as two:
        assert one != two and {one.suffix, two.suffix} == {".onnx"}
        assert one.parent == two.parent == tmp_path


@pytest.mark.parametrize("exists", [False, True])
def test_folder_appears_complete(tmp_path, umask, exists):
    path = tmp_path / "parent" / "folder"
    if exists:
        path.mkdir(parents=True)
    with atomic_folder(path) as temporary:
        (temporary / "file").write_bytes(b"new")
        assert path.exists() == exists
    assert tree(tmp_path) == {"parent": None, "parent/folder": None, "parent/folder/file": b"new"}
    assert mode(path) == 0o750
    with atomic_folder(tmp_path / "private", 0o700):
        pass
    assert mode(tmp_path / "private") == 0o700


@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
def test_error_names_the_output_and_not_the_temporary_file(tmp_path, write):
    path = tmp_path / "file"
    with pytest.raises(OSError, match=r"\[Errno") as raised, write(path) as temporary:
        (temporary / "x").touch() if temporary.is_file() else temporary.rmdir()
    assert raised.value.filename.startswith(str(path))
    assert ".tmp" not in str(raised.value)


def test_missing_folder_is_named_and_not_the_temporary_file(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write_bytes(tmp_path / "no" / "file", b"")
    assert raised.value.filename == str(tmp_path / "no" / "file")


@pytest.mark.parametrize("name", ["file", "new/folder/file"])
def test_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, name):
    check_writable(tmp_path / name)
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(PermissionError, match=f"a folder that can be written, got {tmp_path}$"):
        check_writable(tmp_path / name)
    assert not tree(tmp_path)


def test_interrupted_folder_leaves_nothing(tmp_path):
    def write_half():
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "deep").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_folder_does_not_replace_content(tmp_path, kind):
    path, other = tmp_path / "folder", tmp_path / "other"
    other.mkdir()
    if kind == "full":
        path.mkdir()
        (path / "precious").write_bytes(b"old")
    elif kind == "file":
        path.write_bytes(b"old")
    else:
        path.symlink_to(other)
    before = tree(tmp_path)
    with pytest.raises(OSError, match="folder"), atomic_folder(path) as temporary:
        (temporary / "file").write_bytes(b"new")
    assert tree(tmp_path) == before


def test_private_folder_and_its_parents_are_made_private(tmp_path, umask):
    path = tmp_path / "a" / "b"
    assert private_folder(path) == path
    assert [mode(path), mode(path.parent)] == [0o700, 0o700]
    path.chmod(0o755)
    assert private_folder(path) == path  # again: it may exist
    assert mode(path) == 0o700


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("link", "no file and no link: it is a link; remove the link, or name the folder"),
        ("file", "no file and no link: Not a directory"),
        ("null", "embedded null byte"),
        ("long", "File name too long"),
        ("writable", "expected a folder that only you can write, got mode 0777"),
        ("group", "got mode 0770, so its content is not trusted; remove it, .*: chmod go-w /"),
    ],
)
def test_folder_that_is_not_private_is_refused(tmp_path, kind, problem):
    other, path = tmp_path / "other", tmp_path / "folder"
    other.mkdir(mode=0o700)
    if kind == "link":
        path.symlink_to(other)
    elif kind == "file":
        path.touch()
    elif kind in ("writable", "group"):
        path.mkdir()
        path.chmod(0o777 if kind == "writable" else 0o770)
    else:
        path = tmp_path / ("x" * 300 if kind == "long" else "a\0b")
    with pytest.raises(OSError, match=problem) as raised:
        private_folder(path)
    assert len(str(raised.value)) < 400 and "\0" not in str(raised.value)


def test_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match=f"a folder of your own, got one of uid {owner}"):
        private_folder(tmp_path)


def test_descriptor_of_a_private_folder_means_the_checked_folder(tmp_path):
    path, moved, other = tmp_path / "folder", tmp_path / "moved", tmp_path / "other"
    other.mkdir()
    with open_private_folder(path) as folder:
        path.rename(moved)
        path.symlink_to(other)
        os.close(os.open("file", os.O_CREAT | os.O_EXCL, dir_fd=folder))
    assert [p.name for p in moved.iterdir()] == ["file"] and not list(other.iterdir())


@pytest.mark.parametrize("target", ["exists", "missing"])
def test_link_at_the_temporary_name_of_a_private_file_is_not_followed(
    tmp_path, monkeypatch, target
):
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * count)
    secret, path = tmp_path / "secret", tmp_path / "folder"
    if target == "exists":
        secret.write_bytes(b"precious")
    with open_private_folder(path) as folder:
        link = path / ".file.00000000.tmp"
        link.symlink_to(secret)
        with pytest.raises(FileExistsError):
            write_private(folder, "file", b"new")
        link.unlink()
        link.write_bytes(b"planted")  # no link either: somebody may have it open
        with pytest.raises(FileExistsError):
            write_private(folder, "file", b"new")
    assert not (path / "file").exists()
    assert secret.exists() == (target == "exists")
    assert not secret.exists() or secret.read_bytes() == b"precious"


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_interrupted_write_keeps_the_old_private_file(tmp_path, monkeypatch, call, error):
    def fail(*args, **kwargs):
        raise error

    with open_private_folder(tmp_path / "folder") as folder:
        write_private(folder, "file", b"old")
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises((KeyboardInterrupt, OSError)):
                write_private(folder, "file", b"new")
    assert tree(tmp_path / "folder") == {"file": b"old"}


def test_private_content_is_on_disk_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    synced = []

    def fsync(descriptor):
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = 0 if opened == path else opened.stat().st_size
        synced.append(("folder" if opened == path else "file", size, (path / "file").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with open_private_folder(path) as folder:
        write_private(folder, "file", b"new")
    assert synced == [("file", 3, False), ("folder", 0, True)]
    assert mode(path / "file") == 0o600


def test_private_file_at_the_limit_is_read_and_a_larger_one_is_not(tmp_path):
    with open_private_folder(tmp_path / "folder") as folder:
        write_private(folder, "file", b"12345")
        assert read_private(folder, "file", 5) == b"12345"
        with pytest.raises(OSError, match="file: expected at most 4 bytes, got more"):
            read_private(folder, "file", 4)
