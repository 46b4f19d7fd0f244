"""Times the layers of segments with OpenVINO's performance counters.

They belong to the compiled model, and tell the mean over all its runs so far, in whole microseconds
(src/plugins/intel_cpu/src/graph.cpp, Graph::GetPerfData). So there is no time of one run: the mean
over some of them is the difference of two sums, and may be wrong by two microseconds.
"""

from __future__ import annotations

from typing import Any

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.runtime.backends.base import ChainOptions, LayerTime
from lgvit_edge.runtime.backends.openvino import OpenVINOChain, arguments


def open_profiled(bundle: Bundle, names: list[str], options: ChainOptions) -> ProfiledOpenVINOChain:
    """Open a chain that times its layers; see ``Backend.open_profiled``."""
    return ProfiledOpenVINOChain(bundle.root, **arguments(bundle, names, options))


class ProfiledOpenVINOChain(OpenVINOChain):
    """Runs a ``ProfiledChain`` on OpenVINO. Its models are not cached."""

    _settings = {"PERF_COUNT": True}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Compile the graphs as ``OpenVINOChain`` does, with counters."""
        super().__init__(*arguments, **options)
        self._runs = [0] * len(self._graphs)
        self._before: list[tuple[int, list[float]]] = [(0, [])] * len(self._graphs)

    def step(self) -> Any:
        """See ``Chain.step``."""
        self._runs[self._next] += 1
        return super().step()

    def describe(self) -> dict[str, Any]:
        """See ``ProfiledChain.describe``."""
        counters = "OpenVINO's performance counters, which tell means,"
        return super().describe() | {"profiler": counters}

    def forget(self) -> None:
        """See ``ProfiledChain.forget``."""
        self._before = [
            (runs, [_ms(info) * runs for info in request.infer_request.profiling_info])
            for runs, request in zip(self._runs, self._requests, strict=True)
        ]

    def layer_times(self) -> list[list[list[LayerTime]]]:
        """See ``ProfiledChain.layer_times``: means."""
        return [[self._layers(index)] for index in range(len(self._graphs))]

    def _layers(self, index: int) -> list[LayerTime]:
        runs, (left_out, before) = self._runs[index], self._before[index]
        infos = self._requests[index].infer_request.profiling_info
        sums = before or [0.0] * len(infos)
        layers = []
        for info, sum_before in zip(infos, sums, strict=True):
            ms = (_ms(info) * runs - sum_before) / (runs - left_out)
            if ms > 0:  # others were merged into a layer that ran, or move nothing
                layers.append(LayerTime(info.node_name, info.node_type, ms, how=info.exec_type))
        return layers


def _ms(info: Any) -> float:
    return float(info.real_time.total_seconds() * 1e3)
