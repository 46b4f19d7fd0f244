"""The exit heads; ``lgvit_edge.architecture.heads`` describes their kinds.

A head reads a block's output, without the final norm. ``features`` and ``classify`` are its form
for training and distillation; ``deployed`` returns the form that is exported, which is cheaper
and agrees to rounding. MACs are those of the exported form.
"""

from __future__ import annotations

from lgvit_edge._support.optional import resolve
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.heads import HEAD_KINDS
from lgvit_edge.model.heads.base import ExitHead, Names, within

__all__ = ["ExitHead", "Names", "exit_head", "within"]


def exit_head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns a fresh head for an exit."""
    head: ExitHead = resolve(HEAD_KINDS[exit.head].factory)(config, exit)
    return head
