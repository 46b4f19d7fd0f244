"""Outputs of the frozen backbone for stage 2, per batch or computed once for all images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lgvit_edge.errors import TrainingError
from lgvit_edge.machine.memory import memory_bytes
from lgvit_edge.model import LGViT
from lgvit_edge.training.data.batches import Batch, Batches, Key, shuffled_indices
from lgvit_edge.training.settings import TrainingConfig

_SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True)
class HiddenStates:
    """The inputs of one step of stage 2, in float32."""

    exits: list[Tensor]  # outputs of the M exits' blocks, each [B, T, D]
    last: Tensor  # output of block L, [B, T, D]; its patch tokens are F_L
    teacher: Tensor  # the final classifier's logits, through the final norm, [B, C]
    labels: Tensor  # [B] int64


@torch.no_grad()
def frozen(model: LGViT, images: Tensor, config: TrainingConfig) -> tuple[list[Tensor], Tensor]:
    """Returns the outputs ``[B, T, D]`` of embedding and blocks, and the final logits ``[B, C]``.

    They are float32, whatever precision they were computed in.
    """
    with config.autocast(images.device):
        states = model.hidden_states(images)
        logits = model.backbone.final(states[-1])
    return [state.float() for state in states], logits.float()


def hidden_states(model: LGViT, batch: Batch, config: TrainingConfig) -> HiddenStates:
    """Runs the backbone once for all exits."""
    states, teacher = frozen(model, batch.images, config)
    exits = [states[exit.block] for exit in model.config.exits]
    return HiddenStates(exits, states[-1], teacher, batch.labels)


def view_keys(config: TrainingConfig) -> list[Key | None]:
    """Returns the random key of each cached copy; None is the image as at inference."""
    views = range(config.cache_views)
    return [(config.seed, 0, view) for view in views] if views else [None]


class StoredStates(Protocol):
    """Hidden states of all images, computed before."""

    def shuffled(self, epoch: int, batch_size: int, key: Key) -> Iterator[HiddenStates]:
        """Yields one epoch in random order."""


class HiddenCache:
    """Hidden states of all images in memory, in float16."""

    def __init__(
        self,
        model: LGViT,
        batches: Batches,
        config: TrainingConfig,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Run the backbone, frozen from here on, over the training images.

        ``progress`` is called with images done and images in all, from 0 for each view.

        Raises:
            TrainingError: the states would not fit into half of this machine's memory.
        """
        keys, shape = view_keys(config), model.config
        images, memory = len(batches.dataset) * len(keys), memory_bytes()
        blocks = [*(exit.block for exit in shape.exits), shape.num_blocks]
        needed = 2 * images * sum(math.prod(shape.hidden_shape(block)) for block in blocks)
        if needed > _SHARE_OF_MEMORY * memory:
            raise TrainingError(
                f"caching {images} images takes {needed / 1e9:.1f} GB, expected at most half of "
                f"this machine's {memory / 1e9:.1f} GB; train without cache"
            )
        self.device = next(model.parameters()).device
        model.eval()
        self._progress = progress
        self._views = [self._compute(model, batches, config, key) for key in keys]

    def _compute(
        self, model: LGViT, batches: Batches, config: TrainingConfig, key: Key | None
    ) -> HiddenStates:
        count, stored, filled = len(batches.dataset), list[Tensor](), 0
        for batch in batches.ordered(key):
            s = hidden_states(model, batch, config)
            rows = [*(t.half().cpu() for t in (*s.exits, s.last)), s.teacher, s.labels]
            # Filled in place: joining a list of batches would need twice the memory.
            stored = stored or [t.new_empty((count, *t.shape[1:])) for t in rows]
            for whole, part in zip(stored, rows, strict=True):
                whole[filled : filled + len(part)] = part
            filled += len(s.labels)
            self._progress(filled, count)
        if not stored:
            raise TrainingError("expected training images, found none that can be read")
        *exits, last, teacher, labels = (whole[:filled] for whole in stored)
        return HiddenStates(exits, last, teacher, labels)

    def shuffled(self, epoch: int, batch_size: int, key: Key) -> Iterator[HiddenStates]:
        """Yields one epoch in random order; epochs take the views in turn."""
        states = self._views[epoch % len(self._views)]
        for rows in shuffled_indices(len(states.labels), batch_size, key):
            stored, places = (*states.exits, states.last), rows.to(states.labels.device)
            *exits, last = (tensor[rows].to(self.device).float() for tensor in stored)
            yield HiddenStates(exits, last, states.teacher[places], states.labels[places])
