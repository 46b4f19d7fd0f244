"""Costs of an image by the exit it takes: measured milliseconds, and MACs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.policies.evaluate import ExitCosts

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """Holds the mean cost per image of each part of the chain, and of the baseline."""

    prepare_ms: float  # from decoded frame to network input; the baseline needs it, too
    segment_ms: tuple[float, ...]  # of segments 0..M, each with the decision at its end
    baseline_ms: float  # from decoded frame to label, the preparation included
    segment_macs: tuple[int, ...]  # of segments 0..M
    head_macs: tuple[int | None, ...]  # the heads' part, ``[M]``; None where a pass ends
    baseline_macs: int  # of the model without exits
    blocks: tuple[int, ...]  # number that an image goes through, of all passes, ``[M + 1]``
    baseline_blocks: int  # of the model without exits
    # What a session saves by leaving an exit's head out, ``[M]``; empty where it cannot.
    macs_apart: tuple[int, ...] = ()
    ms_apart: tuple[float, ...] = ()

    @cached_property
    def by_exit(self) -> ExitCosts:
        """The total costs of an image by the exit it takes."""
        macs, ms = tuple(accumulate(self.segment_macs)), tuple(self.ms.tolist())
        return ExitCosts(
            self.blocks,
            self.baseline_blocks,
            macs,
            self.baseline_macs,
            ms,
            self.baseline_ms,
            self.macs_apart,
            self.ms_apart,
        )

    @property
    def ms(self) -> Floats:
        """Milliseconds from decoded frame to label by the exit taken, ``[M + 1]``."""
        return self.prepare_ms + np.cumsum(self.segment_ms)

    @property
    def head_ms(self) -> Floats:
        """Milliseconds of each head, ``[M]``; 0 where a pass ends, which has no head.

        They were measured where heads are apart. Else they are estimated: the time that the whole
        chain takes beyond the baseline is divided among the heads by their MACs. Of several passes
        only the last one's network was timed without exits: there a head's share of its segment's
        time is that of MACs.
        """
        if self.ms_apart:
            return np.array(self.ms_apart)
        weights = np.array([macs or 0 for macs in self.head_macs], np.float64)
        if None in self.head_macs:
            segments = zip(self.segment_ms, self.segment_macs, weights, strict=False)
            return np.array([ms * head / macs for ms, macs, head in segments])
        extra_ms = max(0.0, sum(self.segment_ms) + self.prepare_ms - self.baseline_ms)
        return np.asarray(extra_ms * weights / max(weights.sum(), 1.0))

    def without(self, exits: list[int]) -> Costs:
        """Returns the costs of a chain exported without these exits, 1-based.

        Raises:
            ValueError: a pass ends in one of them.
        """
        heads, head_macs = self.head_ms, [macs or 0 for macs in self.head_macs]
        if ends := [exit for exit in exits if self.head_macs[exit - 1] is None]:
            raise ValueError(f"a pass ends in exit {ends[0]}: it cannot be left out")
        ms, macs = [0.0], [0]
        for i, (time, work) in enumerate(zip(self.segment_ms, self.segment_macs, strict=True)):
            if i + 1 in exits:  # its blocks join the next segment, its head is gone
                ms[-1] += time - float(heads[i])
                macs[-1] += work - head_macs[i]
            else:
                ms[-1] += time
                macs[-1] += work
                ms.append(0.0)
                macs.append(0)
        return replace(
            self,
            segment_ms=tuple(ms[:-1]),
            segment_macs=tuple(macs[:-1]),
            head_macs=tuple(m for i, m in enumerate(self.head_macs, 1) if i not in exits),
            blocks=tuple(b for i, b in enumerate(self.blocks, 1) if i not in exits),
            macs_apart=tuple(m for i, m in enumerate(self.macs_apart, 1) if i not in exits),
            ms_apart=tuple(m for i, m in enumerate(self.ms_apart, 1) if i not in exits),
        )
