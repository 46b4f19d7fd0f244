"""Times engines that were just compiled against each other, on this machine's GPU."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from lgvit_edge.bundle.manifest import GraphSpec
from lgvit_edge.errors import BackendError
from lgvit_edge.machine.tensorrt import TensorRT
from lgvit_edge.runtime.backends.tensorrt_engine import attach_scratch, scratch_size
from lgvit_edge.runtime.cuda.api import Cuda
from lgvit_edge.runtime.cuda.bindings import open_cuda

_WARM_UPS, _TURNS = 5, 20


def run_times(
    trt: TensorRT, graph: GraphSpec, batch: int, plans: list[bytes], *, gpu: int = 0
) -> list[float]:
    """Return the median time of each engine of TensorRT 8 in ms, run in turn on whatever image.

    Raises:
        BackendError: an engine does not load or run.
        MissingDependency: there is no CUDA binding.
    """
    cuda = open_cuda(device=gpu)
    try:
        return _times(trt, cuda, graph, batch, plans)
    finally:
        cuda.close()  # after TensorRT's objects


def _times(
    trt: TensorRT, cuda: Cuda, graph: GraphSpec, batch: int, plans: list[bytes]
) -> list[float]:
    runtime = trt.make("Runtime")
    contexts = [_context(trt, runtime, cuda, graph, batch, plan) for plan in plans]
    times: list[list[float]] = [[] for _ in plans]
    for _ in range(_WARM_UPS + _TURNS):
        for (_, context), taken in zip(contexts, times, strict=True):
            began = time.perf_counter()
            if not context.execute_async_v3(cuda.stream):
                raise BackendError(f"an engine does not run: {trt.reason()}")
            cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(taken[_WARM_UPS:]) for taken in times]


def _context(
    trt: TensorRT, runtime: Any, cuda: Cuda, graph: GraphSpec, batch: int, plan: bytes
) -> tuple[Any, Any]:
    """Return an engine and a context with all that it needs to run."""
    engine = runtime.deserialize_cuda_engine(plan)
    context = None if engine is None else engine.create_execution_context_without_device_memory()
    if context is None:
        raise BackendError(f"an engine does not load: {trt.reason()}")
    size = scratch_size(engine)
    attach_scratch(context, cuda.allocate(size), size)
    for spec in (*graph.inputs, *graph.outputs):
        count = int(np.prod(spec.for_batch(batch)))
        context.set_tensor_address(spec.name, cuda.allocate(count * np.dtype(spec.dtype).itemsize))
    source = graph.inputs[0]
    if source.shape[0] < 0:
        context.set_input_shape(source.name, source.for_batch(batch))
    return engine, context
