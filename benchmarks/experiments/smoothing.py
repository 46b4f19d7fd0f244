"""Says what answers smoothed over a camera's frames gain and cost, on films made of real images.

``python -m lgvit_edge.benchmarks.experiments.smoothing --engines out/ --data DIR --logits FILE``
makes a film of every image (``scenes.film``); one follows the other with a hard cut, each of
another class than the one before. All exits' logits of all frames are computed once, into ``FILE``;
policies are replayed on them by what sessions decide with (``Departures``, ``Averages``). A session
then runs some scenes: its answers must be the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.outputs import replacing
from lgvit_edge._support.terminal import console, progress_bar, say
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, choose_images, run_command
from lgvit_edge.benchmarks.experiments.scenes import film
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.camera.smoothing import Smoothing, parse_smoothing
from lgvit_edge.cli.options import Backend, Engines, check_outputs, parse_numbers
from lgvit_edge.errors import DataError, LGViTEdgeError, UsageError
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.policies import Averages, Confidence, Departures, Memory, Never, Policy
from lgvit_edge.policies.evaluate import ExitCosts
from lgvit_edge.policies.picture import draw
from lgvit_edge.runtime import Result, Session

CAMERAS = 40  # each plays its share of the scenes; they are replayed side by side
FPS = 30
EARLY = 5  # frames after a cut that are counted apart
SINGLE = "single frames"
SPEED_UPS = (1.25, 1.5, 2.0)  # in MACs, at which curves are compared
_BOOTSTRAPS = 1000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Images: a sub-folder per class.")],
    logits: Annotated[Path, typer.Option(help="File of all logits; made where it is missing.")],
    scenes: Annotated[int, typer.Option(min=CAMERAS, help="Images, each a scene.")] = 640,
    frames: Annotated[int, typer.Option(min=EARLY + 1, help="Frames of a scene.")] = 30,
    smoothings: Annotated[
        str, typer.Option(help="What is compared with single frames.")
    ] = "majority:4,majority:8,majority:16,average:4,average:8,average:16",
    thresholds: Annotated[
        str, typer.Option(help="Confidences above which images leave.")
    ] = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95,0.98",
    checked: Annotated[int, typer.Option(help="Scenes that a session runs too.")] = 8,
    backend: Backend = "auto",
    plot: Annotated[Path | None, typer.Option(help="Picture to write (.png).")] = None,
    json_file: JsonFile = None,
) -> None:
    """Plays films with and without smoothing; prints accuracy, MACs, and what a cut costs."""
    check_outputs({"--plot": plot, "--logits": logits})
    if scenes % CAMERAS:
        raise UsageError(f"--scenes: expected a multiple of {CAMERAS}, found {scenes}")
    levels = parse_numbers(thresholds) or []
    checked = min(checked, scenes // CAMERAS)  # of the first camera
    kinds = {SINGLE: parse_smoothing(None)}
    kinds |= {name: parse_smoothing(name) for name in smoothings.split(",")}
    policies: list[Policy] = [*map(Confidence, levels), Never()]
    record = Record(json_file)
    with Session.open(engines, backend=backend) as session:
        # The other half of the images is for trying things out.
        images = cast(choose_images(data, session.manifest, 2 * scenes)[1::2])
        if len(images) != scenes:
            raise DataError(f"--data: expected at least {2 * scenes} images in {data}")
        labels = np.array([image.class_index for image in images])
        found = _all_logits(session, images, frames, logits)
        costs = ExitCosts.of(session.manifest, heads_apart=session.heads_apart)
        runs: dict[str, list[Answers]] = {}
        with progress_bar("replaying") as progress:
            for number, (name, smoothing) in enumerate(kinds.items()):
                progress(number, len(kinds))
                runs[name] = [replayed(p, smoothing, found, labels, costs) for p in policies]
                middle = len(levels) // 2
                _check(session, images[:checked], smoothing, runs[name][middle])
        record.env |= {"runtime": session.describe()}
    plain = runs[SINGLE]
    rows = {
        name: [row(own, other) for own, other in zip(answers, plain, strict=True)]
        for name, answers in runs.items()
    }
    equal = [
        {"name": name} | line
        for name in kinds
        if name != SINGLE
        for line in at_equal_speed(runs[name], plain)
    ]
    changing = float(np.mean([len(set(c)) > 1 for c in plain[-1].classes.tolist()]))
    say(
        f"{scenes} scenes of {frames} frames; the final classifier changes its mind within "
        f"{changing:.0%} of them. {checked} scenes were run by a session, alike"
    )
    _print(rows, equal)
    if plot is not None:
        with replacing(plot) as partial:
            lines = {name: listed[:-1] for name, listed in rows.items()}
            title = f"answers over time: {scenes} scenes of {frames} frames"
            best = float(rows[SINGLE][-1]["accuracy"])
            draw(lines, partial, baseline=best, title=title, base="single frames, no exits")
    record.write(scenes=scenes, frames=frames, fps=FPS, changing=changing, rows=rows, equal=equal)


def cast(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Returns images in an order by chance, each of another class than the one before it."""
    left = [images[i] for i in np.random.default_rng(0).permutation(len(images))]
    order: list[LabelledImage] = []
    while left:
        last = order[-1].class_index if order else None
        place = next((i for i, image in enumerate(left) if image.class_index != last), 0)
        order.append(left.pop(place))
    return order


