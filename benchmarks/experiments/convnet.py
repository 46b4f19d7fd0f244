"""Trains a small residual ConvNet, to compare a Vision Transformer's features with (Figure 5).

``python -m lgvit_edge.benchmarks.experiments.convnet --data DIR --out convnet.pt`` trains it on a
folder of images by class; interrupted, the same command goes on after the last whole epoch. Then
``CONVNET=convnet.pt lgvit-edge probe model.pt lgvit_edge.benchmarks.experiments.convnet:trained
--data DIR --out probe/`` compares.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge._support.outputs import replacing
from lgvit_edge._support.terminal import progress_bar, say
from lgvit_edge.benchmarks.experiments.frame import run_command
from lgvit_edge.cli.options import check_outputs
from lgvit_edge.errors import DataError, UsageError, in_one_line
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.training.data.batches import Batches
from lgvit_edge.training.data.datasets import ImageFolder
from lgvit_edge.training.optimiser import learning_rate

SIZE = 64  # pixels of an image's side: Tiny-ImageNet's own
PREPROCESS = Preprocess(resize=SIZE)
_DEPTHS = (2, 2, 2, 2)  # residual units of each group


class Unit(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He 2016, a basic unit)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != width:
            conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, width, H / stride, W / stride]`` for ``[B, inputs, H, W]``."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ConvNet(nn.Module):
    """A ResNet-18 of half the width for images of 64 x 64, ``[B, 3, 64, 64] -> [B, classes]``."""

    preprocess, image_size = PREPROCESS, SIZE  # what ``lgvit-edge probe`` gives it

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        units, inputs = [], width
        for group, depth in enumerate(_DEPTHS):
            for place in range(depth):
                stride = 2 if group and not place else 1
                units.append(Unit(inputs, width << group, stride))
                inputs = width << group
        self.units = nn.ModuleList(units)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        x = self.stem(x)
        for unit in self.units:
            x = unit(x)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def trained() -> ConvNet:
    """Returns the network in the file that ``CONVNET`` in the environment names.

    Raises:
        DataError: it names none.
    """
    path = os.environ.get("CONVNET")
    if not path or not Path(path).is_file():
        raise DataError(f"expected a file of this experiment in CONVNET, found {path!r}")
    state = _state(Path(path))["model"]
    model = ConvNet(len(state["classifier.bias"]))
    model.load_state_dict(state)
    return model.eval()


def _state(path: Path) -> dict[str, Any]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a file that is none of its own
        raise DataError(
            f"{path}: expected a file of this experiment, found {in_one_line(error)}"
        ) from None
    if not isinstance(state, dict) or not {"model", "optimizer", "settings", "history"} <= {*state}:
        raise DataError(f"{path}: expected a file of this experiment, found another")
    return state


def untrained() -> ConvNet:
    """Returns the network with random weights, which tells what training adds."""
    torch.manual_seed(0)
    return ConvNet(200).eval()


def main(
    data: Annotated[Path, typer.Option(help="Folder with train/ and val/, images by class.")],
    out: Annotated[Path, typer.Option(help="File to write: the network, and how to go on.")],
    epochs: Annotated[int, typer.Option(min=1, help="Times that all images are seen.")] = 30,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.1,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per step.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    now: Annotated[
        int | None, typer.Option(min=1, help="Epochs of this call; the next one goes on.")
    ] = None,
) -> None:
    """Trains a small residual ConvNet by SGD, with a state after every epoch to go on from."""
    check_outputs({"--out": out})
    images = ImageFolder(data / "train", size=SIZE, preprocess=PREPROCESS, min_crop=0.25)
    val = ImageFolder(data / "val", size=SIZE, preprocess=PREPROCESS, classes=images.classes)
    torch.manual_seed(seed)
    model = ConvNet(len(images.classes)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    settings = {"lr": lr, "batch_size": batch_size, "seed": seed, "images": images.fingerprint()}
    history: list[dict[str, float]] = []
    if out.exists():
        state = _state(out)
        if other := [
            name for name, value in settings.items() if state["settings"].get(name) != value
        ]:
            raise UsageError(f"{out} is of other settings ({', '.join(other)}); name another file")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        history = state["history"]
        say(f"{out} has been trained for {len(history)} of {epochs} epochs")
    batches = Batches(images, PREPROCESS, batch_size=batch_size)
    steps = epochs * len(batches)
    last = epochs if now is None else min(epochs, len(history) + now)
    for epoch in range(len(history), last):
        start = time.perf_counter()
        with progress_bar(f"epoch {epoch + 1}/{epochs}") as progress:
            loss = _train(model, optimizer, batches, (seed, epoch), steps, lr, progress)
        # Another number of epochs may be typed half-way: the schedule is then that of the new one.
        history.append({"loss": loss, "seconds": time.perf_counter() - start, "of": epochs})
        if epoch + 1 == epochs or not (epoch + 1) % 5:
            history[-1]["accuracy"] = _accuracy(model, val)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with replacing(out) as partial:
            torch.save(state | {"settings": settings, "history": history}, partial)
        say(f"epoch {epoch + 1}: {history[-1]}")


def _train(
    model: ConvNet,
    optimizer: torch.optim.SGD,
    batches: Batches,
    key: tuple[int, int],
    steps: int,
    lr: float,
    progress: Any,
) -> float:
    """Trains one epoch, in bfloat16 where the layers allow it; returns the mean loss."""
    model.train()
    total = 0.0
    for place, batch in enumerate(batches.shuffled(key)):
        progress(place, len(batches))
        step = key[1] * len(batches) + place
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak=lr, warmup=0.05)
        pixels = batch.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pixels)
        loss = functional.cross_entropy(logits.float(), batch.labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    return total / len(batches)


@torch.no_grad()
def _accuracy(model: ConvNet, val: ImageFolder) -> float:
    model.eval()
    batches = Batches(val, PREPROCESS, batch_size=250)
    right = [model(b.images).argmax(-1) == b.labels for b in batches.ordered()]
    return float(torch.cat(right).float().mean())


if __name__ == "__main__":
    run_command(main)
