"""Pareto fronts of policies, and the line of accuracy over latency that a front draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.policies.evaluate import Outcome

T = TypeVar("T")


def front(
    items: Sequence[T], cost: Callable[[T], float], worth: Callable[[T], float], gap: float = 0.0
) -> list[T]:
    """Returns the Pareto front: items that no other beats in both cost and worth, cheapest first.

    Neighbours differ in cost by at least ``gap``, relatively.
    """
    rising: list[T] = []
    for item in sorted(items, key=lambda i: (cost(i), -worth(i))):
        if not rising or worth(item) > worth(rising[-1]):
            rising.append(item)
    spaced: list[T] = []
    for place, item in enumerate(rising, 1):
        if place == len(rising) or not spaced or cost(item) >= cost(spaced[-1]) * (1 + gap):
            spaced.append(item)
    return spaced


@dataclass(frozen=True)
class Line:
    """Accuracy as a function of mean latency, interpolated between the points of a front."""

    ms: NDArray[np.float64]  # ``[k]``, rising
    accuracy: NDArray[np.float64]  # ``[k]``; need not rise: points may be chosen on other images

    @classmethod
    def through(cls, points: Sequence[Outcome]) -> Line:
        """Returns the line through these outcomes."""
        ordered = sorted(points, key=lambda point: point.latency_ms)
        return cls(*np.array([(p.latency_ms, p.accuracy) for p in ordered]).T)

    def accuracy_at(self, ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the accuracy at these mean latencies."""
        return np.asarray(np.interp(ms, self.ms, self.accuracy), np.float64)

    def ms_at(self, accuracy: float) -> float | None:
        """Returns the least mean latency with this accuracy; None where no point reaches it."""
        reached = np.flatnonzero(self.accuracy >= accuracy)
        if not len(reached):
            return None
        i = int(reached[0])
        if i == 0:
            return float(self.ms[0])
        (low, high), ends = self.accuracy[i - 1 : i + 1], self.ms[i - 1 : i + 1]
        return float(ends[0] + (accuracy - low) / (high - low) * (ends[1] - ends[0]))
