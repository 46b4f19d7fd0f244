"""Shows several bundles that were measured in turn: as a table, as sentences, as a picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lgvit_edge._support import terminal
from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import plain
from lgvit_edge.benchmarks.contenders import title
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
        runtime = bundle["runtime"]
        say(
            f"{name}: {runtime['backend']} {runtime['version']} on {runtime['device']}, "
            f"{runtime['threads']} threads, {runtime.get('precision', bundle['precision'])}"
        )
    rows = [
        row
        | row["latency_ms"]
        | {"what": title(row), "mark": "*" if row["front"] else "", "millions": row["macs"] / 1e6}
        | {"error": 100 * row["accuracy_error"], "rival": None}
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
        "*: nothing here is as accurate and faster. Against: the fastest plain model that is at "
        "least as accurate, or else the most accurate one; points and speed-up are over it"
    )
    for name in record["bundles"]:
        chain = [row for row in record["rows"] if row["bundle"] == name and not row["plain"]]
        if chain:
            pays, text = verdict(name, chain)
            say(text, style="" if pays else "yellow")
    if unreadable := counts["unreadable"]:
        say(f"images that cannot be read were left out: {unreadable}", style="yellow")
    for reason in record["unstable"]:
        say(f"unstable: {reason}", style="yellow")


def verdict(name: str, rows: list[dict[str, Any]]) -> tuple[bool, str]:
    """Returns whether a bundle pays, and why, given the rows of its chain.

    It pays where at some point no plain model is both as accurate and as fast.
    """
    ahead = [row for row in rows if not row["against"]["as_accurate"] or _speedup(row) > 1]
    row = max(ahead or rows, key=_speedup)
    against = row["against"]
    rival = (
        f"{title(against)!r}, the {'fastest' if against['as_accurate'] else 'most accurate'} plain "
        f"model{' that is as accurate' if against['as_accurate'] else ''}"
    )
    given = f"{100 * against['change']:+.2f} +- {100 * against['change_error']:.2f} points"
    if ahead:
        return True, (
            f"{name} pays: {row['name']!r} is {_speedup(row):.2f}x as fast as {rival} ({given})"
        )
    return False, (
        f"{name} does not pay: at each of its points a plain model is as accurate and faster; "
        f"{row['name']!r} is {_speedup(row):.2f}x as fast as {rival} ({given})"
    )


def _speedup(row: dict[str, Any]) -> float:
    return float(row["against"]["speedup"])


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    against = row["against"]
    if against is None:
        return {}
    change = f"{100 * against['change']:+.2f} +- {100 * against['change_error']:.2f}"
    return {"rival": title(against), "change": change, "faster": f"{against['speedup']:.2f}x"}


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
    for row in singles:
        axes.annotate(
            plain(title(row)).plain,
            (row["latency_ms"]["mean"], 100 * row["accuracy"]),
            xytext=(6, -10),
            textcoords="offset points",
            fontsize=7,
            color="0.25",
        )
    for name in record["bundles"]:
        chain = [row for row in record["rows"] if row["bundle"] == name and not row["plain"]]
        if chain:
            axes.plot(*_line(chain), marker="o", markersize=4, linewidth=1.3, label=name)
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
