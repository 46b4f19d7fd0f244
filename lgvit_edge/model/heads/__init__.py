"""Exit heads. ``HEADS`` is the registry: a new kind of head is one module and one entry here.

A head reads a block's output, without the final norm. ``features`` and ``classify`` are its form
for training and distillation; ``deployed`` is the form that is exported, which computes the same
with less. The two agree to rounding, and MACs are counted on what is shipped.
"""

from __future__ import annotations

from collections.abc import Callable

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.model.heads import attention, conv, encoder, gah, lph, mlp
from lgvit_edge.model.heads.base import ExitHead, Names

HEADS: dict[str, Callable[[LGViTConfig, ExitConfig], ExitHead]] = {
    "lph": lph.head,
    "gah": gah.head,
    "mlp": mlp.head,
    "conv": conv.head,
    "attention": attention.head,
    "encoder": encoder.head,
}

__all__ = ["HEADS", "ExitHead", "Names", "exit_head"]


def exit_head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """A fresh head for an exit."""
    return HEADS[exit.head](config, exit)
