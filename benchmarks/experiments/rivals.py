"""Times our chains against every other way to run an early-exit ViT on a CPU, in turn.

``python -m lgvit_edge.benchmarks.experiments.rivals --engines out/ --arch vit-base`` forces a mix
of exits on: the chain, and one ONNX graph with a nested ``If`` per exit, both on ONNX Runtime and
on OpenVINO; and PyTorch, eager and compiled, in a loop over segments that leaves at the first
confident exit. OpenVINO and PyTorch compute in float32, and in each lower precision that this CPU
has. Beside them is each library's baseline without exits. Needs the export extra: the rivals are
built here. The package earlyon runs PyTorch eager, too, so it has no row of its own.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor, nn

from lgvit_edge._support.terminal import console, progress_bar
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.architecture.heads import head_choices
from lgvit_edge.architecture.placement import default_heads
from lgvit_edge.architecture.published import architecture
from lgvit_edge.benchmarks.experiments.frame import (
    JsonFile,
    Record,
    chain_to,
    only_pass,
    run_command,
)
from lgvit_edge.benchmarks.experiments.if_graph import BoundGraph, Graph, IfGraph, VinoGraph, build
from lgvit_edge.benchmarks.measure import random_frames
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.cli.options import Engines, parse_numbers
from lgvit_edge.errors import UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.preprocess import to_float
from lgvit_edge.machine.cpu import available_cores
from lgvit_edge.model import (
    LGViT,
    count_macs,
    count_parameters,
    cut,
    example_input,
    load_checkpoint,
)
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.backends.openvino import available_precisions

PEERS_MIX = "43.3,15.6,9.4,8.9,11.4,5.0,2.4,0.9,3.1"  # at threshold 0.80
_BURST = 3  # runs in a row; the first is left out, because its weights are not in the caches
_REST = 0.02  # seconds in which the previous thread pool stops spinning

BASELINE = "baseline"
Run = Callable[[int], object]  # stops at an exit, 1-based
Load = Callable[[Path, list[NDArray[Any]]], Graph]


def main(
    engines: Engines,
    arch: Annotated[str | None, typer.Option(help="The bundle's architecture.")] = None,
    ckpt: Annotated[Path | None, typer.Option(help="Or the bundle's checkpoint.")] = None,
    mix: Annotated[str, typer.Option(help="Comma-separated shares of the exits.")] = PEERS_MIX,
    rounds: Annotated[int, typer.Option(min=2, help="Measurements per exit.")] = 10,
    compiled: Annotated[bool, typer.Option(help="torch.compile, too; needs C++.")] = True,
    json_file: JsonFile = None,
) -> None:
    """Times every way at every exit, in turn."""
    record, threads = Record(json_file), available_cores()
    bundle = open_bundle(engines)
    only_pass(bundle.manifest)
    exits = len(bundle.manifest.segments)
    shares = np.array(parse_numbers(mix), np.float64)
    if len(shares) != exits or bundle.manifest.batch[2] != 1:
        raise UsageError(f"expected a bundle of batch 1 and {exits} shares, found {len(shares)}")
    torch.set_num_threads(threads)
    model = model_of(bundle, arch, ckpt)
    with (
        contextlib.ExitStack() as stack,
        tempfile.TemporaryDirectory(dir=bundle.root.absolute().parent) as folder,
    ):
        ways = list(_ours(bundle, build(bundle, Path(folder)), threads, stack))
        ways += _in_torch(model, bundle, compiled=compiled)
        with progress_bar("in turn") as progress:
            times = _in_turn(dict(ways), exits, rounds, progress)
    rows = _summary(times, bundle, shares / shares.sum())
    _show(rows, shares)
    raw = {n: [np.round(t, 3).tolist() for t in per_exit] for n, per_exit in times.items()}
    record.env |= {"threads": threads, "torch": torch.__version__}
    record.write(mix=shares.tolist(), rows=rows, raw_ms=raw)


def _ours(
    bundle: Bundle, graph: Path, threads: int, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Run]]:
    """Yields our chains, the ``If`` graph and the baseline on both backends, by name."""
    exits, frames = len(bundle.manifest.segments) - 1, random_frames(bundle.manifest, 1)
    image = np.stack(frames)
    loads: dict[tuple[str, str | None], Load] = {
        ("onnxruntime", None): lambda path, inputs: BoundGraph(path, inputs, threads)
    }
    for precision in available_precisions("cpu"):
        loads["openvino", precision] = partial(_load_vino, threads, precision)
    names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    for (backend, chosen), load in loads.items():
        session = stack.enter_context(
            Session.open(bundle.root, backend=backend, device="cpu", precision=chosen)
        )
        name = names[backend] + (f" {chosen}" if chosen not in (None, "fp32") else "")
        prepared = session.prepare(frames)
        yield f"chain, {name}", chain_to(session, prepared)
        yield f"If graph, {name}", IfGraph(graph, exits, load, image)
        yield f"{BASELINE}, {name}", partial(_baseline, session, prepared)


def _load_vino(threads: int, precision: str, path: Path, inputs: list[NDArray[Any]]) -> VinoGraph:
    return VinoGraph(path, inputs, threads, precision)


def _baseline(session: Session, prepared: Inputs, exit: int) -> object:
    return session.baseline_logits(prepared)


def _in_torch(model: LGViT, bundle: Bundle, *, compiled: bool) -> Iterator[tuple[str, Run]]:
    """Yields PyTorch's ways by name, in float32 and bfloat16."""
    pixels = torch.from_numpy(
        to_float(np.stack(random_frames(bundle.manifest, 1)), model.config.preprocess)
    )
    for name, dtype in (("PyTorch", torch.float32), ("PyTorch bf16", torch.bfloat16)):
        cast, image = copy.deepcopy(model).to(dtype), pixels.to(dtype)
        yield f"eager, {name}", leaving(cast, image)
        if compiled:
            yield f"compiled, {name}", leaving(cast, image, prepare=torch.compile)
        yield f"{BASELINE}, {name}", partial(_whole, cast, image)


