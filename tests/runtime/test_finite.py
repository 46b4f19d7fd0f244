"""Logits that are not finite numbers: no policy and no way to predict takes them for an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.errors import BackendError
from lgvit_edge.runtime import (
    Confidence,
    Ensemble,
    Entropy,
    FixedExit,
    Never,
    Patience,
    PatientConfidence,
    Policy,
    Session,
)

POLICIES: list[Policy] = [
    *(Confidence(1.0), Confidence(1.0, 0.01), Entropy(0.0), Patience(9), PatientConfidence(1.0)),
    *(Ensemble(1.0, 1.0), FixedExit(4), Never()),
]
WAYS: dict[str, Callable[[Session, NDArray[Any]], object]] = {
    "predict": lambda session, images: session.run(session.prepare(images[:1])),
    "deadline": lambda session, images: session.run(session.prepare(images[:1]), deadline_ms=1e6),
    "predict_batch": lambda session, images: session.run(session.prepare(images)),
    "timed_exits": lambda session, images: session.timed_exits(session.prepare(images[:1])),
    "exit_logits": lambda session, images: session.exit_logits(list(images)),
}


class Scripted:
    """A chain of four exits whose logits at one exit hold one ``value``, in the last row.

    The model without exits gives those of exit 4.
    """

    max_batch = 3

    def __init__(self, exit: int, value: float | Exception, names: list[str]) -> None:
        self.bad, self.value = exit, value
        self.first = 3 if names == ["baseline"] else 0
        self.exit = self.size = 0

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        self.exit, self.size = self.first + segment, len(images)

    def step(self) -> NDArray[np.float32]:
        self.exit += 1
        if self.exit == self.bad and isinstance(self.value, Exception):
            raise self.value
        logits = np.random.default_rng(0).normal(size=(self.size, 5)).astype(np.float32)
        if self.exit == self.bad:
            logits[-1, 3] = self.value
        return logits

    def keep(self, rows: NDArray[np.intp]) -> None:
        self.size = len(rows)

    def describe(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def opener(exit: int, value: float | Exception) -> Callable[[list[str]], Scripted]:
    return lambda names: Scripted(exit, value, names)


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    found = open_bundle(bundle)
    assert len(found.manifest.segments) == 4
    return dataclasses.replace(found, manifest=dataclasses.replace(found.manifest, labels=()))


def images(bundle: Bundle) -> NDArray[np.uint8]:
    side = bundle.manifest.passes[0].image_size
    return np.zeros((3, side, side, 3), np.uint8)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("way", WAYS)
def test_a_logit_that_is_not_finite_is_no_answer(opened: Bundle, way: str, value: float) -> None:
    for policy in POLICIES:
        # Where no image may stop early, the model without exits answers, and no exit is read.
        whole = way.startswith("predict") and not policy.stops_early(3)
        for exit in (4,) if whole else (1, 3, 4):
            with Session(opened, policy, opener(exit, value)) as session:
                session._walk.clock.calibrate(np.ones((3, 4)), np.zeros((3, 4)))
                with pytest.raises(BackendError, match=f"exit {exit} gave .*not finite.*fp32"):
                    WAYS[way](session, images(opened))
                assert session.stats.images == 0


@pytest.mark.parametrize("value", [1e18, -1e18, 3.0])
@pytest.mark.parametrize("way", WAYS)
def test_large_logits_are_answers(opened: Bundle, way: str, value: float) -> None:
    for policy in POLICIES:
        with Session(opened, policy, opener(3, value)) as session:
            session._walk.clock.calibrate(np.ones((3, 4)), np.zeros((3, 4)))
            results = WAYS[way](session, images(opened))
            if way.startswith("p"):
                assert all(np.isfinite(r.confidence) for r in results)  # type: ignore[attr-defined]


def test_the_baseline_is_named_too(opened: Bundle) -> None:
    with Session(opened, Never(), opener(4, np.nan)) as session:
        with pytest.raises(BackendError, match="exit 4 gave"):
            session.baseline_logits(session.prepare(images(opened)))


@pytest.mark.parametrize("error", [RuntimeError("Slice"), MemoryError(), OSError("x"), KeyError(1)])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_library_raises_while_it_runs(opened: Bundle, way: str, error: Exception) -> None:
    """A damaged graph may open, and fail at its first image."""
    with Session(opened, FixedExit(4), opener(2, error)) as session:
        session._walk.clock.calibrate(np.ones((3, 4)), np.zeros((3, 4)))
        with pytest.raises(
            BackendError, match=f"exit 2 cannot run .{type(error).__name__}.*--batch"
        ):
            WAYS[way](session, images(opened))
    with Session(opened, Never(), opener(1, error)) as session:
        with pytest.raises(BackendError, match="exit 1 cannot run"):
            session.check_parity()
