"""The half of the stand-in for TensorRT that runs engines, through ONNX Runtime on host memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from nvidia_api import Checked, behaviour
from trt_builder import DTYPES

from lgvit_edge.runtime.backends.ort_pool import join_pool, open_session

if TYPE_CHECKING:
    from trt_standin import StandIn

CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8}
SCRATCH = 1 << 16


class Runtime:
    engine_header_size = 64

    def __init__(self, trt: StandIn, logger: Any) -> None:
        self.trt, self.logger, self.device = trt, logger, trt.cuda.fake_current()

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        self.trt.stay(self.device)
        bits = self.trt.EngineInvalidityDiagnostics
        if self.trt.unsupported:
            return self.trt.EngineValidity.INVALID, int(bits.UNSUPPORTED_CC)
        if buffer.startswith(b"standin"):
            return self.trt.EngineValidity.VALID, 0
        return self.trt.EngineValidity.INVALID, int(bits.MALFORMED_ENGINE)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Checked | None:
        self.trt.stay(self.device)
        if not serialized_engine.startswith(b"standin"):
            self.logger.log(self.trt.ILogger.ERROR, "magic tag does not match")
            return None
        plan = json.loads(serialized_engine[7:])
        return self.trt.checked("ICudaEngine", _Engine(self.trt, plan))


class _Engine:
    device_memory_size = device_memory_size_v2 = SCRATCH

    def __init__(self, trt: StandIn, plan: dict[str, Any]) -> None:
        self.trt, self.plan, self.device = trt, plan, trt.cuda.fake_current()
        self.contexts = 0
        how: dict[str, Any] = {"shared": True, "providers": ["CPUExecutionProvider"]}
        threads = join_pool(onnxruntime, None)
        self.session, _ = open_session(onnxruntime, plan["onnx"], threads, **how)
        types = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(uint8)": "UINT8"}
        self.inputs = [t.name for t in self.session.get_inputs()]
        self.outputs = [t.name for t in self.session.get_outputs()]
        tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.types = {t.name: types[t.type] for t in tensors}
        self.shapes = {
            t.name: tuple(s if isinstance(s, int) else -1 for s in t.shape) for t in tensors
        }
        self.num_io_tensors = len(tensors)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self.trt.DataType, self.types[name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def create_engine_inspector(self) -> Checked:
        graph = onnx.load(self.plan["onnx"], load_external_data=False).graph
        half = any(DTYPES.get(weight.data_type) == "HALF" for weight in graph.initializer)
        single = self.plan["single"] or self.trt.silently_float32
        kinds = self.trt.inner or ["FP16" if half and not single else "FP32"]
        information = SimpleNamespace(execution_context=None)

        def text(format: Any) -> str:
            if not self.trt.describes_layers:  # as without DETAILED (NVIDIA/TensorRT#4020)
                return json.dumps({"Layers": [name for name, _ in self.layers]})
            # Formats depend on shapes, which a context tells (developer guide, engine inspector).
            told = -1 not in self.shapes[self.inputs[0]] or information.execution_context
            forms = [f"Row major linear {kind} format" for kind in kinds]
            forms = forms if told else ["N/A due to dynamic shapes"] * len(kinds)
            names = enumerate([] if self.trt.fused else forms)
            inner = [{"Name": f"inner {i}", "Format/Datatype": form} for i, form in names]
            outer = {"Name": self.outputs[0], "Format/Datatype": "Row major linear FP16 format"}
            rows = [{"Name": "fused", "Outputs": [*inner, outer]}]
            # Named as an output, so that the types inside are told once.
            rows += [
                row | {"Outputs": [inner[0] | {"Name": self.outputs[0]}] if inner else []}
                for _, row in self.layers
            ]
            return json.dumps({"Layers": rows})

        information.get_engine_information = text
        return self.trt.checked("EngineInspector", information)

    @functools.cached_property
    def layers(self) -> list[tuple[str, dict[str, str]]]:
        """Names, and what the inspector says: nodes of one module are fused.

        TensorRT 8 joins their names; later ones make up a name, and list them under Metadata
        (NVIDIA/TensorRT#4397, #4535).
        """
        nodes = onnx.load(self.plan["onnx"], load_external_data=False).graph.node
        found = []
        for i, (_, group) in enumerate(itertools.groupby(nodes, lambda n: n.name.split("/")[0])):
            fused = list(group)
            product = any(node.op_type in ("MatMul", "Gemm") for node in fused)
            row = {"LayerType": "gemm" if product else "kgen", "TacticName": f"tactic_{i}"}
            if self.trt.__version__.startswith("8."):
                name = " + ".join(node.name for node in fused)
            else:
                name = f"__myl_{''.join(node.op_type[:4] for node in fused)}_myl0_{i}"
                row["Metadata"] = "\x1e".join(f"[ONNX Layer: {node.name}]" for node in fused)
            found.append((name, {"Name": name} | row))
        return found

    def create_execution_context_without_device_memory(self) -> Checked:
        return self.trt.checked("IExecutionContext", _Context(self.trt, self))

    def create_runtime_config(self) -> Checked:
        return self.trt.checked("IRuntimeConfig", _RuntimeConfig(self.trt))

    def create_execution_context(self, how: Any) -> Checked:
        config = behaviour(how) if isinstance(how, Checked) else None
        strategy = how if config is None else config.strategy
        assert strategy.name == "USER_MANAGED", "contexts must share scratch memory"
        context = _Context(self.trt, self, None if config is None else config.cache)
        return self.trt.checked("IExecutionContext", context)


class _RuntimeConfig:
    def __init__(self, trt: StandIn) -> None:
        self.trt = trt
        self.strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Checked:
        return self.trt.checked("IRuntimeCache", _RuntimeCache())

    def set_runtime_cache(self, cache: Checked) -> bool:
        self.cache = behaviour(cache)
        return True


class _RuntimeCache:
    """Holds the names of what was compiled at run time: an engine's kernels for one shape."""

    data = b"compiled"

    def compile(self, name: str) -> None:
        if name.encode() not in self.data.split(b";"):
            self.data += b";" + name.encode()

    def serialize(self) -> bytes:
        return self.data

    def deserialize(self, blob: bytes) -> bool:
        self.data = bytes(blob)
        return True


class _Context:
    enqueue_emits_profile, profiler, ran = True, None, False

    def __init__(self, trt: StandIn, engine: _Engine, cache: _RuntimeCache | None = None) -> None:
        trt.stay(engine.device)
        self.trt, self.engine, self.cache = trt, engine, cache
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] | None = None
        self.device_memory = self.generation = 0
        engine.contexts += 1
        # In TensorRT 8 only the first one has profile 0 (NvInferRuntime.h).
        first = engine.contexts == 1 or not trt.__version__.startswith("8.")
        self.active_optimization_profile = 0 if first else -1
        source = engine.inputs[0]
        if -1 not in engine.shapes[source]:
            self.shape = engine.shapes[source]

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= SCRATCH
        self.device_memory = memory

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle
        self.active_optimization_profile, self.shape = profile_index, None
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.types or not memory:
            return False
        self.addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.plan["profile"]
        if name != self.engine.inputs[0] or not low[0] <= shape[0] <= high[0]:
            return False
        self.generation += 1  # what was recorded before is void
        self.shape = tuple(shape)
        if self.cache is not None:  # with eager specialization
            self.cache.compile(f"{Path(self.engine.plan['onnx']).stem} {shape[0]}")
        return True

    def report_to_profiler(self) -> bool:
        """It tells of the last enqueue; if that reported, it does nothing (NvInferRuntime.h)."""
        if self.enqueue_emits_profile:
            return True
        if self.profiler is None or not self.ran:
            return False
        self._report()
        return True

    def _report(self) -> None:
        assert isinstance(self.profiler, self.trt.real.IProfiler)
        if self.trt.reports_layers:
            for i, (name, _) in enumerate(self.engine.layers):
                self.profiler.report_layer_time(name, 0.25 * (i + 1))

    def is_stream_capturable(self, stream: int) -> bool:
        return self.trt.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, stem = self.engine, Path(self.engine.plan["onnx"]).stem
        self.trt.stay(engine.device)
        self.trt.calls.append(stem)
        self.trt.collecting.append(gc.isenabled())
        assert stream_handle, "the default stream adds a synchronization"
        assert self.device_memory and self.device_memory % 256 == 0, "no scratch memory"
        if self.addresses.keys() != engine.types.keys() or self.shape is None:
            return False
        if self.active_optimization_profile < 0:
            return False
        if stem == self.trt.refuse_execution:
            return False
        self.ran = True
        if self.profiler is not None and self.enqueue_emits_profile:
            self._report()
        work = CALLBACK(_work(self, dict(self.addresses), self.shape, self.device_memory))
        self.trt.callbacks.append(work)
        return not self.trt.cuda.cuLaunchHostFunc(ctypes.c_void_p(stream_handle), work, None)