def _scene(image: LabelledImage, number: int, frames: int) -> list[NDArray[np.uint8]]:
    return list(film(load_rgb(image.path), frames, np.random.default_rng([0, number])))


def _all_logits(
    session: Session, images: Sequence[LabelledImage], frames: int, stored: Path
) -> NDArray[np.float32]:
    """Returns the logits of all frames, ``[scenes, frames, M + 1, C]``; from the file if there.

    Raises:
        UsageError: the file is of other scenes.
    """
    names = np.array([image.path.name for image in images])
    manifest = session.manifest
    shape = (len(images), frames, len(manifest.segments), manifest.num_classes)
    if not stored.is_file():
        found = np.empty(shape, np.float32)
        with progress_bar("computing logits") as progress:
            for number, image in enumerate(images):
                progress(number, len(images))
                for place, frame in enumerate(_scene(image, number, frames)):
                    found[number, place] = session.exit_logits([frame])[0]  # as a camera's
        with replacing(stored) as partial, partial.open("wb") as file:
            np.savez(file, logits=found, names=names, bundle=manifest.identity)
    with np.load(stored) as arrays:
        same = arrays["logits"].shape == shape and str(arrays["bundle"]) == manifest.identity
        if not same or arrays["names"].tolist() != names.tolist():
            raise UsageError(f"--logits: {stored} is of other scenes; name another file")
        return np.asarray(arrays["logits"])


