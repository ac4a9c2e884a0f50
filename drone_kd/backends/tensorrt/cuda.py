"""CUDA runtime functions that inference needs, through ctypes.

Documented in NVIDIA's CUDA Runtime API manual. Only functions whose signature is the same in CUDA
11.4 to 13 are used, so that any JetPack's libcudart works.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The first is on the linker's path in JetPack; the others are for machines with only the runtime.
LIBRARIES = (
    "libcudart.so",
    "libcudart.so.13",
    "libcudart.so.12",
    "/usr/local/cuda/lib64/libcudart.so",
)

# After these the process can use no GPU any more: CUDA's manual says of each of them "the process
# must be terminated and relaunched".
LASTING_ERRORS = (700, 702, 710, 714, 715, 716, 717, 718, 719)

_HOST_ALLOC_MAPPED = 2
_STREAM_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
_MEMCPY_HOST_TO_DEVICE = 1
_MEMCPY_DEVICE_TO_HOST = 2
_ATTRIBUTE_MULTIPROCESSORS = 16
_ATTRIBUTE_INTEGRATED = 18
_ATTRIBUTE_CAPABILITY_MAJOR = 75
_ATTRIBUTE_CAPABILITY_MINOR = 76
_NAME_BYTES = 256  # the first field of cudaDeviceProp
_PROPERTIES_BYTES = 16384  # more than cudaDeviceProp has had in any version

_SIGNATURES = {
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaHostGetDevicePointer": (POINTER(c_void_p), c_void_p, c_uint),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
}


class CudaError(RuntimeError):
    """Failed call of the CUDA runtime; the message is one line."""


# The first error of `LASTING_ERRORS` in this process.
_lasting: list[str] = []


def lasting_error() -> str:
    """Return the error after which only another process can use the GPU; empty: there was none."""
    return _lasting[0] if _lasting else ""


class Device(NamedTuple):
    """First GPU of CUDA, which all inference runs on."""

    name: str  # several Jetsons share one name
    compute_capability: str  # e.g. "8.7" for Orin
    multiprocessors: int  # distinguishes GPUs with the same name and compute capability
    integrated: bool  # shares the CPU's memory, as on a Jetson


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """Load libcudart and declare the functions used."""
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.cudaGetErrorString.argtypes = (c_int,)
        library.cudaGetErrorString.restype = c_char_p
        for function, arguments in _SIGNATURES.items():
            getattr(library, function).argtypes = arguments
            getattr(library, function).restype = c_int
        return library
    hint = "on a Jetson, run apt install nvidia-jetpack"
    raise CudaError(f"expected CUDA's runtime library (libcudart.so), found none: {hint}")


def call(function: str, *arguments: object) -> None:
    """Call a function of `_SIGNATURES`; CudaError: it failed."""
    library = _library()
    code = getattr(library, function)(*arguments)
    if code:
        text = library.cudaGetErrorString(code).decode()
        error = CudaError(f"{function}: {text} (CUDA error {code})")
        if code in LASTING_ERRORS:
            _lasting.append(str(error))
        raise error


def _value(pointer: c_void_p) -> int:
    """Return the address in a pointer that a successful CUDA call has set."""
    if pointer.value is None:
        raise CudaError("CUDA returned a null pointer")
    return pointer.value


def first_device() -> Device:
    """Return the first GPU; CudaError: there is no CUDA, no driver or no GPU."""
    properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
    try:
        call("cudaGetDeviceProperties", properties, 0)
    except CudaError as error:
        raise CudaError(f"no usable GPU: {error}; is NVIDIA's driver loaded?") from None

    def attribute(number: int) -> int:
        value = c_int()
        call("cudaDeviceGetAttribute", byref(value), number, 0)
        return value.value

    major, minor = map(attribute, (_ATTRIBUTE_CAPABILITY_MAJOR, _ATTRIBUTE_CAPABILITY_MINOR))
    return Device(
        name=properties.raw[:_NAME_BYTES].split(b"\0")[0].decode(),
        compute_capability=f"{major}.{minor}",
        multiprocessors=attribute(_ATTRIBUTE_MULTIPROCESSORS),
        integrated=bool(attribute(_ATTRIBUTE_INTEGRATED)),
    )


def used_memory() -> int:
    """Return the bytes of GPU memory in use by all programs; CudaError: see `first_device`.

    On a Jetson that is the memory shared with the CPU.
    """
    free, total = _memory()
    return total - free


def total_memory() -> int:
    """Return the bytes of GPU memory; CudaError: see `first_device`."""
    return _memory()[1]


def _memory() -> tuple[int, int]:
    free, total = c_size_t(), c_size_t()
    call("cudaMemGetInfo", byref(free), byref(total))
    return free.value, total.value


class DeviceBuffer:
    """GPU memory, freed with the object; `address` is its device address."""

    def __init__(self, size: int) -> None:
        pointer = c_void_p()
        call("cudaMalloc", byref(pointer), size)
        self.address = _value(pointer)
        weakref.finalize(self, _library().cudaFree, pointer)


class PinnedArray:
    """Numpy array in pinned memory that the GPU can access, freed with the object.

    `array` is valid only as long as the PinnedArray exists.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._pointer = c_void_p()
        call("cudaHostAlloc", byref(self._pointer), size, _HOST_ALLOC_MAPPED)
        weakref.finalize(self, _library().cudaFreeHost, self._pointer)
        memory = memoryview((ctypes.c_byte * size).from_address(_value(self._pointer)))
        self.array: NDArray[np.uint8] | NDArray[np.float32] = np.ndarray(shape, dtype, memory)

    def device_address(self) -> int:
        """Return the device address, for access without a copy."""
        pointer = c_void_p()
        call("cudaHostGetDevicePointer", byref(pointer), self._pointer, 0)
        return _value(pointer)


