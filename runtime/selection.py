"""``backend="auto"``: measures once which backend is fastest for a bundle here, and stores that."""

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

from lgvit_edge._support.cache import bundle_cache, cache_root, keep, key_of, ours
from lgvit_edge._support.finite_json import dumps, loads
from lgvit_edge._support.text import tell
from lgvit_edge.bundle.codec import from_json
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.bundle.evidence import Evidence
from lgvit_edge.errors import BackendError, LGViTEdgeError, MissingDependency, UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.machine.cpu import available_cores, cpu_name
from lgvit_edge.machine.environment import version_of
from lgvit_edge.policies import Policy
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
from lgvit_edge.runtime.loaded import check_coarsely, check_parity
from lgvit_edge.runtime.precision import Chosen, below_full, evidence_for, to_compare
from lgvit_edge.runtime.runner import every_exit
from lgvit_edge.runtime.samples import read_samples

OVERRIDE = "LGVIT_EDGE_BACKEND"
SILENCE = "--precision fp32 silences this"
_SECONDS = 1.2  # for timing all candidates together, if that does not tell them apart before
_CLEARLY = 1.1  # ratio of times
_SAMPLES = 2  # of the bundle, that each must give PyTorch's logits of
_ROUNDS = 12
_PATIENCE = 300.0  # seconds: compiling for a GPU takes a while
# Set in the process that measures, so that it never starts another one.
_MEASURING = "LGVIT_EDGE_MEASURING"
_BURST = 2  # runs in a row that count


@dataclass(frozen=True)
class Choice:
    """Holds the fastest backend for one bundle on this machine, with all measurements."""

    backend: str  # the fastest that computes what PyTorch does, or decides so
    precision: str | None  # what it computes float32 graphs in; None where it has no choice
    measured: dict[str, float]  # ms per image of each candidate, every exit equally often
    refused: dict[str, str]  # why a candidate was not timed, by its name
    bundle: str  # the bundle's path at that time
    machine: str  # processor, threads and versions
    date: str  # in UTC


def choose(
    bundle: Bundle,
    backend: str,
    options: ChainOptions,
    policy: Policy | None = None,
    *,
    certified: str = "",
    afresh: bool = False,
) -> Chosen:
    """Choose the fastest backend and precision that decides as float32 does.

    With ``auto``, backends that do not take the options are left out; ``afresh`` measures even if
    that was done before. Unless a precision is among the options, one below float32 is taken only
    with evidence in the bundle at ``policy``; without a policy, and at the operating point that
    ``certified`` names, none is.

    Raises:
        UsageError: there is no such backend, or it does not take an option.
        BackendError: nothing here can run the bundle.
        MissingDependency: the only backend that takes the options is not installed.
    """
    contenders = candidates(bundle, _asked(backend), options)
    lower, asked, hint = below_full(contenders), (backend, options), ""
    if lower:
        known = {
            way: None if policy is None else evidence_for(bundle.manifest, way, options, policy)
            for way in lower
        }
        refused = [way for way, e in known.items() if certified or e is None or e.faults]
        contenders = [way for way in contenders if way not in refused]
        if policy is not None:
            hint = _hint(bundle, policy, {way: known[way] for way in refused}, certified, asked)
    best = contenders[0]
    if len(contenders) > 1:
        choice = None if afresh else read_choice(bundle, contenders, options)
        if choice is None:
            labels = ", ".join(contender.label for contender in contenders)
            tell(f"measuring which runs {bundle.root} fastest on this machine, once: {labels}")
            choice = _measure_elsewhere(bundle, contenders, options)
        choice = choice or measure(bundle, contenders, options)
        best = Candidate(choice.backend, choice.precision)
    lowered = (best.backend, best.precision) in [(way.backend, way.precision) for way in lower]
    return Chosen(best.backend, replace(options, precision=best.precision), hint, lowered, asked)


def _hint(
    bundle: Bundle,
    policy: Policy,
    refused: dict[Candidate, Evidence | None],
    certified: str,
    asked: tuple[str, ChainOptions],
) -> str:
    """Say what keeps lower precisions out, where somebody could change that; else nothing."""
    able = {way: e for way, e in refused.items() if backend_of(way.backend).hardware is not None}
    unjudged = [way.label for way, e in able.items() if certified or e is None or e.too_few]
    if not unjudged:
        return ""
    names = ", ".join(unjudged)
    if certified:
        return (
            f"{names} would be available, but the point {certified} is certified, and a "
            f"certificate holds for the precision that it was made in; {SILENCE}"
        )
    if not (command := to_compare(bundle, policy, asked)):
        return ""
    return (
        f"{names} would be available, but nothing shows yet that it decides as float32 does here "
        f"at this policy ({SILENCE}); run: {command}"
    )


