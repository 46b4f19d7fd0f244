"""``backend="auto"``: what is fastest for a bundle on this machine, measured once and kept."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lgvit_edge._support.cache import bundle_cache, cache_root, keep, key_of, ours
from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.errors import BackendError, LGViTEdgeError, UsageError
from lgvit_edge.machine.cpu import available_cores, cpu_name
from lgvit_edge.runtime.backends.base import Chain
from lgvit_edge.runtime.backends.registry import (
    BACKENDS,
    ChainOptions,
    chain_opener,
    segment_names,
    tensorrt_runs,
)
from lgvit_edge.runtime.parity import check_parity

OVERRIDE = "LGVIT_EDGE_BACKEND"
_SECONDS = 4.0  # that all candidates together may compute
_ROUNDS = 12
_PATIENCE = 300.0  # seconds: compiling for a GPU takes a while
_BURST = 3  # chains in a row: the first finds its weights pushed out of the caches


@dataclass(frozen=True)
class Choice:
    """What was measured for one bundle on this machine.

    Attributes:
        backend: the fastest whose answers are PyTorch's.
        hint: its execution hint; None where it has none.
        measured: ms per image of each candidate, every exit equally often.
        refused: why a candidate was not taken, by its name.
        bundle: where it lay.
        machine: processor, threads and versions.
        date: in UTC.
    """

    backend: str
    hint: str | None
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
        backend: one of ``BACKENDS``, or ``auto``.
        options: what the user asked for; a device, a hint or private pools leave less to choose.
        afresh: measure even if that was done before.

    Raises:
        UsageError: there is no such backend.
        BackendError: nothing here can run the bundle.
    """
    if backend == "auto":
        backend = os.environ.get(OVERRIDE, "auto")
    if backend not in (*BACKENDS, "auto"):
        raise UsageError(f"backend must be one of auto, {', '.join(BACKENDS)}, found {backend!r}")
    free = options.device is None and options.hint is None
    if backend == "auto" and free and tensorrt_runs(bundle):
        backend = "tensorrt"
    found = list(_candidates(backend, options))
    if len(found) > 1:
        made = None if afresh else read_choice(bundle, found, options)
        made = made or _measure_elsewhere(bundle, found, options)
        made = made or measure(bundle, found, options)
        found = [(made.backend, made.hint)]
    name, hint = found[0]
    return name, replace(options, hint=hint)


def _candidates(backend: str, options: ChainOptions) -> Iterator[tuple[str, str | None]]:
    """Backends that are installed and fit the options, each with its hints."""
    if backend in ("tensorrt", "onnxruntime"):
        yield backend, options.hint
        return
    gpu_runtime = options.device == "cuda" or options.thread_pool == "private"
    has_ort = importlib.util.find_spec("onnxruntime") is not None
    has_openvino = importlib.util.find_spec("openvino") is not None
    if backend == "auto" and options.hint is None and options.device not in ("gpu", "npu"):
        # Where neither is there, ONNX Runtime's absence is what the user hears of.
        if has_ort or not has_openvino or gpu_runtime:
            yield "onnxruntime", None
        if not has_openvino or gpu_runtime or _cuda_here(options.device):
            return
    from lgvit_edge.runtime.backends.openvino import available_hints

    hints = available_hints(options.device)  # says what is missing
    for hint in hints if options.hint is None else [options.hint]:
        yield "openvino", hint


