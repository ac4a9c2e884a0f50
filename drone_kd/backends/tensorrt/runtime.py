"""TensorRT backend: runs an engine that was built on this device.

Uses only what TensorRT 8.6, 10.3, 10.13 and 11.4 have in common (tests/data/tensorrt_names.json).
Every variable that holds a TensorRT object is annotated with its class: a test checks each
attribute against that table. Importing this module imports TensorRT.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import tensorrt as trt

from drone_kd.backends.tensorrt import cuda
from drone_kd.backends.tensorrt.cuda import CudaError, PinnedArray, Stream
from drone_kd.core.arrays import Float32Array, UInt8Array
from drone_kd.core.model_spec import ModelError, ModelSpec, shape_matches
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.preprocess import network_input
from drone_kd.text import one_line

_DTYPES = {"uint8": trt.DataType.UINT8, "float32": trt.DataType.FLOAT}
_IN_A_GRAPH = " in a CUDA graph"
_WARM_UP_FRAMES = 3
_MEASURED_FRAMES = 20


class Logger(trt.ILogger):  # type: ignore[misc]  # TensorRT has no type stubs
    """Keeps TensorRT's error messages for the exception that follows."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)  # by name: pybind11 does not support super()
        self._errors: deque[str] = deque(maxlen=16)

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        """Store an error message; called by TensorRT."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self._errors.append(message)

    def reason(self) -> str:
        """Return the first error since the last call, the cause, as one line; forget all."""
        message = self._errors[0] if self._errors else "it gives no reason"
        self._errors.clear()
        return one_line(message, 300)


# One per process: TensorRT sends the messages of later builders and runtimes to the first logger.
LOGGER = Logger()


def started(kind: Any) -> Any:
    """Return a builder or a runtime. ModelError: TensorRT does not fit this driver or system."""
    try:
        return kind(LOGGER)
    except TypeError:  # pybind11 raises it for a null pointer
        raise ModelError(
            f"TensorRT {trt.__version__} cannot start: {LOGGER.reason()}; expected the one of "
            "this JetPack, not one from pip"
        ) from None


class EngineError(ModelError):
    """TensorRT rejects an engine's bytes, so it has to be built again."""


class TrtBackend:
    """TensorRT engine with its memory; see `Backend`.

    All memory is allocated once. On a GPU that shares the CPU's memory the engine can use our
    buffers without a copy; work can be queued call by call or as one CUDA graph. The fastest mode
    differs between devices, so a few frames are run in each mode and the fastest one is kept.

    Args:
        spec: of the model.
        plan: the engine's bytes, from a trusted source: they contain native code.
        mode: `TrtBackend.mode` of an earlier load on this device, used without measuring.

    Raises:
        EngineError: TensorRT rejects the bytes.
        ModelError: the engine does not run, or its inputs or outputs differ from the spec.
        CudaError: the GPU is unusable.
    """

    fallback = ""

    def __init__(self, spec: ModelSpec, plan: bytes, mode: str = "") -> None:
        self.spec = spec
        device = cuda.first_device()
        self._runtime: trt.Runtime = started(trt.Runtime)
        self._runtime.engine_host_code_allowed = False
        self._engine: trt.ICudaEngine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"TensorRT {trt.__version__} rejects the engine: {LOGGER.reason()}")
        self._context: trt.IExecutionContext = self._engine.create_execution_context()
        if self._context is None:
            raise ModelError(f"TensorRT {trt.__version__} cannot start it: {LOGGER.reason()}")
        input_name, output_name = _checked_io(self._engine, spec)
        self._stream = Stream()
        self._input = PinnedArray(spec.input_shape, spec.dtype)
        output_shape = tuple(self._engine.get_tensor_shape(output_name))
        self._output = PinnedArray(output_shape, "float32")
        tensors = {input_name: self._input, output_name: self._output}
        try:
            modes = _execution_modes(self._context, self._stream, tensors, device.integrated, mode)
            self.mode = mode if mode in modes else _fastest(modes, self._stream)
        except InferenceError as error:
            raise ModelError(str(error)) from None
        self._launch = modes[self.mode]
        self.name = f"TensorRT {trt.__version__} {spec.precision}, {device.name}, {self.mode}"

    def layers(self) -> str:
        """Return what TensorRT tells of the engine's layers, as JSON."""
        inspector: trt.EngineInspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def infer(self, batch: UInt8Array) -> Float32Array:
        """Run a batch; see `Backend.infer`. InferenceError: also for another shape or dtype."""
        shape = (self.spec.batch, self.spec.input_height, self.spec.input_width, 3)
        if batch.shape != shape or batch.dtype != np.uint8:
            got = f"{batch.dtype} {batch.shape}"
            raise InferenceError(f"TensorRT: expected a batch of uint8 {shape}, got {got}")
        np.copyto(self._input.array, network_input(batch, self.spec))
        _run(self._launch, self._stream)
        # A copy: the next frame writes into the same memory.
        return np.array(self._output.array, np.float32)