def _work(
    context: _Context, addresses: dict[str, int], shape: tuple[int, ...], scratch: int
) -> Callable[[int | None], None]:
    """What the stream runs: read the input, compute, write the outputs, spoil the scratch.

    Nothing is written where an address is not the device's.

    NaN where the context was given another shape since this was recorded, which NVIDIA forbids.
    """
    engine, generation = context.engine, context.generation

    def run(_: int | None) -> None:
        name = engine.inputs[0]
        dtype = np.dtype(NUMPY[engine.types[name]])
        size = int(np.prod(shape)) * dtype.itemsize
        cuda = engine.trt.cuda
        if not all(cuda.fake_reaches(ctypes.c_void_p(a), 1) for a in addresses.values()):
            return
        image = np.frombuffer(ctypes.string_at(addresses[name], size), dtype).reshape(shape)
        results = engine.session.run(engine.outputs, {name: image})
        if engine.plan["single"]:
            time.sleep(0.005)
        elif engine.trt.slow_half:
            time.sleep(0.01)
        for output, result in zip(engine.outputs, results, strict=True):
            result += result.dtype.type(engine.trt.off_by)
            if engine.trt.nan_from is not None:
                result[engine.trt.nan_from :] = np.nan
            if context.generation != generation:
                result.fill(np.nan)
            ctypes.memmove(addresses[output], result.tobytes(), result.nbytes)
        ctypes.memset(scratch, 0xEE, SCRATCH)

    return run
