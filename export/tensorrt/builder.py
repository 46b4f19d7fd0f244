"""Compiles an ONNX graph to a TensorRT engine, without torch: this also runs on a Jetson.

Engines are strongly typed where the library supports it: they compute in the graph's types. With
TensorRT 8, which does not, the precision is a flag, and norms and softmax stay in float32.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgvit_edge._support.terminal import end_at_once
from lgvit_edge.bundle.manifest import GraphSpec
from lgvit_edge.errors import BuildError, UsageError
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.machine.tensorrt import TensorRT

Progress = Callable[[str], None]
_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "FULLY_CONNECTED")
# Layers that TensorRT 8 must compute in float32: their sums overflow or lose digits in float16.
_WEAK_FLOAT = ("NORMALIZATION", "SOFTMAX", "REDUCE", "UNARY")


@dataclass(frozen=True)
class BuilderOptions:
    """Holds the options for compiling engines.

    Attributes:
        workspace: bytes of scratch memory that layers may use; None for the library's default.
        optimization_level: 0 (quick to build) to 5 (quick to run); None for the default.
        compute_capabilities: GPUs an RTX engine runs on, such as ``8.6``; empty for all usual ones.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    compute_capabilities: tuple[str, ...] = ()

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


class EngineBuilder:
    """Compiles graphs with one library, and passes its timing cache from one to the next.

    The first cache is that of an earlier run with this GPU and version. It is not used for RTX,
    which would then need a GPU to build.

    Raises:
        UsageError: RTX does not know a compute capability, or the library is not RTX.
    """

    def __init__(
        self, trt: TensorRT, options: BuilderOptions, *, timing_cache: bytes = b""
    ) -> None:
        self._trt, self._options = trt, options
        self.timing_cache = timing_cache
        self._capabilities = self._named_capabilities()

    def build(self, task: BuildTask, *, progress: Progress = lambda text: None) -> bytes:
        """Compile a graph and return the engine as bytes.

        ``progress`` is called with the name of TensorRT's present phase, from another thread.

        Raises:
            BuildError: the graph is refused, or the engine is not what was asked for.
            KeyboardInterrupt: after TensorRT has been stopped.
        """
        job = _Job(self, task, progress)
        # In another thread, because Python does not react to Ctrl-C while TensorRT works.
        thread = threading.Thread(target=job.run, daemon=True)
        try:
            thread.start()
            # Not join: in Python 3.11, after an interrupted join the thread counts as ended.
            while not job.finished.wait(0.1):
                pass
            _wait_for_end(thread)
        except KeyboardInterrupt:
            end_at_once.set()
            if job.cancel():
                # TensorRT 8.6 cannot be stopped, so this waits until the engine is done. A second
                # Ctrl-C does not wait.
                progress("stopping")
                job.finished.wait()
                _wait_for_end(thread)
            raise
        if job.error is not None:
            raise job.error
        assert job.plan is not None  # a job without an error has one
        return job.plan

    def check(self, task: BuildTask) -> None:
        """Parse a graph; raise ``BuildError`` if it would be compiled in other types."""
        _Job(self, task, lambda text: None).parse()

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


