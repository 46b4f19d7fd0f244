"""Measures how far CKA from minibatches lies from that of all images at once.

``python -m lgvit_edge.benchmarks.experiments.cka_batches --ckpt model.pt --data DIR`` computes the
Gram matrix of every stage over all images, and from its parts CKA for minibatches of several sizes,
several times in other orders. It compares them with CKA of all images in one: of the same images,
which tells what minibatches cost, and from fewer images, which tells how many it takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from lgvit_edge._support.terminal import console, note, progress_bar
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.errors import UsageError
from lgvit_edge.images.labelled import evenly, unlabelled_images
from lgvit_edge.images.preprocess import load_rgb, network_input
from lgvit_edge.model import LGViT, load_model
from lgvit_edge.probing.cka import Cka, u_centred
from lgvit_edge.probing.stages import lgvit_stages

_AT_ONCE = 8  # stages whose features are in memory
_BATCH = 32
_ALIKE = 0.1  # below it a percent of CKA is less than a thousandth
SIZES = (8, 16, 32, 64, 128, 256, 512)
COUNTS = (128, 256, 512, 1024)


def main(
    ckpt: Annotated[Path, typer.Option(help="Checkpoint.")],
    data: Annotated[Path, typer.Option(help="Folder of images.")],
    samples: Annotated[int, typer.Option(min=2048, help="Number of images.")] = 2048,
    seeds: Annotated[int, typer.Option(min=1, help="Orders of the images.")] = 5,
    json_file: JsonFile = None,
) -> None:
    """Compares CKA from minibatches with CKA of all images at once, between all stages."""
    record = Record(json_file)
    model = load_model(ckpt, note=note)
    images = evenly(unlabelled_images(data, note), samples)
    if len(images) < samples:
        raise UsageError(f"expected {samples} images, found {len(images)}")
    names = _names(model, images[:4])
    grams: dict[str, Tensor] = {}
    with progress_bar("features") as progress:
        for start in range(0, len(names), _AT_ONCE):
            progress(start, len(names))
            grams |= _grams(model, images, names[start : start + _AT_ONCE])
    whole = matrix(grams, [torch.arange(samples)])
    rows = []
    for size in SIZES:
        orders = [_order(samples, seed) for seed in range(seeds)]
        found = [matrix(grams, order.split(size)) for order in orders]
        rows.append({"images": samples, "batch": size} | apart(found, whole))
    for count in COUNTS:
        orders = [_order(samples, seed)[:count] for seed in range(seeds)]
        found = [matrix(grams, order.split(64)) for order in orders]
        rows.append({"images": count, "batch": 64} | apart(found, whole))
    cells = (
        "{images} | {batch} | {mean:.4f} | {largest:.4f} | {relative:.2%} | {within:.1%} | "
        "{within_one_run:.1%}"
    )
    numbers = ("batch", "mean |d|", "largest |d|", "mean relative", "within 1 %", "worst order")
    console.print(table_of(rows, cells, "images", numbers=numbers))
    record.write(
        stages=names, whole=np.round(whole, 5).tolist(), rows=rows, samples=samples, seeds=seeds
    )


def _order(count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permutation(count))


def _names(model: LGViT, images: Any) -> list[str]:
    seen: list[str] = []
    _run(model, images, lambda name, stage: seen.append(name))
    return seen


@torch.no_grad()
def _run(model: LGViT, images: Any, see: Any) -> None:
    config = model.config
    for start in range(0, len(images), _BATCH):
        frames = [load_rgb(path) for path in images[start : start + _BATCH]]
        pixels = network_input(frames, config.preprocess, config.image_size, "float32")
        lgvit_stages(model, torch.from_numpy(pixels), see)


def _grams(model: LGViT, images: Any, names: list[str]) -> dict[str, Tensor]:
    """Returns the Gram matrix of all images for each of some stages, ``[n, n] float64``."""
    features: dict[str, list[Tensor]] = {name: [] for name in names}

    def see(name: str, stage: Tensor) -> None:
        if name in features:
            features[name].append(stage.flatten(1))

    _run(model, images, see)
    grams = {}
    for name in names:
        flat = torch.cat(features.pop(name))
        flat -= flat.mean(dim=0)  # changes nothing but rounding
        grams[name] = (flat @ flat.T).double()
    return grams


def matrix(grams: dict[str, Tensor], batches: Any) -> Any:
    """Returns CKA between all stages from the parts of Gram matrices that minibatches see."""
    cka = Cka()
    for rows in batches:
        cka.add({name: u_centred(gram[rows][:, rows]) for name, gram in grams.items()})
    return cka.matrix()


def apart(found: list[Any], whole: Any) -> dict[str, float]:
    """Returns how far estimates ``[S, S]`` lie from the whole, over pairs of different stages.

    Relative figures are of pairs whose CKA is at least ``_ALIKE``.
    """
    upper = np.triu_indices(len(whole), 1)
    gaps = np.array([np.abs(each - whole)[upper] for each in found])
    alike = whole[upper] >= _ALIKE
    relative = gaps[:, alike] / whole[upper][alike]
    return {
        "mean": float(gaps.mean()),
        "largest": float(gaps.max()),
        "relative": float(relative.mean()),
        "within": float((relative <= 0.01).mean()),
        "within_one_run": float((relative <= 0.01).mean(axis=1).min()),
    }


if __name__ == "__main__":
    run_command(main)
