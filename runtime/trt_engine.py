"""Engines of a bundle on this GPU: which build fits, loading it, contexts that share memory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lgvit_edge import engines
from lgvit_edge._files import replacing
from lgvit_edge._tensorrt import TensorRT
from lgvit_edge.bundle import Bundle
from lgvit_edge.engines import Build
from lgvit_edge.errors import BackendError, MissingDependency
from lgvit_edge.gpu import Gpu, find_gpu
from lgvit_edge.manifest import GraphSpec

RUNTIME_CACHE = "runtime.cache"


def choose_build(bundle: Bundle) -> tuple[Path, Build, TensorRT]:
    """The build that runs on this machine's GPU, checked against its record before any engine.

    Raises:
        BackendError: there is no GPU, or no build fits; names both sides and the command.
        BundleError: a record is damaged.
    """
    root = bundle.root
    gpu = find_gpu()
    if gpu is None:
        raise BackendError(
            "TensorRT engines need an NVIDIA GPU and its driver, and there is none here "
            "(libcuda.so.1 does not load or finds no GPU); run: lgvit-edge doctor, or open the "
            "bundle with backend='onnxruntime'"
        )
    builds = engines.find_builds(root)
    if not builds:
        raise BackendError(f"{root} has no engines; run: lgvit-edge build {root}")
    faults = []
    # TensorRT's own engines first: they were tuned on this very GPU.
    for folder, build in sorted(builds, key=lambda found: found[1].library):
        try:
            trt = TensorRT(build.library)
        except MissingDependency as error:
            faults.append(f"{folder.name}: {error}")
            continue
        fault = _misfit(bundle, build, trt, gpu)
        if fault is None:
            return folder, build, trt
        faults.append(f"{folder.name}: {fault}")
    raise BackendError(
        f"none of the engines in {root / 'engines'} run here: {'; '.join(faults)}; "
        f"run: lgvit-edge build {root}"
    )


def _misfit(bundle: Bundle, build: Build, trt: TensorRT, gpu: Gpu) -> str | None:
    """What keeps a build from running here: built for the one, found the other."""
    if build.version != trt.version:
        return f"built with {build.library} {build.version}, found {trt.version}"
    if build.platform != engines.platform_name():
        return f"built for {build.platform}, this is {engines.platform_name()}"
    here = gpu.compute_capability
    if build.gpu not in (None, gpu.name):
        return f"built on {build.gpu}, this GPU is {gpu.name}"
    if build.compute_capabilities and here not in build.compute_capabilities:
        capabilities = ", ".join(build.compute_capabilities)
        return f"built for compute capability {capabilities}, this GPU ({gpu.name}) has {here}"
    if not build.fits(bundle):
        return "built from an earlier export of this bundle"
    missing = [name for name in engines.graphs_of(bundle) if name not in build.engines]
    return f"incomplete, {missing[0]} is missing" if missing else None


class EngineLoader:
    """Loads engines of one build and makes their contexts."""

    def __init__(self, folder: Path, build: Build, trt: TensorRT) -> None:
        """Start TensorRT's runtime.

        Raises:
            BackendError: it does not start.
        """
        self._folder, self._build, self._trt = folder, build, trt
        self._runtime = trt.module.Runtime(trt.logger)
        if not self._runtime:
            raise BackendError(f"{trt.library} {trt.version} does not start: {self._said()}")
        self._cache: Any = None

    def load(self, name: str, graph: GraphSpec) -> Any:
        """Deserialize one engine and check its tensors.

        Raises:
            BundleError: the file is missing or is not the one that was built.
            BackendError: TensorRT refuses it, or its tensors are not the graph's.
        """
        plan = engines.read_engine(self._folder, self._build, name, graph)
        path = self._folder / self._build.engines[name].file
        self._check_validity(path, plan)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"{self._trt.library} {self._trt.version} cannot load {path}: {self._said()}; "
                f"{engines.rebuild(self._folder)}"
            )
        modes = self._trt.module.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = {
            (
                tensor,
                engine.get_tensor_mode(tensor) == modes.INPUT,
                self._trt.dtype(engine.get_tensor_dtype(tensor)),
                tuple(engine.get_tensor_shape(tensor)),
            )
            for tensor in names
        }
        expected = {
            (spec.name, spec in graph.inputs, spec.dtype, spec.shape)
            for spec in (*graph.inputs, *graph.outputs)
        }
        if found != expected:
            raise BackendError(
                f"{path}: expected tensors (name, input, dtype, shape) {sorted(expected)}, found "
                f"{sorted(found)}; {engines.rebuild(self._folder)}"
            )
        return engine

    def context(self, engine: Any) -> Any:
        """An execution context whose scratch memory is attached later.

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
            raise BackendError(f"TensorRT makes no execution context: {self._said()}")
        return context

    def save_cache(self) -> None:
        """Keep what RTX compiled at run time beside the engines, so that the next start is quick.

        A folder that cannot be written only costs time, so it is no error.
        """
        if self._cache is None:
            return
        data, path = bytes(self._cache.serialize()), self._folder / RUNTIME_CACHE
        with contextlib.suppress(OSError):
            if not path.exists() or path.read_bytes() != data:
                with replacing(path) as partial:
                    partial.write_bytes(data)

    def _runtime_config(self, engine: Any, strategies: Any) -> Any:
        """RTX compiles kernels at run time: up front for our few shapes, and cached."""
        trt = self._trt.module
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the chain captures its own
        specialization = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):  # a cache of another version is ignored by RTX
                self._cache.deserialize((self._folder / RUNTIME_CACHE).read_bytes())
        config.set_runtime_cache(self._cache)
        return config

    def _check_validity(self, path: Path, plan: bytes) -> None:
        """Ask the library before it reads the whole plan, where it can be asked (RTX)."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        validity, bits = self._runtime.get_engine_validity(plan)
        if validity != self._trt.module.EngineValidity.INVALID:
            return
        names = self._trt.module.EngineInvalidityDiagnostics.__members__.items()
        reasons = [name for name, bit in names if int(bits) & int(bit)]
        raise BackendError(
            f"{self._trt.library} {self._trt.version} refuses {path}: "
            f"{', '.join(reasons) or self._said()}; {engines.rebuild(self._folder)}"
        )

    def _said(self) -> str:
        said = self._trt.take_log("INTERNAL_ERROR", "ERROR")
        return "; ".join(said[:3])[:600] or "TensorRT gave no reason"


def scratch_size(engine: Any) -> int:
    """Bytes of scratch memory a context of this engine needs."""
    name = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else None
    return int(getattr(engine, name or "device_memory_size"))


def attach_scratch(context: Any, address: int, size: int) -> None:
    """Let a context use memory that engines run one after the other share."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(address, size)
    else:  # 8.x
        context.device_memory = address