class _Job:
    """Compiles one graph; all objects of TensorRT are used in one thread only."""

    def __init__(self, owner: EngineBuilder, task: BuildTask, progress: Progress) -> None:
        self.owner, self.trt, self.module = owner, owner._trt, owner._trt.module
        self.task, self.progress = task, progress
        self.begun = self.cancelled = False
        self.lock, self.finished = threading.Lock(), threading.Event()
        self.parser: Any = None
        self.plan: bytes | None = None
        self.error: BaseException | None = None

    def cancel(self) -> bool:
        """Stop the job, or keep it from beginning; return whether it had begun."""
        with self.lock:
            self.cancelled = True
            return self.begun

    def run(self) -> None:
        with self.lock:  # Ctrl-C may come while the thread starts
            if self.cancelled:
                return
            self.begun = True
        try:
            self.plan = self._build()
        except BaseException as error:  # raised by the waiting thread
            # Not for a cancelled job: the traceback would hold TensorRT's objects.
            self.error = None if self.cancelled else error
        finally:
            self.parser = None
            self.finished.set()

    def parse(self) -> tuple[Any, Any]:
        """Return the builder and the parsed network, after checking the network."""
        builder = self.trt.make("Builder")
        flags = self.module.NetworkDefinitionCreationFlag
        # TensorRT 11 no longer has the first, and 8 does not have the second yet.
        wanted = ("EXPLICIT_BATCH", "STRONGLY_TYPED")
        bits = [1 << int(getattr(flags, name)) for name in wanted if hasattr(flags, name)]
        network = builder.create_network(sum(bits))
        parser = self.module.OnnxParser(network, self.trt.logger)
        self.parser = parser  # it owns the network's weights
        if not parser.parse_from_file(str(self.task.onnx)):
            faults = [parser.get_error(i).desc() for i in range(parser.num_errors)]
            raise self._failed("its parser refuses the graph", faults)
        self._check_tensors(network)
        if self.trt.strongly_typed:
            self._check_layers(network)
        return builder, network

    def _check_tensors(self, network: Any) -> None:
        graph = self.task.graph
        tensors = [network.get_input(i) for i in range(network.num_inputs)]
        tensors += [network.get_output(i) for i in range(network.num_outputs)]
        have = [(t.name, self.trt.dtype(t.dtype), tuple(t.shape)) for t in tensors]
        want = [(t.name, t.dtype, t.shape) for t in (*graph.inputs, *graph.outputs)]
        if have != want:
            raise BuildError(f"{graph.graph.file}: expected tensors {want}, TensorRT reads {have}")

    def _check_layers(self, network: Any) -> None:
        """Check that products are in the type asked for: a fall-back to float32 is only slower."""
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        file = self.task.graph.graph.file
        if self.task.quantized and not any(layer.type.name == "QUANTIZE" for layer in layers):
            raise BuildError(f"{file}: int8 was asked for, nothing is quantized")
        for layer in layers:
            if (kind := layer.type.name) not in _PRODUCTS:
                continue
            found = self.trt.dtype(layer.get_output(0).dtype)
            wide = self.task.accumulate and kind == "MATRIX_MULTIPLY"
            if found != (dtype := "float32" if wide else self.task.dtype):
                raise BuildError(
                    f"{file}: expected products in {dtype}, TensorRT reads {found} in a "
                    f"{kind}; export the bundle again"
                )

    def _build(self) -> bytes:
        builder, network = self.parse()
        config = self._configured(builder, network)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            if self.cancelled:
                raise KeyboardInterrupt
            raise self._failed("it cannot compile the graph")
        if not self.trt.is_rtx and (cache := config.get_timing_cache()) is not None:
            self.owner.timing_cache = bytes(cache.serialize())
        data = bytes(plan)
        self._inspect(data)
        return data

    def _configured(self, builder: Any, network: Any) -> Any:
        trt, options, config = self.module, self.owner._options, builder.create_builder_config()
        # Auxiliary streams do not help a batch-1 chain; they take memory and break captures.
        config.max_aux_streams = 0
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and less exact than float32
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so the inspector has dtypes
        if self.trt.is_rtx:  # without it its engines cannot be recorded as CUDA graphs
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if self.task.batch[2] > 1:
            profile = builder.create_optimization_profile()
            spec = self.task.graph.inputs[0]
            profile.set_shape(spec.name, *(spec.for_batch(size) for size in self.task.batch))
            config.add_optimization_profile(profile)
        if capabilities := self.owner._capabilities:
            config.num_compute_capabilities = len(capabilities)
            for i, capability in enumerate(capabilities):
                config.set_compute_capability(capability, i)
        if not self.trt.is_rtx:
            cache = config.create_timing_cache(self.owner.timing_cache)
            if cache is None or not config.set_timing_cache(cache, False):  # from another GPU
                config.set_timing_cache(config.create_timing_cache(b""), False)
        if not self.trt.strongly_typed:
            self._constrain(network, config)
        if hasattr(trt, "IProgressMonitor"):
            self.monitor = _monitor(trt, self)  # TensorRT keeps no reference of its own
            config.progress_monitor = self.monitor
        return config

    def _constrain(self, network: Any, config: Any) -> None:
        """Set the precision of TensorRT 8 by flags, with float32 where float16 is too coarse."""
        trt = self.module
        if self.task.quantized or self.task.accumulate:
            cure = "with --precision fp16" if self.task.quantized else "without --fp32-accumulate"
            raise BuildError(
                f"{self.task.onnx.name}: TensorRT {self.trt.version} chooses types itself, so it "
                f"does not keep to those of this graph; export {cure}"
            )
        # Lets several contexts, one for each batch size, use one profile, as later versions do.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if self.task.dtype == "float32":
            return
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            types = (trt.DataType.FLOAT, trt.DataType.HALF)
            floats = layer.num_outputs and layer.get_output(0).dtype in types
            if layer.type.name in _WEAK_FLOAT and floats:
                layer.precision = trt.DataType.FLOAT

    def _inspect(self, plan: bytes) -> None:
        """Check the engine's own description, where there is a GPU to load it."""
        if find_gpu() is None:
            return
        runtime = self.trt.make("Runtime")
        if self.trt.is_rtx:  # it may be compiled for other GPUs than the one here
            validity, _ = runtime.get_engine_validity(plan)
            if validity == self.module.EngineValidity.INVALID:
                return
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed("the engine it compiled does not load")
        graph = self.task.graph
        file, tensors = graph.graph.file, (*graph.inputs, *graph.outputs)
        for spec in tensors:
            have = self.trt.dtype(engine.get_tensor_dtype(spec.name))
            if have != spec.dtype:
                raise BuildError(
                    f"{file}: expected {spec.name} in {spec.dtype}, the engine has {have}"
                )
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(self.module.LayerInformationFormat.JSON)
        inner = _inner_types(text, {spec.name for spec in tensors})
        half = any("FP16" in t or "Half" in t for t in inner)
        if self.task.dtype == "float16" and inner and not half:
            raise BuildError(
                f"{file}: half precision was asked for, but no layer of the engine works in it"
            )

    def _failed(self, what: str, reasons: list[str] | None = None) -> BuildError:
        logged = self.trt.reason()  # always read, but it only repeats the parser's reasons
        detail = "; ".join(reasons[:3])[:600] if reasons else logged
        hint = ""
        if "workspace" in detail.lower() or "memory" in detail.lower():
            hint = "; give it more memory (--workspace-mb), or close other programs"
        return BuildError(
            f"{self.trt.library} {self.trt.version}, {self.task.onnx.name}: {what}: {detail}{hint}"
        )


def _wait_for_end(thread: threading.Thread) -> None:
    """Wait until the system's thread is gone, which is later than ``join`` returns.

    TensorRT tidies up as it ends and may log, in Python; while Python itself ends, that would abort
    the process.
    """
    thread.join()
    while Path(f"/proc/self/task/{thread.native_id}").exists():
        time.sleep(0.001)


def _monitor(module: Any, job: _Job) -> Any:
    """Make an ``IProgressMonitor`` that reports phases, and stops a cancelled job's build."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            job.progress(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not job.cancelled

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _inner_types(text: str, outer: set[str]) -> list[str]:
    """Return the formats of the tensors between layers, from the inspector's JSON.

    Inputs and outputs are left out, because the engine may convert them. The list is empty where
    all is one fused layer, or the engine stores no details.
    """
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    outputs = [t for layer in layers if isinstance(layer, dict) for t in layer.get("Outputs", [])]
    return [str(t.get("Format/Datatype")) for t in outputs if t.get("Name") not in outer]
