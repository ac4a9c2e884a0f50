"""model.onnx -> TensorRT engine, on the device that flies it: drone-kd build model.onnx

Precision is what the model file says: networks are strongly typed, and TF32 is off. TensorRT 8.6
knows no strongly typed networks: there an fp16 model is built with the FP16 flag, and an int8
model is refused. Importing this module imports TensorRT.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from datetime import datetime, timezone
from pathlib import Path

import tensorrt as trt

from drone_kd.backends.tensorrt.cuda import CudaError, first_device
from drone_kd.backends.tensorrt.engine_cache import EngineKey, EngineStore, sha256
from drone_kd.backends.tensorrt.runtime import LOGGER, EngineError, TrtBackend
from drone_kd.core.model_spec import ModelError, ModelSpec
from drone_kd.files import write_whole

OPTIMISATION_LEVEL = 3  # TensorRT's own default; written out because engines depend on it
_WORKSPACE_BYTES = 1 << 30  # a quarter or less of what any Jetson Orin has
_PROGRESS_SECONDS = 5.0

# What 8.6 lacks.
STRONGLY_TYPED = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
MONITORED = hasattr(trt, "IProgressMonitor")


def open_tensorrt(
    path: Path, spec: ModelSpec, may_build: bool, progress: Callable[[str], None]
) -> TrtBackend:
    """Load a model's engine, after building it where this user's cache has no valid one.

    Args:
        path: a model.onnx.
        spec: what it says of itself.
        may_build: whether to build it, which takes minutes.
        progress: gets one line of text now and then.

    Raises:
        ModelError: GPU, TensorRT or cache cannot be used, or not for this model; one line.
    """
    try:
        return _open(path, spec, may_build, progress)
    except (ModelError, CudaError) as error:
        raise ModelError(f"{path}: {error}") from error
    except OSError as error:
        raise ModelError(
            f"{path}: its engine cannot be kept: {error} (XDG_CACHE_HOME chooses another folder)"
        ) from error


def _open(
    path: Path, spec: ModelSpec, may_build: bool, progress: Callable[[str], None]
) -> TrtBackend:
    device = first_device()
    model = path.read_bytes()
    key = EngineKey(
        model_sha256=sha256(model),
        tensorrt=trt.__version__,
        device=device.name,
        compute_capability=device.compute_capability,
        multiprocessors=device.multiprocessors,
        precision=spec.precision,
        optimisation_level=OPTIMISATION_LEVEL,
    )
    store = EngineStore(key)
    with store.locked(lambda: progress("another process builds this engine; waiting for it")):
        plan, problem = store.read()
        if plan is not None:
            try:
                return TrtBackend(spec, plan)
            except EngineError as error:
                problem = f"does not load ({error})"
        if not may_build:
            raise ModelError(
                "there is no valid engine of it on this device, and none is built in flight: "
                f"drone-kd build {path} does"
            )
        if problem:
            progress(f"the engine {store.plan_path} {problem}: building it again")
            store.remove()
        progress(
            f"building the engine of {path.name} ({spec.precision}) with TensorRT "
            f"{trt.__version__}; this takes minutes, once"
        )
        start = time.monotonic()
        timings = store.timings_path
        plan, timings_now = _build_plan(
            model,
            spec.precision,
            timings.read_bytes() if timings.is_file() else b"",
            progress,
        )
        seconds = round(time.monotonic() - start, 1)
        built = {"built": datetime.now(timezone.utc).isoformat(), "build_seconds": seconds}
        store.write(plan, built)
        write_whole(timings, timings_now)
        progress(f"engine built in {seconds:g} s: {store.plan_path}")
    return TrtBackend(spec, plan)


def _build_plan(
    model: bytes, precision: str, timings: bytes, progress: Callable[[str], None]
) -> tuple[bytes, bytes]:
    """Build an engine.

    Args:
        model: the model.onnx.
        precision: what the model says it is.
        timings: of an earlier build on this device, or empty.
        progress: gets a line every few seconds.

    Returns:
        The engine, and the timings for the next build.

    Raises:
        ModelError: TensorRT cannot build it; with TensorRT's own reason.
    """
    if not STRONGLY_TYPED and precision == "int8":
        raise ModelError(
            f"TensorRT {trt.__version__} serves for fp32 and fp16 models only, got int8: export "
            "the model with --precision fp16, or use JetPack 6.1 or later (TensorRT 10.3)"
        )
    builder: trt.Builder = trt.Builder(LOGGER)
    if STRONGLY_TYPED:
        kind = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    else:
        kind = trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    network: trt.INetworkDefinition = builder.create_network(1 << int(kind))
    parser: trt.OnnxParser = trt.OnnxParser(network, LOGGER)
    if not parser.parse(model):
        LOGGER.reason()  # forgotten: the parser's own is better
        first: trt.ParserError = parser.get_error(0)
        reason = " ".join(first.desc().split())[:300]
        raise ModelError(f"TensorRT {trt.__version__} cannot read the model: {reason}")

    config: trt.IBuilderConfig = builder.create_builder_config()
    config.builder_optimization_level = OPTIMISATION_LEVEL
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)
    if not STRONGLY_TYPED and precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
    cache: trt.ITimingCache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):  # damaged
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    monitor = _Monitor()
    if MONITORED:
        config.progress_monitor = monitor
    # In a thread, so that this one can show progress and hear Ctrl-C, which must not be raised
    # in a call from TensorRT.
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
    timings_now: trt.IHostMemory = cache.serialize()
    return bytes(plan), bytes(timings_now)


_MonitorBase = trt.IProgressMonitor if MONITORED else object


class _Monitor(_MonitorBase):
    """TensorRT tells it how far a build is, and asks whether to go on.

    Attributes:
        position: text for people; empty where TensorRT does not say.
        stopped: set to True to stop the build.
    """

    def __init__(self) -> None:
        _MonitorBase.__init__(self)  # by name: pybind11 does not see super()
        self.position = ""
        self.stopped = False
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Take note of a phase."""
        self._steps[phase_name] = num_steps

    def phase_finish(self, phase_name: str) -> None:
        """Forget a phase."""
        self._steps.pop(phase_name, None)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Take note of a step; returns whether to go on."""
        self.position = f": {phase_name}, {step + 1} of {self._steps.get(phase_name, 0)}"
        return not self.stopped
