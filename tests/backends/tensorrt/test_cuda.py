"""CUDA's real runtime library where one is installed, on a machine that may have no driver."""

import ctypes
import subprocess
import sys
from importlib import metadata

import pytest

from drone_kd.backends.tensorrt import cuda

# The pip packages that bring libcudart; torch's own brings the first.
WHEELS = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")


@pytest.fixture
def libcudart():
    """The path of a real libcudart."""
    for wheel in WHEELS:
        try:
            files = metadata.files(wheel) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name.startswith("libcudart.so"):
                return str(file.locate())
    pytest.skip(f"none of {', '.join(WHEELS)} is installed")


def test_it_has_every_function(libcudart):
    library = ctypes.CDLL(libcudart)
    for function in ("cudaGetErrorString", *cuda._SIGNATURES):
        assert hasattr(library, function), function


def test_without_a_driver_there_is_one_clear_line(libcudart, monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARIES", (libcudart,))
    cuda._library.cache_clear()
    try:
        device = cuda.first_device()
    except cuda.CudaError as error:
        assert str(error).startswith("no GPU can be used: cudaGetDeviceProperties: ")
        assert "CUDA error " in str(error) and "\n" not in str(error)
    else:
        pytest.skip(f"there is a driver: {device.name}")
    finally:
        cuda._library.cache_clear()


def test_without_the_library():
    # In a process of its own, into which nobody has loaded one.
    script = (
        "from drone_kd.backends import cuda\n"
        "cuda.LIBRARIES = ('libcudart.so.0',)\n"
        "try: cuda.first_device()\n"
        "except cuda.CudaError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "CUDA's runtime library is not here" in done.stdout, done.stderr
