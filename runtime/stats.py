"""Counts what a session has done so far, by stream, with latencies over the last images."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lgvit_edge.errors import UsageError
from lgvit_edge.runtime.result import Result

WINDOW = 1024  # images
QUANTILES = (50, 90, 95, 99)
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")  # two _ are Prometheus' own
_OWN_LABELS = ("stream", "exit", "pass", "by", "quantile")
_METRICS = {
    "images_total": ("counter", "Images answered, by exit and its pass."),
    "stopped_total": ("counter", "Images answered, by what stopped them."),
    "late_total": ("counter", "Answers after their deadline."),
    "dropped_total": ("counter", "Images of live sources that newer ones replaced."),
    "errors_total": ("counter", "Images of streams that could not be used, and failed sources."),
    "latency_seconds": (
        "summary",
        f"Time from decoded frame to label; quantiles over the last {WINDOW} images.",
    ),
}


@dataclass(frozen=True)
class StreamStatistics:
    """Holds the counts and latencies of one stream of images at one moment.

    Attributes:
        images: answered since the session was opened.
        exits: of these, how many left at exit 1..M + 1, counted through all passes.
        pass_numbers: the pass of each exit, from 1.
        stopped: of these, how many ended by ``policy``, ``final`` and ``deadline``.
        late: answers that came after their deadline.
        dropped: images of a live source that a newer one replaced (``drop_oldest``).
        errors: every ``StreamError``: images that could not be used, and sources that failed or
            stalled.
        latency_s: of all images together, in seconds.
        window: number of latest images that the latencies cover, at most ``WINDOW`` of a stream.
        latency_ms: from decoded frame to label: ``mean``, ``p50``, ``p90``, ``p95``, ``p99``; empty
            before the first image.
        network_ms: the part of it spent in the chain and the policy.
    """

    images: int
    exits: tuple[int, ...]
    pass_numbers: tuple[int, ...]
    stopped: dict[str, int]
    late: int
    dropped: int
    errors: int
    latency_s: float
    window: int
    latency_ms: dict[str, float]
    network_ms: dict[str, float]

    @property
    def passes(self) -> tuple[int, ...]:
        """How many of the images each pass answered."""
        counts = [0] * self.pass_numbers[-1]
        for number, count in zip(self.pass_numbers, self.exits, strict=True):
            counts[number - 1] += count
        return tuple(counts)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain types, ready for JSON."""
        lists = {name: list(getattr(self, name)) for name in ("exits", "pass_numbers", "passes")}
        return {**vars(self), **lists}

    def samples(self) -> dict[str, list[tuple[str, str, Any]]]:
        """Return what Prometheus reads of each metric: suffix, last label, value."""
        quantiles = {name: ms / 1e3 for name, ms in self.latency_ms.items() if name != "mean"}
        return {
            "images_total": [
                ("", f',exit="{i}",pass="{self.pass_numbers[i - 1]}"', count)
                for i, count in enumerate(self.exits, 1)
            ],
            "stopped_total": [("", f',by="{by}"', count) for by, count in self.stopped.items()],
            "late_total": [("", "", self.late)],
            "dropped_total": [("", "", self.dropped)],
            "errors_total": [("", "", self.errors)],
            "latency_seconds": [
                *(
                    ("", f',quantile="{int(p[1:]) / 100}"', f"{s:.7f}")
                    for p, s in quantiles.items()
                ),
                ("_sum", "", f"{self.latency_s:.6f}"),
                ("_count", "", self.images),
            ],
        }


