"""What the application knows of itself: one snapshot for the page, the terminal and Prometheus."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lgvit_edge.camera.shot import Answer, Event, Shot, State
from lgvit_edge.camera.sinks.base import SinkCounts
from lgvit_edge.machine.power import find_meters
from lgvit_edge.policies import Policy
from lgvit_edge.runtime.session import Session
from lgvit_edge.runtime.stats import Statistics

_SPAN = 10.0  # seconds over which rates are counted
_WINDOW = 512  # answers of a camera over which latencies are counted
_EVENTS = 200
_POWER_EVERY = 1.0  # seconds


class Monitor:
    """Counts what happens, by camera; any thread may tell it and ask it.

    Attributes:
        images: whether the newest picture of each camera is kept, for who shows it.
        own_policy: the session's when the application began; None where that was a point.
    """

    def __init__(self, session: Session, cameras: Mapping[str, str]) -> None:
        """Watch cameras, given as names and addresses without passwords."""
        self._session, self._opened = session, time.time()
        self._exits = len(session.manifest.segments)
        self._lock = threading.Lock()
        self._cameras = {name: _Camera(shown, self._exits) for name, shown in cameras.items()}
        self._events: deque[Event] = deque(maxlen=_EVENTS)
        self._told = 0  # events so far
        self._sinks: Callable[[], Mapping[str, SinkCounts]] = dict
        self._machine = _Machine()
        self.images = False
        self.own_policy = session.policy if session.point is None else None

    def watch_sinks(self, counts: Callable[[], Mapping[str, SinkCounts]]) -> None:
        """Ask this for the counts of the sinks, by name."""
        self._sinks = counts

    def shot(self, shot: Shot) -> None:
        """Count a frame that was answered."""
        with self._lock:
            self._cameras[shot.camera].add(shot, keep=self.images)

    def missed(self, camera: str, *, dropped: int = 0, skipped: int = 0, errors: int = 0) -> None:
        """Count frames that newer ones replaced, that need no answer, or that cannot be used."""
        with self._lock:
            counted = self._cameras[camera]
            counted.dropped += dropped
            counted.skipped += skipped
            counted.errors += errors

    def event(self, event: Event) -> None:
        """Keep an event, and the state it puts a camera in."""
        with self._lock:
            self._events.append(event)
            self._told += 1
            if event.state is not None and event.camera in self._cameras:
                camera = self._cameras[event.camera]
                if event.state == "live":
                    # A stall may end on the same connection.
                    camera.reconnects += camera.was_live and camera.state != "stalled"
                    camera.was_live = True
                camera.state = event.state

    def picture(self, camera: str) -> Shot | None:
        """Return the newest shot of a camera, with its picture; None before the first."""
        with self._lock:
            return self._cameras[camera].picture

    @property
    def stats(self) -> Statistics:
        """What the session itself has counted."""
        return self._session.stats

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras."""
        return list(self._cameras)

    def snapshot(self, *, events_after: int = 0) -> dict[str, Any]:
        """Return all of it as plain types; of the events, those with a larger number."""
        session, manifest = self._session, self._session.manifest
        about = session.describe()
        with self._lock:
            numbered = list(enumerate(self._events, self._told - len(self._events) + 1))
            cameras = {name: camera.to_json() for name, camera in self._cameras.items()}
            told = self._told
        return {
            "time": time.time(),
            "uptime_s": time.time() - self._opened,
            "backend": about.get("backend"),
            "device": about.get("device"),
            "precision": about.get("precision", "fp32"),
            "policy": _name(session.policy),
            "own_policy": None if self.own_policy is None else _name(self.own_policy),
            "point": session.point,
            "points": list(manifest.points),
            "blocks": [segment.last_block for segment in manifest.segments],
            **self._machine.to_json(),
            "cameras": cameras,
            "sinks": {name: vars(counts) for name, counts in self._sinks().items()},
            "events": [{"number": n, **e.to_json()} for n, e in numbered if n > events_after],
            "last_event": told,
        }


