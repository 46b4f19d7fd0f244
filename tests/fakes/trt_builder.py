"""The half of the stand-in for TensorRT that builds: "engines" that name their ONNX file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import onnx
from nvidia_api import Checked, behaviour

if TYPE_CHECKING:
    from trt_standin import StandIn

DTYPES = {1: "FLOAT", 10: "HALF", 2: "UINT8", 3: "INT8"}  # onnx.TensorProto to DataType


class Builder:
    def __init__(self, trt: StandIn, logger: Any) -> None:
        self.trt, self.logger, self.device = trt, logger, trt.cuda.fake_current()

    def create_network(self, flags: int = 0) -> Checked:
        names = self.trt.NetworkDefinitionCreationFlag.__members__
        self.flags = {n for n, bit in names.items() if flags >> int(bit) & 1}
        return self.trt.checked("INetworkDefinition", SimpleNamespace(flags=self.flags))

    def create_builder_config(self) -> Checked:
        return self.trt.checked("IBuilderConfig", _Config(self.trt))

    def create_optimization_profile(self) -> Checked:
        return self.trt.checked("IOptimizationProfile", _Profile())

    def build_serialized_network(self, network: Checked, config: Checked) -> bytes | None:
        self.trt.stay(self.device)
        net, cfg = behaviour(network), behaviour(config)
        monitor = getattr(cfg, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                if not monitor.step_complete("Building engine", step):
                    return None
            monitor.phase_finish("Building engine")
        time.sleep(self.trt.builds_for)
        if self.trt.dies:
            os.kill(os.getpid(), self.trt.dies)
        if Path(net.onnx).stem == self.trt.refuse_building:
            self.logger.log(self.trt.ILogger.ERROR, "no tactics within workspace limit")
            return None
        self.trt.built.append(Path(net.onnx).stem)
        layers = map(behaviour, net.layers)
        weak = [layer.type.name for layer in layers if layer.precision is not None]
        # In 8.6 one layer held in float32 was seen to hold the whole transformer there
        # (NVIDIA/TensorRT#4540).
        typed = "STRONGLY_TYPED" in net.flags
        single = not typed and (bool(weak) or "FP16" not in cfg.flags)
        plan = dict(onnx=net.onnx, flags=sorted(net.flags | cfg.flags), profile=cfg.profile)
        plan |= dict(float32=weak, single=single, settings=cfg.settings)
        return b"standin" + json.dumps(plan).encode()


class _Profile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes = [list(shape) for shape in (min, opt, max)]


class _Config:
    def __init__(self, trt: StandIn) -> None:
        self.trt = trt
        self.flags = {"TF32"}  # as in every version
        self.profile: Any = None
        self.settings: dict[str, Any] = {}
        self.capabilities: list[Any] = []
        self.timing = b""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("max_aux_streams", "builder_optimization_level"):
            self.settings[name] = value
        super().__setattr__(name, value)

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        self.flags.add(feature.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.settings[pool.name] = pool_size

    def add_optimization_profile(self, profile: Checked) -> int:
        self.profile = behaviour(profile).shapes
        return 0

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        self.settings.setdefault("capabilities", []).append(compute_capability.name)
        return True

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Checked:
        assert self.trt.__name__ != "tensorrt_rtx", "a timing cache makes RTX ask for a GPU"
        return self.trt.checked("ITimingCache", _timing_cache(serialized_timing_cache))

    def set_timing_cache(self, cache: Checked, ignore_mismatch: bool) -> bool:
        self.timing = behaviour(cache).data
        return not self.timing.startswith(b"other GPU")

    def get_timing_cache(self) -> Checked:
        assert self.trt.__name__ != "tensorrt_rtx"
        return self.trt.checked("ITimingCache", _timing_cache(self.timing + b"."))


def _timing_cache(data: bytes) -> SimpleNamespace:
    return SimpleNamespace(data=data, serialize=lambda: data)


class OnnxParser:
    num_errors = 1

    def __init__(self, trt: StandIn, network: Checked, logger: Any) -> None:
        self.trt, self.network = trt, behaviour(network)

    def parse_from_file(self, model: str) -> bool:
        try:
            loaded = onnx.load(model, load_external_data=False)
        except Exception as error:
            self.fault = str(error)
            return False
        graph = onnx.shape_inference.infer_shapes(loaded).graph
        known = {v.name: v for v in (*graph.value_info, *graph.input, *graph.output)}
        types = {name: DTYPES.get(v.type.tensor_type.elem_type) for name, v in known.items()}
        net = self.network
        net.onnx = model
        net.inputs = [self._tensor(value) for value in graph.input]
        net.outputs = [self._tensor(value) for value in graph.output]
        net.layers = [self._layer(node, types) for node in graph.node]
        net.num_inputs, net.num_outputs = len(net.inputs), len(net.outputs)
        net.num_layers = len(net.layers)
        net.get_input, net.get_output = net.inputs.__getitem__, net.outputs.__getitem__
        net.get_layer = net.layers.__getitem__
        return True

    def get_error(self, index: int) -> Checked:
        return self.trt.checked("ParserError", SimpleNamespace(desc=lambda: self.fault))

    def _tensor(self, value: Any) -> Checked:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value or -1 for d in kind.shape.dim)
        dtype = getattr(self.trt.DataType, DTYPES[kind.elem_type])
        tensor = SimpleNamespace(name=value.name, dtype=dtype, shape=shape)
        return self.trt.checked("ITensor", tensor)

    def _layer(self, node: Any, types: dict[str, str | None]) -> Checked:
        names = {"MatMul": "MATRIX_MULTIPLY", "Gemm": "MATRIX_MULTIPLY", "Conv": "CONVOLUTION"}
        names |= {"Softmax": "SOFTMAX", "LayerNormalization": "NORMALIZATION"}
        names |= {"QuantizeLinear": "QUANTIZE", "ReduceMean": "REDUCE"}
        kind = getattr(self.trt.LayerType, names.get(node.op_type, "SHUFFLE"))
        dtypes = [getattr(self.trt.DataType, types.get(name) or "FLOAT") for name in node.output]
        outputs = [self.trt.checked("ITensor", SimpleNamespace(dtype=dtype)) for dtype in dtypes]
        layer = SimpleNamespace(type=kind, num_outputs=len(outputs), precision=None)
        layer.get_output = outputs.__getitem__
        return self.trt.checked("ILayer", layer)
