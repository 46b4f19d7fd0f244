"""Measures the energy of the chain and of the baseline, in turn, where the machine tells it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np

from lgvit_edge.benchmarks.measure import (
    Frame,
    Progress,
    gpu_of,
    random_frames,
    restored_policy,
    run_baseline,
)
from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import LabelledImage, evenly
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.machine.clocks import clock_state, throttling
from lgvit_edge.machine.container import ROOT
from lgvit_edge.machine.power import Meter, find_meters
from lgvit_edge.policies import FixedExit
from lgvit_edge.runtime import Session

# Counters and sensors are renewed up to every 100 ms, so single images cannot be told apart.
SHORTEST = 1.0  # seconds: what is shorter gives no figure
FEWEST = 10  # samples of a sensor, likewise
TURNS = 5  # of the chain and of the baseline each
_FEWEST_TURNS = 3  # with a figure, of each
COUNT_EVERY = 10.0  # seconds; the smallest counters hold 65 kJ
_EVERY = 0.02  # seconds between two samples of a sensor
_PASS = 50  # images
_MOST_BYTES = 1 << 28  # of images held in memory
_SPREAD = 0.25  # above this, turns count as unstable


class Span:
    """Measures the energy of every meter from entering to leaving; ``seconds`` is their distance.

    A thread samples the sensors of power, which count with the time between samples. It looks at
    the counters, too, so that none wraps twice unseen.
    """

    def __init__(self, meters: Sequence[Meter]) -> None:
        """Measure nothing yet."""
        self._meters = meters
        self._samples: list[list[tuple[float, float]]] = [[] for _ in meters]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seconds = 0.0
        self.joules: list[float | None] = []  # by meter; None where it told too little

    def __enter__(self) -> Span:
        """Begin."""
        self._counters = self._read()
        self._counted: list[float | None] = [0.0] * len(self._meters)
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, also where the work failed."""
        self.seconds = time.perf_counter() - self._start
        self._over.set()
        self._thread.join()
        self._count()
        # A counter that stands still, as in some virtual machines, tells nothing.
        self.joules = [
            self._sampled(samples) if meter.watts else counted or None
            for meter, samples, counted in zip(
                self._meters, self._samples, self._counted, strict=True
            )
        ]
        if self.seconds < SHORTEST:
            self.joules = [None] * len(self._meters)

    def watts(self) -> list[float | None]:
        """Return the mean power of every meter."""
        return [None if joules is None else joules / self.seconds for joules in self.joules]

    def _watch(self) -> None:
        sensors = any(meter.watts for meter in self._meters)
        due = self._start + COUNT_EVERY
        while not self._over.wait(_EVERY if sensors else COUNT_EVERY):
            for meter, samples in zip(self._meters, self._samples, strict=True):
                if meter.watts and (watts := meter.watts()) is not None:
                    samples.append((time.perf_counter(), watts))
            if time.perf_counter() >= due:
                self._count()
                due += COUNT_EVERY

    def _read(self) -> list[float | None]:
        return [meter.joules() if meter.joules else None for meter in self._meters]

    def _count(self) -> None:
        before, self._counters = self._counters, self._read()
        steps = map(Meter.spent, self._meters, before, self._counters)
        self._counted = [
            None if total is None or step is None else total + step
            for total, step in zip(self._counted, steps, strict=True)
        ]

    def _sampled(self, samples: list[tuple[float, float]]) -> float | None:
        if len(samples) < FEWEST:
            return None
        times, watts = np.array(samples).T
        steps = np.diff(times)
        mean = (steps * (watts[1:] + watts[:-1]) / 2).sum() / steps.sum()
        return float(mean * self.seconds)


