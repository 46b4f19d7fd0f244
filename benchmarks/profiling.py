"""Times every segment and the baseline layer by layer, with the backend's own profiler."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.benchmarks.measure import Progress, command_line, described, random_frames
from lgvit_edge.benchmarks.record import unsteady
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import BackendError, DataError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.labelled import content_hash
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.machine.environment import environment
from lgvit_edge.runtime.backends.base import Chain, ChainOptions, LayerTime, ProfiledChain
from lgvit_edge.runtime.backends.registry import (
    AnyChain,
    chain_opener,
    profiled_opener,
    segment_names,
)
from lgvit_edge.runtime.precision import bundle_policy
from lgvit_edge.runtime.runner import every_exit, finite
from lgvit_edge.runtime.selection import choose

_WARM_UP = 10
_BLOCK = 8  # runs in a row of one chain, before another takes its turn
Begins = Sequence[Sequence[int | None]]  # of each chain, as ``every_exit`` takes it
# Nodes are named for the module they come from: "blocks.5.fc1/...", "tail.classifier/..."; in half
# precision that is inside another: "segment.blocks.5.fc1/...".
_MODULE = re.compile(r"(?<![\w.])(?:segment\.)?(?:blocks\.(\d+)|tail)(?!\w)")


class _Graph(NamedTuple):
    """What was measured of a graph, run by run, in ms."""

    plain: NDArray[np.float64]  # [runs], without the profiler
    profiled: NDArray[np.float64]  # [runs]
    layers: list[LayerTime]  # in their order
    times: NDArray[np.float64]  # [runs, layers], or [1, layers]: means over the runs


def measure_layers(
    bundle: str | Path,
    *,
    backend: str = "auto",
    options: ChainOptions | None = None,
    images: Sequence[Path] | None = None,
    runs: int = 30,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Measures the layers of all segments and of the baseline, one image at a time.

    All segments run; no image leaves early. Every graph is timed as a whole without the profiler
    too, in turn with it. Times are medians over the runs.

    Args:
        bundle: the directory that ``lgvit-edge export`` wrote.
        backend: as for ``Session.open``.
        options: as for ``Session.open``.
        images: files that the runs take in turn; those that cannot be decoded are listed under
            ``skipped``. None for random frames.
        runs: measured runs of every graph.
        progress: called with runs done and runs in all.

    Raises:
        BundleError: missing, damaged, unsafe or of another schema version.
        BackendError: the backend cannot run here, or its profile is not complete.
        MissingDependency: the backend is not installed.
        UsageError: the backend cannot time its layers, or does not take an option.
        DataError: no image could be decoded.
    """
    opened = open_bundle(bundle)
    manifest = opened.manifest
    inputs, skipped = _inputs(manifest, images, runs)
    policy = bundle_policy(manifest)
    chosen = choose(opened, backend, options or ChainOptions(), policy)
    make_profiled = profiled_opener(opened, chosen.backend, chosen.options)
    make_plain = chain_opener(opened, chosen.backend, chosen.options)
    start = environment()

    graphs = (segment_names(opened), ["baseline"])
    begins: Begins = (manifest.begins, (-1,))  # the baseline takes what the last pass takes
    (chain, (base,)), about = _measure(
        make_plain, make_profiled, graphs, begins, inputs, runs, progress
    )
    baseline = _row([base], manifest.baseline.macs) | _layers(base)
    macs = [segment.spec.macs for segment in manifest.segments]
    whole = _row(chain, sum(macs))
    total = sum(float(np.median(graph.plain)) for graph in chain)
    segments = [
        {
            "segment": i,
            "pass_number": manifest.pass_numbers[i],
            "first_block": segment.first_block,
            "last_block": segment.last_block,
            "head": segment.head,
            "macs_share": macs[i] / sum(macs),
            "time_share": float(np.median(chain[i].plain)) / total,
            **_row([chain[i]], macs[i]),
            **_layers(chain[i]),
        }
        for i, segment in enumerate(manifest.segments)
    ]
    for row in (*segments, whole):
        _compare(row, baseline)
    return {
        "env": start | about,
        "bundle": described(manifest),
        "runs": runs,
        "images": len(inputs) if images is not None else None,
        "images_sha256": content_hash(images) if images is not None else None,
        "skipped": skipped,
        "chain": whole,
        "segments": segments,
        "baseline": baseline,
        "unstable": unsteady(base.plain, start["running"], start["cores"]),
        "command": command_line(),
    }


def _inputs(
    manifest: Manifest, images: Sequence[Path] | None, runs: int
) -> tuple[list[Inputs], list[str]]:
    """Return prepared images one by one, and the files that cannot be decoded."""
    frames, skipped = [], []
    if images is None:
        frames = random_frames(manifest, min(runs, _BLOCK))
    for path in images or ():
        try:
            frames.append(load_rgb(path))
        except DataError:
            skipped.append(str(path))
    if not frames:
        raise DataError(f"none of {len(skipped)} images could be decoded, such as {skipped[0]}")
    # Resized before the runs: what is timed are graphs.
    return [Inputs.prepare([f], manifest.views).resized() for f in frames], skipped