def _execution_modes(
    context: trt.IExecutionContext,
    stream: Stream,
    tensors: dict[str, PinnedArray],
    integrated: bool,
    wanted: str,
) -> dict[str, Callable[[], None]]:
    """Return every mode in which this GPU runs the engine: its name and what queues a frame.

    Args:
        tensors: memory of the input and of the output, in this order.
        wanted: name of a mode; if it is available, the others need not be prepared.
    """

    def execute(addresses: dict[str, int]) -> None:
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(stream.handle):
            with contextlib.suppress(CudaError):
                cuda.used_memory()  # notes a lasting error, which TensorRT hides
            raise InferenceError(f"TensorRT: {LOGGER.reason()}")

    source, target = tensors.values()
    device_source, device_target = (cuda.DeviceBuffer(t.array.nbytes) for t in (source, target))
    copies = dict(zip(tensors, (device_source.address, device_target.address), strict=True))

    def run_with_copies() -> None:
        stream.upload(source, device_source)
        execute(copies)
        stream.download(device_target, target)

    modes: dict[str, Callable[[], None]] = {"copies": run_with_copies}
    if integrated:
        shared = {name: tensor.device_address() for name, tensor in tensors.items()}
        modes["zero-copy"] = lambda: execute(shared)
    source.array[:] = 0
    modes = {name: modes[name] for name in modes if wanted.startswith(name)} or modes
    for name, launch in tuple(modes.items()):
        _run(launch, stream)  # TensorRT needs one frame before a recording
        try:
            modes[f"{name}{_IN_A_GRAPH}"] = cuda.Graph(stream, launch).launch
        except (CudaError, InferenceError):
            LOGGER.reason()  # clears it: some layers cannot be recorded, which is no error
    return modes


def _fastest(modes: dict[str, Callable[[], None]], stream: Stream) -> str:
    """Run a few frames in each mode; return the fastest. The others then free their memory."""
    times: dict[str, list[float]] = {name: [] for name in modes}
    for frame in range(_WARM_UP_FRAMES + _MEASURED_FRAMES):
        # Interleaved, so that a change of the clock rate affects all modes.
        for name, launch in modes.items():
            start = perf_counter()
            _run(launch, stream)
            if frame >= _WARM_UP_FRAMES:
                times[name].append(perf_counter() - start)
    return min(times, key=lambda name: median(times[name]))


def _run(launch: Callable[[], None], stream: Stream) -> None:
    """Queue a frame and wait for it."""
    try:
        launch()
        stream.synchronize()
    except CudaError as error:
        raise InferenceError(str(error)) from None


def _checked_io(engine: trt.ICudaEngine, spec: ModelSpec) -> tuple[str, str]:
    """Return the names of the input and output, after checking them against the spec."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    shapes = {name: list(engine.get_tensor_shape(name)) for name in names}
    kinds = {name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name)) for name in names}

    def matching(mode: object, dtype: object, shape: tuple[int | None, ...]) -> list[str]:
        same_kind = [name for name in names if kinds[name] == (mode, dtype)]
        return [name for name in same_kind if shape_matches(shapes[name], shape)]

    inputs = matching(trt.TensorIOMode.INPUT, _DTYPES[spec.dtype], spec.input_shape)
    outputs = matching(trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT, spec.output_shape)
    if len(names) != 2 or len(inputs) != 1 or len(outputs) != 1:
        found = ", ".join(f"{name} {kinds[name][1]} {shapes[name]}" for name in names)
        raise ModelError(
            f"the engine's tensors differ from its model: expected one {spec.dtype} input "
            f"{list(spec.input_shape)} and one float32 output, got {found}"
        )
    return inputs[0], outputs[0]
