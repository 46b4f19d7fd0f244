"""From raw timings to the figures of a report. Everything here is derived; nothing is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.manifest import Manifest

_WARM_SPREAD, _DRIFT = 0.25, 0.10  # beyond these a run's figures should not be trusted


@dataclass(frozen=True)
class Sample:
    """One image, measured through the chain and through the baseline right after each other.

    Attributes:
        exit: exit taken, 1..M + 1.
        correct: whether the chain's class is the label; None without a label.
        baseline_correct: likewise for the baseline.
        latency_ms: decoded frame to label.
        network_ms: the part spent in the chain and the policy.
        baseline_ms: decoded frame to label.
        baseline_network_ms: the part spent in the baseline.
    """

    exit: int
    correct: bool | None
    baseline_correct: bool | None
    latency_ms: float
    network_ms: float
    baseline_ms: float
    baseline_network_ms: float


def percentiles(values: Sequence[float] | NDArray[Any]) -> dict[str, float]:
    """Mean and percentiles of latencies in ms."""
    array = np.asarray(values, np.float64)
    named = {f"p{p}": float(np.percentile(array, p)) for p in (50, 90, 95, 99)}
    return {"mean": float(array.mean()), **named}


def summarise(samples: Sequence[Sample], manifest: Manifest) -> dict[str, Any]:
    """Every figure of DESIGN section 8 that follows from the samples."""
    exits = np.array([s.exit for s in samples])
    blocks = np.array([manifest.segments[e - 1].last_block for e in exits])
    spent = np.array([manifest.cumulative_macs(int(e)) for e in exits], np.float64)
    chain, base = _column(samples, "latency_ms"), _column(samples, "baseline_ms")
    network = _column(samples, "network_ms")
    base_network = _column(samples, "baseline_network_ms")
    macs = manifest.baseline.macs / spent.mean()
    wall, network_speedup = base.mean() / chain.mean(), base_network.mean() / network.mean()
    low, high = _ratio_interval(base, chain)
    return {
        "baseline": {
            "latency_ms": percentiles(base),
            "network_ms": percentiles(base_network),
            "macs": manifest.baseline.macs,
        },
        "latency_ms": percentiles(chain),
        "network_ms": percentiles(network),
        "throughput_per_s": 1e3 / chain.mean(),
        "mean_macs": float(spent.mean()),
        "exits": [_exit(i, samples, manifest) for i in range(1, len(manifest.segments) + 1)],
        "speedup": {
            # Paper Eq. 17: L times the images over the blocks they went through.
            "layers": float(manifest.num_blocks * len(samples) / blocks.sum()),
            "macs": float(macs),
            "wall_clock": float(wall),
            "wall_clock_95": [low, high],
            "network": float(network_speedup),
        },
        "efficiency": float(wall / macs),
        "network_efficiency": float(network_speedup / macs),
        "accuracy": _share([s.correct for s in samples]),
        "baseline_accuracy": _share([s.baseline_correct for s in samples]),
        "samples": len(samples),
    }


def instability(samples: Sequence[Sample], load: float, cores: int) -> list[str]:
    """Reasons not to trust these timings, each with what to do; empty when there are none."""
    reasons = []
    base = _column(samples, "baseline_network_ms")
    if len(samples) < 30:
        reasons.append(f"only {len(samples)} samples; measure at least 30 (--samples)")
    else:
        half = len(base) // 2
        drift = np.median(base[half:]) / np.median(base[:half]) - 1
        if abs(drift) > _DRIFT:
            reasons.append(
                f"the baseline's median moved by {drift:+.0%} between the two halves of the run; "
                "let the machine cool down or fix its clocks, and run again"
            )
        low, middle, high = np.percentile(base, [25, 50, 75])
        if (high - low) / middle > _WARM_SPREAD:
            reasons.append(
                f"the baseline's middle half spreads over {(high - low) / middle:.0%} of its "
                "median; close other programs and run again"
            )
    if load > 0.75 * cores:
        reasons.append(f"{load} processes were already running on {cores} cores at the start")
    return reasons


def _exit(index: int, samples: Sequence[Sample], manifest: Manifest) -> dict[str, Any]:
    mine = [s for s in samples if s.exit == index]
    segment = manifest.segments[index - 1]
    spent = manifest.cumulative_macs(index)
    row: dict[str, Any] = {
        "index": index,
        "block": segment.last_block,
        "head": segment.head,
        "count": len(mine),
        "share": len(mine) / len(samples),
        "accuracy": _share([s.correct for s in mine]),
        "macs": spent,
        "macs_speedup": manifest.baseline.macs / spent,
        "latency_ms": None,
        "network_ms": None,
        "wall_clock": None,
        "efficiency": None,
    }
    if mine:
        # Each against the baseline's runs on the same images, made right beside them.
        wall = _column(mine, "baseline_ms").mean() / _column(mine, "latency_ms").mean()
        row |= {
            "latency_ms": percentiles(_column(mine, "latency_ms")),
            "network_ms": percentiles(_column(mine, "network_ms")),
            "wall_clock": float(wall),
            "efficiency": float(wall * spent / manifest.baseline.macs),
        }
    return row


def _column(samples: Sequence[Sample], name: str) -> NDArray[np.float64]:
    return np.array([getattr(s, name) for s in samples], np.float64)


def _share(values: Sequence[bool | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _ratio_interval(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of mean(a) / mean(b), pairs resampled together."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(a), (1000, len(a)))
    low, high = np.percentile(a[rows].mean(axis=1) / b[rows].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
