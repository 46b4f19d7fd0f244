"""Times the layers of segments with OpenVINO's performance counters."""

from __future__ import annotations

from typing import Any

from lgvit_edge.bundle.builds import graphs_of
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.runtime.backends.base import ChainOptions, LayerTime
from lgvit_edge.runtime.backends.openvino import OpenVINOChain


def open_profiled(bundle: Bundle, names: list[str], options: ChainOptions) -> ProfiledOpenVINOChain:
    """Open a chain that times its layers; see ``Backend.open_profiled``."""
    graphs = graphs_of(bundle)
    return ProfiledOpenVINOChain(
        bundle.root,
        [graphs[name] for name in names],
        max_batch=bundle.manifest.batch[2],
        threads=options.threads,
        device=options.device,
        precision=options.precision or "fp32",
    )


class ProfiledOpenVINOChain(OpenVINOChain):
    """Runs a ``ProfiledChain`` on OpenVINO. Its models are not cached."""

    _settings = {"PERF_COUNT": True}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Compile the graphs as ``OpenVINOChain`` does, with counters."""
        super().__init__(*arguments, **options)
        self._steps: list[list[list[LayerTime]]] = [[] for _ in self._graphs]

    def step(self) -> Any:
        """See ``Chain.step``."""
        index = self._next
        logits = super().step()
        # Others were merged into a layer that ran, or move nothing.
        ran = [info for info in self._requests[index].profiling_info if _executed(info)]
        self._steps[index].append([_layer(info) for info in ran])
        return logits

    def describe(self) -> dict[str, Any]:
        """See ``ProfiledChain.describe``."""
        return super().describe() | {"profiler": "OpenVINO's performance counters"}

    def layer_times(self) -> list[list[list[LayerTime]]]:
        """See ``ProfiledChain.layer_times``."""
        return self._steps


def _executed(info: Any) -> bool:
    return bool(info.status == type(info.status).EXECUTED)


def _layer(info: Any) -> LayerTime:
    ms = info.real_time.total_seconds() * 1e3
    return LayerTime(info.node_name, info.node_type, ms, how=info.exec_type)
