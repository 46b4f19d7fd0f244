"""Hands a session's counts to Triton, which shows them among its own metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lgvit_edge.runtime.result import Result
from lgvit_edge.runtime.stats import METRICS

_SECONDS = "latency_seconds"


class Counters:
    """Counts answers under the names of ``Statistics.prometheus``.

    Of latencies there are sum and count: Triton takes no quantiles, and counts of several
    instances of a model add up.
    """

    def __init__(self, triton: Any, pass_numbers: Sequence[int], labels: Mapping[str, str]) -> None:
        """Register all counts at zero; ``triton`` is ``triton_python_backend_utils``.

        ``labels`` are added to each. Where Triton keeps no metrics, nothing is counted.
        """
        kinds: list[tuple[str, str, dict[str, str]]] = [
            *(
                ("images_total", str(exit), {"exit": str(exit), "pass": str(number)})
                for exit, number in enumerate(pass_numbers, 1)
            ),
            *(("stopped_total", by, {"by": by}) for by in ("policy", "final", "deadline")),
            *((name, "", {}) for name in ("late_total", "errors_total")),
            *((f"{_SECONDS}_{part}", "", {}) for part in ("sum", "count")),
        ]
        self._metrics: dict[tuple[str, str], Any] = {}
        self._families: dict[str, Any] = {}  # Triton forgets the metrics of one that is let go
        for name, key, own in kinds:
            if name not in self._families:
                help = METRICS[_SECONDS if name.startswith(_SECONDS) else name][1]
                self._families[name] = triton.MetricFamily(
                    name=f"lgvit_edge_{name}",
                    description=help,
                    kind=triton.MetricFamily.COUNTER,
                )
            self._metrics[name, key] = self._families[name].Metric(labels={**labels, **own})

    def add(self, results: Sequence[Result], errors: int = 0) -> None:
        """Count answers, and images that got none because they or their request were in error."""
        counts: Counter[tuple[str, str]] = Counter()
        for result in results:
            counts["images_total", str(result.exit)] += 1
            counts["stopped_total", result.stopped] += 1
        counts["late_total", ""] = sum(result.late for result in results)
        counts["errors_total", ""] = errors
        counts[f"{_SECONDS}_count", ""] = len(results)
        for key, count in counts.items():
            if count:
                self._metrics[key].increment(count)
        if results:
            seconds = sum(result.latency_ms for result in results) / 1e3
            self._metrics[f"{_SECONDS}_sum", ""].increment(seconds)
