"""Hands a session's counts to Triton, which shows them among its own metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lgvit_edge.runtime.result import Result

# Under the names of ``Statistics.prometheus``. Of latencies sum and count: Triton takes no
# quantiles, and those of several instances would not add up.
_HELP = {
    "images_total": "Images answered, by exit and its pass.",
    "stopped_total": "Images answered, by what stopped them.",
    "late_total": "Answers after their deadline.",
    "errors_total": "Requests that got an error.",
    "latency_seconds_sum": "Time from the model's start on a batch to the images' labels.",
    "latency_seconds_count": "Images that the sum is of.",
}


class Counters:
    """Counts answers of one instance of a model; Triton adds the instances up."""

    def __init__(self, triton: Any, pass_numbers: Sequence[int], labels: Mapping[str, str]) -> None:
        """Show all counts at zero, with these labels on each.

        ``triton`` is ``triton_python_backend_utils``. Where Triton keeps no metrics, nothing is
        counted.
        """
        self._families = {  # kept: Triton forgets the metrics of one that is let go
            name: triton.MetricFamily(
                name=f"lgvit_edge_{name}", description=text, kind=triton.MetricFamily.COUNTER
            )
            for name, text in _HELP.items()
        }
        several: dict[str, list[dict[str, str]]] = {
            "images_total": [
                {"exit": str(exit), "pass": str(number)}
                for exit, number in enumerate(pass_numbers, 1)
            ],
            "stopped_total": [{"by": by} for by in ("policy", "final", "deadline")],
        }
        # By name and the first label's value.
        self._metrics = {
            (name, next(iter(own.values()), "")): family.Metric(labels={**labels, **own})
            for name, family in self._families.items()
            for own in several.get(name, [{}])
        }

    def add(self, results: Sequence[Result], errors: int) -> None:
        """Count answers, and requests that got an error."""
        counts: Counter[tuple[str, str]] = Counter()
        for result in results:
            counts["images_total", str(result.exit)] += 1
            counts["stopped_total", result.stopped] += 1
        counts["late_total", ""] = sum(result.late for result in results)
        counts["errors_total", ""] = errors
        counts["latency_seconds_count", ""] = len(results)
        seconds = {("latency_seconds_sum", ""): sum(result.latency_ms for result in results) / 1e3}
        for key, amount in {**counts, **seconds}.items():
            if amount:  # each call crosses to another process
                self._metrics[key].increment(amount)