@torch.inference_mode()
def _whole(model: LGViT, image: Tensor, exit: int) -> object:
    return model.backbone(image).argmax().item()


def _confidence(logits: Tensor) -> float:
    return torch.softmax(logits.float(), dim=-1).max().item()


def leaving(
    model: LGViT, image: Tensor, *, prepare: Callable[[nn.Module], Any] = lambda module: module
) -> Run:
    """Returns PyTorch's own early exit, with thresholds that make it leave at a given exit.

    ``prepare`` is applied to the blocks of each segment, and to each head.
    """
    backbone, segments, first = model.backbone, [], 0
    stops = [*((e.block, h) for e, h in zip(model.config.exits, model.heads, strict=True))]
    for last, head in (*stops, (model.config.num_blocks, backbone.final)):
        blocks = nn.Sequential(*backbone.blocks[first:last])
        segments.append((prepare(blocks), prepare(head)))
        first = last

    @torch.inference_mode()
    def run(exit: int) -> object:
        x = backbone.embedding(image)
        for number, (blocks, head) in enumerate(segments, 1):
            x = blocks(x)
            logits = head(x)
            threshold = -1.0 if number == exit else 2.0
            if number == len(segments) or _confidence(logits) > threshold:
                break
        return logits.argmax().item()

    return run


def model_of(bundle: Bundle, arch: str | None, ckpt: Path | None) -> LGViT:
    """Returns the model that a bundle was made of, or one of its sizes with random weights.

    Raises:
        UsageError: neither or both were given, or the bundle was made of another.
    """
    if (arch is None) == (ckpt is None):
        raise UsageError("expected --arch NAME or --ckpt MODEL")
    manifest = bundle.manifest
    if ckpt is not None:
        blocks = [segment.last_block for segment in manifest.segments[:-1]]
        model = load_checkpoint(ckpt).with_exits(blocks)
    else:
        model = LGViT(_with_exits(str(arch), bundle))
    expected, parameters = manifest.baseline.parameters, count_parameters(model.backbone)
    if expected != parameters:
        raise UsageError(
            f"expected the model of {bundle.root}, whose baseline has {expected} parameters, "
            f"found one with {parameters}: give its own --arch or --ckpt"
        )
    macs = [
        count_macs(part.module, example_input(model.config, part.index, input=manifest.input))
        for part in cut(model, input=manifest.input)
    ]
    if macs != [segment.spec.macs for segment in manifest.segments]:
        raise UsageError(
            f"expected the model of {bundle.root}, found one whose segments compute something "
            "else: give the checkpoint it came from, --ckpt"
        )
    return model.eval()