class Stream:
    """CUDA stream: a queue of work for the GPU; `handle` is its cudaStream_t."""

    def __init__(self) -> None:
        pointer = c_void_p()
        call("cudaStreamCreateWithFlags", byref(pointer), _STREAM_NON_BLOCKING)
        self.handle = _value(pointer)
        weakref.finalize(self, _library().cudaStreamDestroy, pointer)

    def upload(self, source: PinnedArray, target: DeviceBuffer) -> None:
        """Queue a copy to GPU memory."""
        self._copy(target.address, source.array.ctypes.data, source, _MEMCPY_HOST_TO_DEVICE)

    def download(self, source: DeviceBuffer, target: PinnedArray) -> None:
        """Queue a copy from GPU memory."""
        self._copy(target.array.ctypes.data, source.address, target, _MEMCPY_DEVICE_TO_HOST)

    def _copy(self, target: int, source: int, host: PinnedArray, kind: int) -> None:
        call("cudaMemcpyAsync", target, source, host.array.nbytes, kind, self.handle)

    def synchronize(self) -> None:
        """Wait for all queued work."""
        call("cudaStreamSynchronize", self.handle)


class Graph:
    """CUDA graph: work that is recorded once and then queued with one call.

    `enqueue` queues the work, which does not run while it is recorded. CudaError: something in the
    work cannot be recorded.
    """

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        self._stream = stream
        self._enqueue = enqueue  # keeps the memory alive that the recorded work uses
        graph = c_void_p()
        call("cudaStreamBeginCapture", stream.handle, _CAPTURE_THREAD_LOCAL)
        try:
            enqueue()
        finally:  # otherwise the stream stays in capture mode
            call("cudaStreamEndCapture", stream.handle, byref(graph))
        self._executable = c_void_p()
        try:
            call("cudaGraphInstantiateWithFlags", byref(self._executable), graph, 0)
        finally:
            call("cudaGraphDestroy", graph)
        weakref.finalize(self, _library().cudaGraphExecDestroy, self._executable)

    def launch(self) -> None:
        """Queue the recorded work."""
        call("cudaGraphLaunch", self._executable, self._stream.handle)
