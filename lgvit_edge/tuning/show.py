"""What tuning found: for the terminal, as JSON, as a picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.markup import escape

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import table
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.bundle.points import ASSUMPTION, OperatingPoint
from lgvit_edge.tuning.front import Line
from lgvit_edge.tuning.tune import DROPS, Tuned


def to_record(found: Tuned) -> dict[str, Any]:
    """Everything, as JSON."""
    return {
        "points": {name: asdict(point) for name, point in found.points.items()},
        "images": found.images,
        "baseline_accuracy": found.baseline_accuracy,
        "gain_over_sweep": found.gain(),
        "front": [point.to_json() for point in found.front],
        "sweep": [point.to_json() for point in found.sweep],
        "costs": asdict(found.costs),
        "never_pay": None if found.pruning is None else asdict(found.pruning),
        "calibration": found.calibration,
        "search_seconds": round(found.seconds, 2),
    }


def print_tuned(found: Tuned, bundle: Path, manifest: Manifest, console: Console) -> None:
    """Points, what they are worth, and what to type next."""
    parts = ", ".join(f"{count} to {name} on" for name, count in found.images.items())
    _say(console, f"images: {parts}; all figures are of those to report on, which no search saw")
    rows = table(
        *("point", "policy"), numbers=("accuracy", "lost", "MACs x", "mean (ms)", "speed-up")
    )
    lost = found.baseline_accuracy
    rows.add_row("baseline", "", f"{lost:.2%}", "", "1.00", f"{found.costs.baseline_ms:.2f}", "1x")
    for name, point in found.points.items():
        rows.add_row(
            escape(name),
            point.policy["name"],
            f"{point.accuracy:.2%}",
            f"{point.baseline_accuracy - point.accuracy:.2%}",
            f"{point.macs_speedup:.2f}",
            f"{point.latency_ms:.2f}",
            f"{point.wall_clock_speedup:.2f}x",
        )
    console.print(rows)
    for name, point in found.points.items():
        _doubts(console, name, point, found)
    _gain(console, found)
    _calibration(console, found)
    _exits(console, found, manifest, bundle)
    first = next(iter(found.points))
    folder = quote(str(bundle))
    _say(console, f"kept in {bundle}; next: lgvit-edge bench --engines {folder} --point {first}")


def _doubts(console: Console, name: str, point: OperatingPoint, found: Tuned) -> None:
    """What was asked for and what the report's images say of it; what is certain and when."""
    lost = point.baseline_accuracy - point.accuracy
    if point.goal.startswith("--max-drop"):
        asked = float(point.goal.split()[1])
        if lost > asked + 1e-9:
            console.print(
                f"[yellow]{escape(name)} loses {lost:.2%} on the images to report on, more than "
                f"the {asked:.2%} asked for, which those to tune on allowed with 1.6 standard "
                "errors to spare; for a bound that holds, add --risk[/]",
                highlight=False,
                soft_wrap=True,
            )
    bound = point.guarantee
    if bound is not None:
        _say(
            console,
            f"{name} is certified: with {1 - bound.delta:.1%} confidence at most {bound.risk:.2%} "
            f"of images are answered wrongly that the baseline answers rightly ({bound.errors} of "
            f"the {bound.images} images to certify on); {ASSUMPTION}",
        )
        if found.more_images:
            _say(console, f"{found.more_images} images to certify on would allow a faster point")


def _gain(console: Console, found: Tuned) -> None:
    gain = found.gain()
    parts = []
    for drop in DROPS:
        mine, sweep = gain["speedup_at_drop"][f"{drop:g}"]
        if mine and sweep:
            points = f"{100 * drop:g} {'point' if drop == 0.01 else 'points'}"
            parts.append(f"{mine:.2f}x instead of {sweep:.2f}x for {points} given up")
    _say(
        console,
        f"against one confidence threshold for all exits: {100 * gain['mean_accuracy']:+.2f} "
        "points of accuracy at equal time on average (at worst "
        f"{100 * gain['least_accuracy']:+.2f})"
        + "".join(f"; {part}" for part in parts)
        + f" (search: {found.seconds:.0f} s)",
    )


def _calibration(console: Console, found: Tuned) -> None:
    before, after = (found.calibration[key] for key in ("error", "error_calibrated"))
    worst = max(range(len(before)), key=lambda i: before[i])
    if before[worst] - after[worst] > 0.01:
        _say(
            console,
            f"calibration: exit {worst + 1}'s confidence is {before[worst]:.1%} away from how "
            f"often it is right, {after[worst]:.1%} at temperature "
            f"{found.calibration['temperature'][worst]:g}; the search takes that into account",
        )


def _exits(console: Console, found: Tuned, manifest: Manifest, bundle: Path) -> None:
    heads = found.costs.head_ms
    pruned = found.pruning
    if heads is None:
        _say(
            console,
            "which exits never pay is not known: the bundle is of an earlier version; export it "
            "again",
        )
    elif pruned is not None:
        exits = ",".join(map(str, pruned.blocks))
        dropped = ", ".join(
            f"{e} (block {manifest.segments[e - 1].last_block})" for e in pruned.dropped
        )
        out = bundle.absolute().with_name(f"{bundle.absolute().name}-{exits.replace(',', '-')}")
        _say(
            console,
            f"exits that never pay: {dropped}; without them {pruned.gain:.3f}x as fast at equal "
            "accuracy (estimated, the heads' time shared out by their MACs). Leave them out and "
            "tune again:",
        )
        _say(
            console,
            f"lgvit-edge export --ckpt model.pt --exits {exits} --target {manifest.target} "
            f"--precision {manifest.precision} --input {manifest.input} --out {quote(out.name)}",
        )


def draw(found: Tuned, path: Path, kind: str) -> None:
    """Accuracy over mean latency: the front, the single-threshold sweep and the points.

    Args:
        found: what to draw.
        path: of the file.
        kind: ``png``, ``svg`` or ``pdf``.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = require("matplotlib.figure", extra="report").Figure(
        figsize=(7, 4.5), layout="constrained"
    )
    axes = figure.subplots()
    for label, points in (("one threshold", found.sweep), ("tuned", found.front)):
        line = Line.through(points)
        axes.plot(line.ms, 100 * line.accuracy, marker=".", markersize=3, label=label)
    axes.plot(
        [found.costs.baseline_ms],
        [100 * found.baseline_accuracy],
        *("s",),
        color="0.4",
        label="without exits",
    )
    for name, point in found.points.items():
        place = (point.latency_ms, 100 * point.accuracy)
        axes.plot(*place, "o", color="black", markersize=6, fillstyle="none")
        axes.annotate(name, place, xytext=(5, -11), textcoords="offset points", fontsize=8)
    axes.set_xlabel("mean latency (ms)")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(f"{found.images['report']} images the search has not seen", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, format=kind, dpi=150)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
