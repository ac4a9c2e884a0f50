"""A simulated TensorRT and CUDA runtime, because neither a GPU nor a Jetson is here.

What it shows: that our code uses only names that the given version has (data/tensorrt_names.json,
made from NVIDIA's own wheels), calls them in an order that can work, waits for the GPU before it
reads, keeps memory alive as long as it is used, and handles refusals. What it cannot show: that
NVIDIA's code accepts what ours asks for, how fast it is, how precise it is.

A "plan" is the model.onnx behind a line that names the version; the "GPU" runs it by ONNX
Runtime, and only when the stream is waited for. Its memory is the computer's.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.machinery
import sys
import time
import types
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime

from drone_kd.backends.tensorrt import cuda
from tensorrt_names import load_table

TABLE = load_table()
VERSIONS = tuple(TABLE)

_INVALID_VALUE = 1
_CAPTURE_UNSUPPORTED = 900
_CAPTURE_INVALIDATED = 901
_ERROR_TEXTS = {
    1: b"invalid argument",
    2: b"out of memory",
    35: b"CUDA driver version is insufficient for CUDA runtime version",
    700: b"an illegal memory access was encountered",
    900: b"operation not permitted when stream is capturing",
    901: b"operation failed due to a previous error during capture",
}


class SimulatedGpu:
    """CUDA's runtime library, and the GPU behind it.

    Attributes:
        integrated: shares the computer's memory, as a Jetson does.
        errors: CUDA function to the error code that it answers.
        copy_seconds, launch_seconds: what a copy and the launch of a network cost.
        memory: address to buffer, of everything that is allocated.
    """

    def __init__(self) -> None:
        self.integrated = True
        self.errors: dict[str, int] = {}
        self.copy_seconds = 0.0
        self.launch_seconds = 0.0
        self.memory: dict[int, ctypes.Array] = {}
        self._queues: dict[int, list[Callable[[], None]]] = {}
        self._recordings: dict[int, list[Callable[[], None]]] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._spoilt: set[int] = set()
        self._next_handle = 0x1000
        self.fault = 0  # sticky, as CUDA's are

    def library(self, name: str) -> types.SimpleNamespace:
        """Stand in for ctypes.CDLL."""
        functions = {}
        for function, arguments in cuda._SIGNATURES.items():
            functions[function] = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(
                self._answer(function, getattr(self, f"_{function}"))
            )

        def error_string(code: int) -> bytes:
            return _ERROR_TEXTS[code]

        return types.SimpleNamespace(cudaGetErrorString=error_string, **functions)

    def _answer(self, function: str, run: Callable[..., int | None]) -> Callable[..., int]:
        def answer(*arguments: object) -> int:
            return self.errors.get(function) or self.fault or run(*arguments) or 0

        return answer

    def array(self, address: int, dtype: type, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return what lies at an address; None and a fault if that is not allocated memory."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if address not in self.memory or ctypes.sizeof(self.memory[address]) < size:
            self.fault = 700
            return None
        return np.frombuffer(self.memory[address], dtype, int(np.prod(shape))).reshape(shape)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Queue or record work."""
        self._recordings.get(stream, self._queues[stream]).append(work)

    def is_recording(self, stream: int) -> bool:
        return stream in self._recordings

    def spoil_recording(self, stream: int) -> None:
        """Let the recording fail when it ends, as CUDA does."""
        self._spoilt.add(stream)

    def _handle(self) -> int:
        self._next_handle += 16
        return self._next_handle

    def _cudaGetDeviceProperties(self, properties: int, device: int) -> None:
        ctypes.memmove(properties, b"Orin\0", 5)

    def _cudaDeviceGetAttribute(self, value, attribute: int, device: int) -> None:
        value[0] = {16: 8, 18: int(self.integrated), 75: 8, 76: 7}[attribute]

    def _cudaMemGetInfo(self, free, total) -> None:
        total[0] = 8 << 30
        free[0] = total[0] - sum(map(ctypes.sizeof, self.memory.values()))

    def _cudaMalloc(self, pointer, size: int) -> None:
        buffer = (ctypes.c_byte * size)()
        pointer[0] = ctypes.addressof(buffer)
        self.memory[ctypes.addressof(buffer)] = buffer

    def _cudaHostAlloc(self, pointer, size: int, flags: int) -> None:
        self._cudaMalloc(pointer, size)

    def _cudaFree(self, address: int) -> int:
        return 0 if self.memory.pop(address, None) is not None else _INVALID_VALUE

    _cudaFreeHost = _cudaFree

    def _cudaHostGetDevicePointer(self, pointer, address: int, flags: int) -> None:
        pointer[0] = address

    def _cudaStreamCreateWithFlags(self, pointer, flags: int) -> None:
        pointer[0] = self._handle()
        self._queues[pointer[0]] = []

    def _cudaStreamDestroy(self, stream: int) -> None:
        del self._queues[stream]

    def _cudaStreamSynchronize(self, stream: int) -> int:
        if self.is_recording(stream):
            return _CAPTURE_UNSUPPORTED
        work, self._queues[stream] = self._queues[stream], []
        for do in work:
            do()
        return self.fault

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> int:
        def copy() -> None:
            time.sleep(self.copy_seconds)
            if target not in self.memory or source not in self.memory:
                self.fault = 700
            else:
                ctypes.memmove(target, source, size)

        self.enqueue(stream, copy)
        return 0

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        self._recordings[stream] = []

    def _cudaStreamEndCapture(self, stream: int, graph) -> int:
        recorded = self._recordings.pop(stream)
        if stream in self._spoilt:
            self._spoilt.remove(stream)
            return _CAPTURE_INVALIDATED
        graph[0] = self._handle()
        self._graphs[graph[0]] = recorded
        return 0

    def _cudaGraphInstantiateWithFlags(self, executable, graph: int, flags: int) -> None:
        executable[0] = self._handle()
        self._graphs[executable[0]] = list(self._graphs[graph])

    def _cudaGraphLaunch(self, executable: int, stream: int) -> None:
        for work in self._graphs[executable]:
            self.enqueue(stream, work)

    def _cudaGraphDestroy(self, graph: int) -> None:
        del self._graphs[graph]

    _cudaGraphExecDestroy = _cudaGraphDestroy


