"""Compares the ways in which one backend can run a chain: graphs, waits, thread pools."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lgvit_edge.benchmarks.measure import random_frames
from lgvit_edge.errors import BackendError
from lgvit_edge.policies import FixedExit
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.backends.registry import backend_of

_WARM_UP = 5


def compare(
    engines: Path,
    backend: str,
    *,
    rounds: int,
    device: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Returns, by way, median times in ms of the chain stopped at each exit, ``[M + 1]``.

    ``ms`` is of the way, ``default_ms`` of the default, which took turns with it on the same image.
    A way that does not work here has a reason instead, ``refused``. One that is the default here,
    as zero copy is on a Jetson, is left out. Two sessions are open at a time. Raises as
    ``Session.open`` does with the default.
    """
    found: dict[str, dict[str, Any]] = {}
    ways = backend_of(backend).ways
    with Session.open(engines, backend=backend, device=device) as default:
        for number, (name, way) in enumerate(ways.items()):
            progress(number, len(ways))
            arguments: dict[str, Any] = {option: getattr(way, option) for option in way.given}
            try:
                other = Session.open(engines, backend=backend, device=device, **arguments)
            except BackendError as error:
                found[name] = {"refused": str(error)}
                continue
            with other:
                described = other.describe()
                other.notes = default.notes = False  # exits are forced in turn
                if refused := described.get("not_on_device"):
                    found[name] = {"refused": refused}
                elif described != default.describe():
                    times = _in_turn([default, other], rounds)
                    found[name] = {"ms": times[1], "default_ms": times[0]}
    return found


def _in_turn(sessions: list[Session], rounds: int) -> list[list[float]]:
    exits = range(1, len(sessions[0].manifest.segments) + 1)
    images = sessions[0].prepare(random_frames(sessions[0].manifest, 1))
    times: list[list[list[float]]] = [[[] for _ in exits] for _ in sessions]
    for done in range(_WARM_UP + rounds):
        for exit in exits:
            for which in (0, 1) if done % 2 else (1, 0):
                session = sessions[which]
                session.policy = FixedExit(exit)
                start = time.perf_counter()
                session.run(images)
                elapsed = (time.perf_counter() - start) * 1e3
                if done >= _WARM_UP:
                    times[which][exit - 1].append(elapsed)
                # What speculation began must not run into the next measurement.
                session.policy = FixedExit(len(exits))
                session.run(images)
    return [[statistics.median(row) for row in session_times] for session_times in times]