class EnergyRun:
    """Measures idle power when it is made, and later the energy per image.

    Make it before the session has run anything, because idle means that nothing has run for a
    while. Neither takes any time on a machine that tells no power.
    """

    def __init__(self, session: Session, *, root: Path = ROOT, seconds: float = 2.0) -> None:
        """Find the meters below ``root``, and measure idle power for ``seconds``."""
        self._session, self._root, self._seconds = session, root, seconds
        self._gpu = gpu_of(session)
        self._meters, self._notes = find_meters(root, gpu=self._gpu)
        self._idle: list[float | None] = []
        if self._meters:
            with Span(self._meters) as span:
                time.sleep(seconds)
            self._idle = span.watts()

    def of_images(
        self, images: Sequence[LabelledImage], progress: Progress = lambda done, total: None
    ) -> dict[str, Any]:
        """Measures the session's policy on some of the images, evenly spread over the list.

        Returns:
            ``meters``, each with ``name``, ``source``, what it ``covers``, ``idle_watts``, and
            where it told enough ``baseline`` and ``chain`` (``watts``, ``mj_per_image``) and
            ``ratio``, the baseline's energy over the chain's. Idle power is part of all of them.
            ``turns`` are the raw values; ``shares`` those of the images that left at each exit;
            ``notes`` say why figures are missing; ``unstable`` why not to trust them.
        """
        if not self._meters:
            return {"meters": [], "notes": self._notes}
        frames = list(_decoded(evenly(images, _PASS)))
        if not frames:
            return {"meters": [], "notes": ["none of the images chosen could be decoded"]}

        def run_chain() -> list[int]:
            return [self._session.predict(frame).exit for frame in frames]

        return self._measure(run_chain, frames, progress)

    def of_exits(
        self, shares: Sequence[float], progress: Progress = lambda done, total: None
    ) -> dict[str, Any]:
        """Measures forced exits in these shares on random frames; returns the same figures."""
        if not self._meters:
            return {"meters": [], "notes": self._notes}
        few = random_frames(self._session.manifest, 8)
        counts = _apportioned(shares, _PASS)
        frames = [few[i % len(few)] for i in range(sum(counts))]

        def run_chain() -> list[int]:
            left = iter(frames)
            exits = []
            for exit, count in enumerate(counts, 1):
                self._session.policy = FixedExit(exit)
                exits += [self._session.predict(next(left)).exit for _ in range(count)]
            return exits

        with restored_policy(self._session):
            return self._measure(run_chain, frames, progress)

    def _measure(
        self, run_chain: Callable[[], list[int]], frames: Sequence[Frame], progress: Progress
    ) -> dict[str, Any]:
        """Let both take turns, each of whole passes over the same frames."""

        def run_base() -> list[int]:
            return [run_baseline(self._session, frame)[0] for frame in frames]

        parts, turns, last = {"chain": run_chain, "baseline": run_base}, [], {}
        state, throttled = clock_state(self._root, gpu=self._gpu), set[str]()
        for turn in range(TURNS):
            progress(turn, TURNS)
            for part in sorted(parts, reverse=turn % 2 == 0):
                passes = 0
                with Span(self._meters) as span:
                    began = time.perf_counter()
                    while time.perf_counter() - began < self._seconds:
                        last[part] = parts[part]()
                        passes += 1
                before, state = state, clock_state(self._root, gpu=self._gpu)
                throttled.update(throttling(before, state))
                turns.append(
                    {
                        "part": part,
                        "images": passes * len(frames),
                        "seconds": span.seconds,
                        "joules": span.joules,
                        "clocks": state,
                    }
                )
        counts = Counter(last["chain"])
        exits = range(1, len(self._session.manifest.segments) + 1)
        found = _summary(self._meters, self._idle, turns, self._notes)
        if throttled:
            found["unstable"].append(f"throttled while energy was measured: {sorted(throttled)}")
        return found | {
            "shares": [counts[exit] / len(frames) for exit in exits],
            "images_per_pass": len(frames),
            "turns": turns,
        }


def _summary(
    meters: Sequence[Meter],
    idle: Sequence[float | None],
    turns: Sequence[dict[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Compute the figures that follow from the turns."""
    rows, notes, unstable = [], list(notes), []
    for index, (meter, idle_watts) in enumerate(zip(meters, idle, strict=True)):
        row: dict[str, Any] = {"name": meter.name, "source": meter.source, "covers": meter.covers}
        row |= {"idle_watts": idle_watts, "baseline": None, "chain": None, "ratio": None}
        told: dict[str, list[tuple[float, float]]] = {"baseline": [], "chain": []}
        for turn in turns:
            if (joules := turn["joules"][index]) is not None:
                of_turn = (joules / turn["seconds"], 1e3 * joules / turn["images"])
                told[turn["part"]].append(of_turn)
        if min(map(len, told.values())) < _FEWEST_TURNS:
            notes.append(f"{meter.name} ({meter.source}) told too little for a figure")
        else:
            for part, values in told.items():
                watts, millijoules = (median(column) for column in zip(*values, strict=True))
                row[part] = {"watts": watts, "mj_per_image": millijoules}
                low, high = (edge(mj for _, mj in values) for edge in (min, max))
                if index == 0 and high - low > _SPREAD * abs(millijoules):
                    unstable.append(
                        f"energy of the {part} was {low:.4g} to {high:.4g} mJ per image in its "
                        f"turns ({meter.name}); close other programs and run again"
                    )
            base, chain = (row[part]["mj_per_image"] for part in told)
            # A rail that is nearly off may read as less than nothing.
            row["ratio"] = base / chain if base > 0 and chain > 0 else None
        rows.append(row)
    return {"meters": rows, "notes": notes, "unstable": unstable}


def _decoded(images: Sequence[LabelledImage]) -> Iterator[Frame]:
    """Yield images as long as they fit into memory; the record lists those that are skipped."""
    size = 0
    for image in images:
        try:
            frame = load_rgb(image.path)
        except DataError:
            continue
        size += frame.nbytes
        if size > _MOST_BYTES and size > frame.nbytes:
            return
        yield frame


def _apportioned(shares: Sequence[float], count: int) -> list[int]:
    """Return whole numbers in proportion to the shares that sum up to ``count``."""
    exact = np.asarray(shares) * count / sum(shares)
    whole = np.floor(exact).astype(int)
    missing = count - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return [int(n) for n in whole]
