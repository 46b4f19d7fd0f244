"""Cuts a trained LGViT into the modules that are exported: the segments and the baseline.

Segments share the trained sub-modules. Only exit heads (see ``heads``), windowed attention, the
patch embedding and a last block that is read at its first tokens alone (see ``first_tokens``) are
replaced, by cheaper forms that compute the same. The model is not changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.errors import ConfigError
from lgvit_edge.model.backbones.first_tokens import deployed_block, tokens_read
from lgvit_edge.model.heads import ExitHead
from lgvit_edge.model.lgvit import LGViT

INPUTS = ("uint8", "float32")


@dataclass(frozen=True)
class Segment:
    """One segment of a model, as it is exported; blocks count from 1, inclusive.

    The module is ``image | hidden -> (hidden, logits)``, or ``-> logits`` in the last segment.
    """

    index: int  # 0..M
    first_block: int
    last_block: int
    exit: ExitConfig | None  # the exit it ends in; None for the final classifier
    module: nn.Module
    parameters: int  # how many trained numbers; constants derived from them do not count

    @property
    def head(self) -> str:
        """Returns the name of the head; ``final`` for the last segment."""
        return self.exit.head if self.exit else "final"


def cut(model: LGViT, *, input: str = "uint8", cast_first: bool = False) -> list[Segment]:
    """Cuts a model in eval mode into segments 0..M.

    Sub-modules are borrowed, not copied. ``input`` is ``uint8`` for ``[B, H, W, 3]`` RGB frames
    normalised inside segment 0, or ``float32`` for normalised ``[B, 3, H, W]``. ``cast_first`` is
    that of ``FrameEmbedding``.

    Raises:
        ConfigError: ``input`` is neither.
    """
    segments, first = [], 1
    stops = [*zip(model.config.exits, model.heads, strict=True), (None, model.backbone.final)]
    for index, (exit, head) in enumerate(stops):
        last = exit.block if exit else model.config.num_blocks
        embedding = None if index else _embedding(model, input, cast_first)
        tail = head.deployed() if isinstance(head, ExitHead) else head
        blocks = _deployed(model, first, last, final=exit is None)
        module = _SegmentModule(embedding, blocks, tail, exit is None).eval()
        trained = [*model.backbone.blocks[first - 1 : last], head]
        trained += [] if index else [model.backbone.embedding]
        parameters = sum(count_parameters(part) for part in trained)
        segments.append(Segment(index, first, last, exit, module, parameters))
        first = last + 1
    return segments


def baseline(model: LGViT, *, input: str = "uint8", cast_first: bool = False) -> nn.Module:
    """Returns the backbone without exits, ``image -> logits [B, C]``; arguments as for ``cut``."""
    blocks = _deployed(model, 1, model.config.num_blocks, final=True)
    embedding = _embedding(model, input, cast_first)
    return _SegmentModule(embedding, blocks, model.backbone.final, True).eval()


def example_input(
    config: LGViTConfig, segment: int | None, *, input: str = "uint8", batch: int = 1
) -> Tensor:
    """Returns zeros in the input shape of ``segment`` (None: of the baseline)."""
    if segment:
        return torch.zeros(batch, *config.hidden_shape(config.exits[segment - 1].block))
    side = config.image_size
    if input == "uint8":
        return torch.zeros(batch, side, side, 3, dtype=torch.uint8)
    return torch.zeros(batch, 3, side, side)


def count_parameters(module: nn.Module) -> int:
    """Returns how many trained numbers a module has; shared ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _deployed(model: LGViT, first: int, last: int, *, final: bool) -> nn.ModuleDict:
    """Blocks ``first`` to ``last``, 1-based and inclusive, by number.

    ``final`` says that only the final classifier reads the last one. An exit's last block stays
    whole whatever its head reads: the next segment reads all tokens.
    """
    backbone = model.backbone
    read = tokens_read(backbone.final) if final else 0
    return nn.ModuleDict(
        {
            str(number): deployed_block(block, read if number == last else 0)
            for number, block in enumerate(backbone.blocks, 1)
            if first <= number <= last
        }
    )


class _SegmentModule(nn.Module):
    """The exported module; parameter names keep the block's number: ``blocks.5.fc1.weight``."""

    def __init__(
        self, embedding: nn.Module | None, blocks: nn.ModuleDict, tail: nn.Module, final: bool
    ) -> None:
        super().__init__()
        self.embedding, self.blocks, self.tail, self.final = embedding, blocks, tail, final

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.blocks.values():
            x = block(x)
        logits: Tensor = self.tail(x)
        return logits if self.final else (x, logits)


def _embedding(model: LGViT, input: str, cast_first: bool) -> nn.Module:
    if input not in INPUTS:
        raise ConfigError(f"input must be one of {', '.join(INPUTS)}, found {input!r}")
    return FrameEmbedding(model, cast_first) if input == "uint8" else model.backbone.embedding


class FrameEmbedding(nn.Module):
    """Embeds RGB frames, ``[B, H, W, 3] uint8 -> [B, T, D]``; normalisation is in its weights.

    A convolution whose stride is its kernel is a linear layer on patches, and patches of an NHWC
    frame need one cheap transposition of bytes. w * (x / 255 - mean) / std is linear in x and
    there is no padding, so folding mean and std into weight and bias is exact.

    ``cast_first`` casts the bytes to floats before the transposition, as TensorRT accepts uint8
    only in a cast. Without it, the transposition moves a quarter of the memory.
    """

    def __init__(self, model: LGViT, cast_first: bool = False) -> None:
        super().__init__()
        config = model.config
        self.cast_first, self.embedding = cast_first, model.backbone.embedding
        self.patch, self.grid, self.scale = config.patch_size, config.grid, 1.0
        kernel = self.embedding.patch.weight.detach()  # [D, 3, P, P]
        bias = self.embedding.patch.bias
        assert bias is not None  # Embedding always has one
        mean = torch.tensor(config.preprocess.mean)[:, None, None]
        std = torch.tensor(config.preprocess.std)[:, None, None]
        # In float64: the bias sums thousands of products that nearly cancel.
        exact = kernel.double()
        weight = (exact / (255.0 * std)).permute(0, 2, 3, 1).flatten(1)
        shift = bias.detach().double() - (exact * (mean / std)).sum(dim=(1, 2, 3))
        self.weight = nn.Parameter(weight.to(kernel.dtype), requires_grad=False)
        self.bias = nn.Parameter(shift.to(kernel.dtype), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the embedded frames, ``[B, H, W, 3] uint8 -> [B, T, D]``."""
        p, g = self.patch, self.grid
        if self.cast_first:
            image = image.to(self.weight.dtype)
        patches = image.reshape(-1, g, p, g, p * 3).transpose(2, 3).reshape(-1, g * g, p * p * 3)
        patches = patches.to(self.weight.dtype)
        if self.scale != 1.0:
            patches = patches * self.scale
        embedded = functional.linear(patches, self.weight, self.bias)
        assembled: Tensor = self.embedding.assemble(embedded)
        return assembled

    def scale_input(self, scale: float) -> None:
        """Scales pixels down and weights up; exact if ``scale`` is a power of two."""
        self.scale *= scale
        self.weight.data = self.weight.data / scale
