"""Measures several bundles in turn on the same images: which one is the fastest at its accuracy."""

from __future__ import annotations

import contextlib
import json
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
from lgvit_edge.benchmarks.record import percentiles, ratio_interval, unsteady
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
_LEAST = 40  # images: in a half of 20, accuracy moves in steps of 5 points
_BLOCK = 8  # frames run in a row one way, then another way
_REST = 0.02  # seconds in which the threads of the way before stop spinning
_STEPS = 60  # number of settings tried of each policy
_RUNTIME = ("backend", "version", "device", "threads", "precision")  # where equal, times are too
_MARGIN = 1.645  # standard errors; beyond them one way is more accurate, 19 times in 20
Listed = Mapping[str, Sequence[LabelledImage]]
T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """What a bundle answers at all its exits."""

    choosing: Images
    reporting: Images
    costs: ExitCosts


@dataclass(frozen=True)
class Way:
    """One way to classify an image, with its answers to the reporting images."""

    bundle: str
    name: str
    policy: Policy | None  # None: the bundle's model without exits
    classes: NDArray[np.intp]  # ``[n]``
    labels: NDArray[np.int64]  # ``[n]``
    macs: float  # mean per image
    plain: bool = False  # it does the same work for every image
    baseline_of: tuple[str, ...] = ()  # the bundles whose model without exits it is

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each answer is right, ``[n]``."""
        return np.asarray(self.classes == self.labels)

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
        label). ``front`` says that none that is faster is as accurate. ``against`` compares with
        the fastest plain model that is not clearly less accurate, or else with the most accurate
        one.

    Raises:
        DataError: an image has no class, or too few can be decoded.
        UsageError: the bundles were given other images.
    """
    images = _checked(images)
    listed = next(iter(images.values()))
    sha256, start = content_hash(image.path for image in listed), environment()
    gpus = {name: gpu_of(session) for name, session in sessions.items()}
    clocks = {name: clock_state(gpu=gpu) for name, gpu in gpus.items()}
    timed = min(_TIMED, len(listed) // 2)
    steps = len(listed) + timed
    known, reporting, unreadable = _all_exits(sessions, images, lambda n: progress(n, steps))
    ways = _ways(sessions, known)
    places = evenly(range(len(reporting)), _TIMED)
    times, other = _in_turn(
        *(sessions, ways, [listed[reporting[place]] for place in places], places),
        lambda n: progress(steps - timed + n, steps),
    )
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
            "choosing": len(next(iter(known.values())).choosing),
            "reporting": len(reporting),
            "timed": len(times[0]),
            "unreadable": unreadable,
            "sha256": sha256,
        },
        "rows": _rows(ways, times),
        "other_answers": other,  # of the timed runs, than the logits of all exits gave
        "unstable": unstable,
        "command": command_line(),
    }


def title(row: Mapping[str, Any]) -> str:
    """Returns what people read of a row."""
    return f"{row['bundle']}, {row['name']}" if row["name"] else str(row["bundle"])


def plain_models(
    record: dict[str, Any], sessions: Mapping[str, Session]
) -> dict[str, dict[str, PlainModel]]:
    """Returns, for each bundle with exits, the plain models that it was compared with, by name."""
    plain = [row for row in record["rows"] if row["plain"]]
    found = {}
    for name, session in sessions.items():
        if len(session.manifest.segments) > 1:
            own = next(row for row in plain if name in row["baseline_of"])
            found[name] = {
                title(row): PlainModel(
                    accuracy=row["accuracy"],
                    baseline_accuracy=own["accuracy"],
                    latency_ms=row["latency_ms"]["mean"],
                    baseline_latency_ms=own["latency_ms"]["mean"],
                    images=record["images"]["reporting"],
                    device=device_of(session.describe()),
                )
                for row in plain
                if row is not own
            }
    return found