class _Camera:
    """What one camera has done so far."""

    def __init__(self, shown: str, exits: int) -> None:
        self.source = shown
        self.state: State = "opening"
        self.was_live = False
        self.frames = self.answers = self.unsure = self.late = 0
        self.dropped = self.skipped = self.errors = self.reconnects = 0
        self.exits = [0] * exits
        self.latency_s = 0.0
        self.times: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self.seen: deque[float] = deque(maxlen=4096)  # time.monotonic() of its last frames
        self.last: tuple[Answer, ...] = ()
        self.picture: Shot | None = None

    def add(self, shot: Shot, *, keep: bool) -> None:
        self.frames += 1
        self.seen.append(time.monotonic())
        for answer in shot.answers:
            self.answers += 1
            self.unsure += answer.unsure
            self.late += answer.result.late
            # The session may have got another bundle, with more exits.
            self.exits += [0] * (answer.result.exit - len(self.exits))
            self.exits[answer.result.exit - 1] += 1
            self.latency_s += answer.latency_ms / 1e3
            self.times.append((answer.latency_ms, answer.result.network_ms))
        self.last = shot.answers  # without the picture
        self.picture = shot if keep else None

    def to_json(self) -> dict[str, Any]:
        now = time.monotonic()
        recent = [moment for moment in self.seen if now - moment <= _SPAN]
        # Of a stream that just began, over the time since its first frame.
        rate = (len(recent) - 1) / max(now - recent[0], 1e-3) if len(recent) > 1 else 0.0
        latency, network = np.array(self.times, np.float64).reshape(-1, 2).T
        return {
            "source": self.source,
            "state": self.state,
            "frames": self.frames,
            "answers": self.answers,
            "unsure": self.unsure,
            "late": self.late,
            "dropped": self.dropped,
            "skipped": self.skipped,
            "errors": self.errors,
            "reconnects": self.reconnects,
            "fps": rate,
            "exits": list(self.exits),
            "latency_s": self.latency_s,
            "latency_ms": _quantiles(latency),
            "network_ms": _quantiles(network),
            "idle_s": now - self.seen[-1] if self.seen else None,
            "last": [answer.to_json() for answer in self.last],
        }


class _Machine:
    """Load and power of the machine, read at most once a second."""

    def __init__(self) -> None:
        self._meters = find_meters()[0]
        self._last = (time.monotonic(), os.times(), self._joules())
        self._lock = threading.Lock()
        self._shown: dict[str, Any] = {"cpu": None, "load": None, "watts": {}}

    def to_json(self) -> dict[str, Any]:
        """Return the processor time of this process, in cores, the machine's load, and power."""
        with self._lock:
            before, spent, joules = self._last
            now = time.monotonic()
            if now - before >= _POWER_EVERY:
                times, counters = os.times(), self._joules()
                used = times.user + times.system - spent.user - spent.system
                watts = {}
                for meter, old, new in zip(self._meters, joules, counters, strict=True):
                    energy = meter.spent(old, new) if meter.joules else None
                    power = meter.watts() if meter.watts else None
                    if energy is not None:
                        power = energy / (now - before)
                    if power is not None:
                        watts[meter.name] = power
                self._last = (now, times, counters)
                self._shown = {
                    "cpu": used / (now - before),
                    "load": os.getloadavg()[0],
                    "watts": watts,
                }
            return self._shown

    def _joules(self) -> list[float | None]:
        return [meter.joules() if meter.joules else None for meter in self._meters]


def _name(policy: Policy) -> str:
    return str(policy.to_json()["name"])


def _quantiles(times: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    if not len(times):
        return {}
    values = np.percentile(times, (50, 90, 99))
    return {name: float(v) for name, v in zip(("p50", "p90", "p99"), values, strict=True)}