def _cuda_here(device: str | None) -> bool:
    """Whether ONNX Runtime computes on a GPU, which no processor is measured against."""
    if device == "cpu" or importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _measure_elsewhere(
    bundle: Bundle, candidates: list[tuple[str, str | None]], options: ChainOptions
) -> Choice | None:
    """``measure`` in a process of its own; None where that does not work.

    What loses should leave neither memory nor ONNX Runtime's thread pool behind, which makes
    demands on every other session of a process.
    """
    if not sys.executable:  # embedded in a program that is not Python
        return None
    asked = {"root": str(bundle.root), "candidates": candidates, "threads": options.threads}
    asked |= {"device": options.device}
    command = [sys.executable, "-m", "lgvit_edge.runtime.selection", json.dumps(asked)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        return Choice(**json.loads(done.stdout)) if done.returncode == 0 else None
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


def _main() -> None:
    """The other side of ``_measure_elsewhere``."""
    asked = json.loads(sys.argv[1])
    bundle = open_bundle(asked["root"], verify=False)  # as was done a moment ago
    candidates = [(name, hint) for name, hint in asked["candidates"]]
    options = ChainOptions(threads=asked["threads"], device=asked["device"])
    print(json.dumps(vars(measure(bundle, candidates, options))))


def measure(
    bundle: Bundle, candidates: list[tuple[str, str | None]], options: ChainOptions
) -> Choice:
    """Time candidates in turn on the bundle's samples, keep the result, and say which is fastest.

    Raises:
        BackendError: none opens and agrees with PyTorch.
    """
    refused: dict[str, str] = {}
    times: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        chains: dict[tuple[str, str | None], Chain] = {}
        for name, hint in candidates:
            try:
                opener = chain_opener(bundle, name, replace(options, hint=hint))
                chain = opener(segment_names(bundle))
                stack.callback(chain.close)
                check_parity(bundle, chain, None)
                chains[name, hint] = chain
            except LGViTEdgeError as error:
                refused[_label(name, hint)] = str(error)
        with np.load(bundle.path(bundle.manifest.parity.samples), allow_pickle=False) as samples:
            image = samples["images"][:1]
        began = time.perf_counter()
        for _ in range(_ROUNDS):
            for pair, chain in chains.items():
                time.sleep(0.005)  # pools that were used before stop spinning
                burst = [_mean_exit_ms(chain, image, bundle) for _ in range(_BURST)]
                times.setdefault(_label(*pair), []).extend(burst[1:])
            if time.perf_counter() - began > _SECONDS:
                break
    if not times:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise BackendError(f"nothing here runs {bundle.root}: {reasons}; run: lgvit-edge doctor")
    measured = {name: round(float(np.median(ms)), 4) for name, ms in times.items()}
    name, hint = min(chains, key=lambda pair: measured[_label(*pair)])
    choice = Choice(
        backend=name,
        hint=hint,
        measured=measured,
        refused=refused,
        bundle=str(bundle.root.resolve()),
        machine=_machine(options),
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    if (path := _path(bundle, candidates, options)) is not None:
        text = json.dumps(vars(choice), indent=1) + "\n"
        keep(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return choice


def read_choice(
    bundle: Bundle, candidates: list[tuple[str, str | None]], options: ChainOptions
) -> Choice | None:
    """What was measured before for this bundle, machine and set of candidates."""
    path = _path(bundle, candidates, options)
    found = None if path is None else _read(path)
    return found if found and (found.backend, found.hint) in candidates else None


def known_choices() -> list[Choice]:
    """Every choice that is kept, the newest first."""
    root = cache_root()
    found = [_read(path) for path in root.glob("*/backend-*.json")] if root is not None else []
    return sorted((c for c in found if c is not None), key=lambda c: c.date, reverse=True)


def _mean_exit_ms(chain: Chain, image: np.ndarray[Any, Any], bundle: Bundle) -> float:
    """Of one image that leaves at every exit equally often."""
    start = time.perf_counter()
    chain.start(image)
    ends = []
    for _ in bundle.manifest.segments:
        chain.step()
        ends.append(time.perf_counter() - start)
    return sum(ends) / len(ends) * 1e3


def _label(backend: str, hint: str | None) -> str:
    return backend if hint is None else f"{backend} {hint}"


def _machine(options: ChainOptions) -> str:
    from importlib.metadata import PackageNotFoundError, version

    parts = [cpu_name(), f"{options.threads or available_cores()} threads"]
    for package in ("onnxruntime", "onnxruntime-gpu", "openvino"):
        with contextlib.suppress(PackageNotFoundError):
            parts.append(f"{package} {version(package)}")
    return ", ".join(parts)


def _path(
    bundle: Bundle, candidates: list[tuple[str, str | None]], options: ChainOptions
) -> Path | None:
    folder = bundle_cache(bundle.manifest.identity)
    key = key_of(_machine(options), options.device, options.thread_pool, candidates)
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