class SimulatedTensorrt:
    """The module `tensorrt` of one version.

    Attributes:
        module: to be put into sys.modules.
        builds: how many engines were built.
        was_stopped: the last build was asked to stop.
        timings: what the last build was given as timing cache.
        flags: the last build's flags, by name.
        network_kind: the last network's creation flag.
        build_error, execute_error, load_error: messages that TensorRT refuses with.
        records: whether a network can be recorded into a CUDA graph.
        during_build: called while an engine is built.
    """

    def __init__(self, version: str, gpu: SimulatedGpu) -> None:
        self.version = version
        self.gpu = gpu
        self.builds = 0
        self.was_stopped = False
        self.timings: bytes | None = None
        self.flags: set[str] = set()
        self.network_kind = ""
        self.build_error = self.execute_error = self.load_error = ""
        self.records = True
        self.during_build: Callable[[], None] = lambda: None
        self.module = self._make_module()

    def plan(self, model: bytes) -> bytes:
        return f"simulated plan of TensorRT {self.version}\n".encode() + model

    def _make_module(self) -> types.ModuleType:
        simulation, gpu, names = self, self.gpu, TABLE[self.version]
        module = types.ModuleType("tensorrt")
        module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        module.__version__ = self.version

        def add(cls: type) -> type:
            """Take away what this version does not have."""
            known = names.get(cls.__name__, set())
            for name in [n for n in vars(cls) if not n.startswith("_") and n not in known]:
                delattr(cls, name)

            def set_attribute(self, name: str, value: object) -> None:
                if not name.startswith("_") and type(self) is cls and name not in known:
                    raise AttributeError(f"TensorRT {simulation.version}: {cls.__name__}.{name}")
                object.__setattr__(self, name, value)

            cls.__setattr__ = set_attribute
            if cls.__name__ in names:
                setattr(module, cls.__name__, cls)
            return cls

        for name in (
            "BuilderFlag",
            "DataType",
            "MemoryPoolType",
            "NetworkDefinitionCreationFlag",
            "TensorIOMode",
        ):
            members = sorted(member for member in names[name] if member.isupper())
            setattr(module, name, enum.IntEnum(name, members, start=0))

        @add
        class ILogger:
            Severity = enum.IntEnum(
                "Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0
            )
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

        @add
        class IProgressMonitor:
            pass

        class HostMemory(bytes):
            """bytes() of it works, as of TensorRT's own."""

        @add
        class ITimingCache:
            def __init__(self, content: bytes) -> None:
                self._content = content

            def serialize(self) -> HostMemory:
                return HostMemory(self._content + b"timed ")

        @add
        class IBuilderConfig:
            def __init__(self) -> None:
                self._flags = {"TF32"}
                self._cache = None
                self._pools = {}

            builder_optimization_level = 3
            progress_monitor = None

            def set_memory_pool_limit(self, pool: int, size: int) -> None:
                self._pools[module.MemoryPoolType(pool).name] = size

            def set_flag(self, flag: int) -> None:
                self._flags.add(module.BuilderFlag(flag).name)

            def clear_flag(self, flag: int) -> None:
                self._flags.discard(module.BuilderFlag(flag).name)

            def create_timing_cache(self, content: bytes) -> ITimingCache | None:
                damaged = content.strip(b"timed ") != b""
                return None if damaged else ITimingCache(content)

            def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
                self._cache = cache
                return True

        @add
        class INetworkDefinition:
            def __init__(self) -> None:
                self._model = b""

        @add
        class ParserError:
            def __init__(self, text: str) -> None:
                self._text = text

            def desc(self) -> str:
                return self._text

        @add
        class OnnxParser:
            def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
                self._network, self._logger, self._errors = network, logger, []

            @property
            def num_errors(self) -> int:
                return len(self._errors)

            def parse(self, model: bytes) -> bool:
                proto = onnx.load_from_string(model)
                picture = proto.graph.input[0]
                if picture.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
                    for node in proto.graph.node:
                        if picture.name in node.input and node.op_type != "Cast":
                            self._errors.append(f"Invalid Node\n{node.op_type} of type UInt8")
                if simulation.version == "8.6" and proto.opset_import[0].version > 17:
                    self._errors.append("opset")
                self._network._model = model
                return not self._errors

            def get_error(self, index: int) -> ParserError:
                return ParserError(self._errors[index])

        @add
        class Builder:
            def __init__(self, logger: ILogger) -> None:
                self._logger = logger

            def create_network(self, flags: int) -> INetworkDefinition:
                kinds = module.NetworkDefinitionCreationFlag
                simulation.network_kind = next(k.name for k in kinds if flags == 1 << k)
                return INetworkDefinition()

            def create_builder_config(self) -> IBuilderConfig:
                return IBuilderConfig()

            def build_serialized_network(
                self, network: INetworkDefinition, config: IBuilderConfig
            ) -> HostMemory | None:
                simulation.builds += 1
                simulation.flags = set(config._flags)
                simulation.timings = config._cache._content
                monitor = getattr(config, "progress_monitor", None)
                if monitor is not None:
                    monitor.phase_start("Tactics", None, 2)
                    monitor.step_complete("Tactics", 0)
                simulation.during_build()
                if monitor is not None:
                    simulation.was_stopped = not monitor.step_complete("Tactics", 1)
                    monitor.phase_finish("Tactics")
                    if simulation.was_stopped:
                        return None
                if simulation.build_error:
                    self._logger.log(ILogger.INFO, "some information")
                    self._logger.log(ILogger.ERROR, simulation.build_error)
                    self._logger.log(ILogger.ERROR, "and its consequence")
                    return None
                return HostMemory(simulation.plan(network._model))

        @add
        class IExecutionContext:
            def __init__(self, engine: ICudaEngine) -> None:
                self._engine, self._addresses = engine, {}

            def set_tensor_address(self, name: str, address: int) -> bool:
                self._addresses[name] = address
                return name in self._engine._tensors

            def execute_async_v3(self, stream_handle: int) -> bool:
                engine, addresses = self._engine, dict(self._addresses)
                if simulation.execute_error or addresses.keys() != engine._tensors.keys():
                    engine._logger.log(ILogger.ERROR, simulation.execute_error or "no address")
                    return False
                if gpu.is_recording(stream_handle):
                    if not simulation.records:
                        engine._logger.log(ILogger.ERROR, "cannot be recorded")
                        gpu.spoil_recording(stream_handle)
                        return True
                else:
                    time.sleep(gpu.launch_seconds)
                gpu.enqueue(stream_handle, lambda: engine._run(addresses))
                return True

        @add
        class ICudaEngine:
            def __init__(self, model: bytes, logger: ILogger) -> None:
                self._logger = logger
                self._session = onnxruntime.InferenceSession(
                    model, providers=["CPUExecutionProvider"]
                )
                (self._input,), (self._output,) = (
                    self._session.get_inputs(),
                    self._session.get_outputs(),
                )
                self._tensors = {node.name: node for node in (self._input, self._output)}

            @property
            def num_io_tensors(self) -> int:
                return len(self._tensors)

            def get_tensor_name(self, index: int) -> str:
                return list(self._tensors)[index]

            def get_tensor_mode(self, name: str) -> enum.IntEnum:
                mode = module.TensorIOMode
                return mode.INPUT if name == self._input.name else mode.OUTPUT

            def get_tensor_dtype(self, name: str) -> enum.IntEnum:
                types = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT"}
                return module.DataType[types[self._tensors[name].type]]

            def get_tensor_shape(self, name: str) -> tuple[int, ...]:
                return tuple(self._tensors[name].shape)

            def create_execution_context(self) -> IExecutionContext:
                return IExecutionContext(self)

            def _run(self, addresses: dict[str, int]) -> None:
                picture, rows = self._input, self._output
                dtype = np.uint8 if picture.type == "tensor(uint8)" else np.float32
                source = gpu.array(addresses[picture.name], dtype, tuple(picture.shape))
                target = gpu.array(addresses[rows.name], np.float32, tuple(rows.shape))
                if source is not None and target is not None:
                    target[:] = self._session.run(None, {picture.name: source})[0]

        @add
        class Runtime:
            engine_host_code_allowed = True  # so that a test sees it being forbidden

            def __init__(self, logger: ILogger) -> None:
                self._logger = logger

            def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
                assert self.engine_host_code_allowed is False
                head = simulation.plan(b"")
                if simulation.load_error or not plan.startswith(head):
                    reason = simulation.load_error or "the engine is of another version"
                    self._logger.log(ILogger.ERROR, reason)
                    return None
                return ICudaEngine(plan[len(head) :], self._logger)

        return module


def forget_modules() -> None:
    """Make the next import of our modules meet the `tensorrt` of that moment."""
    for name in ("drone_kd.backends.tensorrt.build", "drone_kd.backends.tensorrt.runtime"):
        if sys.modules.pop(name, None) is not None:
            package, _, module = name.rpartition(".")
            delattr(sys.modules[package], module)
    cuda._library.cache_clear()
