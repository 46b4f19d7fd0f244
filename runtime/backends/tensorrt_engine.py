"""Chooses and loads a bundle's TensorRT engines that fit this machine's GPU."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

from lgvit_edge._support.cache import keep, ours
from lgvit_edge._support.files import read_bytes
from lgvit_edge._support.outputs import write
from lgvit_edge.bundle import builds as engines
from lgvit_edge.bundle.builds import Build
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.layout import ENGINES, SIGNATURE
from lgvit_edge.bundle.manifest import GraphSpec
from lgvit_edge.errors import BackendError, BundleError, MissingDependency
from lgvit_edge.machine.gpu import Gpu, find_gpu, find_gpus, no_gpu
from lgvit_edge.machine.tensorrt import TensorRT
from lgvit_edge.runtime.backends.base import ON_ENGINES, Candidate, ChainOptions
from lgvit_edge.runtime.cuda.driver import on_gpu

RUNTIME_CACHE = "runtime.cache"
_MAX_CACHE = 256 << 20


def candidates(bundle: Bundle, options: ChainOptions) -> list[Candidate]:
    """List TensorRT where there are engines and a GPU; warn where no engine fits the GPU."""
    if not (bundle.root / ENGINES).is_dir() or find_gpu(options.gpu) is None:
        return []
    try:
        choose_build(bundle, index=options.gpu)
    except (BackendError, BundleError) as error:
        warnings.warn(f"not running on TensorRT, because {error}", stacklevel=4)
        return []
    return [Candidate("tensorrt", rank=ON_ENGINES)]


def chosen_engines(bundle: Bundle, options: ChainOptions) -> str:
    """Name the engines that run here; see ``Backend.engines``."""
    return choose_build(bundle, index=options.gpu)[0].name


def choose_build(
    bundle: Bundle, tag: str | None = None, index: int = 0
) -> tuple[Path, Build, TensorRT]:
    """Return the build (of this tag) that runs on GPU ``index``, going by the builds' records.

    Raises:
        BackendError: there is no such GPU, or no build fits it.
    """
    root = bundle.root
    gpu = find_gpu(index)
    if gpu is None:
        if find_gpus():
            raise BackendError(no_gpu(index))
        raise BackendError(
            "TensorRT engines need an NVIDIA GPU and its driver, and there is none here "
            "(libcuda.so.1 does not load or finds no GPU); run: lgvit-edge doctor, or use the "
            "onnxruntime backend"
        )
    builds = [pair for pair in engines.find_builds(root) if tag in (None, pair[0].name)]
    if not builds:
        which = "engines" if tag is None else f"engines/{tag}"
        raise BackendError(f"{root} has no {which}; run: lgvit-edge build {root}")
    faults, command = [], f"lgvit-edge build {root}" + (f" --device cuda:{index}" if index else "")
    # TensorRT's engines come before TensorRT-RTX's: they were tuned on this very GPU.
    for folder, build in sorted(builds, key=lambda pair: getattr(pair[1], "library", "")):
        if isinstance(build, BundleError):
            faults.append(str(build))
            continue
        try:
            trt = TensorRT(build.library)
            fault = _misfit(bundle, folder, build, trt, gpu, index)
            if not trt.runs_on(gpu) and "--builder" not in command:
                command += " --builder tensorrt"
        except (BackendError, MissingDependency) as error:  # the library is missing or fails
            fault = str(error)
        if fault is None:
            return folder, build, trt
        faults.append(f"{folder.name}: {fault}")
    raise BackendError(
        f"none of the engines in {root / 'engines'} run here: {'; '.join(faults)}; run: {command}"
    )


def _misfit(
    bundle: Bundle, folder: Path, build: Build, trt: TensorRT, gpu: Gpu, index: int
) -> str | None:
    """Return why a build cannot run here; None where it can."""
    if build.version != trt.version:
        return f"built with {build.library} {build.version}, found {trt.version}"
    if build.platform != engines.platform_name():
        return f"built for {build.platform}, this is {engines.platform_name()}"
    here = (gpu.name, gpu.multiprocessors)
    if build.gpu is not None and (build.gpu, build.multiprocessors) != here:
        return (
            f"built on {build.gpu} ({build.multiprocessors} multiprocessors), this GPU is "
            f"{gpu.name} ({gpu.multiprocessors})"
        )
    capability, built_for = gpu.compute_capability, build.compute_capabilities
    if built_for and capability not in built_for:
        listed = ", ".join(built_for)
        return f"built for compute capability {listed}, this GPU ({gpu.name}) has {capability}"
    if (fault := build.fault(bundle)) is not None or not trt.is_rtx:
        return fault
    with on_gpu(index):
        return _refusal(folder, build, trt, gpu)


def _refusal(folder: Path, build: Build, trt: TensorRT, gpu: Gpu) -> str | None:
    """Return why TensorRT-RTX refuses the engines, going by the header of one."""
    runtime = trt.make("Runtime")
    path = folder / build.engines["baseline"].file
    try:
        with path.open("rb") as file:
            header = file.read(runtime.engine_header_size)
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"
    validity, bits = runtime.get_engine_validity(header)
    if validity != trt.module.EngineValidity.INVALID:
        return None
    names = trt.module.EngineInvalidityDiagnostics.__members__.items()
    reasons = [name for name, bit in names if int(bits) & int(bit)] or [trt.reason()]
    if "UNSUPPORTED_CC" in reasons and trt.runs_on(gpu):
        return f"not built for {gpu.name}; add --capability {gpu.compute_capability} to the command"
    if "UNSUPPORTED_CC" in reasons:
        return (
            f"{trt.library} {trt.version} compiles for compute capabilities "
            f"{', '.join(trt.capabilities)}, and {gpu.name} has {gpu.compute_capability}"
        )
    return f"refused by {trt.library}: {', '.join(reasons)}"


class EngineLoader:
    """Loads the engines of one build and makes their execution contexts.

    Attributes:
        cache_file: where RTX's kernels are stored that were compiled at run time; None for nowhere.
        compiles: whether RTX has yet to compile what engines leave to the GPU that runs them.
    """

    def __init__(self, bundle: Bundle, folder: Path, build: Build, trt: TensorRT) -> None:
        """Start TensorRT's runtime; BackendError where it does not start."""
        self._folder, self._build, self._trt = folder, build, trt
        self._runtime = trt.make("Runtime")
        self._cache: Any = None
        self._signed = (bundle.root / SIGNATURE).exists()
        self.cache_file: Path | None = folder / RUNTIME_CACHE
        self._cached = self.cache_file  # what is read
        if self._signed:  # a signed bundle is not changed: another file would end its signature
            place = bundle.cache
            self.cache_file = None if place is None else place / f"{folder.name}-{RUNTIME_CACHE}"
            if self.cache_file is not None and ours(self.cache_file):
                self._cached = self.cache_file
        self.compiles = trt.is_rtx and not self._cached.exists()

    def load(self, name: str, graph: GraphSpec) -> Any:
        """Deserialize one engine and check its tensors.

        Raises:
            BundleError: the file is missing or is not the one that was built.
            BackendError: TensorRT refuses it, or its tensors are not the graph's.
        """
        plan = engines.read_engine(self._folder, self._build, name, graph)
        path = self._folder / self._build.engines[name].file
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"{self._trt.library} {self._trt.version} cannot load {path}: "
                f"{self._trt.reason()}; {engines.rebuild(self._folder)} --force"
            )
        tensors = set()
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            is_input = engine.get_tensor_mode(name) == self._trt.module.TensorIOMode.INPUT
            dtype = self._trt.dtype(engine.get_tensor_dtype(name))
            tensors.add((name, is_input, dtype, tuple(engine.get_tensor_shape(name))))
        expected = {
            (spec.name, spec in graph.inputs, spec.dtype, spec.shape)
            for spec in (*graph.inputs, *graph.outputs)
        }
        if tensors != expected:
            raise BackendError(
                f"{path}: expected tensors (name, input, dtype, shape) {sorted(expected)}, found "
                f"{sorted(tensors)}; {engines.rebuild(self._folder)}"
            )
        return engine

    def context(self, engine: Any) -> Any:
        """Make an execution context whose scratch memory is attached later.

        Raises:
            BackendError: TensorRT refuses.
        """
        strategies = getattr(self._trt.module, "ExecutionContextAllocationStrategy", None)
        if self._trt.is_rtx:
            context = engine.create_execution_context(self._runtime_config(engine, strategies))
        elif strategies is not None:
            context = engine.create_execution_context(strategies.USER_MANAGED)
        else:
            context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise BackendError(f"TensorRT makes no execution context: {self._trt.reason()}")
        return context

    def save_cache(self) -> None:
        """Store the kernels that RTX compiled at run time, so that the next start is quick.

        They lie beside the engines, or, of a signed bundle, in the user's cache. A folder that
        cannot be written only costs time: no error.
        """
        if self._cache is None or (serialized := self._cache.serialize()) is None:
            return
        data, path = bytes(serialized), self.cache_file
        with contextlib.suppress(OSError):
            if path is None or (
                self._cached.exists() and read_bytes(self._cached, _MAX_CACHE) == data
            ):
                return
            if self._signed:
                keep(path, lambda partial: partial.write_bytes(data))
            else:
                write(path, data)

    def _runtime_config(self, engine: Any, strategies: Any) -> Any:
        """Let RTX compile its kernels up front for the few shapes, and cache them."""
        trt = self._trt.module
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the chain captures its own
        specialization = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):  # a cache of another version is ignored by RTX
                if not self._cached.is_symlink():
                    self._cache.deserialize(read_bytes(self._cached, _MAX_CACHE))
        config.set_runtime_cache(self._cache)
        return config


def scratch_size(engine: Any) -> int:
    """Return the bytes of scratch memory that a context of this engine needs."""
    new = hasattr(engine, "device_memory_size_v2")
    return int(engine.device_memory_size_v2 if new else engine.device_memory_size)


def attach_scratch(context: Any, address: int, size: int) -> None:
    """Let a context use scratch memory that is shared with other contexts."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, size)
    else:  # 8.x
        context.device_memory = address
