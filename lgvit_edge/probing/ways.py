"""The way of an image through a model to one of its exits, and the answers there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lgvit_edge.errors import UsageError
from lgvit_edge.model.heads.encoder import EncoderHead
from lgvit_edge.model.lgvit import LGViT

_AT_ONCE = 256 * 2**20  # bytes that a batch may take, about


@dataclass(frozen=True)
class Way:
    """The way to an exit: the blocks, and the classifier behind them.

    The block of an encoder head is the last of the blocks, and what reads it is the classifier.
    """

    exit: int  # 1..M; M + 1 is the final classifier
    kind: str  # of the exit's head, or ``final``
    last_block: int  # of the backbone, 1-based
    blocks: list[nn.Module]
    head: nn.Module
    prefix: int  # how many tokens come before those of patches
    grid: int  # side of the map that the last block returns

    @property
    def patches(self) -> int:
        """Returns how many patch tokens the last block returns."""
        return self.grid**2


def way_to(model: LGViT, exit: int) -> Way:
    """Returns the way to an exit, 1..M, or M + 1 for the final classifier.

    Raises:
        UsageError: there is no such exit.
    """
    config, count = model.config, len(model.heads) + 1
    if isinstance(exit, bool) or not isinstance(exit, int) or not 1 <= exit <= count:
        raise UsageError(
            f"exit must be 1..{count} ({count} is the final classifier), found {exit!r}"
        )
    last, kind = config.num_blocks, "final"
    if exit < count:
        last, kind = config.exits[exit - 1].block, config.exits[exit - 1].head
    head = model.backbone.final if exit == count else model.heads[exit - 1]
    blocks = list(model.backbone.blocks[:last])
    if isinstance(head, EncoderHead):
        blocks, head = [*blocks, head.block], head.readout
    return Way(exit, kind, last, blocks, head, config.prefix_tokens, config.blocks[last - 1].grid)


def check_images(model: LGViT, images: Tensor) -> None:
    """Refuses what is not normalised images of the model's size.

    Raises:
        UsageError: tells what was expected.
    """
    side = model.config.image_size
    if tuple(images.shape[1:]) != (3, side, side) or not images.is_floating_point():
        raise UsageError(
            f"expected normalised images [B, 3, {side}, {side}] float32, found "
            f"{list(images.shape)} {images.dtype}".replace("torch.", "")
        )


def batch_size(model: LGViT, way: Way) -> int:
    """Returns how many images to compute at once, with gradients of attention.

    They take about 256 MB. A single image of a large model may take more.
    """
    config, numbers = model.config, 0
    for number in range(1, len(way.blocks) + 1):
        sizes = config.blocks[min(number, config.num_blocks) - 1]
        tokens = config.prefix_tokens + sizes.grid**2
        pairs = tokens * (sizes.window**2 or tokens) * sizes.num_heads
        # Scores, weights and their gradients; states and the inner layer of the MLP.
        numbers += 5 * pairs + tokens * (12 * sizes.dim + 3 * sizes.intermediate_size)
    return max(1, _AT_ONCE // (4 * numbers))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every module in eval mode, and back in its own."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def logits_at(model: LGViT, images: Tensor, exit: int) -> Tensor:
    """Returns the logits of an exit, ``[B, 3, H, W] -> [B, C] float32``, on the CPU.

    Blocks behind the exit are not computed.

    Raises:
        UsageError: there is no such exit, or images have another shape.
    """
    way = way_to(model, exit)
    check_images(model, images)
    like, logits = next(model.parameters()), [torch.zeros(0, model.config.num_classes)]
    with evaluating(model):
        for part in images.split(batch_size(model, way)):
            hidden = model.backbone.embedding(part.to(like.device, like.dtype))
            for block in way.blocks:
                hidden = block(hidden)
            logits.append(way.head(hidden).float().cpu())
    return torch.cat(logits)
