"""Searches policies by Bayesian optimization over shapes, and by a single-threshold sweep.

The paper sets thresholds by hand and names Bayesian optimization as future work (section 6). Each
trial draws the whole curve of a shape. The two objectives are its mean accuracy over the fast and
over the careful half of the range of costs, so a shape that is best in one part is not lost.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from lgvit_edge._support.optional import require
from lgvit_edge.policies import POLICIES, Confidence, Never, Policy, ThresholdPolicy
from lgvit_edge.policies.calibration import temperatures
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

    Each policy with thresholds has this many trials; the others are tried at their own
    ``settings``. The same seed and images give the same curves.

    Raises:
        MissingDependency: optuna is not installed.
        TuningError: a policy does not stop where its ``held`` says.
    """
    optuna = require("optuna", extra="tune")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    calibrated = temperatures(scorer.images)
    best = [scorer.curve(SWEEP)]
    searched = [kind for kind in POLICIES.values() if issubclass(kind, ThresholdPolicy)]
    for other in [kind for kind in POLICIES.values() if kind not in searched]:
        best += [scorer.curve(Shape(policy)) for policy in other.settings(scorer.exits)]
    for place, kind in enumerate(searched):
        with warnings.catch_warnings():  # optuna 4 calls it experimental; 5 does not
            warnings.filterwarnings("ignore", "Argument ``multivariate`` is an experimental")
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
        # The first trial is the plain policy: no temperature, no slope.
        study.enqueue_trial({"temperature": 1.0, "calibrated": False, "slope": 0.0})
        curves = []
        for number in range(trials):
            progress(place * trials + number, len(searched) * trials)
            trial = study.ask()
            curves.append(scorer.curve(_shape(trial, kind, calibrated)))
            study.tell(trial, _halves(curves[-1], scorer))
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

    ``worth`` gives that of each level of a curve, ``[k]``, such as its accuracy.
    """
    levels = [
        level
        for curve in curves
        for level in zip(curve.policies(), curve.latency_ms, worth(curve), strict=True)
    ]
    chosen = front(levels, cost=lambda level: level[1], worth=lambda level: level[2], gap=_GAP)
    return [*(policy for policy, *_ in chosen), Never()]
