import os
import re

import pytest

from drone_kd import paths
from drone_kd.core.model_spec import ModelError


def test_checkout_uses_its_own_files():
    assert paths.config_path("detector.yaml").is_file()
    assert 0 < paths.parameter_defaults("detector.yaml")["confidence"] < 1


def test_ament_installation_is_found(tmp_path, monkeypatch):
    """colcon installs a package marker and share/drone_kd/config."""
    pytest.importorskip("ament_index_python", reason="needs ROS 2")
    marker = tmp_path / "share/ament_index/resource_index/packages/drone_kd"
    marker.parent.mkdir(parents=True)
    marker.touch()
    file = tmp_path / "share/drone_kd/config/detector.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("/**: {ros__parameters: {confidence: 0.125}}")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "lib/drone_kd")

    assert paths.config_path("detector.yaml") == file
    assert paths.parameter_defaults("detector.yaml") == {"confidence": 0.125}


def test_missing_file_is_reported_with_the_searched_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "drone_kd")
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    monkeypatch.setattr(paths.sysconfig, "get_path", lambda name: str(tmp_path / "prefix"))
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"or {tmp_path}/prefix/share/drone_kd, found none")
    ):
        paths.config_path("detector.yaml")
    with pytest.raises(ModelError, match=r"no default model; give a model\.onnx"):
        paths.default_model_path()


@pytest.fixture
def models(tmp_path):
    """Make a folder with links: to it, out of it to a file, to nothing, and to itself."""
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "secret").touch()
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "nowhere").symlink_to(tmp_path / "missing")
    (folder / "loop").symlink_to(folder / "loop")
    return folder


def test_path_in_a_folder_is_returned_without_links(tmp_path, models, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in ("models/a", "linked/a", "~/models/a", "models/../models/a", models / "a"):
        assert paths.confined(text, ["/nowhere", "~/linked"]) == models.resolve() / "a"
    assert paths.confined(models, [models]) == models.resolve()


@pytest.mark.parametrize(
    "path",
    ["secret", "missing", "models/out", "models/nowhere", "models/loop", "models/../secret"]
    + ["models2/a", ".", "/etc/passwd", "/etc/passwd/x", "~nosuchuser/x", "", "a\0b"]
    + ["models/" + "x" * 300, "models/" + "x/" * 3000, "x" * 5000, "models/\ud800"],
)
def test_path_elsewhere_is_refused_whether_it_exists_or_not(tmp_path, models, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    expected = re.escape(f"expected a path in {models.resolve()}, got ")
    with pytest.raises(ValueError, match=expected) as raised:
        paths.confined(path, [models, "~nosuchuser"])
    assert str(raised.value).isprintable() and len(str(raised.value)) < 600


def test_cache_folder_is_below_the_home_or_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for base in ("", "relative", "./relative", "~/x"):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert paths.cache_folder(pytest.fail) == tmp_path / ".cache" / "drone_kd"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert paths.cache_folder(pytest.fail) == tmp_path / "other" / "drone_kd"
    assert not list(tmp_path.iterdir())


def test_cache_folder_without_a_home_is_private(tmp_path, monkeypatch):
    """Others can write the folder that it is in, so somebody may have made it before."""
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", ".")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"drone_kd-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="so its content is not trusted"):
        paths.cache_folder(pytest.fail)
    folder.rmdir()
    lines: list[str] = []
    assert paths.cache_folder(lines.append) == folder
    assert folder.stat().st_mode & 0o777 == 0o700 and len(lines) == 1
