"""Times plain networks at several image sizes, to see which sizes a processor likes.

``python -m lgvit_edge.benchmarks.experiments.sizes --arch vit-tiny --backend onnxruntime`` exports
every network with random weights, and times all of them in turn within one process: each once
unmeasured, so that its weights are in the caches, then measured. Their order changes every round.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from lgvit_edge._support.terminal import console
from lgvit_edge.architecture.published import architecture
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.experiments.if_graph import BoundGraph
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import describe
from lgvit_edge.bundle.manifest import GraphSpec, TensorSpec
from lgvit_edge.errors import UsageError
from lgvit_edge.export.graph import Part, WeightStore, save, trace
from lgvit_edge.model import LGViT, baseline, count_macs, count_parameters, example_input
from lgvit_edge.model.randomised import randomised
from lgvit_edge.runtime.backends.openvino import OpenVINOChain

BACKENDS = ("onnxruntime", "openvino")
_SIZES = "64,80,96,112,128,144,160,176,192,208,224"
_CELLS = (
    "{size} | {tokens} | {millions:,.0f} | {ms:.2f} | {gmacs:.1f} | "
    "{macs_share:.3f} | {time_share:.3f} | {time_share_p25:.3f} | {time_share_p75:.3f}"
)
_COLUMNS = ("tokens", "MACs (M)", "ms", "GMAC/s", "of MACs", "of time", "p25", "p75")
Run = Callable[[], object]


def main(
    arch: Annotated[str, typer.Option(help="Published architecture, such as vit-tiny.")],
    sizes: Annotated[str, typer.Option(help="Image sizes; shares are of the last one's.")] = _SIZES,
    backend: Annotated[str, typer.Option(help="onnxruntime or openvino, in float32.")] = (
        "onnxruntime"
    ),
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    rounds: Annotated[int, typer.Option(min=4, help="Measurements of each network.")] = 40,
    json_file: JsonFile = None,
) -> None:
    """Times a plain network at several image sizes: its share of MACs beside that of time."""
    record = Record(json_file)
    if backend not in BACKENDS:
        raise UsageError(f"--backend must be one of {', '.join(BACKENDS)}, found {backend!r}")
    try:
        sides = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise UsageError(f"--sizes must be numbers such as 112,224, found {sizes!r}") from None
    with tempfile.TemporaryDirectory() as folder:
        store = WeightStore(Path(folder) / "weights.bin")
        models = [randomised(LGViT(architecture(arch, image_size=side))) for side in sides]
        macs = [count_macs(baseline(m), example_input(m.config, None)) for m in models]
        pairs = zip(models, macs, strict=True)
        times = in_turn([runner(m, n, store, backend, threads) for m, n in pairs], rounds)
    rows = [
        {"size": m.config.image_size, "tokens": m.config.hidden_shape(1)[0]}
        | compare(macs[i], times[i], macs[-1], times[-1])
        for i, m in enumerate(models)
    ]
    console.print(table_of(rows, _CELLS, "size", numbers=_COLUMNS))
    record.write(arch=arch, backend=backend, threads=threads, rounds=rounds, rows=rows)


def compare(
    macs: int, times: NDArray[np.float64], whole_macs: int, whole: NDArray[np.float64]
) -> dict[str, Any]:
    """Returns a network's shares of another's MACs and time, from ``times [rounds]`` in ms.

    Shares of time are taken within each round.
    """
    low, middle, high = np.percentile(times / whole, [25, 50, 75]).tolist()
    ms = float(np.median(times))
    return {
        "macs": macs,
        "millions": macs / 1e6,
        "ms": ms,
        "gmacs": macs / ms / 1e6,
        "macs_share": macs / whole_macs,
        **{"time_share": middle, "time_share_p25": low, "time_share_p75": high},
        "raw_ms": np.round(times, 4).tolist(),
    }


def in_turn(runs: list[Run], rounds: int) -> NDArray[np.float64]:
    """Returns milliseconds ``[len(runs), rounds]``; each round runs all, in an order of its own."""
    for run in runs * 3:
        run()
    times, rng = np.empty((len(runs), rounds)), np.random.default_rng(0)
    for i in range(rounds):
        for k in rng.permutation(len(runs)):
            runs[k]()
            start = time.perf_counter()
            runs[k]()
            times[k, i] = (time.perf_counter() - start) * 1e3
    return times


def runner(model: LGViT, macs: int, store: WeightStore, backend: str, threads: int) -> Run:
    """Exports a plain network, loads it, and returns what runs it on a random image."""
    config, root = model.config, store.path.parent
    name, example = f"{config.image_size}.onnx", example_input(config, None)
    part = Part(name, baseline(model), example, "image", ("logits",))
    save(trace([part], opset=18, batch=(1, 1))[1], root / name, store)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, example.shape, dtype=torch.uint8, generator=generator).numpy()
    if backend == "onnxruntime":
        return BoundGraph(root / name, [image], threads)
    spec = GraphSpec(
        describe(root, name),
        (TensorSpec("image", "uint8", image.shape),),
        (TensorSpec("logits", "float32", (1, config.num_classes)),),
        macs,
        count_parameters(model),
    )
    chain = OpenVINOChain(root, [spec], max_batch=1, threads=threads)

    def infer() -> NDArray[np.float32]:
        chain.start(image)
        return chain.step()

    return infer


if __name__ == "__main__":
    run_command(main)
