"""Compiles an ONNX graph to a TensorRT engine, without torch: this also runs on a Jetson.

Engines are strongly typed where the library supports it: they compute in the graph's types. With
TensorRT 8, which does not, half precision is a flag: TensorRT may use it, or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgvit_edge._support.terminal import held_interrupts
from lgvit_edge.bundle.manifest import GraphSpec
from lgvit_edge.errors import BackendError, BuildError, MissingDependency, UsageError
from lgvit_edge.export.tensorrt.speed import run_times
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.machine.tensorrt import TensorRT
from lgvit_edge.runtime.cuda.driver import on_gpu

Progress = Callable[[str], None]
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "FULLY_CONNECTED")
# Layers that compute nothing, or whose type is their purpose.
_TYPELESS = ("CAST", "CONSTANT", "SHAPE", "IDENTITY", "QUANTIZE", "DEQUANTIZE")
# How the inspector writes types, of tensors ("Row major linear FP16 format") and of weights.
_HALF, _FLOAT = ("FP16", "Half"), ("FP32", "Float")
_FEW = 0.1  # a share of tensors; below it an engine is hardly in half precision


@dataclass(frozen=True)
class BuilderOptions:
    """Holds the options for compiling engines.

    Attributes:
        workspace: bytes of scratch memory that layers may use; None for the library's default.
        tactic_memory: bytes that trying kernels may take; None for the library's default.
        optimization_level: 0 (quick to build) to 5 (quick to run); None for the default.
        compute_capabilities: GPUs an RTX engine runs on, such as ``8.6``; empty for all usual ones.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    tactic_memory: int | None = None

    def __post_init__(self) -> None:
        level = self.optimization_level
        if level is not None and not 0 <= level <= 5:
            raise UsageError(f"the optimization level must be 0 to 5, found {level}")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"the workspace must be at least 1 byte, found {self.workspace}")


@dataclass(frozen=True)
class BuildTask:
    """Describes one graph to compile: the file ``onnx``, with weights beside it, and what it holds.

    ``dtype`` is that of products, those between quantized layers too; that of matrix products is
    float32 where the graph asks for sums in it.
    """

    onnx: Path
    graph: GraphSpec
    dtype: str
    quantized: bool
    batch: tuple[int, int, int]
    accumulate: bool = False  # matrix products in float32, between casts
    timed: bool = False  # compare its speed with float32, where TensorRT chooses types itself


