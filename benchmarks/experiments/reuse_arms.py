"""Fine passes that reuse what the coarse pass computed, and what each of them costs.

Features are added to the fine tokens (DVT, NeurIPS 2021, "feature reuse"). Or only what the coarse
pass looked at is seen finely, the rest as coarsely as before (CF-ViT, AAAI 2023).

Shapes: B images, n and N patches of the coarse and the fine pass, T tokens, D width, C classes.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import UsageError
from lgvit_edge.model import LGViT, block_macs, model_costs
from lgvit_edge.model.backbones.block import Attention, Block
from lgvit_edge.model.backbones.first_tokens import deployed_block, tokens_read
from lgvit_edge.model.backbones.vit import Embedding, interpolated
from lgvit_edge.model.macs import count_macs
from lgvit_edge.policies.evaluate import ExitCosts

_WIDTH = 48  # of the context that all blocks share, as in DVT
_KEPT = 0.99  # of the attention so far, at every further block: CF-ViT's beta


@dataclass(frozen=True)
class Seen:
    """What the coarse pass leaves of a batch."""

    images: Tensor  # [B, 3, h, h] float32, normalised
    logits: Tensor  # [B, C]
    features: Tensor  # [B, n, D], the patches after the last block
    attention: Tensor  # [B, n] float32, how much the class token attends to each patch


@torch.no_grad()
def look(coarse: LGViT, images: Tensor) -> Seen:
    """Returns what the coarse pass computes for normalised images ``[B, 3, h, h] float32``.

    Attention is CF-ViT's "global class attention": the mean over heads, exponentially averaged over
    blocks. The first quarter of the blocks is left out, as there.
    """
    backbone, prefix = coarse.backbone, coarse.config.prefix_tokens
    x = backbone.embedding(images)
    attention = images.new_zeros(())
    for number, block in enumerate(backbone.blocks):
        assert isinstance(block, Block) and isinstance(block.attention, Attention)
        normed = block.norm1(x)
        scores = block.attention.scores(normed)
        x = x + block.attention.mix(scores, normed)
        x = x + block.mlp(block.norm2(x))
        if number >= len(backbone.blocks) // 4:
            shares = scores[:, :, 0].float().softmax(dim=-1).mean(dim=1)[:, prefix:]
            attention = _KEPT * attention + (1 - _KEPT) * shares
    return Seen(images, backbone.final(x), x[:, prefix:], attention)


def check_passes(coarse: LGViTConfig, fine: LGViTConfig) -> None:
    """Checks that the fine pass can reuse what the coarse one leaves.

    Raises:
        UsageError: it cannot, with all reasons.
    """
    faults = []
    for name, config in (("coarse", coarse), ("fine", fine)):
        if config.family not in ("vit", "deit") or config.pooling != "token":
            faults.append(
                f"the {name} pass: expected a ViT or DeiT that reads its class token, found "
                f"family {config.family}, pooling {config.pooling}"
            )
        elif config.rotation or config.relative_positions:
            faults.append(
                f"the {name} pass: expected positions in the embedding alone, found rotary or "
                "relative ones"
            )
        if config.exits:
            faults.append(f"the {name} pass: expected no exits inside, found {len(config.exits)}")
    if (coarse.num_classes, coarse.labels) != (fine.num_classes, fine.labels):
        faults.append("expected the same classes in both passes, found others in the coarse one")
    if fine.grid != 2 * coarse.grid:
        faults.append(
            f"expected twice as many patches a side in the fine pass, found {coarse.grid} and "
            f"{fine.grid}"
        )
    if faults:
        raise UsageError("; ".join(faults))


class FinePass(nn.Module):
    """A fine pass that reuses nothing: the network as it is, and what the others build on."""

    reads_features = False  # whether the coarse pass's last block is needed for all its tokens

    def __init__(self, fine: LGViT) -> None:
        super().__init__()
        self.fine = fine

    def forward(self, images: Tensor, seen: Seen) -> Tensor:
        """Returns the logits, normalised ``[B, 3, H, W] float32 -> [B, C]``."""
        x = self.embed(images, seen)
        backbone = self.fine.backbone
        for block, more in zip(backbone.blocks, self.added(seen), strict=False):
            x = block(x if more is None else x + more)
        logits: Tensor = backbone.final(x)
        return logits

    def embed(self, images: Tensor, seen: Seen) -> Tensor:
        """Returns the tokens that the first block reads, ``[B, T, D]``."""
        tokens: Tensor = self.fine.backbone.embedding(images)
        return tokens

    def added(self, seen: Seen) -> Iterable[Tensor | None]:
        """Yields what is added to the tokens before each block, ``[B, T, D]`` or None."""
        return itertools.repeat(None)


def _silent(inputs: int, outputs: int) -> nn.Linear:
    """Returns a layer that gives zeros until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class WithFeatures(FinePass):
    """Adds the coarse pass's features to the fine patches: once, or before every block.

    They are projected on the coarse grid, then upsampled: both are linear, and this order needs a
    quarter of the MACs. DVT instead joins a context to the input of every block's MLP.
    """

    reads_features = True

    def __init__(self, fine: LGViT, coarse: LGViTConfig, *, where: str) -> None:
        super().__init__(fine)
        width, dim = coarse.hidden_size, fine.config.hidden_size
        self.context, places = nn.Sequential(nn.LayerNorm(width)), 1
        if where == "blocks":
            self.context.extend([nn.Linear(width, _WIDTH), nn.GELU()])
            width, places = _WIDTH, fine.config.num_blocks
        self.projections = nn.ModuleList(_silent(width, dim) for _ in range(places))

    def added(self, seen: Seen) -> Iterable[Tensor | None]:
        """Yields projected features for as many blocks as have a projection."""
        context = self.context(seen.features)
        for projection in self.projections:
            yield self._grown(projection(context))
        yield from itertools.repeat(None)

    def _grown(self, patches: Tensor) -> Tensor:
        """Returns values of the fine tokens, ``[B, n, D] -> [B, T, D]``; prefix tokens get 0."""
        config, side = self.fine.config, math.isqrt(patches.shape[1])
        image = patches.transpose(1, 2).unflatten(2, (side, side))
        grown = functional.interpolate(image, size=(config.grid,) * 2, mode="bilinear")
        return functional.pad(grown.flatten(2).transpose(1, 2), (0, 0, config.prefix_tokens, 0))


