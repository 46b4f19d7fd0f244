"""Searching policies: Bayesian optimization over shapes, the single-threshold sweep beside it.

The paper leaves the choice of thresholds to hand work and names Bayesian optimization as future
work (section 6). Each trial draws the whole curve of a shape; the two objectives are its mean
accuracy over the fast and over the careful half of the range of costs, so that no shape is thrown
away that is best somewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lgvit_edge._support.optional import require
from lgvit_edge.policies import POLICIES, Confidence, Never, Policy, ThresholdPolicy
from lgvit_edge.tuning.calibration import temperatures
from lgvit_edge.tuning.front import front
from lgvit_edge.tuning.shapes import Curve, Scorer, Shape

Progress = Callable[[int, int], None]
SWEEP = Shape(Confidence())
_SLOPE = 0.3
_GAP = 0.01  # two points of a front differ by a percent in cost, or they are one


def search(
    scorer: Scorer, *, trials: int, seed: int, progress: Progress = lambda done, total: None
) -> list[Curve]:
    """Curves of the shapes no other beats, of all policies; the plain sweep comes first.

    Policies that compare no number with a threshold are tried at their own ``settings``.

    Args:
        scorer: of the tuning images.
        trials: of each policy with thresholds.
        seed: the same seed and images give the same curves.
        progress: called with trials done and trials in all.

    Raises:
        MissingDependency: optuna is not installed.
        TuningError: a policy does not stop where it says.
    """
    optuna = require("optuna", extra="tune")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    calibrated = temperatures(scorer.images)
    found = [scorer.curve(SWEEP)]
    searched = []
    for kind in POLICIES.values():
        if issubclass(kind, ThresholdPolicy):
            searched.append(kind)
        else:
            found += [scorer.curve(Shape(policy)) for policy in kind.settings(scorer.exits)]
    for place, kind in enumerate(searched):
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
        # Where hand work would begin: no temperature, no slope.
        study.enqueue_trial({"temperature": 1.0, "calibrated": False, "slope": 0.0})
        curves: dict[int, Curve] = {}
        done = place * trials

        def objective(
            trial: Any,
            kind: type[ThresholdPolicy] = kind,
            curves: dict[int, Curve] = curves,
        ) -> Any:
            curve = scorer.curve(_shape(trial, kind, calibrated))
            curves[trial.number] = curve
            return _halves(curve, scorer)

        for number in range(trials):
            progress(done + number, len(searched) * trials)
            study.optimize(objective, n_trials=1)
        found += [curves[trial.number] for trial in study.best_trials]
    progress(len(searched) * trials, len(searched) * trials)
    return found


def _shape(trial: Any, kind: type[ThresholdPolicy], calibrated: tuple[float, ...]) -> Shape:
    slope = trial.suggest_float("slope", -_SLOPE, _SLOPE)
    values = {
        name: trial.suggest_int(name, choices.start, choices.stop - 1)
        if isinstance(choices, range)
        else trial.suggest_categorical(name, choices)
        for name, choices in kind.searched.items()
    }
    if kind.calibrated and trial.suggest_categorical("calibrated", (False, True)):
        scale = values.get("temperature", 1.0)
        values["temperature"] = tuple(round(scale * t, 4) for t in calibrated)
    return Shape(kind(**values), slope)


def _halves(curve: Curve, scorer: Scorer) -> tuple[float, float]:
    """Mean accuracy over the fast and the careful half of the range of latencies."""
    ms = scorer.costs.ms
    grid = np.linspace(ms[0], ms[-1], 61)
    order = np.argsort(curve.latency_ms)
    # What is both slower and less accurate than another level is never chosen.
    best = np.maximum.accumulate(curve.accuracy[order])
    reached = np.interp(grid, curve.latency_ms[order], best)
    return float(reached[:31].mean()), float(reached[30:].mean())


def policies_by(curves: list[Curve], worth: Callable[[Curve], Any]) -> list[Policy]:
    """The policies of a front on the tuning images, fastest first, ``Never`` last.

    Args:
        curves: to choose from.
        worth: of a curve, ``[k]``: its accuracy, or the errors it does not make.
    """
    places = [(curve, i) for curve in curves for i in range(len(curve.accuracy))]
    chosen = front(
        places,
        cost=lambda place: float(place[0].latency_ms[place[1]]),
        worth=lambda place: float(worth(place[0])[place[1]]),
        gap=_GAP,
    )
    by_curve: dict[int, list[Policy]] = {}
    found = []
    for curve, i in chosen:
        made = by_curve.setdefault(id(curve), curve.policies())
        found.append(made[i])
    return [*found, Never()]
