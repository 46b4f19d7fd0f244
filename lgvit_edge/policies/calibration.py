"""Calibration: measures how far an exit's confidence is off, and fits a correcting temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.policies.scores import log_softmax

_BINS = 15
_COLDEST, _HOTTEST = 0.05, 20.0


def temperatures(images: Images) -> tuple[float, ...]:
    """Fits the temperature of each exit that makes the labels most likely (Guo 2017), ``[M]``."""
    return tuple(_fit(images.logits[:, m], images.labels) for m in range(images.exits))


def calibration_errors(images: Images, by_exit: tuple[float, ...]) -> list[float]:
    """Returns expected calibration errors (15 bins) of exits 1..M at these temperatures, 0..1."""
    errors = []
    for m, temperature in enumerate(by_exit):
        logs = log_softmax(images.logits[:, m] / np.float32(temperature))
        confidences, right = np.exp(logs.max(axis=-1)), logs.argmax(axis=-1) == images.labels
        errors.append(Reliability.of(confidences, right).error)
    return errors


@dataclass(frozen=True)
class Reliability:
    """How often answers of about the same confidence are right, in equal bins of confidence."""

    count: NDArray[np.int64]  # images of each bin, ``[15]``
    confidence: NDArray[np.float64]  # their sum, ``[15]``
    right: NDArray[np.float64]  # right answers, ``[15]``

    @classmethod
    def of(cls, confidences: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> Reliability:
        """Counts answers ``[n]`` of these confidences, 0..1, that are right or not."""
        bins = np.minimum((confidences * _BINS).astype(np.intp), _BINS - 1)

        def sums(values: NDArray[Any]) -> NDArray[np.float64]:
            return np.asarray(np.bincount(bins, values, minlength=_BINS), np.float64)

        return cls(np.bincount(bins, minlength=_BINS), sums(confidences), sums(right))

    @property
    def error(self) -> float:
        """The expected calibration error, 0..1."""
        return float(np.abs(self.confidence - self.right).sum() / self.count.sum())


def _fit(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        return -float(log_softmax(logits / np.float32(np.exp(log_t)))[rows, labels].mean())

    # The loss is convex in 1/T, so it has one minimum in log T.
    best = require("scipy.optimize", extra="tune").minimize_scalar(
        loss, bounds=(math.log(_COLDEST), math.log(_HOTTEST)), method="bounded"
    )
    return round(math.exp(best.x), 4)