class Refined(FinePass):
    """Reads the small image's patches, of which the most attended are replaced by four fine ones.

    Both kinds are embedded by the fine pass's own weights; only the patches that are read are.
    With ``features``, the coarse pass's features are added to the fine patches, as in CF-ViT.
    """

    def __init__(
        self, fine: LGViT, coarse: LGViTConfig, *, share: float, features: bool = False
    ) -> None:
        super().__init__(fine)
        self.grid, self.reads_features = coarse.grid, features
        self.count = math.ceil(share * coarse.grid**2)  # of coarse patches that are refined
        width = coarse.hidden_size
        self.projection = (
            nn.Sequential(nn.LayerNorm(width), _silent(width, fine.config.hidden_size))
            if features
            else None
        )

    def embed(self, images: Tensor, seen: Seen) -> Tensor:
        """Returns prefix tokens, four for each refined patch, and one for each other."""
        embedding, prefix = self.fine.backbone.embedding, self.fine.config.prefix_tokens
        assert isinstance(embedding, Embedding)  # checked before: a ViT or DeiT
        order = seen.attention.argsort(dim=1, descending=True, stable=True)
        refined, coarse = order[:, : self.count], order[:, self.count :]
        fine = children(refined, self.grid)
        side = self.fine.config.patch_size
        pixels = torch.cat(
            [_rows(_patches(images, side), fine), _rows(_patches(seen.images, side), coarse)], 1
        )
        kernel = embedding.patch
        x = functional.linear(pixels, kernel.weight.flatten(1), kernel.bias)
        if self.projection is not None:
            features = self.projection(_rows(seen.features, refined)).repeat_interleave(4, dim=1)
            x = x + functional.pad(features, (0, 0, 0, coarse.shape[1]))
        position = embedding.position
        small = interpolated(position, prefix, 2 * self.grid, self.grid)
        places = [position[0, prefix:][fine], small[0, prefix:][coarse]]
        first = (embedding.prefix + position[:, :prefix]).expand(len(x), -1, -1)
        tokens = torch.cat([first, x + torch.cat(places, dim=1)], dim=1)
        return tokens if embedding.norm is None else embedding.norm(tokens)


def children(places: Tensor, grid: int) -> Tensor:
    """Returns the four fine places of each coarse one, ``[B, k] -> [B, 4k]``.

    Places count row by row, on a coarse grid of side ``grid`` and a fine one of twice the side.
    """
    first = 2 * (2 * grid * (places // grid) + places % grid)
    offsets = torch.tensor([0, 1, 2 * grid, 2 * grid + 1], device=places.device)
    return (first[:, :, None] + offsets).flatten(1)


def _patches(images: Tensor, side: int) -> Tensor:
    """Returns the pixels of each patch, ``[B, 3, H, W] -> [B, N, 3 * side * side]``."""
    cut = images.unfold(2, side, side).unfold(3, side, side)  # [B, 3, rows, columns, side, side]
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """Returns some tokens of each image, ``[B, n, D], [B, k] -> [B, k, D]``."""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


def chain_costs(coarse: LGViT, fine: FinePass) -> ExitCosts:
    """Returns the costs of both passes as they would be exported; the baseline is the fine network.

    A coarse pass computes its last block for the class token alone. Where its features are reused,
    images that go on pay for that block once more, whole.
    """
    config = fine.fine.config
    first = model_costs(coarse).baseline
    again = block_macs(coarse.config)[-1] if fine.reads_features else 0
    blocks = (coarse.config.num_blocks, coarse.config.num_blocks + config.num_blocks)
    macs = (first, first + again + fine_macs(fine, coarse.config))
    return ExitCosts(blocks, config.num_blocks, macs, model_costs(fine.fine).baseline)


def fine_macs(fine: FinePass, coarse: LGViTConfig) -> int:
    """Returns the MACs of a fine pass for one image, what it does with the coarse one included."""
    side = fine.fine.config.image_size
    return count_macs(_Alone(fine, coarse).eval(), torch.zeros(1, 3, side, side))


class _Alone(nn.Module):
    """A fine pass as it would be exported, ``[1, 3, H, W] -> [1, C]``, for counting alone."""

    def __init__(self, fine: FinePass, coarse: LGViTConfig) -> None:
        super().__init__()
        self.fine, self.coarse = copy.deepcopy(fine), coarse
        backbone = self.fine.fine.backbone
        backbone.blocks[-1] = deployed_block(backbone.blocks[-1], tokens_read(backbone.final))

    def forward(self, images: Tensor) -> Tensor:
        side, patches = self.coarse.image_size, self.coarse.grid**2
        seen = Seen(
            images.new_zeros(1, 3, side, side),
            images.new_zeros(1, self.coarse.num_classes),
            images.new_zeros(1, patches, self.coarse.hidden_size),
            images.new_zeros(1, patches),
        )
        logits: Tensor = self.fine(images, seen)
        return logits
