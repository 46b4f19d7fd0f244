"""Measures several bundles in turn on the same images: which one is the fastest at its accuracy."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.benchmarks.measure import (
    Frame,
    Progress,
    command_line,
    described,
    gpu_of,
    restored_policy,
    run_baseline,
)
from lgvit_edge.benchmarks.record import percentiles, unsteady
from lgvit_edge.bundle.plain_models import PlainModel
from lgvit_edge.bundle.points import USUAL
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.images.labelled import LabelledImage, content_hash, evenly
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.machine.clocks import clock_state, throttling
from lgvit_edge.machine.environment import device_of, environment
from lgvit_edge.policies import POLICIES, FixedExit, Never, Policy
from lgvit_edge.policies.evaluate import ExitCosts, Images, evaluate
from lgvit_edge.runtime import Session

_MOST = 5000  # images whose logits are held in memory
_TIMED = 400  # images that times are measured on
_LEAST = 40  # images; with fewer, accuracy moves in steps of 5 points
_BLOCK = 8  # frames run in a row one way, then another way
_REST = 0.02  # seconds in which the threads of the way before stop spinning
_STEPS = 60  # number of settings tried of each policy
Listed = Mapping[str, Sequence[LabelledImage]]
T = TypeVar("T")
Known = Mapping[str, tuple[Images, ExitCosts]]  # logits of all exits, and costs, by bundle


@dataclass(frozen=True)
class Way:
    """One way to classify an image, with its answers on the reporting images."""

    bundle: str
    name: str
    policy: Policy | None  # None: the bundle's model without exits
    right: NDArray[np.bool_]  # whether each answer is right, ``[n]``
    macs: float  # mean per image
    plain: bool = False  # it does the same work for every image
    baseline_of: tuple[str, ...] = ()  # the bundles whose model without exits it is

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0..1."""
        return float(self.right.mean())


