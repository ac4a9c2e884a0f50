"""Build a TensorRT engine from a model.onnx, on the device that runs it (drone-kd build).

After each build, and each time that it is loaded, an engine must reproduce the golden images of
its model, see `drone_kd.backends.golden`. A new engine that does not is refused, and an older one
stays. Without one the refusal is stored, so that it is not built again at each start.

The precision is that of the model's spec: networks are strongly typed, and TF32 is off. TensorRT
8.6 has no strongly typed networks: it builds an fp16 model with the FP16 flag and rejects an int8
model. Importing this module imports TensorRT.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent import futures
from datetime import datetime, timezone
from typing import Any

import tensorrt as trt

from drone_kd.backends.golden import GoldenError, GoldenImage, read_golden, require_golden
from drone_kd.backends.model_file import ModelFile
from drone_kd.backends.tensorrt.cuda import CudaError, first_device, total_memory
from drone_kd.backends.tensorrt.engine_cache import EngineKey, EngineStore
from drone_kd.backends.tensorrt.runtime import LOGGER, EngineError, TrtBackend, started
from drone_kd.core.model_spec import ModelError, ModelSpec
from drone_kd.machine import gpu_clocks_mhz, gpu_state, memory_mb
from drone_kd.text import one_line

OPTIMISATION_LEVEL = 3  # TensorRT's own default; written out because engines depend on it
_MAX_WORKSPACE_BYTES = 1 << 30
_WORKSPACE_SHARE = 8  # one part in 8 of the memory
# Room on the disk for an engine, which may have FP16 weights as FP32, and for kernel timings.
_SPACE_BYTES, _SPACE_PER_MODEL = 20_000_000, 3
_SMALL_MEMORY_MB = 6000.0
_PROGRESS_SECONDS = 5.0

# Missing in 8.6.
STRONGLY_TYPED = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
MONITORED = hasattr(trt, "IProgressMonitor")


def open_tensorrt(
    file: ModelFile,
    spec: ModelSpec,
    may_build: bool,
    rebuild: bool,
    progress: Callable[[str], None],
) -> TrtBackend:
    """Load a model's engine; if the cache has no valid one, `may_build` allows to build it.

    `rebuild`: build it in any case. An older engine stays until the new one is stored.

    ModelError: GPU, TensorRT or cache is unusable, or unusable for this model, or the engine
    computes something else; one line.
    """
    path = one_line(file.path)
    try:
        golden = read_golden(file.metadata, spec)
        store = EngineStore(_key(file, spec), progress)
        with store.locked():
            backend = None if rebuild else _load(file, spec, golden, store, may_build, progress)
            if backend is None:
                backend = _build(file, spec, golden, store, progress)
    except (ModelError, CudaError) as error:
        raise ModelError(f"{path}: {error}") from error
    except OSError as error:
        hint = "XDG_CACHE_HOME selects another folder"
        raise ModelError(f"{path}: cannot store its engine: {error} ({hint})") from error
    if not golden:
        progress(f"{path} has no golden images, so its engine is not checked: export it again")
    return backend


def _key(file: ModelFile, spec: ModelSpec) -> EngineKey:
    device, state = first_device(), gpu_state()
    return EngineKey(
        model_sha256=file.sha256,
        tensorrt=trt.__version__,
        device=device.name,
        compute_capability=device.compute_capability,
        multiprocessors=device.multiprocessors,
        board=state.board,
        power_mode=state.power_mode,
        driver=state.driver,
        precision=spec.precision,
        optimisation_level=OPTIMISATION_LEVEL,
    )


def _load(
    file: ModelFile,
    spec: ModelSpec,
    golden: list[GoldenImage],
    store: EngineStore,
    may_build: bool,
    progress: Callable[[str], None],
) -> TrtBackend | None:
    """Load the engine of the cache; None: it has to be built. ModelError: it must not be."""
    path = one_line(file.path)
    plan, problem = store.read()
    if plan is not None:
        try:
            return _cached(spec, plan, golden, store)
        except EngineError as error:
            problem = f"does not load ({error})"
        except GoldenError as error:
            problem = f"is refused ({error})"
    refused = store.entry("refused")
    if refused:
        raise ModelError(
            f"its engine was refused after an earlier build: {one_line(refused, 600)}; to build "
            f"it again: drone-kd build --rebuild {path}"
        )
    if not may_build:
        found = f"one that {problem}" if problem else "none"
        others = store.differences()
        raise ModelError(
            f"expected a valid engine on this device, found {found}, and no engine is built in "
            f"flight, or with may_build: false; run: drone-kd build {path}"
            + (f" (there are engines for something else: {others})" if others else "")
        )
    if problem:
        progress(f"the engine {one_line(store.plan_path)} {problem}: building it again")
        store.remove()
    elif others := store.differences():
        progress(f"no engine for this device and mode ({others})")
    return None


def _build(
    file: ModelFile,
    spec: ModelSpec,
    golden: list[GoldenImage],
    store: EngineStore,
    progress: Callable[[str], None],
) -> TrtBackend:
    """Build, check and store an engine. GoldenError: it is refused; see above."""
    store.require_space(_SPACE_BYTES + _SPACE_PER_MODEL * len(file.content))
    memory = memory_mb()
    if 0 < memory.get("total", 0) < _SMALL_MEMORY_MB and not memory.get("swap"):
        progress(
            f"{memory['total'] / 1e3:.1f} GB of memory and no swap: the system may kill the "
            "build; if so, add swap or stop other programs"
        )
    kind = f"{one_line(file.path.name)} ({spec.precision}) with TensorRT {trt.__version__}"
    progress(f"building the engine of {kind}; this takes minutes, once")
    start = time.monotonic()
    with store.building() as was_killed:
        if was_killed:
            progress("an earlier build of this engine was killed: for lack of memory or power?")
        plan, timings = _build_plan(file.content, spec.precision, store.read_timings(), progress)
    seconds = round(time.monotonic() - start, 1)
    built: dict[str, str | float] = {
        "built": datetime.now(timezone.utc).isoformat(),
        "build_seconds": seconds,
        "gpu_mhz": gpu_clocks_mhz().get("highest", 0),
    }
    is_new = store.read()[0] is None
    try:
        backend = _checked(spec, plan, golden)
    except GoldenError as error:
        if is_new:
            store.refuse(str(error))
        raise
    except (ModelError, CudaError):  # too little memory now: the next start need not build it
        if is_new:
            store.write(plan, timings, built)
        raise
    store.write(plan, timings, built | {"mode": backend.mode})
    progress(f"engine built in {seconds:g} s: {one_line(store.plan_path)}")
    return backend


def _checked(
    spec: ModelSpec, plan: bytes, golden: list[GoldenImage], mode: str = ""
) -> TrtBackend:
    backend = TrtBackend(spec, plan, mode)
    require_golden(backend, golden)
    return backend


def _cached(
    spec: ModelSpec, plan: bytes, golden: list[GoldenImage], store: EngineStore
) -> TrtBackend:
    mode = store.entry("mode")
    backend = _checked(spec, plan, golden, mode)
    if backend.mode != mode:
        with contextlib.suppress(OSError):  # the next load measures again
            store.note("mode", backend.mode)
    return backend


def _build_plan(
    model: bytes, precision: str, timings: bytes, progress: Callable[[str], None]
) -> tuple[bytes, bytes]:
    """Build an engine; return it and the timing cache for the next build on this device."""
    if not STRONGLY_TYPED and precision == "int8":
        raise ModelError(
            f"TensorRT {trt.__version__}: expected an fp32 or fp16 model, got int8: export "
            "the model with --precision fp16, or use JetPack 6.1 or later (TensorRT 10.3)"
        )
    builder: trt.Builder = started(trt.Builder)
    if STRONGLY_TYPED:
        kind = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    else:
        kind = trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    network: trt.INetworkDefinition = builder.create_network(1 << int(kind))
    # The parser owns the weights, so it must exist until the engine is built.
    parser: trt.OnnxParser = trt.OnnxParser(network, LOGGER)
    _parse(parser, model)
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.builder_optimization_level = OPTIMISATION_LEVEL
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _workspace())
    # For `TrtBackend.layers`; the kernels are the same.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    if not STRONGLY_TYPED and precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
    cache: trt.ITimingCache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):  # damaged
        LOGGER.reason()  # clears it: it is not the reason of what fails later
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    monitor = _Monitor()
    if MONITORED:
        config.progress_monitor = monitor
    # In a thread: this one shows progress and receives Ctrl-C, which must not be raised inside a
    # call from TensorRT.
    with futures.ThreadPoolExecutor(1) as pool:
        start = time.monotonic()
        try:
            build = pool.submit(builder.build_serialized_network, network, config)
            while futures.wait([build], _PROGRESS_SECONDS).not_done:
                progress(f"building for {time.monotonic() - start:.0f} s{monitor.position}")
        except KeyboardInterrupt:
            monitor.stopped = True
            progress("stopping the build")
            raise
    plan: trt.IHostMemory | None = build.result()
    if plan is None:
        raise ModelError(f"TensorRT {trt.__version__} cannot build it: {LOGGER.reason()}")
    new_timings: trt.IHostMemory = cache.serialize()
    return bytes(plan), bytes(new_timings)


def _workspace() -> int:
    """Return how many bytes of GPU memory a layer may use."""
    try:
        return min(_MAX_WORKSPACE_BYTES, total_memory() // _WORKSPACE_SHARE)
    except CudaError:  # TensorRT-RTX builds without a GPU
        return _MAX_WORKSPACE_BYTES


def _parse(parser: trt.OnnxParser, model: bytes) -> None:
    """Parse the bytes of a model.onnx into the parser's network."""
    if not parser.parse(model):
        LOGGER.reason()  # clears it: the parser's reason is better
        first: trt.ParserError = parser.get_error(0)
        reason = one_line(first.desc(), 300)
        raise ModelError(f"TensorRT {trt.__version__} cannot read the model: {reason}")


_MonitorBase: Any = trt.IProgressMonitor if MONITORED else object  # no stubs: hence Any


class _Monitor(_MonitorBase):  # type: ignore[misc]  # TensorRT has no type stubs
    """Progress monitor of a build; TensorRT calls it."""

    def __init__(self) -> None:
        _MonitorBase.__init__(self)  # by name: pybind11 does not support super()
        self.position = ""  # text with the phase and step; empty if TensorRT does not report it
        self.stopped = False  # True stops the build
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Store the number of steps of a phase."""
        self._steps[phase_name] = num_steps

    def phase_finish(self, phase_name: str) -> None:
        """Remove a phase."""
        self._steps.pop(phase_name, None)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Store the position; return whether to continue."""
        self.position = f": {phase_name}, {step + 1} of {self._steps.get(phase_name, 0)}"
        return not self.stopped
