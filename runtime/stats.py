"""Counts what a session has done so far, with latencies over its last images."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lgvit_edge.errors import UsageError
from lgvit_edge.runtime.result import Result

WINDOW = 1024  # images
QUANTILES = (50, 90, 95, 99)
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True)
class Statistics:
    """Holds a session's counts and latencies at one moment.

    Attributes:
        images: answered since the session was opened.
        exits: of these, how many left at exit 1..M + 1.
        stopped: of these, how many ended by ``policy``, ``final`` and ``deadline``.
        late: answers that came after their deadline.
        seconds: since the session was opened.
        latency_s: of all images together, in seconds.
        window: number of latest images, at most ``WINDOW``, that the latencies cover.
        latency_ms: from decoded frame to label: ``mean``, ``p50``, ``p90``, ``p95``, ``p99``; empty
            before the first image.
        network_ms: the part of it spent in the chain and the policy.
    """

    images: int
    exits: tuple[int, ...]
    stopped: dict[str, int]
    late: int
    seconds: float
    latency_s: float
    window: int
    latency_ms: dict[str, float]
    network_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain types, ready for JSON."""
        return {**vars(self), "exits": list(self.exits)}

    def prometheus(self, labels: Mapping[str, str] | None = None) -> str:
        """Return the counts in Prometheus' text exposition format 0.0.4.

        ``labels``, such as ``{"camera": "gate"}``, are added to every sample.

        Raises:
            UsageError: a label's name is not valid, or the labels are no dict.
        """
        if not isinstance(labels, (Mapping, type(None))):
            raise UsageError(
                f"labels must be a dict, such as {{'camera': 'gate'}}, found {labels!r}"
            )
        common = dict(labels or {})
        if bad := [name for name in common if not _LABEL.fullmatch(str(name))]:
            raise UsageError(f"no Prometheus label: {bad[0]!r}; take letters, digits and _")
        lines: list[str] = []

        def metric(name: str, kind: str, text: str, rows: Sequence[tuple[str, str, Any]]) -> None:
            """Add a metric; each row is a suffix of the name, the last label, the value."""
            lines.append(f"# HELP lgvit_edge_{name} {text}")
            lines.append(f"# TYPE lgvit_edge_{name} {kind}")
            given = [f'{key}="{_escaped(value)}"' for key, value in common.items()]
            for suffix, label, value in rows:
                labels = ",".join(filter(None, [*given, label]))
                braced = f"{{{labels}}}" if labels else ""
                lines.append(f"lgvit_edge_{name}{suffix}{braced} {value}")

        exits = [("", f'exit="{i}"', count) for i, count in enumerate(self.exits, 1)]
        metric("images_total", "counter", "Images answered, by exit.", exits)
        ended = [("", f'by="{by}"', count) for by, count in self.stopped.items()]
        metric("stopped_total", "counter", "Images answered, by what stopped them.", ended)
        metric("late_total", "counter", "Answers after their deadline.", [("", "", self.late)])
        quantiles = [
            ("", f'quantile="{int(name[1:]) / 100}"', f"{ms / 1e3:.7f}")
            for name, ms in self.latency_ms.items()
            if name != "mean"
        ]
        totals = [("_sum", "", f"{self.latency_s:.6f}"), ("_count", "", self.images)]
        text = f"Time from decoded frame to label; quantiles over the last {WINDOW} images."
        metric("latency_seconds", "summary", text, [*quantiles, *totals])
        return "\n".join(lines) + "\n"


class Recorder:
    """Adds up a session's results, at about a microsecond each."""

    def __init__(self, exits: int) -> None:
        self._opened = time.monotonic()
        self._exits = [0] * exits
        self._stopped = {"policy": 0, "final": 0, "deadline": 0}
        self._late = 0
        self._latency_ms = 0.0
        self._times: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, result: Result) -> None:
        """Count one image."""
        self._exits[result.exit - 1] += 1
        self._stopped[result.stopped] += 1
        self._late += result.late
        self._latency_ms += result.latency_ms
        self._times.append((result.latency_ms, result.network_ms))

    def snapshot(self) -> Statistics:
        """Return the statistics so far."""
        latency, network = np.array(self._times, np.float64).reshape(-1, 2).T
        return Statistics(
            images=sum(self._exits),
            exits=tuple(self._exits),
            stopped=dict(self._stopped),
            late=self._late,
            seconds=time.monotonic() - self._opened,
            latency_s=self._latency_ms / 1e3,
            window=len(latency),
            latency_ms=_summary(latency),
            network_ms=_summary(network),
        )


def _summary(times: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    if not len(times):
        return {}
    values = np.percentile(times, QUANTILES)
    named = {f"p{q}": float(value) for q, value in zip(QUANTILES, values, strict=True)}
    return {"mean": float(times.mean()), **named}


def _escaped(text: str) -> str:
    return str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