def measure_contenders(
    sessions: Mapping[str, Session],
    images: Listed,
    *,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Measures bundles, and the plain models in them, in turn on the same images.

    A plain model is a bundle's model without exits, or the network of its first pass. One half of
    the images chooses thresholds, the other gives all figures. Each bundle with exits is measured
    at the most accurate threshold that was found, and at those of the usual operating points.

    Args:
        sessions: opened bundles, by name; their policies are restored.
        images: the same images for each bundle, with its own numbers of the classes.
        progress: called with steps done and steps in all.

    Returns:
        ``rows``, the fastest first, each with accuracy, MACs and times (from decoded frame to
        label); ``front`` says that none that is faster is as accurate, and ``against`` holds the
        fastest plain model that is as accurate, or else the most accurate one.

    Raises:
        DataError: an image has no class, or too few can be decoded.
        UsageError: the bundles were given other images.
    """
    listed = _checked(images)
    start = environment()
    gpus = {name: gpu_of(session) for name, session in sessions.items()}
    clocks = {name: clock_state(gpu=gpu) for name, gpu in gpus.items()}
    timed = min(_TIMED, len(listed) // 2)
    steps = len(listed) + timed
    known, usable = _all_exits(sessions, images, lambda done: progress(done, steps))
    ways = _ways(sessions, known)
    reporting = [listed[place] for place in usable[1::2]]
    rest = evenly(reporting, _TIMED)
    with _policies_restored(sessions):
        times = _in_turn(sessions, ways, rest, lambda done: progress(steps - timed + done, steps))
    rows = _rows(ways, times)
    unstable = unsteady(times[0], start["running"], start["cores"])
    for name, gpu in gpus.items():
        if held := throttling(clocks[name], clock_state(gpu=gpu)):
            unstable.append(f"throttled ({', '.join(held)}); let the machine cool down")
    return {
        "env": start,
        "bundles": {
            name: described(session.manifest) | {"runtime": session.describe()}
            for name, session in sessions.items()
        },
        "images": {
            "choosing": (len(usable) + 1) // 2,
            "reporting": len(reporting),
            "timed": len(rest),
            "unreadable": len(listed) - len(usable),
            "sha256": content_hash(image.path for image in listed),
        },
        "rows": rows,
        "unstable": unstable,
        "command": command_line(),
    }


def plain_models(
    record: dict[str, Any], sessions: Mapping[str, Session]
) -> dict[str, dict[str, PlainModel]]:
    """Returns, for each bundle with exits, the plain models that it was compared with, by name."""
    plain = {title(row): row for row in record["rows"] if row["plain"]}
    found = {}
    for name, session in sessions.items():
        if len(session.manifest.segments) > 1:
            own = next(row for row in plain.values() if name in row["baseline_of"])
            found[name] = {
                title: PlainModel(
                    accuracy=row["accuracy"],
                    baseline_accuracy=own["accuracy"],
                    latency_ms=row["latency_ms"]["mean"],
                    baseline_latency_ms=own["latency_ms"]["mean"],
                    images=record["images"]["reporting"],
                    device=device_of(session.describe()),
                )
                for title, row in plain.items()
                if row is not own
            }
    return found


def title(row: Mapping[str, Any]) -> str:
    """Returns what people read of a row."""
    return f"{row['bundle']}, {row['name']}" if row["name"] else str(row["bundle"])


def _checked(images: Listed) -> Sequence[LabelledImage]:
    """Return the images of the first bundle; all have the same, in the same order."""
    first, *others = images.values()
    for other in others:
        if [image.path for image in other] != [image.path for image in first]:
            raise UsageError("expected the same images for every bundle, found others")
    if any(image.class_index is None for listed in images.values() for image in listed):
        raise DataError(
            "images without classes tell nothing about accuracy: expected one sub-folder per "
            "class, or a label file with lines FILE CLASS"
        )
    return first


def _frames(images: Sequence[LabelledImage]) -> Iterator[list[tuple[int, Frame]]]:
    """Yield blocks of decoded images with their places; those that cannot be read are left out."""
    for first in range(0, len(images), _BLOCK):
        block = []
        for place, image in enumerate(images[first : first + _BLOCK], first):
            try:
                block.append((place, load_rgb(image.path)))
            except DataError:
                continue
        yield block


def _all_exits(
    sessions: Mapping[str, Session], images: Listed, progress: Callable[[int], None]
) -> tuple[Known, list[int]]:
    """Run every image through all exits of all bundles, in turn.

    Returns logits, labels and costs of each bundle, and the places of the images that can be read.
    """
    logits: dict[str, list[Any]] = {name: [] for name in sessions}
    times: dict[str, list[Any]] = {name: [] for name in sessions}
    usable: list[int] = []
    listed = next(iter(images.values()))
    for turn, block in enumerate(_frames(listed)):
        progress(turn * _BLOCK)
        usable += [place for place, _ in block]
        for name in _turned(list(sessions), turn):
            session = sessions[name]
            for _, frame in block:
                begun = time.perf_counter()
                prepared = session.prepare([frame], own=False)
                before = (time.perf_counter() - begun) * 1e3
                answers, ms = session.timed_exits(prepared)
                logits[name].append(answers)
                times[name].append(before + np.cumsum(ms))
    if len(usable) < _LEAST:
        raise DataError(f"expected at least {_LEAST} images that can be read, found {len(usable)}")
    known: dict[str, tuple[Images, ExitCosts]] = {}
    for name, session in sessions.items():
        labels = np.array([images[name][place].class_index for place in usable])
        ms = np.mean(times[name], axis=0)
        costs = ExitCosts.of(session.manifest, ms, float(ms[-1]))
        known[name] = (Images(np.stack(logits[name]), labels), costs)
    return known, usable


def _turned(items: Sequence[T], turn: int) -> list[T]:
    """Return the items in an order that begins with another one each turn."""
    place = turn % len(items)
    return [*items[place:], *items[:place]]


def _ways(sessions: Mapping[str, Session], known: Known) -> list[Way]:
    """Return the plain models, each once, then every bundle's chain at the usual thresholds."""
    plain: dict[tuple[Any, ...], Way] = {}
    for name, session in sessions.items():
        manifest, (images, costs) = session.manifest, known[name]
        last = len(manifest.segments)
        inside: list[tuple[str, Policy | None, int, int]] = [
            ("without exits" if last > 1 else "", None, last, manifest.baseline.macs)
        ]
        if len(manifest.passes) > 1 and len(manifest.passes[0].segments) == 1:
            inside.append((f"{manifest.pass_title(1)} alone", FixedExit(1), 1, costs.macs[0]))
        for what, policy, exit, macs in inside:
            answers = images.logits[:, exit - 1].argmax(axis=-1).tobytes()
            right = images.right[1::2, exit - 1]
            # Bundles of the same weights have the same model without exits.
            kind = (macs, manifest.precision, answers)
            way = plain.setdefault(kind, Way(name, what, policy, right, macs, plain=True))
            if policy is None:
                plain[kind] = replace(way, baseline_of=(*way.baseline_of, name))
    chains = [way for name, pair in known.items() for way in _chain_ways(name, *pair)]
    return [*plain.values(), *chains]


def _chain_ways(name: str, images: Images, costs: ExitCosts) -> Iterator[Way]:
    """Yield a chain at the thresholds that one half of the images chooses."""
    if not images.exits:
        return
    choosing, reporting = (Images(images.logits[o::2], images.labels[o::2]) for o in (0, 1))
    settings = [p for kind in POLICIES.values() for p in kind.settings(images.exits, _STEPS)]
    tried = [evaluate(policy, choosing, costs) for policy in (*settings, Never())]
    best = max(tried, key=lambda t: (t.accuracy, -t.latency_ms)).policy
    chosen: dict[str, Policy] = {}
    for point, drop in USUAL.items():
        least = choosing.baseline_accuracy - drop - 1e-9
        good = [t for t in tried if t.accuracy >= least]
        chosen[point] = min(good, key=lambda t: t.latency_ms).policy
    if best not in chosen.values():
        chosen["most accurate"] = best
    for what, policy in chosen.items():
        _, classes = policy.replay(reporting.logits)
        macs = evaluate(policy, reporting, costs).macs
        yield Way(name, what, policy, classes == reporting.labels, macs)


@contextlib.contextmanager
def _policies_restored(sessions: Mapping[str, Session]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for session in sessions.values():
            stack.enter_context(restored_policy(session))
        yield


def _in_turn(
    sessions: Mapping[str, Session],
    ways: Sequence[Way],
    images: Sequence[LabelledImage],
    progress: Callable[[int], None],
) -> NDArray[np.float64]:
    """Return the milliseconds of every way on every image that can be read, ``[ways, images]``."""
    times: list[list[float]] = [[] for _ in ways]
    for turn, block in enumerate(_frames(images)):
        progress(turn * _BLOCK)
        for place in _turned(range(len(ways)), turn):
            way = ways[place]
            session = sessions[way.bundle]
            time.sleep(_REST)
            frames = [frame for _, frame in block]
            if way.policy is None:
                run_baseline(session, frames[0])  # caches, and threads that sleep
                times[place] += [run_baseline(session, frame)[1] for frame in frames]
            else:
                session.policy = way.policy
                session.predict(frames[0])
                times[place] += [session.predict(frame).latency_ms for frame in frames]
    return np.array(times)


def _rows(ways: Sequence[Way], times: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return all ways with their figures, the fastest first."""
    means = times.mean(axis=1)
    order = [int(place) for place in np.argsort(means)]
    plain = [place for place in order if ways[place].plain]
    rows, best = [], -1.0
    for place in order:
        way = ways[place]
        accuracy = way.accuracy
        rows.append(
            {
                "bundle": way.bundle,
                "name": way.name,
                "plain": way.plain,
                "baseline_of": list(way.baseline_of),
                "policy": None if way.policy is None else way.policy.to_json(),
                "accuracy": accuracy,
                "accuracy_error": math.sqrt(accuracy * (1 - accuracy) / len(way.right)),
                "macs": way.macs,
                "latency_ms": percentiles(times[place]),
                "front": accuracy > best,
                "against": None if way.plain else _against(place, plain, ways, means),
                "raw_ms": times[place].round(4).tolist(),
            }
        )
        best = max(best, accuracy)
    return rows


def _against(
    place: int, plain: Sequence[int], ways: Sequence[Way], means: NDArray[np.float64]
) -> dict[str, Any]:
    """Compare a chain with the fastest plain model as accurate, else with the most accurate one."""
    way = ways[place]
    rivals = [p for p in plain if ways[p].accuracy >= way.accuracy]
    rival = rivals[0] if rivals else max(plain, key=lambda p: ways[p].accuracy)
    change = way.right.astype(np.float64) - ways[rival].right
    return {
        "bundle": ways[rival].bundle,
        "name": ways[rival].name,
        "as_accurate": bool(rivals),
        "change": float(change.mean()),
        "change_error": float(change.std() / len(change) ** 0.5),
        "speedup": float(means[rival] / means[place]),
    }