class EngineBuilder:
    """Compiles graphs with one library, and passes its timing cache from one to the next.

    The first cache is that of an earlier run with this GPU and version. It is not used for RTX,
    which would then need a GPU to build. What is noteworthy of engines is added to ``findings``.

    Raises:
        UsageError: RTX does not know a compute capability, or the library is not RTX.
    """

    def __init__(
        self, trt: TensorRT, options: BuilderOptions, *, timing_cache: bytes = b"", gpu: int = 0
    ) -> None:
        self._trt, self._options, self._module = trt, options, trt.module
        self._gpu = gpu
        self.timing_cache = timing_cache
        self.findings: list[str] = []
        self._capabilities = self._named_capabilities()

    def build(self, task: BuildTask, *, progress: Progress = lambda text: None) -> bytes:
        """Compile a graph and return the engine as bytes.

        ``progress`` is called with the name of TensorRT's present phase, from any thread.

        Raises:
            BuildError: the graph is refused, or the engine is not what was asked for.
            KeyboardInterrupt: after TensorRT was stopped; 8.6, which cannot be, ends the engine.
        """
        # An interrupt that is raised inside TensorRT's calls to Python would end the process.
        with held_interrupts() as check, on_gpu(self._gpu):
            builder, network, parser = self._parse(task)
            config = self._configured(task, builder, network)
            plan = self._compile(builder, network, config, progress, check)
            check()
            if plan is None:
                raise self._failed(task, "it cannot compile the graph")
            if not self._trt.is_rtx and (cache := config.get_timing_cache()) is not None:
                self.timing_cache = bytes(cache.serialize())
            self._inspect(task, plan)
            if task.timed and not self._trt.strongly_typed and task.dtype == "float16":
                self._compare_speed(task, plan, check)
            del parser  # it owned the network's weights
        return plan

    def check(self, task: BuildTask) -> None:
        """Parse a graph; raise ``BuildError`` if it would be compiled in other types."""
        with on_gpu(self._gpu):
            self._parse(task)

    def _named_capabilities(self) -> list[Any]:
        wanted = self._options.compute_capabilities
        if not wanted:
            return []
        known = self._trt.capabilities
        if not known:
            raise UsageError(
                "compute capabilities can be chosen for TensorRT-RTX only: TensorRT compiles for "
                "the GPU it runs on"
            )
        if not set(wanted) <= set(known) or len(set(wanted)) < len(wanted):
            raise UsageError(
                f"TensorRT-RTX {self._trt.version} compiles for compute capabilities "
                f"{', '.join(known)}; expected some of them, each once, between commas, found "
                f"{','.join(wanted)!r}; for another GPU compile there, with --builder tensorrt"
            )
        return [known[c] for c in wanted]

    def _parse(self, task: BuildTask) -> tuple[Any, Any, Any]:
        """Return the builder, the parsed network, after checking it, and the parser."""
        builder = self._trt.make("Builder")
        flags = self._module.NetworkDefinitionCreationFlag
        # TensorRT 11 no longer has the first, and 8 does not have the second yet.
        wanted = ("EXPLICIT_BATCH", "STRONGLY_TYPED")
        bits = [1 << int(getattr(flags, name)) for name in wanted if hasattr(flags, name)]
        network = builder.create_network(sum(bits))
        parser = self._module.OnnxParser(network, self._trt.logger)
        if not parser.parse_from_file(str(task.onnx)):
            faults = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise self._failed(task, "its parser refuses the graph", faults)
        self._check_tensors(task, network)
        if self._trt.strongly_typed:
            self._check_layers(task, network)
        return builder, network, parser

    def _check_tensors(self, task: BuildTask, network: Any) -> None:
        graph = task.graph
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        tensors += [network.get_output(i) for i in range(network.num_outputs)]
        have = [(t.name, self._trt.dtype(t.dtype), tuple(t.shape)) for t in tensors]
        want = [(t.name, t.dtype, t.shape) for t in (*graph.inputs, *graph.outputs)]
        if have != want:
            raise BuildError(f"{graph.graph.file}: expected tensors {want}, TensorRT reads {have}")

    def _check_layers(self, task: BuildTask, network: Any) -> None:
        """Check that products are in the type asked for: a fall-back to float32 is only slower."""
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        file = task.graph.graph.file
        if task.quantized and not any(layer.type.name == "QUANTIZE" for layer in layers):
            raise BuildError(f"{file}: int8 was asked for, nothing is quantized")
        for layer in layers:
            if (kind := layer.type.name) not in _PRODUCTS:
                continue
            found = self._trt.dtype(layer.get_output(0).dtype)
            wide = task.accumulate and kind == "MATRIX_MULTIPLY"
            if found != (dtype := "float32" if wide else task.dtype):
                raise BuildError(
                    f"{file}: expected products in {dtype}, TensorRT reads {found} in a "
                    f"{kind}; export the bundle again"
                )

    def _compile(
        self,
        builder: Any,
        network: Any,
        config: Any,
        progress: Progress,
        check: Callable[[], None],
    ) -> bytes | None:
        if hasattr(self._module, "IProgressMonitor"):
            monitor = _monitor(self._module, progress, check)  # TensorRT keeps no reference
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        return None if plan is None else bytes(plan)

    def _configured(self, task: BuildTask, builder: Any, network: Any) -> Any:
        trt, options, config = self._module, self._options, builder.create_builder_config()
        # Auxiliary streams do not help a batch-1 chain; they take memory and break captures.
        config.max_aux_streams = 0
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and less exact than float32
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so the inspector has dtypes
        if self._trt.is_rtx:  # without it its engines cannot be recorded as CUDA graphs
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if options.tactic_memory is not None:
            # By default three quarters of all memory on embedded devices (NvInfer.h 10.3, 8555),
            # of which other programs have their part already.
            config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, options.tactic_memory)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if task.batch[2] > 1:
            profile = builder.create_optimization_profile()
            spec = task.graph.inputs[0]
            profile.set_shape(spec.name, *(spec.for_batch(size) for size in task.batch))
            config.add_optimization_profile(profile)
        if capabilities := self._capabilities:
            config.num_compute_capabilities = len(capabilities)
            for i, capability in enumerate(capabilities):
                config.set_compute_capability(capability, i)
        if not self._trt.is_rtx:
            cache = config.create_timing_cache(self.timing_cache)
            if cache is None or not config.set_timing_cache(cache, False):  # from another GPU
                config.set_timing_cache(config.create_timing_cache(b""), False)
        if not self._trt.strongly_typed:
            self._allow_half(task, config)
        return config

    def _allow_half(self, task: BuildTask, config: Any) -> None:
        """Let TensorRT 8, which knows no types of graphs, compute in half precision.

        No layer is held in float32: one LayerNorm so held was reported to turn the whole
        transformer into float32 (NVIDIA/TensorRT#4540), or not to be held (#3889). LayerNorms are
        computed in float32 anyway: "By default TensorRT will run the normalization computation in
        DataType.kFLOAT32 even in mixed precision mode regardless of any set builder flags"
        (INormalizationLayer.compute_precision, 8.6). The engines' logits have the last word.
        """
        trt = self._module
        if task.quantized or task.accumulate:
            cure = "with --precision fp16" if task.quantized else "without --fp32-accumulate"
            raise BuildError(
                f"{task.onnx.name}: TensorRT {self._trt.version} chooses types itself, so it "
                f"does not keep to those of this graph; export {cure}"
            )
        # Lets several contexts, one for each batch size, use one profile, as later versions do.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if task.dtype == "float16":
            config.set_flag(trt.BuilderFlag.FP16)

    def _inspect(self, task: BuildTask, plan: bytes) -> None:
        """Check the engine's own description, where there is a GPU to load it."""
        if find_gpu(self._gpu) is None:
            return
        runtime = self._trt.make("Runtime")
        if self._trt.is_rtx:  # it may be compiled for other GPUs than the one here
            validity, _ = runtime.get_engine_validity(plan)
            if validity == self._module.EngineValidity.INVALID:
                return
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed(task, "the engine it compiled does not load")
        file, tensors = task.graph.graph.file, (*task.graph.inputs, *task.graph.outputs)
        for spec in tensors:
            have = self._trt.dtype(engine.get_tensor_dtype(spec.name))
            if have != spec.dtype:
                raise BuildError(
                    f"{file}: expected {spec.name} in {spec.dtype}, the engine has {have}"
                )
        if task.dtype == "float16":
            inspector = engine.create_engine_inspector()
            text = inspector.get_engine_information(self._module.LayerInformationFormat.JSON)
            self._check_half(task, *_inner_types(text, {spec.name for spec in tensors}))

    def _check_half(self, task: BuildTask, half: int, single: int) -> None:
        """Judge an engine by how many tensors in it are in half precision, and in float32."""
        file = task.graph.graph.file
        if single and not half and not task.accumulate:  # which asks for float32
            raise BuildError(
                f"{file}: half precision was asked for, but no layer of the engine works in it; "
                "export with --precision fp32"
            )
        if self._trt.strongly_typed:  # then the network's types, which were checked, are kept to
            return
        if not half + single:
            self.findings.append(
                "the types inside an engine are not told where it is one fused layer, or the batch "
                "varies: whether such engines work in half precision was not checked"
            )
        elif half < _FEW * (half + single):
            self.findings.append(
                f"{file}: half precision was asked for, but only {half} of the engine's "
                f"{half + single} tensors are in it"
            )

    def _compare_speed(self, task: BuildTask, plan: bytes, check: Callable[[], None]) -> None:
        """Warn where TensorRT 8's engine is no faster than one in float32, on the GPU here."""
        if find_gpu(self._gpu) is None:
            return
        file = task.graph.graph.file
        builder, network, parser = self._parse(task)
        config = self._configured(task, builder, network)
        # The graph has half-precision tensors, so the flag stays, and layers are asked for float32.
        config.set_flag(self._module.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        floats = (self._module.DataType.FLOAT, self._module.DataType.HALF)
        for layer in map(network.get_layer, range(network.num_layers)):
            computes = layer.num_outputs and layer.type.name not in _TYPELESS
            if computes and layer.get_output(0).dtype in floats:
                layer.precision = self._module.DataType.FLOAT
        plain = self._compile(builder, network, config, lambda text: None, check)
        del parser
        check()
        try:
            if plain is None:
                raise BackendError(self._trt.reason())
            half, single = run_times(
                self._trt, task.graph, task.batch[1], [plan, plain], gpu=self._gpu
            )
        except (BackendError, MissingDependency) as error:
            self.findings.append(f"{file}: its speed was not compared with float32: {error}")
            return
        if half > 0.95 * single:
            self.findings.append(
                f"{file}: half precision is not faster: {half:.2f} ms, in float32 {single:.2f} ms; "
                "export with --precision fp32, which is more exact, or install JetPack 6.1 or newer"
            )

    def _failed(self, task: BuildTask, what: str, reasons: list[str] | None = None) -> BuildError:
        logged = self._trt.reason()  # always read, but it only repeats the parser's reasons
        detail = "; ".join(reasons[:3])[:600] if reasons else logged
        hint = ""
        if "workspace" in detail.lower() or "memory" in detail.lower():
            hint = "; give it more memory (--workspace-mb), or close other programs"
        return BuildError(
            f"{self._trt.library} {self._trt.version}, {task.onnx.name}: {what}: {detail}{hint}"
        )


def _monitor(module: Any, progress: Progress, check: Callable[[], None]) -> Any:
    """Make an ``IProgressMonitor`` that reports phases, and stops after Ctrl-C."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                check()
            except KeyboardInterrupt:
                return False
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _inner_types(text: str, outer: set[str]) -> tuple[int, int]:
    """Count what is in half precision and in float32 inside an engine, from the inspector's JSON.

    Counted are tensors between layers, and weights. Inputs and outputs are left out, because the
    engine may convert them, and what has no type: fused layers show no tensors, and where the
    batch varies TensorRT 8.6 writes "N/A due to dynamic shapes" for all.
    """
    try:
        layers = [layer for layer in json.loads(text).get("Layers", []) if isinstance(layer, dict)]
    except (ValueError, AttributeError):
        return 0, 0
    outputs = [t for layer in layers for t in layer.get("Outputs", [])]
    types = [str(t.get("Format/Datatype")) for t in outputs if t.get("Name") not in outer]
    types += [str(w.get("Type")) for w in (layer.get("Weights") for layer in layers) if w]
    return _count(types, _HALF), _count(types, _FLOAT)


def _count(types: Iterable[str], names: tuple[str, ...]) -> int:
    return sum(any(name in text for name in names) for text in types)
