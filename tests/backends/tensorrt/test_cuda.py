"""Real CUDA runtime library, where one is installed; the machine needs no driver."""

import ctypes
from importlib import metadata

import pytest

from drone_kd.backends.tensorrt import cuda

# pip packages that contain libcudart; torch depends on the first.
WHEELS = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")


@pytest.fixture
def libcudart():
    """Return the path of a real libcudart."""
    for wheel in WHEELS:
        try:
            files = metadata.files(wheel) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name.startswith("libcudart.so"):
                return str(file.locate())
    return pytest.skip(f"none of {', '.join(WHEELS)} is installed")


def test_library_has_every_function(libcudart):
    library = ctypes.CDLL(libcudart)
    for function in ("cudaGetErrorString", *cuda._SIGNATURES):
        assert hasattr(library, function), function


@pytest.fixture
def unloaded(monkeypatch):
    """Forget the loaded library before and after the test."""
    cuda._library.cache_clear()
    yield
    monkeypatch.undo()
    cuda._library.cache_clear()


@pytest.mark.usefixtures("unloaded")
def test_missing_driver_is_one_line(libcudart, monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARIES", (libcudart,))
    try:
        device = cuda.first_device()
    except cuda.CudaError as error:
        message = str(error)
    else:
        pytest.skip(f"this machine has a driver: {device.name}")
    assert message.startswith("no usable GPU: cudaGetDeviceProperties: ")
    assert "CUDA error " in message
    assert "\n" not in message


@pytest.mark.usefixtures("unloaded")
def test_missing_library_is_one_line(monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARIES", ("libcudart.so.0",))
    with pytest.raises(cuda.CudaError, match=r"expected CUDA's runtime library \(libcudart.so\)"):
        cuda.first_device()