def _checked(images: Listed) -> Listed:
    """Return the images that are run, the same for every bundle, in the same order."""
    first, *others = images.values()
    for other in others:
        if [image.path for image in other] != [image.path for image in first]:
            raise UsageError("expected the same images for every bundle, found others")
    if any(image.class_index is None for listed in images.values() for image in listed):
        raise DataError(
            "images without classes tell nothing about accuracy: expected one sub-folder per "
            "class, or a label file with lines FILE CLASS"
        )
    if len(first) < _LEAST:
        raise DataError(f"expected at least {_LEAST} images to compare on, found {len(first)}")
    return {name: evenly(listed, _MOST) for name, listed in images.items()}


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
) -> tuple[dict[str, Known], list[int], int]:
    """Run every image through all exits of all bundles, in turn.

    Returns what each bundle answers, the places of the reporting images, and the number of images
    that cannot be read.
    """
    logits: dict[str, list[Any]] = {name: [] for name in sessions}
    times: dict[str, list[Any]] = {name: [] for name in sessions}
    usable: list[int] = []
    listed = next(iter(images.values()))
    for turn, block in enumerate(_frames(listed)):
        progress(turn * _BLOCK)
        usable += [place for place, _ in block]
        for name in _shuffled(list(sessions), turn):
            session = sessions[name]
            for _, frame in block:
                begun = time.perf_counter()
                prepared = session.prepare([frame], own=False)
                before = (time.perf_counter() - begun) * 1e3
                answers, ms = session.timed_exits(prepared)
                logits[name].append(answers)
                times[name].append(before + np.cumsum(ms))
    if len(usable) < _LEAST:
        raise DataError(
            f"expected at least {_LEAST} images that can be read, found {len(usable)} of "
            f"{len(listed)}"
        )
    # At random: in the order of the files, neighbours may be of one class or one scene.
    order = np.random.default_rng(0).permutation(len(usable))
    halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    known = {}
    for name, session in sessions.items():
        labels = np.array([images[name][place].class_index for place in usable], np.int64)
        if min(len(np.unique(labels[half])) for half in halves) < 2:
            raise DataError(
                "all images of a half are of one class: accuracy on them says nothing about the "
                "others; expected a sub-folder for each class"
            )
        ms = np.median(times[name], axis=0)
        answers = np.stack(logits.pop(name))
        choosing, reporting = (Images(answers[half], labels[half]) for half in halves)
        costs = ExitCosts.of(session.manifest, ms, ms[-1], heads_apart=session.heads_apart)
        known[name] = Known(choosing, reporting, costs)
    return known, [usable[place] for place in halves[1]], len(listed) - len(usable)


def _shuffled(items: Sequence[T], turn: int) -> list[T]:
    """Return the items in an order that belongs to the turn."""
    return [items[place] for place in np.random.default_rng(turn).permutation(len(items))]


def _ways(sessions: Mapping[str, Session], known: Mapping[str, Known]) -> list[Way]:
    """Return the plain models, each once, then every bundle's chain at the usual thresholds."""
    plain: dict[tuple[Any, ...], Way] = {}
    # Bundles of a plain model first: it then has that bundle's name.
    for name in sorted(sessions, key=lambda name: len(sessions[name].manifest.segments) > 1):
        for way in _plain_ways(name, sessions[name], known[name]):
            manifest = sessions[name].manifest
            about = sessions[name].describe()
            runtime = [about.get(key) for key in _RUNTIME]
            how = (manifest.precision, manifest.input, manifest.target, json.dumps(runtime))
            # Of the same weights, run in the same way, one is enough.
            kind = (way.macs, *how, way.classes.tobytes(), way.labels.tobytes())
            kept = plain.setdefault(kind, way)
            owners = dict.fromkeys(kept.baseline_of + way.baseline_of)
            plain[kind] = replace(kept, baseline_of=tuple(owners))
    chains = [way for name in sessions for way in _chain_ways(name, known[name])]
    return [*plain.values(), *chains]


def _plain_ways(name: str, session: Session, known: Known) -> Iterator[Way]:
    manifest, images = session.manifest, known.reporting
    answers = images.logits.argmax(axis=-1)
    if not images.exits:  # the chain is the plain model
        macs = known.costs.macs[0]
        yield Way(name, "", FixedExit(1), answers[:, 0], images.labels, macs, True, (name,))
        return
    macs = known.costs.baseline_macs
    yield Way(name, "without exits", None, answers[:, -1], images.labels, macs, True, (name,))
    if len(manifest.passes) > 1 and len(manifest.passes[0].segments) == 1:
        alone, macs = f"{manifest.pass_title(1)} alone", known.costs.macs[0]
        yield Way(name, alone, FixedExit(1), answers[:, 0], images.labels, macs, True)