@dataclass(frozen=True)
class Statistics(StreamStatistics):
    """Holds a session's counts and latencies at one moment: of all streams together, and of each.

    Attributes:
        seconds: since the session was opened.
        streams: of each source of ``Session.streams`` by its name; what has no name, such as
            ``predict``, counts as ``""``.
    """

    seconds: float
    streams: dict[str, StreamStatistics]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain types, ready for JSON."""
        streams = {name: found.to_json() for name, found in self.streams.items()}
        return {**super().to_json(), "streams": streams}

    def prometheus(self, labels: Mapping[str, str] | None = None) -> str:
        """Return the counts in Prometheus' text exposition format 0.0.4.

        Each sample has the label ``stream``, empty where there is no name, which to Prometheus is
        the same as none; the whole is their sum. ``labels``, such as ``{"site": "harbour"}``, are
        added to every sample.

        Raises:
            UsageError: a label's name is not valid or in use here, or the labels are no dict.
        """
        if not isinstance(labels, (Mapping, type(None))):
            raise UsageError(
                f"labels must be a dict, such as {{'site': 'harbour'}}, found {labels!r}"
            )
        common = dict(labels or {})
        if bad := [name for name in common if not _LABEL.fullmatch(str(name))]:
            raise UsageError(f"no Prometheus label: {bad[0]!r}; take letters, digits and _")
        if used := [name for name in common if name in _OWN_LABELS]:
            raise UsageError(f"the label {used[0]!r} is in use here; take another name")
        lines = []
        for metric, (kind, text) in _METRICS.items():
            name = f"lgvit_edge_{metric}"
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            for stream, counts in self.streams.items():
                given = [*common.items(), ("stream", stream)]
                shared = ",".join(f'{key}="{label_value(value)}"' for key, value in given)
                for suffix, label, value in counts.samples()[metric]:
                    lines.append(f"{name}{suffix}{{{shared}{label}}} {value}")
        return "\n".join(lines) + "\n"


class Recorder:
    """Adds up a session's results by stream, at about a microsecond each."""

    def __init__(self, pass_numbers: tuple[int, ...]) -> None:
        self._opened, self._passes = time.monotonic(), pass_numbers
        self._tallies: dict[str, _Tally] = {}
        self.begin("")

    def begin(self, stream: str) -> _Tally:
        """Count a stream from now on, if it is not counted yet."""
        return self._tallies.setdefault(stream, _Tally(self._passes))

    def add(self, result: Result, stream: str = "") -> None:
        """Count one image."""
        tally = self._tallies.get(stream) or self.begin(stream)
        tally.exits[result.exit - 1] += 1
        tally.stopped[result.stopped] += 1
        tally.late += result.late
        tally.latency_ms += result.latency_ms
        tally.times.append((result.latency_ms, result.network_ms))

    def miss(self, stream: str, *, dropped: int, errors: int) -> None:
        """Count what was not answered."""
        tally = self.begin(stream)
        tally.dropped += dropped
        tally.errors += errors

    def snapshot(self) -> Statistics:
        """Return the statistics so far."""
        whole = _Tally(self._passes)
        whole.times = deque()  # as long as all windows together
        for tally in self._tallies.values():
            whole.join(tally)
        return Statistics(
            **whole.counts(),
            seconds=time.monotonic() - self._opened,
            streams={
                name: StreamStatistics(**tally.counts()) for name, tally in self._tallies.items()
            },
        )


class _Tally:
    """What one stream has done so far."""

    def __init__(self, pass_numbers: tuple[int, ...]) -> None:
        self.exits, self.pass_numbers = [0] * len(pass_numbers), pass_numbers
        self.stopped = {"policy": 0, "final": 0, "deadline": 0}
        self.late = self.dropped = self.errors = 0
        self.latency_ms = 0.0
        self.times: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def join(self, other: _Tally) -> None:
        """Add another stream's."""
        self.exits = [a + b for a, b in zip(self.exits, other.exits, strict=True)]
        self.stopped = {by: count + other.stopped[by] for by, count in self.stopped.items()}
        self.late += other.late
        self.dropped += other.dropped
        self.errors += other.errors
        self.latency_ms += other.latency_ms
        self.times += other.times

    def counts(self) -> dict[str, Any]:
        """Return the fields of ``StreamStatistics``."""
        latency, network = np.array(self.times, np.float64).reshape(-1, 2).T
        return {
            "images": sum(self.exits),
            "exits": tuple(self.exits),
            "pass_numbers": self.pass_numbers,
            "stopped": dict(self.stopped),
            "late": self.late,
            "dropped": self.dropped,
            "errors": self.errors,
            "latency_s": self.latency_ms / 1e3,
            "window": len(latency),
            "latency_ms": _summary(latency),
            "network_ms": _summary(network),
        }


def _summary(times: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    if not len(times):
        return {}
    values = np.percentile(times, QUANTILES)
    named = {f"p{q}": float(value) for q, value in zip(QUANTILES, values, strict=True)}
    return {"mean": float(times.mean()), **named}


def label_value(text: str) -> str:
    """Return text as it stands between the quotes of a label's value for Prometheus."""
    text = str(text).encode("utf-8", "replace").decode()  # names of files may hold half characters
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