def lower_precisions(bundle: Bundle, backend: str, options: ChainOptions) -> list[Candidate]:
    """List the ways below float32 that decisions can be compared in; raises as ``choose``."""
    lower = below_full(candidates(bundle, _asked(backend), options))
    return [way for way in lower if backend_of(way.backend).hardware is not None]


def _asked(backend: str) -> str:
    return os.environ.get(OVERRIDE, AUTO) if backend == AUTO else backend


def candidates(bundle: Bundle, backend: str, options: ChainOptions) -> list[Candidate]:
    """List the ways to run a bundle on the fastest hardware here, at least one; see ``choose``."""
    suitable = list(backends()) if backend == AUTO else [backend_of(backend)]
    refused = {b.name: fault for b in suitable if (fault := refusal(b, options)) is not None}
    suitable = [b for b in suitable if b.name not in refused]
    if not suitable:
        raise UsageError("; ".join(refused.values()))
    if len(suitable) == 1 and (options.precision or not suitable[0].precisions):
        # Nothing to choose, so nothing is checked: opening it gives the best error message.
        return [Candidate(suitable[0].name, options.precision)]
    contenders: list[Candidate] = []
    faults: dict[str, str] = {}
    for kind in suitable:
        try:
            if not kind.installed:
                raise MissingDependency(f"{kind.name} is not installed; {kind.to_install}")
            contenders += kind.own_candidates(bundle, options)
        except (BackendError, MissingDependency) as error:
            if len(suitable) == 1:
                raise
            faults[kind.name] = str(error)
    if not contenders:
        raise BackendError(_nothing_runs(bundle, faults))
    highest = max(candidate.rank for candidate in contenders)
    return [candidate for candidate in contenders if candidate.rank == highest]


def _nothing_runs(bundle: Bundle, faults: dict[str, str]) -> str:
    reasons = "; ".join(f"{name}: {why}" for name, why in faults.items())
    return f"no backend here can run {bundle.root}: {reasons}; run: lgvit-edge doctor"


def _measure_elsewhere(
    bundle: Bundle, contenders: list[Candidate], options: ChainOptions
) -> Choice | None:
    """Call ``measure`` in a separate process; return None where that does not work.

    The slower candidates then leave no memory in this process, and no ONNX Runtime thread pool,
    which would restrict its other sessions. An application packed into one program, or embedding
    Python, would start itself instead; backends that it registered exist only here.
    """
    if not (python_starts_python() and all(ships(candidate.backend) for candidate in contenders)):
        return None
    given = {name: getattr(options, name) for name in options.given}
    request = {"root": str(bundle.root), "candidates": contenders, "options": given}
    command = python_running(__name__, json.dumps(request))
    environment = os.environ | {_MEASURING: "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_PATIENCE
        )
        if done.returncode:
            return None
        return from_json(Choice, loads(done.stdout), where="the choice", error=ValueError)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def python_starts_python() -> bool:
    """Return whether ``sys.executable`` is an interpreter that may be started to measure."""
    if _MEASURING in os.environ or getattr(sys, "frozen", False):
        return False
    return Path(sys.executable or "").name.lower().startswith(("python", "pypy"))


def python_running(module: str, request: str) -> list[str]:
    """Return a command that calls ``_main`` of a module, with ``request`` as its argument.

    It imports from the places that this process imports from, but never from the current folder,
    where ``python -m`` looks first: that may be a stranger's bundle.
    """
    paths = [path for path in sys.path if os.path.isabs(path)]
    start = (
        f"import sys; sys.path[:] = {paths!r}; import importlib; "
        f"importlib.import_module({module!r})._main()"
    )
    return [sys.executable, "-c", start, request]


def _main() -> None:
    """Measure in the process that ``_measure_elsewhere`` started, and print the choice."""
    request = json.loads(sys.argv[1])
    bundle = open_bundle(request["root"], verify=False)  # verified by the process that asks
    contenders = [Candidate(*row) for row in request["candidates"]]
    print(json.dumps(vars(measure(bundle, contenders, ChainOptions(**request["options"])))))


