"""Computes the figures of a report from raw timings; nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.policies.evaluate import ExitCosts

_SPREAD, _DRIFT = 0.25, 0.10  # above these a run counts as unstable


@dataclass(frozen=True)
class Sample:
    """Holds the timings of one image through the chain and through the baseline."""

    exit: int  # where the image left, 1..M + 1
    correct: bool | None  # whether the chain's class is the label; None without a label
    baseline_correct: bool | None
    latency_ms: float  # from decoded frame to label
    network_ms: float  # the part spent in the chain and the policy
    baseline_ms: float  # from decoded frame to label
    baseline_network_ms: float


def percentiles(
    values: NDArray[np.float64], weights: NDArray[np.float64] | None = None
) -> dict[str, float]:
    """Returns mean and percentiles of latencies in ms; ``weights`` count values repeatedly."""
    order = np.argsort(values)
    array = values[order]
    weight = np.ones(len(array)) if weights is None else weights[order]
    # Rank of each value, in 0..1; with equal weights the result equals numpy's percentiles.
    rank = (np.cumsum(weight) - weight[0]) / max(weight.sum() - weight[0], 1e-300)
    named = {f"p{p}": float(np.interp(p / 100, rank, array)) for p in (50, 90, 95, 99)}
    return {"mean": float(np.average(array, weights=weight)), **named}


def summarise(
    samples: Sequence[Sample],
    manifest: Manifest,
    costs: ExitCosts,
    shares: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Returns all figures of a report that follow from the samples.

    ``costs`` are those under the policy that they were taken under, ``shares`` those of the images
    assumed at each exit, if exits were forced.
    """
    exits = np.array([s.exit for s in samples])
    counts = np.bincount(exits, minlength=len(manifest.segments) + 1)[1:]
    leaving = counts / len(samples) if shares is None else shares
    weights = (leaving / np.maximum(counts, 1))[exits - 1]
    chain, base, network, base_network = (
        _column(samples, name)
        for name in ("latency_ms", "baseline_ms", "network_ms", "baseline_network_ms")
    )
    mean_macs = costs.mean_macs(leaving)
    macs = manifest.baseline.macs / mean_macs
    wall = float((weights * base).sum() / (weights * chain).sum())
    network_speedup = float((weights * base_network).sum() / (weights * network).sum())
    # Assumed shares are not random, so each exit is then resampled on its own.
    strata = [np.arange(len(samples))]
    if shares is not None:
        strata = [np.flatnonzero(exits == e) for e in np.unique(exits)]
    return {
        "baseline": {
            "latency_ms": percentiles(base, weights),
            "network_ms": percentiles(base_network, weights),
            "macs": manifest.baseline.macs,
            "published_macs": manifest.published_macs,
        },
        "latency_ms": percentiles(chain, weights),
        "network_ms": percentiles(network, weights),
        "throughput_per_s": 1e3 / float((weights * chain).sum()),
        "mean_macs": mean_macs,
        "exits": [
            {**_exit(i, samples, manifest, costs.macs[i - 1]), "share": float(share)}
            for i, share in enumerate(leaving, 1)
        ],
        "speedup": {
            "layers": costs.layers_speedup(leaving),
            "macs": macs,
            "wall_clock": wall,
            "wall_clock_95": ratio_interval(base, chain, weights, strata),
            "network": network_speedup,
        },
        "efficiency": wall / macs,
        "network_efficiency": network_speedup / macs,
        "accuracy": _share([s.correct for s in samples]),
        "baseline_accuracy": _share([s.baseline_correct for s in samples]),
        "samples": len(samples),
    }


def raw(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Returns the samples as columns, in the order measured; times in ms."""
    columns = {field.name: [getattr(s, field.name) for s in samples] for field in fields(Sample)}
    return {
        name: [round(v, 4) if isinstance(v, float) else v for v in column]
        for name, column in columns.items()
    }


def instability(samples: Sequence[Sample], running: int, cores: int) -> list[str]:
    """Returns reasons not to trust these timings, each with a remedy; empty if there are none."""
    return unsteady(_column(samples, "baseline_network_ms"), running, cores)


def unsteady(base: NDArray[np.float64], running: int, cores: int) -> list[str]:
    """Returns what ``instability`` does, of the baseline's times in the order measured."""
    reasons = []
    if len(base) < 30:
        reasons.append(f"only {len(base)} samples; measure at least 30")
    else:
        half = len(base) // 2
        drift = np.median(base[half:]) / np.median(base[:half]) - 1
        if abs(drift) > _DRIFT:
            reasons.append(
                f"the baseline's median moved by {drift:+.0%} between the two halves of the run; "
                "let the machine cool down or fix its clocks, and run again"
            )
        low, middle, high = np.percentile(base, [25, 50, 75])
        if (high - low) / middle > _SPREAD:
            reasons.append(
                f"the baseline's middle half spreads over {(high - low) / middle:.0%} of its "
                "median; close other programs and run again"
            )
    if running:
        reasons.append(f"{running} other processes were running on {cores} cores at the start")
    return reasons


def _exit(index: int, samples: Sequence[Sample], manifest: Manifest, macs: int) -> dict[str, Any]:
    leavers = [s for s in samples if s.exit == index]
    segment = manifest.segments[index - 1]
    row: dict[str, Any] = {
        "index": index,
        "pass_number": manifest.pass_numbers[index - 1],
        "block": segment.last_block,
        "head": segment.head,
        "count": len(leavers),
        "accuracy": _share([s.correct for s in leavers]),
        "macs": macs,
        "macs_speedup": manifest.baseline.macs / macs,
        **dict.fromkeys(("latency_ms", "network_ms", "wall_clock", "efficiency")),
    }
    if leavers:
        # Compared with the baseline on the same images, which ran right before or after.
        wall = _column(leavers, "baseline_ms").mean() / _column(leavers, "latency_ms").mean()
        row |= {
            "latency_ms": percentiles(_column(leavers, "latency_ms")),
            "network_ms": percentiles(_column(leavers, "network_ms")),
            "wall_clock": float(wall),
            "efficiency": float(wall * macs / manifest.baseline.macs),
        }
    return row


def _column(samples: Sequence[Sample], name: str) -> NDArray[np.float64]:
    return np.array([getattr(s, name) for s in samples], np.float64)


def _share(values: Sequence[bool | None]) -> float | None:
    judged = [v for v in values if v is not None]
    return sum(judged) / len(judged) if judged else None


def ratio_interval(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    weights: NDArray[np.float64],
    strata: list[NDArray[np.intp]],
) -> list[float]:
    """95 % bootstrap interval of mean(a) / mean(b): pairs resampled together, within strata."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.choice(s, (1000, len(s))) for s in strata], axis=1)
    ratios = (a * weights)[rows].sum(axis=1) / (b * weights)[rows].sum(axis=1)
    return [float(edge) for edge in np.percentile(ratios, [2.5, 97.5])]