def _with_exits(arch: str, bundle: Bundle) -> LGViTConfig:
    """Returns the architecture with the bundle's exits, heads in their default sizes."""
    manifest = bundle.manifest
    *early, _ = manifest.segments
    size = only_pass(manifest).image_size
    config = architecture(arch, num_classes=manifest.num_classes, image_size=size)
    blocks = [segment.last_block for segment in early]
    for heads in head_choices():
        exits = default_heads(blocks, heads=heads, family=config.family)
        if [exit.head for exit in exits] == [segment.head for segment in early]:
            return config.replace(exits=exits)
    raise UsageError(
        f"the heads of {bundle.root} are not those of `train --heads`; give its --ckpt, not --arch"
    )


def _in_turn(
    named: dict[str, Run], exits: int, rounds: int, progress: Callable[[int, int], None]
) -> dict[str, list[list[float]]]:
    """Returns milliseconds per way and exit; the order rotates to be fair."""
    ways = list(named.items())
    times: dict[str, list[list[float]]] = {name: [[] for _ in range(exits)] for name in named}
    for _, run in ways:
        for exit in (1, exits):
            run(exit)
    for round_ in range(rounds):
        for exit in range(1, exits + 1):
            progress(round_ * exits + exit, rounds * exits)
            turn = (round_ + exit) % len(ways)
            for name, run in ways[turn:] + ways[:turn]:
                time.sleep(_REST)
                for burst in range(_BURST):
                    start = time.perf_counter()
                    run(exit)
                    if burst:
                        times[name][exit - 1].append((time.perf_counter() - start) * 1e3)
    return times


def _summary(
    times: dict[str, list[list[float]]], bundle: Bundle, shares: NDArray[np.float64]
) -> list[dict[str, Any]]:
    cumulative = [bundle.manifest.cumulative_macs(e) for e in range(1, len(shares) + 1)]
    macs = bundle.manifest.baseline.macs / float(np.dot(shares, cumulative))
    rows = []
    for name, per_exit in times.items():
        medians = np.array([np.median(t) for t in per_exit])
        row: dict[str, Any] = {"name": name, "mean_ms": float(np.dot(shares, medians))}
        row["exit_ms"] = medians.tolist()
        baseline = f"{BASELINE}, {name.partition(', ')[2]}"
        if name != baseline and baseline in times:
            # Measured in the same rounds, so under the same load.
            base = [np.median(t) for t in times[baseline]]
            row["wall_clock"] = float(np.dot(shares, base)) / row["mean_ms"]
            row["macs"] = macs
            row["efficiency"] = row["wall_clock"] / macs
        rows.append(row)
    return rows


def _show(rows: list[dict[str, Any]], shares: NDArray[np.float64]) -> None:
    cells = (
        "{name} | {mean_ms:.1f} | {exit_ms[0]:.1f} | {last_ms:.1f} | "
        "{wall_clock:.2f} | {macs:.2f} | {efficiency:.3f}"
    )
    ordered = sorted(rows, key=lambda row: float(row["mean_ms"]))
    numbers = ("mean (ms)", "exit 1", "last exit", "wall x", "MACs x", "efficiency")
    shown = [row | {"last_ms": row["exit_ms"][-1]} for row in ordered]
    console.print(table_of(shown, cells, "", numbers=numbers, blank=""))
    console.print(f"mix: {', '.join(f'{s:g}' for s in shares)}", highlight=False)


if __name__ == "__main__":
    run_command(main)
