"""Exit heads; ``lgvit_edge.architecture.heads`` describes their kinds.

A head reads a block's output, without the final norm. ``features`` and ``classify`` are its form
for training and distillation; ``deployed`` is the form that is exported, which computes the same
with less. The two agree to rounding, and MACs are counted on what is shipped.
"""

from __future__ import annotations

from lgvit_edge._support.optional import resolve
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.heads import HEAD_KINDS
from lgvit_edge.model.heads.base import ExitHead, Names

__all__ = ["ExitHead", "Names", "exit_head"]


def exit_head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """A fresh head for an exit."""
    head: ExitHead = resolve(HEAD_KINDS[exit.head].factory)(config, exit)
    return head
