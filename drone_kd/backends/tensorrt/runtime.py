"""TensorRT: an engine that was made on this device, run by its Python API and CUDA's runtime.

Only what TensorRT 8.6, 10.3, 10.13 and 11.4 have alike (tests/data/tensorrt_names.json). Every
variable that holds an object of TensorRT says of which class it is: a test checks each name that
is used of it against that table. Importing this module imports TensorRT.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import tensorrt as trt

from drone_kd.backends.tensorrt.cuda import (
    CudaError,
    DeviceBuffer,
    Graph,
    PinnedArray,
    Stream,
    first_device,
)
from drone_kd.core.model_spec import ModelError, ModelSpec, shape_matches
from drone_kd.core.postprocess import InferenceError
from drone_kd.core.preprocess import network_input

_DTYPES = {"uint8": trt.DataType.UINT8, "float32": trt.DataType.FLOAT}
_WARM_UP_FRAMES = 3
_MEASURED_FRAMES = 20


class Logger(trt.ILogger):
    """Keeps TensorRT's error messages for the exception that follows."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)  # by name: pybind11 does not see super()
        self._errors: deque[str] = deque(maxlen=16)

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        """Take one message; TensorRT calls this."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self._errors.append(message)

    def reason(self) -> str:
        """Return the first error since the last call in one line; the cause comes first."""
        message = self._errors[0] if self._errors else "it gives no reason"
        self._errors.clear()
        return " ".join(message.split())[:300]


# One for all: TensorRT sends the messages of later builders and runtimes to the first logger.
LOGGER = Logger()


class EngineError(ModelError):
    """TensorRT refuses an engine's bytes: another has to be built; with TensorRT's own reason."""


class _Way(NamedTuple):
    """One way to run a frame; `launch` queues it."""

    name: str
    launch: Callable[[], None]


class TrtBackend:
    """An engine on the GPU; see `Backend`. Not for several threads at once.

    Buffers are made here, once. On a GPU that shares the computer's memory the engine can read and
    write ours without a copy; work can be queued call by call or as one CUDA graph. What is
    fastest differs between devices, so a few frames are run each way, and the fastest is kept.

    Args:
        spec: what the model file says of itself.
        plan: the engine's bytes, of a trusted source: they hold native code.

    Raises:
        EngineError: TensorRT refuses the bytes.
        ModelError: it cannot be run, or has other inputs or outputs than the spec promises.
        CudaError: the GPU cannot be used.
    """

    fallback = ""

    def __init__(self, spec: ModelSpec, plan: bytes) -> None:
        self.spec = spec
        device = first_device()
        self._runtime: trt.Runtime = trt.Runtime(LOGGER)
        self._runtime.engine_host_code_allowed = False
        self._engine: trt.ICudaEngine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"TensorRT {trt.__version__} refuses the engine: {LOGGER.reason()}")
        self._context: trt.IExecutionContext = self._engine.create_execution_context()
        if self._context is None:
            raise ModelError(f"TensorRT {trt.__version__} cannot start it: {LOGGER.reason()}")
        input_name, output_name = _checked_io(self._engine, spec)
        self._stream = Stream()
        self._input = PinnedArray(spec.input_shape, np.dtype(spec.dtype))
        output_shape = tuple(self._engine.get_tensor_shape(output_name))
        self._output = PinnedArray(output_shape, np.dtype(np.float32))
        try:
            way = _fastest_way(
                self._context,
                self._stream,
                {input_name: self._input, output_name: self._output},
                device.integrated,
            )
        except InferenceError as error:
            raise ModelError(str(error)) from None
        self._launch = way.launch
        self.name = f"TensorRT {trt.__version__} {spec.precision}, {device.name}, {way.name}"

    def infer(self, batch: np.ndarray) -> np.ndarray:
        """Run uint8 (batch, H, W, 3) BGR; returns float32 (batch, K, 6).

        Raises:
            InferenceError: the batch has another shape or dtype, or TensorRT or CUDA failed.
        """
        shape = (self.spec.batch, self.spec.input_height, self.spec.input_width, 3)
        if batch.shape != shape or batch.dtype != np.uint8:
            raise InferenceError(
                f"TensorRT: expected a batch of uint8 {shape}, got {batch.dtype} {batch.shape}"
            )
        np.copyto(self._input.array, network_input(batch, self.spec))
        _run(self._launch, self._stream)
        return self._output.array.copy()  # the next frame writes into the same memory


def _fastest_way(
    context: trt.IExecutionContext,
    stream: Stream,
    tensors: dict[str, PinnedArray],
    integrated: bool,
) -> _Way:
    """Run a few frames in every way that this GPU has; the losers give their memory back.

    Args:
        context: of the engine.
        stream: where it is to run.
        tensors: name to memory, of the input and of the output, in this order.
        integrated: whether the GPU can use that memory without a copy.

    Raises:
        InferenceError: it does not run at all.
    """

    def execute(addresses: dict[str, int]) -> None:
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(stream.handle):
            raise InferenceError(f"TensorRT: {LOGGER.reason()}")

    source, target = tensors.values()
    device_source, device_target = (DeviceBuffer(t.array.nbytes) for t in (source, target))
    copied = dict(zip(tensors, (device_source.address, device_target.address), strict=True))

    def run_with_copies() -> None:
        stream.upload(source, device_source)
        execute(copied)
        stream.download(device_target, target)

    ways = [_Way("copies", run_with_copies)]
    if integrated:
        shared = {name: tensor.device_address() for name, tensor in tensors.items()}
        ways.append(_Way("zero-copy", lambda: execute(shared)))
    source.array[:] = 0
    for way in tuple(ways):
        _run(way.launch, stream)  # TensorRT wants one frame before it is recorded
        try:
            graph = Graph(stream, way.launch)
        except (CudaError, InferenceError):
            LOGGER.reason()  # forgotten: some layers cannot be recorded, and need not be
        else:
            ways.append(_Way(f"{way.name} in a CUDA graph", graph.launch))

    times: dict[str, list[float]] = {way.name: [] for way in ways}
    for frame in range(_WARM_UP_FRAMES + _MEASURED_FRAMES):
        for way in ways:  # interleaved, so that a clock that changes meets them all
            start = perf_counter()
            _run(way.launch, stream)
            if frame >= _WARM_UP_FRAMES:
                times[way.name].append(perf_counter() - start)
    return min(ways, key=lambda way: median(times[way.name]))


def _run(launch: Callable[[], None], stream: Stream) -> None:
    """Queue a frame and wait for it."""
    try:
        launch()
        stream.synchronize()
    except CudaError as error:
        raise InferenceError(str(error)) from None


def _checked_io(engine: trt.ICudaEngine, spec: ModelSpec) -> tuple[str, str]:
    """Return the names of the input and output, which must be those that the spec promises."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = [(engine.get_tensor_mode(name), engine.get_tensor_dtype(name), name) for name in names]
    inputs = [
        name
        for mode, dtype, name in found
        if mode == trt.TensorIOMode.INPUT
        and dtype == _DTYPES[spec.dtype]
        and shape_matches(tuple(engine.get_tensor_shape(name)), spec.input_shape)
    ]
    outputs = [
        name
        for mode, dtype, name in found
        if mode == trt.TensorIOMode.OUTPUT
        and dtype == trt.DataType.FLOAT
        and shape_matches(tuple(engine.get_tensor_shape(name)), spec.output_shape)
    ]
    if len(names) != 2 or len(inputs) != 1 or len(outputs) != 1:
        got = ", ".join(
            f"{name} {dtype} {list(engine.get_tensor_shape(name))}" for _, dtype, name in found
        )
        raise ModelError(
            f"the engine's tensors are not those of its model: expected one {spec.dtype} input "
            f"{list(spec.input_shape)} and one float32 output, got {got}"
        )
    return inputs[0], outputs[0]
