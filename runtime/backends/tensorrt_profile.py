"""Times the layers of engines with TensorRT's profiler.

No GPU has run this yet. Segments are launched kernel by kernel: in CUDA graphs layers can be timed
only since CUDA 11.1 (NVIDIA's trtexec, sampleInference.cpp). What each layer is comes from the
engine inspector, whose layers bear the profiler's names; engines are built with
``ProfilingVerbosity.DETAILED``.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.errors import BackendError
from lgvit_edge.runtime.backends.base import ChainOptions, LayerTime, TensorRTOptions
from lgvit_edge.runtime.backends.tensorrt import TensorRTChain

_UNKNOWN = "not described"  # a layer that the inspector does not list


def open_profiled(bundle: Bundle, names: list[str], options: ChainOptions) -> ProfiledTensorRTChain:
    """Open a chain that times its layers; see ``Backend.open_profiled``."""
    chosen = options.tensorrt or TensorRTOptions()
    plain = dataclasses.replace(chosen, cuda_graphs=False, speculate=False, device_exit=False)
    return ProfiledTensorRTChain(bundle, names, dataclasses.replace(options, tensorrt=plain))


class ProfiledTensorRTChain(TensorRTChain):
    """Runs a ``ProfiledChain`` of TensorRT engines."""

    def __init__(self, bundle: Bundle, names: list[str], options: ChainOptions) -> None:
        """Do what ``TensorRTChain`` does, with a profiler at every context."""
        self._reported: list[tuple[str, float]] = []
        self._profiler: Any = None
        self._layers: list[dict[str, LayerTime]] = [{} for _ in names]
        self._steps: list[list[list[LayerTime]]] = [[] for _ in names]
        super().__init__(bundle, names, options)

    def step(self) -> Any:
        """See ``Chain.step``; BackendError where TensorRT reports no layer."""
        index = self._next
        logits = super().step()
        context = self._contexts[index, self._padded(self._sizes[index])]
        layers = self._layers[index] or self._inspect(index, context)
        self._reported.clear()
        # As in NVIDIA's trtexec (sampleInference.cpp): the enqueue does not report, this does.
        if not context.report_to_profiler() or not self._reported:
            raise BackendError(
                f"{self._trt.library} {self._trt.version} reports no layer times of "
                f"{self._names[index]}: {self._trt.reason()}; trtexec --dumpProfile may tell more"
            )
        unknown = LayerTime("", _UNKNOWN, 0.0)
        self._steps[index].append(
            [layers.get(name, unknown)._replace(name=name, ms=ms) for name, ms in self._reported]
        )
        return logits

    def describe(self) -> dict[str, Any]:
        """See ``ProfiledChain.describe``."""
        return super().describe() | {"profiler": "TensorRT's profiler and without CUDA graphs"}

    def forget(self) -> None:
        """See ``ProfiledChain.forget``."""
        for runs in self._steps:
            runs.clear()

    def layer_times(self) -> list[list[list[LayerTime]]]:
        """See ``ProfiledChain.layer_times``."""
        return self._steps

    def _context(self, index: int, size: int) -> Any:
        context = super()._context(index, size)
        if self._profiler is None:
            self._profiler = _profiler(self._trt.module, self._reported)
        context.enqueue_emits_profile = False
        context.profiler = self._profiler
        return context

    def _inspect(self, index: int, context: Any) -> dict[str, LayerTime]:
        """Describe the layers of an engine by name, with formats for the shapes of ``context``."""
        inspector = self._engines[index].create_engine_inspector()
        inspector.execution_context = context
        text = inspector.get_engine_information(self._trt.module.LayerInformationFormat.JSON)
        self._layers[index] = _described(text)
        return self._layers[index]


def _profiler(module: Any, reported: list[tuple[str, float]]) -> Any:
    """Make an ``IProfiler`` that appends names and times in ms to a list."""

    class Profiler(module.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            reported.append((layer_name, float(ms)))

    return Profiler()


def _described(text: str) -> dict[str, LayerTime]:
    """Read the engine inspector's JSON, whose fields differ between versions.

    Without details a layer is only its name.
    """
    try:
        rows = json.loads(text)["Layers"]
    except (ValueError, LookupError, TypeError):
        return {}
    layers = {}
    for row in rows:
        if not isinstance(row, dict):
            continue
        name, tensors = str(row.get("Name", "")), row.get("Outputs", [])
        formats = [str(t.get("Format/Datatype", "")) for t in tensors if isinstance(t, dict)]
        how = ", ".join(filter(None, (str(row.get("TacticName") or ""), *dict.fromkeys(formats))))
        kind = str(row.get("LayerType") or _UNKNOWN)
        layers[name] = LayerTime(name, kind, 0.0, how, origin=str(row.get("Metadata") or ""))
    return layers