@dataclass(frozen=True)
class Answers:
    """What one setting answers, by scene and frame, ``[scenes, frames]``."""

    policy: Policy
    exits: Ints  # 1..M + 1
    classes: Ints
    scores: Floats  # how sure
    right: NDArray[np.bool_]
    macs: Floats  # as a share of the baseline's

    @property
    def after_cuts(self) -> NDArray[np.bool_]:
        """Whether a scene comes after another of its camera, ``[scenes]``."""
        return np.arange(len(self.right)) % (len(self.right) // CAMERAS) > 0


def replayed(
    policy: Policy,
    smoothing: Smoothing,
    logits: NDArray[np.float32],
    labels: Ints,
    costs: ExitCosts,
) -> Answers:
    """Returns what cameras with such a policy and smoothing answer, one scene after the other."""
    scenes, frames, total, classes = logits.shape
    films = logits.reshape(CAMERAS, -1, total, classes)
    length = films.shape[1]
    exits, answers = np.empty((2, CAMERAS, length), np.int64)
    scores = np.empty((CAMERAS, length))
    smoothers = [smoothing.start() for _ in range(CAMERAS)]
    memories = [smoother.memory for smoother in smoothers]
    for number in range(length):
        start = number / FPS
        taken = _frame(policy, films[:, number], memories, start)
        for camera, (left, smoother) in enumerate(zip(taken, smoothers, strict=True)):
            found = smoother.take(left, start)
            exits[camera, number], answers[camera, number] = found.exit, found.class_index
            scores[camera, number] = found.confidence
    macs = np.array(costs.under(policy).macs)[exits - 1] / costs.baseline_macs
    shape = (scenes, frames)
    answers = answers.reshape(shape)
    return Answers(
        policy,
        exits.reshape(shape),
        answers,
        scores.reshape(shape),
        answers == labels[:, None],
        macs.reshape(shape),
    )


def _frame(
    policy: Policy, logits: NDArray[np.float32], memories: Sequence[Memory | None], start: float
) -> list[Result]:
    """Returns what a session answers of one frame of every camera, given ``[B, M + 1, C]``."""
    count, total, classes = logits.shape
    averages = Averages(memories, [start] * count, classes) if any(memories) else None
    batch = Departures(policy, total - 1, count, averages)
    found: dict[int, Result] = {}
    while len(batch.rows):
        left = batch.see(logits[batch.rows, batch.exit])
        for row, index, score in zip(left.rows, left.classes, left.scores, strict=True):
            found[int(row)] = Result(
                int(index), str(index), float(score), left.exit, 0, 1, 0.0, 0.0
            )
    if averages is not None:
        averages.keep()
    return [found[row] for row in range(count)]


def _check(
    session: Session, images: Sequence[LabelledImage], smoothing: Smoothing, answers: Answers
) -> None:
    """Runs the first scenes of the first camera by the session.

    Raises:
        LGViTEdgeError: it answers otherwise than was replayed.
    """
    session.policy, smoother = answers.policy, smoothing.start()
    frames = answers.exits.shape[1]
    for number, image in enumerate(images):
        for place, frame in enumerate(_scene(image, number, frames)):
            start = (number * frames + place) / FPS
            ready, memories = session.prepare([frame]), [smoother.memory]
            (found,) = session.run(ready, starts=[start], memories=memories)
            found = smoother.take(found, start)
            told = found.exit, found.class_index, found.confidence
            at = number, place
            expected = int(answers.exits[at]), int(answers.classes[at]), float(answers.scores[at])
            if told != expected:
                raise LGViTEdgeError(
                    f"scene {number}, frame {place}: expected exit, class and confidence "
                    f"{expected}, as replayed; the session gave {told}"
                )


def _mean(values: NDArray[Any]) -> tuple[float, float]:
    """Returns the mean of one value a scene, and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def row(own: Answers, plain: Answers) -> dict[str, Any]:
    """Returns a setting's figures, and how they differ from those of single frames, by scene."""
    cut = own.after_cuts
    by_scene = {
        "accuracy": (own.right.mean(1), plain.right.mean(1)),
        "early": (own.right[cut, :EARLY].mean(1), plain.right[cut, :EARLY].mean(1)),
        "later": (own.right[:, EARLY:].mean(1), plain.right[:, EARLY:].mean(1)),
        "macs": (own.macs.mean(1), plain.macs.mean(1)),
        "changes": tuple((np.diff(a.classes) != 0).sum(1) for a in (own, plain)),
    }
    figures: dict[str, Any] = {"policy": own.policy.to_json()}
    for name, (mine, other) in by_scene.items():
        figures[name] = float(mine.mean())
        if own is not plain:
            figures[f"{name}_change"], figures[f"{name}_error"] = _mean(mine - other)
    shares = np.bincount(own.exits.ravel() - 1, minlength=int(own.exits.max())) / own.exits.size
    return figures | {"macs_speedup": 1 / figures["macs"], "shares": shares.tolist()}


def at_equal_speed(own: Sequence[Answers], plain: Sequence[Answers]) -> list[dict[str, Any]]:
    """Returns what a smoothing gains where it costs as much as single frames, between thresholds.

    At each of ``SPEED_UPS``: accuracies of all frames and of those after a cut; and the speed-up at
    which it is as accurate as single frames are there. Errors are standard errors of the paired
    difference, by drawing scenes again and again. What no threshold reaches is None.
    """
    cut = own[0].after_cuts
    count = len(cut)
    tables = []
    for answers in (plain[:-1], own[:-1]):  # without the last, which has no exits
        early = np.stack([np.where(cut, a.right[:, :EARLY].mean(1), 0) for a in answers])
        tables.append(
            (
                np.stack([a.macs.mean(1) for a in answers]),
                np.stack([a.right.mean(1) for a in answers]),
                early * count / cut.sum(),
            )
        )

    def figures(rows: NDArray[np.intp], speed_up: float) -> list[float]:
        means = [[table[:, rows].mean(1) for table in tables_] for tables_ in tables]
        (macs, accuracy, early), (own_macs, own_accuracy, own_early) = means
        level = 1 / speed_up
        single, ours = _at(level, macs, accuracy), _at(level, own_macs, own_accuracy)
        return [
            single,
            ours - single,
            _at(level, own_macs, own_early) - _at(level, macs, early),
            1 / _at(single, own_accuracy, own_macs),
        ]

    rng, lines = np.random.default_rng(0), []
    for speed_up in SPEED_UPS:
        values = figures(np.arange(count), speed_up)
        drawn = [figures(rng.integers(0, count, count), speed_up) for _ in range(_BOOTSTRAPS)]
        errors = np.std(drawn, axis=0)
        single, gain, more, faster = (None if np.isnan(value) else value for value in values)
        lines.append(
            {
                "speed_up": speed_up,
                "single": single,
                "gain": gain,
                "gain_error": None if gain is None else float(errors[1]),
                "early_gain": more,
                "early_gain_error": None if more is None else float(errors[2]),
                "as_accurate_at": faster,
                "as_accurate_at_error": None if np.isnan(errors[3]) else float(errors[3]),
            }
        )
    return lines


def _at(place: float, x: Floats, y: Floats) -> float:
    """Returns y at a place on the line through points, NaN beyond its ends."""
    order = np.argsort(x)
    return float(np.interp(place, x[order], y[order], left=np.nan, right=np.nan))


def _print(rows: Mapping[str, Sequence[dict[str, Any]]], equal: Sequence[dict[str, Any]]) -> None:
    shown = [
        figures
        | {"name": name, "threshold": figures["policy"].get("threshold", "no exits")}
        | {kind: _changed(figures, kind) for kind in ("accuracy_change", "early_change")}
        | {"macs_change": _changed(figures, "macs_change", percent=False)}
        for name, listed in rows.items()
        for figures in listed
    ]
    cells = (
        "{name} | {threshold} | {accuracy:.1%} | {accuracy_change} | {early:.1%} | {early_change} "
        "| {macs_speedup:.2f}x | {macs_change} | {changes:.1f}"
    )
    after = f"first {EARLY} after a cut"
    costs = ("speed-up", "change of MACs, of the baseline's", "other answers in a scene")
    numbers = ("accuracy", "change", after, "change ", *costs)
    console.print(table_of(shown, cells, "smoothing", "threshold", numbers=numbers))
    console.print()
    lines = [
        line
        | {kind: _changed(line, kind) for kind in ("gain", "early_gain")}
        | {"as_accurate_at": _changed(line, "as_accurate_at", percent=False, form=".2f")}
        for line in equal
    ]
    cells = "{name} | {speed_up:.2f}x | {single:.1%} | {gain} | {early_gain} | {as_accurate_at}"
    gains = ("single frames", "gain", f"gain, {after}", "as accurate at")
    console.print(table_of(lines, cells, "smoothing", "speed-up", numbers=gains))


def _changed(
    row: Mapping[str, Any], name: str, *, percent: bool = True, form: str = "+.3f"
) -> str | None:
    """Returns a value with its standard error as text, in points where in percent."""
    value, error = row.get(name), row.get(f"{name.removesuffix('_change')}_error")
    if value is None:
        return None
    form, factor = ("+.1f", 100) if percent else (form, 1)
    spread = "?" if error is None else format(factor * error, form.removeprefix("+"))
    return f"{factor * value:{form}} ± {spread}"


if __name__ == "__main__":
    run_command(main)