def _chain_ways(name: str, known: Known) -> Iterator[Way]:
    """Yield a chain at the thresholds that one half of the images chooses, each once."""
    choosing, reporting, costs = known.choosing, known.reporting, known.costs
    if not choosing.exits:
        return
    settings = [p for kind in POLICIES.values() for p in kind.settings(choosing.exits, _STEPS)]
    tried = [evaluate(policy, choosing, costs) for policy in (*settings, Never())]
    chosen: dict[Policy, list[str]] = {}
    for point, drop in USUAL.items():
        least = choosing.baseline_accuracy - drop - 1e-9
        good = [t for t in tried if t.accuracy >= least]
        chosen.setdefault(min(good, key=lambda t: t.latency_ms).policy, []).append(point)
    best = max(tried, key=lambda t: (t.accuracy, -t.latency_ms)).policy
    chosen.setdefault(best, []).append("most accurate")
    for policy, names in chosen.items():
        exits, classes = policy.replay(reporting.logits)
        macs = float(np.mean(np.array(costs.under(policy).macs, np.float64)[exits - 1]))
        yield Way(name, " = ".join(names), policy, classes, reporting.labels, macs)


def _in_turn(
    sessions: Mapping[str, Session],
    ways: Sequence[Way],
    images: Sequence[LabelledImage],
    places: Sequence[int],
    progress: Callable[[int], None],
) -> tuple[NDArray[np.float64], int]:
    """Run all ways on the images, which have these places among the reporting ones, in turn.

    Returns milliseconds, ``[ways, images that can be read]``, and how many answers differ from
    those that the logits of all exits gave.
    """
    times: list[list[float]] = [[] for _ in ways]
    differing = 0
    with contextlib.ExitStack() as stack:
        for session in sessions.values():
            stack.enter_context(restored_policy(session))
        for turn, block in enumerate(_frames(images)):
            progress(turn * _BLOCK)
            for index in _shuffled(range(len(ways)), turn) if block else ():
                time.sleep(_REST)
                run = _runner(sessions[ways[index].bundle], ways[index].policy)
                run(block[0][1])  # fills caches and wakes threads
                for place, frame in block:
                    found, ms = run(frame)
                    times[index].append(ms)
                    differing += int(found != ways[index].classes[places[place]])
    if not times[0]:
        raise DataError(f"none of {len(images)} images could be read a second time")
    return np.array(times), differing


def _runner(session: Session, policy: Policy | None) -> Callable[[Frame], tuple[int, float]]:
    """Return what gives class and milliseconds from decoded frame to label."""
    if policy is None:
        return lambda frame: run_baseline(session, frame)[:2]
    session.policy = policy

    def predict(frame: Frame) -> tuple[int, float]:
        result = session.predict(frame)
        return result.class_index, result.latency_ms

    return predict


def _rows(ways: Sequence[Way], times: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return all ways with their figures, the fastest first."""
    order = [int(place) for place in np.argsort(times.mean(axis=1), kind="stable")]
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
                "accuracy_error": math.sqrt(accuracy * (1 - accuracy) / len(way.labels)),
                "macs": way.macs,
                "latency_ms": percentiles(times[place]),
                "front": accuracy > best,
                "against": None if way.plain else _against(place, plain, ways, times),
                "raw_ms": times[place].round(4).tolist(),
            }
        )
        best = max(best, accuracy)
    return rows


def _against(
    place: int, plain: Sequence[int], ways: Sequence[Way], times: NDArray[np.float64]
) -> dict[str, Any]:
    """Compare a chain with the fastest plain model that is not clearly less accurate.

    Where all are, with the most accurate one. ``plain`` holds the fastest first.
    """

    def change(rival: int) -> tuple[float, float]:
        each = ways[place].right.astype(np.float64) - ways[rival].right
        return float(each.mean()), float(each.std() / len(each) ** 0.5)

    as_accurate = [p for p in plain if change(p)[0] <= _MARGIN * change(p)[1]]
    rival = as_accurate[0] if as_accurate else max(plain, key=lambda p: ways[p].accuracy)
    gained, error = change(rival)
    ones = np.ones(times.shape[1])
    rows = [np.arange(times.shape[1])]
    return {
        "bundle": ways[rival].bundle,
        "name": ways[rival].name,
        "as_accurate": bool(as_accurate),
        "change": gained,
        "change_error": error,
        "speedup": float(times[rival].mean() / times[place].mean()),
        "speedup_95": ratio_interval(times[rival], times[place], ones, rows),
    }