def measure(bundle: Bundle, contenders: list[Candidate], options: ChainOptions) -> Choice:
    """Time candidates on one of the bundle's samples, and store and return the fastest.

    Each must give PyTorch's logits, precisions below float32 only roughly: their decisions were
    compared before they became candidates, if not in batches.

    Raises:
        BackendError: no candidate opens and agrees with PyTorch.
        BundleError: the samples are damaged.
    """
    refused: dict[str, str] = {}
    lower = below_full(contenders)
    times: dict[Candidate, list[float]] = {}
    with contextlib.ExitStack() as stack:
        chains: dict[Candidate, Chain] = {}
        for candidate in contenders:
            try:
                own = replace(options, precision=candidate.precision)
                chain = chain_opener(bundle, candidate.backend, own)(segment_names(bundle))
                stack.callback(chain.close)
                chains[candidate] = chain
            except LGViTEdgeError as error:
                refused[candidate.label] = str(error)
        image = read_samples(bundle)[0][:1]
        began = time.perf_counter()
        for turn in range(_ROUNDS):
            for candidate, chain in list(chains.items()):
                time.sleep(0.005)  # until the thread pools of the chain before stop spinning
                try:
                    if turn:  # once that is not counted, as its weights are not in the caches
                        _mean_exit_ms(chain, image, bundle)
                    elif candidate in lower:
                        check_coarsely(bundle, chain, samples=_SAMPLES)
                    else:
                        check_parity(bundle, chain, None, samples=_SAMPLES)
                except LGViTEdgeError as error:
                    refused[candidate.label] = str(error)
                    del chains[candidate]
                else:
                    burst = [_mean_exit_ms(chain, image, bundle) for _ in range(_BURST)]
                    times.setdefault(candidate, []).extend(burst)
            if len(chains) < 2 or _clear(times) or time.perf_counter() - began > _SECONDS:
                break
    if not times:
        raise BackendError(_nothing_runs(bundle, refused))
    medians = {candidate: round(float(np.median(ms)), 4) for candidate, ms in times.items()}
    best = min(medians, key=lambda candidate: medians[candidate])
    choice = Choice(
        backend=best.backend,
        precision=best.precision,
        measured={candidate.label: ms for candidate, ms in medians.items()},
        refused=refused,
        bundle=str(bundle.root.resolve()),
        machine=_machine(contenders, options),
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    if (path := _path(bundle, contenders, options)) is not None:
        text = dumps(vars(choice)) + "\n"
        keep(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return choice


def _clear(times: dict[Candidate, list[float]]) -> bool:
    """Whether the fastest was always faster than any other ever was, and by more than chance."""
    best, *others = sorted(times.values(), key=lambda ms: float(np.median(ms)))
    return all(max(best) * _CLEARLY < min(other) for other in others)


def read_choice(
    bundle: Bundle, contenders: list[Candidate], options: ChainOptions
) -> Choice | None:
    """Return the stored choice for this bundle, machine and set of candidates, if there is one."""
    path = _path(bundle, contenders, options)
    choice = None if path is None else _read(path)
    pairs = [(candidate.backend, candidate.precision) for candidate in contenders]
    return choice if choice and (choice.backend, choice.precision) in pairs else None


def known_choices(identity: str | None = None) -> list[Choice]:
    """Return every stored choice, or those for one bundle, the newest first."""
    root = cache_root() if identity is None else bundle_cache(identity)
    pattern = "*/backend-*.json" if identity is None else "backend-*.json"
    stored = map(_read, root.glob(pattern)) if root is not None else ()
    return sorted(filter(None, stored), key=lambda choice: choice.date, reverse=True)


def _mean_exit_ms(chain: Chain, image: Inputs, bundle: Bundle) -> float:
    start = time.perf_counter()
    ends = [time.perf_counter() - start for _ in every_exit(chain, image, bundle.manifest.begins)]
    return sum(ends) / len(ends) * 1e3


def _machine(contenders: list[Candidate], options: ChainOptions) -> str:
    parts = [cpu_name(), f"{options.threads or available_cores()} threads"]
    for name in dict.fromkeys(candidate.backend for candidate in contenders):
        for package in backend_of(name).packages:
            if (version := version_of(package.name)) is not None:
                parts.append(f"{package.name} {version}")
    return ", ".join(parts)


def _path(bundle: Bundle, contenders: list[Candidate], options: ChainOptions) -> Path | None:
    folder = bundle_cache(bundle.manifest.identity)
    machine = _machine(contenders, options)
    key = key_of(machine, options.device, options.thread_pool, contenders)
    return None if folder is None else folder / f"backend-{key}.json"


def _read(path: Path) -> Choice | None:
    """Return a stored choice; None where there is none or it is damaged."""
    if not ours(path):
        return None
    try:
        return from_json(Choice, loads(path.read_bytes()), where=str(path), error=ValueError)
    except (OSError, ValueError):
        return None