def _measure(
    make_plain: Callable[[list[str]], Chain],
    make_profiled: Callable[[list[str]], ProfiledChain],
    graphs: Sequence[list[str]],
    begins: Begins,
    inputs: Sequence[Inputs],
    runs: int,
    progress: Progress,
) -> tuple[list[list[_Graph]], dict[str, Any]]:
    """Run chains of these graphs, each with and without the profiler, in turns of a few images.

    They take turns so that all see the same drift of the machine. A turn has several images, so
    that the others' weights do not push one's own out of the caches before every image. Returns
    what was measured of each graph, and how the chains with and without describe themselves.
    """
    with contextlib.ExitStack() as stack:

        def kept(chain: AnyChain) -> AnyChain:
            stack.callback(chain.close)
            return chain

        profiled = [kept(make_profiled(names)) for names in graphs]  # first: it may be impossible
        plain = [kept(make_plain(names)) for names in graphs]
        chains: list[Chain] = [*plain, *profiled]
        begins = (*begins, *begins)
        for chain, own in zip(chains, begins, strict=True):
            for i in range(_WARM_UP):
                _run(chain, inputs[i % len(inputs)], own)
        for timed in profiled:
            timed.forget()
        times: list[list[list[float]]] = [[] for _ in chains]
        places = range(len(chains))
        for turn, first in enumerate(range(0, runs, _BLOCK)):
            progress(first, runs)
            for place in reversed(places) if turn % 2 else places:
                for i in range(first, min(first + _BLOCK, runs)):
                    ms = _run(chains[place], inputs[i % len(inputs)], begins[place])
                    times[place].append(ms)
        about = {"runtime": plain[0].describe(), "profiler": profiled[0].describe()}
        layers = [timed.layer_times() for timed in profiled]
    measured = [np.array(rows).T for rows in times]
    return [
        [
            _Graph(without, with_, *_matrix(ran, name))
            for without, with_, ran, name in zip(
                measured[place], measured[place + len(graphs)], layers[place], names, strict=True
            )
        ]
        for place, names in enumerate(graphs)
    ], about


def _run(chain: Chain, images: Inputs, begins: Sequence[int | None]) -> list[float]:
    """Run one image through all graphs; return the ms of each."""
    ends = [time.perf_counter()]
    for exit, logits in enumerate(every_exit(chain, images, begins), 1):
        finite(logits, exit)
        ends.append(time.perf_counter())
    return [(end - begin) * 1e3 for begin, end in zip(ends, ends[1:], strict=False)]


def _matrix(runs: list[list[LayerTime]], name: str) -> tuple[list[LayerTime], NDArray[np.float64]]:
    """Return the layers of a graph, and their times, one row for each of ``runs``.

    Raises:
        BackendError: there are none, or not the same in every run.
    """
    first = [layer._replace(ms=0.0) for layer in runs[0]]
    if not first or any([layer._replace(ms=0.0) for layer in run] != first for run in runs):
        counts = " and ".join(str(count) for count in sorted({len(run) for run in runs}))
        raise BackendError(
            f"{name}: expected times of the same layers in every run, found {counts} layers; run "
            "it again, or with another --backend"
        )
    return first, np.array([[layer.ms for layer in run] for run in runs])


def _row(graphs: list[_Graph], macs: int) -> dict[str, Any]:
    """Return the figures of graphs that ran one after the other; times are medians in ms.

    Each run is added up before its median is taken: medians of parts do not add up to a whole.
    """
    plain, profiled = (sum(getattr(g, name) for g in graphs) for name in ("plain", "profiled"))
    parts: dict[str, Any] = {}
    calls: Counter[str] = Counter()
    for graph in graphs:
        for layer, times in zip(graph.layers, graph.times.T, strict=True):
            parts[layer.kind] = parts.get(layer.kind, 0.0) + times
            calls[layer.kind] += 1
    outside = np.maximum(profiled - sum(parts.values()), 0.0)
    kinds = [{"kind": k, "calls": calls[k], "ms": float(np.median(ms))} for k, ms in parts.items()]
    return {
        "macs": macs,
        "ms": float(np.median(plain)),
        "profiled_ms": float(np.median(profiled)),
        "outside_ms": float(np.median(outside)),  # of the time with the profiler: between layers
        "kinds": sorted(kinds, key=lambda kind: -kind["ms"]),
        "raw": {
            "ms": [round(float(ms), 4) for ms in plain],
            "profiled_ms": [round(float(ms), 4) for ms in profiled],
        },
    }


def _layers(graph: _Graph) -> dict[str, Any]:
    """Return each layer with the median, and the 10th and 90th percentile, of its times."""
    low, middle, high = np.percentile(graph.times, [10, 50, 90], axis=0)
    alone = len(graph.times) == 1  # a mean over the runs
    return {
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "how": layer.how,
                "block": _place(f"{layer.name} {layer.origin}"),
                "ms": float(middle[i]),
                "p10": None if alone else float(low[i]),
                "p90": None if alone else float(high[i]),
            }
            for i, layer in enumerate(graph.layers)
        ]
    }


def _place(names: str) -> str | None:
    """Return the block, or blocks and head, that a layer's names tell; None where they do not."""
    found = set(_MODULE.findall(names))  # numbers, and "" for the head
    numbers = sorted(int(number) for number in found - {""})
    ends = dict.fromkeys([numbers[0], numbers[-1]] if numbers else [])
    parts = ["-".join(map(str, ends)), "head" if "" in found else ""]
    return "+".join(filter(None, parts)) or None


def _compare(row: dict[str, Any], baseline: dict[str, Any]) -> None:
    """Add how much longer all of it takes than the baseline for as many MACs, in ms."""
    scale = row["macs"] / baseline["macs"]
    base = {kind["kind"]: kind["ms"] for kind in baseline["kinds"]}
    for kind in row["kinds"]:
        kind["beyond_ms"] = kind["ms"] - base.get(kind["kind"], 0.0) * scale
    for name in ("profiled", "outside"):
        row[f"{name}_beyond_ms"] = row[f"{name}_ms"] - baseline[f"{name}_ms"] * scale
