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
from lgvit_edge.policies import Never, Policy
from lgvit_edge.tuning.calibration import temperatures
from lgvit_edge.tuning.outcome import front
from lgvit_edge.tuning.shapes import Curve, Scorer, Shape

Progress = Callable[[int, int], None]
SWEEP = Shape("confidence")
SEARCHED = ("confidence", "entropy", "patient_confidence", "ensemble")
_TEMPERATURES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4)
_DECAYS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_SLOPE = 0.3
_GAP = 0.01  # two points of a front differ by a percent in cost, or they are one


def search(
    scorer: Scorer, *, trials: int, seed: int, progress: Progress = lambda done, total: None
) -> list[Curve]:
    """Curves of the shapes no other beats, of all policies; the plain sweep comes first.

    Args:
        scorer: of the tuning images.
        trials: of each policy.
        seed: the same seed and images give the same curves.
        progress: called with trials done and trials in all.

    Raises:
        MissingDependency: optuna is not installed.
    """
    optuna = require("optuna", extra="tune")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    calibrated = temperatures(scorer.images)
    found = [scorer.curve(SWEEP)]
    found += [scorer.curve(Shape("patience", patience=n)) for n in range(1, scorer.exits + 1)]
    for place, name in enumerate(SEARCHED):
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
        # Where hand work would begin: no temperature, no slope.
        study.enqueue_trial({"temperature": 1.0, "calibrated": False, "slope": 0.0})
        curves: dict[int, Curve] = {}
        done = place * trials

        def objective(trial: Any, name: str = name, curves: dict[int, Curve] = curves) -> Any:
            curve = scorer.curve(_shape(trial, name, calibrated))
            curves[trial.number] = curve
            return _halves(curve, scorer)

        for number in range(trials):
            progress(done + number, len(SEARCHED) * trials)
            study.optimize(objective, n_trials=1)
        found += [curves[trial.number] for trial in study.best_trials]
    progress(len(SEARCHED) * trials, len(SEARCHED) * trials)
    return found


def _shape(trial: Any, name: str, calibrated: tuple[float, ...]) -> Shape:
    scale = trial.suggest_categorical("temperature", _TEMPERATURES)
    slope = trial.suggest_float("slope", -_SLOPE, _SLOPE)
    temperature: Any = scale
    if name == "ensemble":
        return Shape(name, scale, trial.suggest_categorical("decay", _DECAYS), slope)
    if trial.suggest_categorical("calibrated", (False, True)):
        temperature = tuple(round(scale * t, 4) for t in calibrated)
    patience = trial.suggest_int("patience", 2, 3) if name == "patient_confidence" else 1
    return Shape(name, temperature, slope=slope, patience=patience)


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
