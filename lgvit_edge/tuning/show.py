"""Shows the result of tuning: in the terminal, as JSON, as a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from lgvit_edge._support import terminal
from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import plain, table
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.bundle.plain_models import better
from lgvit_edge.bundle.points import ASSUMPTION, OperatingPoint
from lgvit_edge.policies import from_json
from lgvit_edge.tuning.front import Line
from lgvit_edge.tuning.tune import DROPS, Tuned

Say = Callable[..., None]


def to_record(tuned: Tuned) -> dict[str, Any]:
    """Returns the whole result as JSON."""
    return {
        "points": {name: asdict(point) for name, point in tuned.points.items()},
        "images": tuned.images,
        "baseline_accuracy": tuned.baseline_accuracy,
        "gain_over_sweep": tuned.gain(),
        "front": [point.to_json() for point in tuned.front],
        "sweep": [point.to_json() for point in tuned.sweep],
        "costs": asdict(tuned.costs),
        "never_pay": None if tuned.pruning is None else asdict(tuned.pruning),
        "calibration": tuned.calibration,
        "search_seconds": round(tuned.seconds, 2),
    }


def print_tuned(tuned: Tuned, bundle: Path, manifest: Manifest, console: Console) -> None:
    """Prints the operating points, what they gain, and the command to run next."""
    say = partial(terminal.say, to=console)
    parts = ", ".join(f"{count} to {name} on" for name, count in tuned.images.items())
    say(f"images: {parts}; all figures are from the last group, unseen by the search")
    rows = table(
        *("point", "policy", "exits"),
        numbers=("accuracy", "lost", "MACs x", "mean (ms)", "speed-up"),
    )
    base = tuned.baseline_accuracy
    rows.add_row(
        "baseline", "", "", f"{base:.2%}", "", "1.00", f"{tuned.costs.baseline_ms:.2f}", "1x"
    )
    for name, point in tuned.points.items():
        rows.add_row(
            plain(name),
            plain(str(point.policy["name"])),
            _exits_read(point, len(manifest.segments) - 1),
            f"{point.accuracy:.2%}",
            f"{point.baseline_accuracy - point.accuracy:.2%}",
            f"{point.macs_speedup:.2f}",
            f"{point.latency_ms:.2f}",
            f"{point.wall_clock_speedup:.2f}x",
        )
    console.print(rows)
    for name, point in tuned.points.items():
        _doubts(say, name, point, tuned)
        for text in better(
            manifest.plain_models,
            change=point.accuracy - point.baseline_accuracy,
            time_share=point.latency_ms / point.baseline_latency_ms,
            device=point.device,
        ):
            say(f"{name}: {text}", style="yellow")
    _gain(say, tuned)
    _calibration(say, tuned)
    _exits(say, tuned, manifest, bundle)
    first = next(iter(tuned.points))
    folder = quote(str(bundle))
    say(f"saved in {bundle}; next: lgvit-edge bench --engines {folder} --point {first}")


def _exits_read(point: OperatingPoint, exits: int) -> str:
    read = from_json(point.policy).exits_read(exits)
    listed = ", ".join(str(exit) for exit, is_read in enumerate(read, 1) if is_read)
    return "all" if all(read) else listed or "none"


def _doubts(say: Say, name: str, point: OperatingPoint, tuned: Tuned) -> None:
    """Warn where a point misses its goal on the report images; say what its guarantee covers."""
    lost = point.baseline_accuracy - point.accuracy
    if point.goal.startswith("--max-drop"):
        asked = float(point.goal.split()[1])
        if lost > asked + 1e-9:
            say(
                f"{name} loses {lost:.2%} on the report images, more than the "
                f"requested {asked:.2%}; it met the goal on the tuning images with a margin of 1.6 "
                "standard errors. For a guaranteed bound, add --risk",
                style="yellow",
            )
    bound = point.guarantee
    if bound is not None:
        say(
            f"{name} is certified: with {1 - bound.delta:.1%} confidence at most {bound.risk:.2%} "
            f"of images are answered wrongly that the baseline answers rightly ({bound.errors} of "
            f"the {bound.images} images to certify on); {ASSUMPTION}"
        )
        if tuned.more_images:
            say(f"{tuned.more_images} images to certify on would allow a faster point")


def _gain(say: Say, tuned: Tuned) -> None:
    gain = tuned.gain()
    parts = []
    for drop in DROPS:
        front, sweep = gain["speedup_at_drop"][f"{drop:g}"]
        if front and sweep:
            points = f"{100 * drop:g} {'point' if drop == 0.01 else 'points'}"
            parts.append(f"{front:.2f}x instead of {sweep:.2f}x for {points} given up")
    say(
        f"against one confidence threshold for all exits: {100 * gain['mean_accuracy']:+.2f} "
        "points of accuracy at equal time on average (at worst "
        f"{100 * gain['least_accuracy']:+.2f})"
        + "".join(f"; {part}" for part in parts)
        + f" (search: {tuned.seconds:.0f} s)"
    )


def _calibration(say: Say, tuned: Tuned) -> None:
    before, after = (tuned.calibration[key] for key in ("error", "error_calibrated"))
    worst = max(range(len(before)), key=lambda i: before[i])
    if before[worst] - after[worst] > 0.01:
        say(
            f"calibration: exit {worst + 1}'s confidence differs from its accuracy by "
            f"{before[worst]:.1%}, and by {after[worst]:.1%} at temperature "
            f"{tuned.calibration['temperature'][worst]:g}; the search tries such temperatures"
        )


def _exits(say: Say, tuned: Tuned, manifest: Manifest, bundle: Path) -> None:
    pruned = tuned.pruning
    if pruned is None:
        return
    chosen = [",".join(map(str, blocks)) or "none" for blocks in pruned.blocks]
    dropped = ", ".join(f"{e} ({_place(manifest, e)})" for e in pruned.dropped)
    home = bundle.absolute()
    out = home.with_name("-".join([home.name, *chosen]).replace(",", "-"))
    source = f"--ckpt model.pt --exits {chosen[0]}"
    if len(manifest.passes) > 1:
        source = " ".join(
            f"--ckpt pass-{n}.pt --image-size {each.image_size} --exits {exits}"
            for n, (each, exits) in enumerate(zip(manifest.passes, chosen, strict=True), 1)
        )
    found = (
        f"exits that none of these points reads: {dropped}; their heads are not run, except by "
        "TensorRT. For a smaller bundle, leave them out and tune again:"
        if pruned.gain is None
        else f"exits that never pay: {dropped}; without them the chain is {pruned.gain:.3f}x as "
        "fast at equal accuracy (estimated from MACs). Leave them out and tune again:"
    )
    say(
        f"{found}\n"
        f"lgvit-edge export {source} --target {manifest.target} "
        f"--precision {manifest.precision} --input {manifest.input} --out {quote(out.name)}"
    )


def _place(manifest: Manifest, exit: int) -> str:
    block = f"block {manifest.segments[exit - 1].last_block}"
    several = len(manifest.passes) > 1
    return f"{manifest.pass_title(manifest.pass_numbers[exit - 1])}, {block}" if several else block


def draw(tuned: Tuned, path: Path, kind: str) -> None:
    """Draws accuracy over mean latency as a ``kind`` of file: ``png``, ``svg`` or ``pdf``.

    It shows the front, the single-threshold sweep and the points.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figures = require("matplotlib.figure", extra="report")
    figure = figures.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, points in (("one threshold", tuned.sweep), ("tuned", tuned.front)):
        line = Line.through(points)
        axes.plot(line.ms, 100 * line.accuracy, marker=".", markersize=3, label=label)
    baseline = (tuned.costs.baseline_ms, 100 * tuned.baseline_accuracy)
    axes.plot(*baseline, "s", color="0.4", label="without exits")
    for name, point in tuned.points.items():
        place = (point.latency_ms, 100 * point.accuracy)
        axes.plot(*place, "o", color="black", markersize=6, fillstyle="none")
        axes.annotate(name, place, xytext=(5, -11), textcoords="offset points", fontsize=8)
    axes.set(xlabel="mean latency (ms)", ylabel="accuracy (%)")
    axes.set_title(f"{tuned.images['report']} images the search has not seen", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, format=kind, dpi=150)
