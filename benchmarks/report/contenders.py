"""Shows several bundles that were measured in turn: as a table, as sentences, as a picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lgvit_edge._support import terminal
from lgvit_edge._support.optional import require
from lgvit_edge.benchmarks.contenders import title
from lgvit_edge.benchmarks.report.plots import in_picture
from lgvit_edge.benchmarks.report.terminal import table_of


def print_contenders(record: dict[str, Any], console: Console) -> None:
    """Prints the rows, the fastest first, whether each bundle pays, and warnings."""
    say = partial(terminal.say, to=console)
    counts, env = record["images"], record["env"]
    say(
        f"thresholds chosen on {counts['choosing']} images, accuracy from {counts['reporting']} "
        f"others, times from {counts['timed']} of those, in turn; {env['cpu']}, {env['cores']} "
        "cores"
    )
    for name, bundle in record["bundles"].items():
        say(f"{name}: {_how(bundle)}")
    if len({_how(bundle) for bundle in record["bundles"].values()}) > 1:
        say("the bundles are not run in the same way: times differ for that, too", style="yellow")
    rows = [
        row
        | row["latency_ms"]
        | {"what": title(row), "mark": "*" if row["front"] else "", "millions": row["macs"] / 1e6}
        | {"error": 100 * row["accuracy_error"]}
        | _compared(row)
        for row in record["rows"]
    ]
    cells = (
        "{mark} | {what} | {rival} | {accuracy:.2%} | {error:.2f} | {mean:.2f} | {p99:.2f} | "
        "{millions:,.0f} | {change} | {faster}"
    )
    numbers = ("accuracy", "+-", "mean (ms)", "p99", "MACs (M)", "points", "speed-up")
    console.print(table_of(rows, cells, "", "bundle", "against", numbers=numbers, blank=""))
    say(
        "*: nothing that is faster here is as accurate. Against: the fastest plain model that is "
        "not clearly less accurate, else the most accurate one; points and speed-up (95 %) are "
        "over it"
    )
    for name in record["bundles"]:
        chain = [row for row in record["rows"] if row["bundle"] == name and not row["plain"]]
        if chain:
            pays, text = verdict(name, chain)
            say(text, style="" if pays else "yellow")
    if unreadable := counts["unreadable"]:
        say(f"images that cannot be read were left out: {unreadable}", style="yellow")
    if record["other_answers"]:
        say(
            f"{record['other_answers']} answers of the timed runs differ from those that accuracy "
            "was computed from",
            style="yellow",
        )
    for reason in record["unstable"]:
        say(f"unstable: {reason}", style="yellow")


def _how(bundle: dict[str, Any]) -> str:
    """Return how a bundle is run."""
    runtime = bundle["runtime"]
    return (
        f"{runtime['backend']} {runtime['version']} on {runtime['device']}, {runtime['threads']} "
        f"threads, {runtime.get('precision', bundle['precision'])}"
    )


def verdict(name: str, rows: list[dict[str, Any]]) -> tuple[bool, str]:
    """Returns whether a bundle with exits pays, and why, given the rows of its chain.

    It pays where one of its points is clearly faster than every plain model that is as accurate,
    or clearly more accurate than all.
    """
    faster = [row for row in rows if row["against"]["speedup_95"][0] > 1]
    better = [row for row in rows if not row["against"]["as_accurate"]]
    row = max(faster or better or rows, key=lambda row: float(row["against"]["speedup"]))
    against = row["against"]
    low, high = against["speedup_95"]
    told = (
        f"{row['name']!r} is {against['speedup']:.2f}x as fast (95 %: {low:.2f} to {high:.2f}) as "
        f"{title(against)!r}, the "
        + ("fastest plain model as accurate" if against["as_accurate"] else "most accurate one")
        + f", at {100 * against['change']:+.2f} +- {100 * against['change_error']:.2f} points"
    )
    if faster:
        return True, f"{name} pays: {told}"
    if better:
        return True, f"{name} is more accurate than any plain model here, and not faster: {told}"
    if any(row["against"]["speedup_95"][1] >= 1 for row in rows):
        return False, f"{name} may or may not pay, more images would tell: {told}"
    return False, f"{name} does not pay: {told}"


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    against = row["against"]
    if against is None:
        return {}
    low, high = against["speedup_95"]
    return {
        "rival": title(against),
        "change": f"{100 * against['change']:+.2f} +- {100 * against['change_error']:.2f}",
        "faster": f"{against['speedup']:.2f}x ({low:.2f} to {high:.2f})",
    }


def draw_contenders(record: dict[str, Any], path: Path, kind: str) -> None:
    """Draws accuracy over mean latency as a ``kind`` of file: ``png``, ``svg`` or ``pdf``.

    Raises:
        MissingDependency: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = require("matplotlib.figure", extra="report").Figure(
        figsize=(7.5, 5), layout="constrained"
    )
    axes = figure.subplots()
    singles = [row for row in record["rows"] if row["plain"]]
    axes.plot(*_line(singles), "s", color="0.25", markersize=6, label="plain models", zorder=3)
    axes.step(
        *_line(_rising(singles)), where="post", color="0.6", linewidth=1, linestyle="--", zorder=1
    )
    ends = [row["latency_ms"]["mean"] for row in (record["rows"][0], record["rows"][-1])]
    for row in singles:
        ms = row["latency_ms"]["mean"]
        right = ms > sum(ends) / 2  # its name then ends at the point, to stay in the picture
        axes.annotate(
            in_picture(title(row)),
            (ms, 100 * row["accuracy"]),
            xytext=(-6 if right else 6, -10),
            ha="right" if right else "left",
            textcoords="offset points",
            fontsize=7,
            color="0.25",
        )
    for name in record["bundles"]:
        chain = [row for row in record["rows"] if row["bundle"] == name and not row["plain"]]
        if chain:
            axes.plot(
                *_line(chain), marker="o", markersize=4, linewidth=1.3, label=in_picture(name)
            )
    axes.set(xlabel="mean time from frame to label (ms)", ylabel="accuracy (%)")
    axes.set_title(
        f"{record['images']['reporting']} images, {record['env']['cpu']}, up and left is better",
        fontsize=9,
    )
    axes.margins(0.08)
    axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, format=kind, dpi=150)


def _line(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["latency_ms"]["mean"] for row in rows], [100 * row["accuracy"] for row in rows]


def _rising(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that none is as accurate as and faster; they come the fastest first."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        if not kept or row["accuracy"] > kept[-1]["accuracy"]:
            kept.append(row)
    return kept
