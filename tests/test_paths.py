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
