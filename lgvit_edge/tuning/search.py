"""Searches policies by Bayesian optimization over shapes, and by a single-threshold sweep.

The paper sets thresholds by hand and names Bayesian optimization as future work (section 6). Each
trial draws the whole curve of a shape. The two objectives are its mean accuracy over the fast and
over the careful half of the range of costs, so a shape that is best in one part is not lost.
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
_GAP = 0.01  # least relative difference in cost between two points of a front


def search(
    scorer: Scorer, *, trials: int, seed: int, progress: Progress = lambda done, total: None
) -> list[Curve]:
    """Searches all policies, and returns the curves of the best shapes, the plain sweep first.

    Policies without thresholds are tried at their own ``settings``.

    Args:
        scorer: draws curves on the tuning images.
        trials: number for each policy with thresholds.
        seed: the same seed and images give the same curves.
        progress: called with trials done and trials in all.

    Raises:
        MissingDependency: optuna is not installed.
        TuningError: a policy does not stop where its ``held`` says.
    """
    optuna = require("optuna", extra="tune")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    calibrated = temperatures(scorer.images)
    best = [scorer.curve(SWEEP)]
    searched = []
    for kind in POLICIES.values():
        if issubclass(kind, ThresholdPolicy):
            searched.append(kind)
        else:
            best += [scorer.curve(Shape(policy)) for policy in kind.settings(scorer.exits)]
    for place, kind in enumerate(searched):
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
        # The first trial is the plain policy: no temperature, no slope.
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
        best += [curves[trial.number] for trial in study.best_trials]
    progress(len(searched) * trials, len(searched) * trials)
    return best


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
    # A level that is slower and less accurate than another is never chosen.
    best = np.maximum.accumulate(curve.accuracy[order])
    reached = np.interp(grid, curve.latency_ms[order], best)
    return float(reached[:31].mean()), float(reached[30:].mean())


def policies_by(curves: list[Curve], worth: Callable[[Curve], Any]) -> list[Policy]:
    """Returns the policies of the Pareto front on the tuning images, fastest first, ``Never`` last.

    Args:
        curves: to choose from.
        worth: of each level of a curve, ``[k]``, such as its accuracy; more is better.
    """
    places = [(curve, i) for curve in curves for i in range(len(curve.accuracy))]
    chosen = front(
        places,
        cost=lambda place: float(place[0].latency_ms[place[1]]),
        worth=lambda place: float(worth(place[0])[place[1]]),
        gap=_GAP,
    )
    by_curve: dict[int, list[Policy]] = {}
    for curve, _ in chosen:
        by_curve.setdefault(id(curve), curve.policies())
    return [*(by_curve[id(curve)][i] for curve, i in chosen), Never()]
