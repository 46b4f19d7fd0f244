"""``backend="auto"``: what is fastest for a bundle on this machine, measured once and kept."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.cache import bundle_cache, cache_root, keep, key_of, ours
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.errors import BackendError, LGViTEdgeError, MissingDependency, UsageError
from lgvit_edge.machine.cpu import available_cores, cpu_name
from lgvit_edge.machine.environment import version_of
from lgvit_edge.runtime.backends.base import Candidate, Chain, ChainOptions
from lgvit_edge.runtime.backends.registry import (
    AUTO,
    backend_of,
    backends,
    chain_opener,
    refusal,
    segment_names,
    ships,
)
from lgvit_edge.runtime.parity import check_parity

OVERRIDE = "LGVIT_EDGE_BACKEND"
_SECONDS = 4.0  # that all candidates together may compute
_ROUNDS = 12
_PATIENCE = 300.0  # seconds: compiling for a GPU takes a while
# Set in the process that measures, so that it never starts another one.
_MEASURING = "LGVIT_EDGE_MEASURING"
_BURST = 3  # chains in a row: the first finds its weights pushed out of the caches


@dataclass(frozen=True)
class Choice:
    """What was measured for one bundle on this machine.

    Attributes:
        backend: the fastest whose answers are PyTorch's.
        precision: what it computes float32 graphs in; None where it has no choice.
        measured: ms per image of each candidate, every exit equally often.
        refused: why a candidate was not taken, by its name.
        bundle: where it lay.
        machine: processor, threads and versions.
        date: in UTC.
    """

    backend: str
    precision: str | None
    measured: dict[str, float]
    refused: dict[str, str]
    bundle: str
    machine: str
    date: str


def choose(
    bundle: Bundle, backend: str, options: ChainOptions, *, afresh: bool = False
) -> tuple[str, ChainOptions]:
    """A backend and the options to open it with.

    Args:
        bundle: to run.
        backend: a backend's name, or ``auto``.
        options: what the user asked for; each leaves less to choose.
        afresh: measure even if that was done before.

    Raises:
        UsageError: there is no such backend, or it does not take an option.
        BackendError: nothing here can run the bundle.
        MissingDependency: the only backend that takes the options is not installed.
    """
    if backend == AUTO:
        backend = os.environ.get(OVERRIDE, AUTO)
    found = candidates(bundle, backend, options)
    best = found[0]
    if len(found) > 1:
        made = None if afresh else read_choice(bundle, found, options)
        made = made or _measure_elsewhere(bundle, found, options)
        made = made or measure(bundle, found, options)
        best = Candidate(made.backend, made.precision)
    return best.backend, replace(options, precision=best.precision)


def candidates(bundle: Bundle, backend: str, options: ChainOptions) -> list[Candidate]:
    """What to choose from: on the fastest kind of hardware here, one at least.

    Raises:
        LGViTEdgeError: see ``choose``.
    """
    suitable = list(backends()) if backend == AUTO else [backend_of(backend)]
    refused = {b.name: fault for b in suitable if (fault := refusal(b, options)) is not None}
    suitable = [b for b in suitable if b.name not in refused]
    if not suitable:
        raise UsageError("; ".join(refused.values()))
    if len(suitable) == 1 and (options.precision or not suitable[0].precisions):
        # Nothing to choose: opening it tells best what may be wrong.
        return [Candidate(suitable[0].name, options.precision)]
    found: list[Candidate] = []
    faults: dict[str, str] = {}
    for one in suitable:
        try:
            if not one.installed:
                raise MissingDependency(f"{one.name} is not installed; {one.to_install}")
            found += one.own_candidates(bundle, options)
        except (BackendError, MissingDependency) as error:
            if len(suitable) == 1:
                raise
            faults[one.name] = str(error)
    if not found:
        raise BackendError(_nothing_runs(bundle, faults))
    highest = max(candidate.rank for candidate in found)
    return [candidate for candidate in found if candidate.rank == highest]


def _nothing_runs(bundle: Bundle, faults: dict[str, str]) -> str:
    reasons = "; ".join(f"{name}: {why}" for name, why in faults.items())
    return f"nothing here runs {bundle.root}: {reasons}; run: lgvit-edge doctor"


def _measure_elsewhere(
    bundle: Bundle, found: list[Candidate], options: ChainOptions
) -> Choice | None:
    """``measure`` in a process of its own; None where that does not work.

    What loses should leave neither memory nor ONNX Runtime's thread pool behind, which makes
    demands on every other session of a process. An application that was packed into one program,
    or that has Python inside, would start itself once more instead of Python; a process of its own
    knows no backend that the application registered.
    """
    if not (_python_starts_python() and all(ships(one.backend) for one in found)):
        return None
    given = {name: getattr(options, name) for name in options.given}
    asked = {"root": str(bundle.root), "candidates": found, "options": given}
    command = [sys.executable, "-m", "lgvit_edge.runtime.selection", json.dumps(asked)]
    environment = os.environ | {_MEASURING: "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_PATIENCE
        )
        return Choice(**json.loads(done.stdout)) if done.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


def _python_starts_python() -> bool:
    """Whether ``sys.executable`` is an interpreter that may be started to measure."""
    if _MEASURING in os.environ or getattr(sys, "frozen", False):
        return False
    return Path(sys.executable or "").name.lower().startswith(("python", "pypy"))


def _main() -> None:
    """The other side of ``_measure_elsewhere``."""
    asked = json.loads(sys.argv[1])
    bundle = open_bundle(asked["root"], verify=False)  # as was done a moment ago
    found = [Candidate(*row) for row in asked["candidates"]]
    print(json.dumps(vars(measure(bundle, found, ChainOptions(**asked["options"])))))


def measure(bundle: Bundle, found: list[Candidate], options: ChainOptions) -> Choice:
    """Time candidates in turn on the bundle's samples, keep the result, and say which is fastest.

    Raises:
        BackendError: none opens and agrees with PyTorch.
    """
    refused: dict[str, str] = {}
    times: dict[Candidate, list[float]] = {}
    with contextlib.ExitStack() as stack:
        chains: dict[Candidate, Chain] = {}
        for one in found:
            try:
                opener = chain_opener(
                    bundle, one.backend, replace(options, precision=one.precision)
                )
                chain = opener(segment_names(bundle))
                stack.callback(chain.close)
                check_parity(bundle, chain, None)
                chains[one] = chain
            except LGViTEdgeError as error:
                refused[one.label] = str(error)
        with np.load(bundle.path(bundle.manifest.parity.samples), allow_pickle=False) as samples:
            image = samples["images"][:1]
        began = time.perf_counter()
        for _ in range(_ROUNDS):
            for one, chain in chains.items():
                time.sleep(0.005)  # pools that were used before stop spinning
                burst = [_mean_exit_ms(chain, image, bundle) for _ in range(_BURST)]
                times.setdefault(one, []).extend(burst[1:])
            if time.perf_counter() - began > _SECONDS:
                break
    if not times:
        raise BackendError(_nothing_runs(bundle, refused))
    measured = {one: round(float(np.median(ms)), 4) for one, ms in times.items()}
    best = min(measured, key=lambda one: measured[one])
    choice = Choice(
        backend=best.backend,
        precision=best.precision,
        measured={one.label: ms for one, ms in measured.items()},
        refused=refused,
        bundle=str(bundle.root.resolve()),
        machine=_machine(found, options),
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    if (path := _path(bundle, found, options)) is not None:
        text = json.dumps(vars(choice), indent=1) + "\n"
        keep(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return choice


def read_choice(bundle: Bundle, found: list[Candidate], options: ChainOptions) -> Choice | None:
    """What was measured before for this bundle, machine and set of candidates."""
    path = _path(bundle, found, options)
    made = None if path is None else _read(path)
    named = [(one.backend, one.precision) for one in found]
    return made if made and (made.backend, made.precision) in named else None


def known_choices() -> list[Choice]:
    """Every choice that is kept, the newest first."""
    root = cache_root()
    found = [_read(path) for path in root.glob("*/backend-*.json")] if root is not None else []
    return sorted((c for c in found if c is not None), key=lambda c: c.date, reverse=True)


def _mean_exit_ms(chain: Chain, image: NDArray[np.uint8 | np.float32], bundle: Bundle) -> float:
    """Of one image that leaves at every exit equally often."""
    start = time.perf_counter()
    chain.start(image)
    ends = []
    for _ in bundle.manifest.segments:
        chain.step()
        ends.append(time.perf_counter() - start)
    return sum(ends) / len(ends) * 1e3


def _machine(found: list[Candidate], options: ChainOptions) -> str:
    parts = [cpu_name(), f"{options.threads or available_cores()} threads"]
    for name in dict.fromkeys(one.backend for one in found):
        for package in backend_of(name).packages:
            if (version := version_of(package.name)) is not None:
                parts.append(f"{package.name} {version}")
    return ", ".join(parts)


def _path(bundle: Bundle, found: list[Candidate], options: ChainOptions) -> Path | None:
    folder = bundle_cache(bundle.manifest.identity)
    key = key_of(_machine(found, options), options.device, options.thread_pool, found)
    return None if folder is None else folder / f"backend-{key}.json"


def _read(path: Path) -> Choice | None:
    """A kept choice; None where there is none or it is damaged."""
    if not ours(path):
        return None
    try:
        return Choice(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


if __name__ == "__main__":
    _main()
