"""Places exits and chooses their heads (paper sections 3.3 and A.3)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.architecture.families import family_named
from lgvit_edge.architecture.heads import HEAD_KINDS, head_choices
from lgvit_edge.errors import ConfigError


def plan_exits(
    text: str, block_macs: Sequence[int], *, heads: str = "lgvit", family: str = "vit"
) -> tuple[ExitConfig, ...]:
    """Returns the exits that a user asks for.

    ``uniform:M`` puts the first exit where a third of the MACs are spent and the others so that
    adjacent exits cost about the same (paper section 3.3). On 12 equal blocks it gives the paper's
    4..11 for M = 8 and 4, 6, 8, 10 for M = 4. ``shallow:M``, ``middle:M`` and ``deep:M`` put them
    after consecutive blocks (Table 7): from block 2, from block L / 2, and up to block
    L - 1. ``none``, or blocks such as ``4,6,8,10``.

    Args:
        text: what the user typed.
        block_macs: MACs of each of the L blocks.
        heads: ``lgvit`` for LPHs below and GAHs above, or one kind for all exits.
        family: of the backbone.

    Raises:
        ConfigError: not of this form, out of range, or unsorted.
    """
    depth = len(block_macs)
    if text == "none":
        return ()
    scheme, _, count = text.partition(":")
    try:
        blocks = [int(count)] if scheme in _SCHEMES else [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"exits must be {', '.join(f'{name}:M' for name in _SCHEMES)} or a list of blocks "
            f"such as 4,6,8,10; found {text!r}"
        ) from None
    if scheme in _SCHEMES:
        number = blocks[0]
        if not 1 <= number < depth:
            raise ConfigError(f"{scheme}:M needs 1 <= M <= {depth - 1} here, found M = {number}")
        blocks = _SCHEMES[scheme](number, block_macs)
    if blocks != sorted(set(blocks)) or blocks[0] < 1 or blocks[-1] >= depth:
        raise ConfigError(
            f"exits must be sorted blocks in 1..{depth - 1} (block {depth} ends in the final "
            f"classifier), found {text!r}"
        )
    return default_heads(blocks, heads=heads, family=family)


def _uniform(count: int, block_macs: Sequence[int]) -> list[int]:
    depth = len(block_macs)
    cumulative = list(itertools.accumulate(block_macs))
    blocks: list[int] = []
    for i in range(count):
        target = cumulative[-1] * (1 + 2 * i / count) / 3
        nearest = min(range(depth - 1), key=lambda b: abs(cumulative[b] - target)) + 1
        # Each block has one exit at most: take the next free one, and leave room for the rest.
        earliest = blocks[-1] + 1 if blocks else 1
        blocks.append(min(max(nearest, earliest), depth - count + i))
    return blocks


def _consecutive(count: int, depth: int, first: int) -> list[int]:
    first = max(1, min(first, depth - count))
    return list(range(first, first + count))


_SCHEMES: dict[str, Callable[[int, Sequence[int]], list[int]]] = {
    "uniform": _uniform,
    "shallow": lambda count, macs: _consecutive(count, len(macs), 2),
    "middle": lambda count, macs: _consecutive(count, len(macs), len(macs) // 2),
    "deep": lambda count, macs: _consecutive(count, len(macs), len(macs)),
}


def default_heads(
    blocks: Sequence[int], *, heads: str = "lgvit", family: str = "vit"
) -> tuple[ExitConfig, ...]:
    """Returns exits after ``blocks``, with their heads.

    ``lgvit``: LPH on the lower half of the exits, GAH on the upper, sizes by depth. The paper's f
    decreases linearly from 3 to 0, its g increases linearly from 2 to 3 (section 3.3). Rounded to
    sizes that exist (k in {0, 3}) they give the authors' choice: 3, 3, 0, 0 / 2, 2, 3, 3 for eight
    exits, 3, 0 / 2, 3 for four, 3 / 2 for two.

    Raises:
        ConfigError: no such kind of head, or family.
    """
    if heads not in head_choices():
        raise ConfigError(f"heads must be one of {', '.join(head_choices())}, found {heads!r}")
    if heads != "lgvit":
        size = HEAD_KINDS[heads].default or 0
        return tuple(ExitConfig(block, heads, size) for block in blocks)
    lower = (len(blocks) + 1) // 2
    upper = len(blocks) - lower
    smallest, largest = family_named(family).windows
    kernels = [3 * (1 - i / max(lower - 1, 1)) for i in range(lower)]
    windows = [smallest + (largest - smallest) * i / max(upper - 1, 1) for i in range(upper)]
    kinds = [("lph", 3 if kernel >= 1.5 else 0) for kernel in kernels]
    kinds += [("gah", round(window)) for window in windows]
    return tuple(ExitConfig(block, *kind) for block, kind in zip(blocks, kinds, strict=True))
