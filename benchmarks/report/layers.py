"""Prints a record of layers as tables in a terminal."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from lgvit_edge._support.terminal import plain, table
from lgvit_edge.benchmarks.report.terminal import passes_of, precision_of, table_of

_NOTABLE = 1.1  # share of the time, over share of the MACs
_LONGEST = 160  # characters of a name: where many operators are fused, it lists all of theirs
_FAINT = 0.001  # share of an operator that is left out
BETWEEN = "(between layers)"
_SMALL = 0.02  # of a segment's time: not worth a word


def part_of(record: dict[str, Any], part: str | None) -> tuple[str, dict[str, Any]]:
    """Returns the name and row of what ``part`` names: a segment, ``baseline``, None for all."""
    if part is None:
        return "chain", record["chain"]
    if part == "baseline":
        return part, record["baseline"]
    return f"segment {part}", record["segments"][int(part)]


def print_layers(
    record: dict[str, Any], console: Console, *, top: int = 10, part: str | None = None
) -> None:
    """Prints segments, operators and the slowest layers, of all segments or of one ``part``."""
    say = partial(console.print, highlight=False, soft_wrap=True)
    runtime, chain = record["env"]["runtime"], record["chain"]
    frames = "random images" if record["images"] is None else f"{record['images']} images"
    about = (
        f", {frames}, {runtime['backend']} {runtime['version']} on {runtime['device']}, "
        f"{runtime['threads']} threads, {precision_of(record)}, {record['env']['cpu']}"
    )
    say(plain(f"medians of {record['runs']} runs", "bold") + plain(about))
    console.print(_segments(record))
    for row in record["segments"]:
        if row["time_share"] > _NOTABLE * row["macs_share"]:
            say(plain(_remark(row), "bold"))
    cost = chain["profiled_ms"] / chain["ms"] - 1
    say(
        plain(
            f"with {record['env']['profiler']['profiler']} the chain takes "
            f"{chain['profiled_ms']:.2f} ms, without {chain['ms']:.2f} ms ({cost:+.0%}): below, "
            "times are with it"
        )
    )
    for row in (*record["segments"], chain):
        if row["profiled_beyond_ms"] > _SMALL * row["profiled_ms"]:
            say(plain(_beyond(row)))
    name, row = part_of(record, part)
    console.print(_operators(name, row, record["baseline"]))
    console.print(_slowest(record, name, row, top))
    if skipped := record["skipped"]:
        left_out = f"images that cannot be read were skipped: {len(skipped)}, such as {skipped[0]}"
        say(plain(left_out, "yellow"))
    for reason in record["unstable"]:
        say(plain(f"unstable: {reason}", "yellow"))


def _remark(row: dict[str, Any]) -> str:
    return (
        f"segment {row['segment']} has {row['macs_share']:.1%} of the MACs and takes "
        f"{row['time_share']:.1%} of the time"
    )


def _beyond(row: dict[str, Any]) -> str:
    """Return what takes longer than the baseline's for as many MACs."""
    parts = [(part["beyond_ms"], part["kind"]) for part in row["kinds"]]
    parts += [(row["outside_beyond_ms"], BETWEEN)]
    longest = [f"{kind} {ms:.2f}" for ms, kind in sorted(parts, reverse=True)[:3] if ms >= 0.01]
    name = f"segment {row['segment']}" if "segment" in row else "the chain"
    return (
        f"{name}: {row['profiled_beyond_ms']:.2f} ms more than the baseline for as many MACs: "
        f"{', '.join(longest)}"
    )


def _segments(record: dict[str, Any]) -> Table:
    rows = [
        row | {"blocks": f"{row['first_block']}-{row['last_block']}"} for row in record["segments"]
    ]
    rows += [record["chain"] | {"segment": "chain"}, record["baseline"] | {"segment": "baseline"}]
    derived = [{"millions": r["macs"] / 1e6, "rate": r["macs"] / r["ms"] / 1e6} for r in rows]
    passes = passes_of(record) or {}
    named = [{"title": passes.get(row.get("pass_number"))} for row in rows]
    return table_of(
        [row | more | name for row, more, name in zip(rows, derived, named, strict=True)],
        "{segment} | "
        + ("{title} | " if passes else "")
        + "{blocks} | {head} | {millions:,.0f} | {macs_share:.1%} | {time_share:.1%} | "
        "{ms:.3f} | {profiled_ms:.3f} | {rate:.1f}",
        *("segment", *(("pass",) if passes else ()), "blocks", "head"),
        numbers=("MACs (M)", "of MACs", "of time", "ms", "profiled", "GMAC/s"),
        blank="",
    )


def parts_of(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns operators, what is between layers, and each one's share of all of these."""
    parts = [*row["kinds"], {"kind": BETWEEN, "calls": None, "ms": row["outside_ms"]}]
    total = sum(part["ms"] for part in parts)
    return {part["kind"]: part | {"share": part["ms"] / total} for part in parts}


def _operators(name: str, row: dict[str, Any], baseline: dict[str, Any]) -> Table:
    own, base = parts_of(row), parts_of(baseline)
    kinds = [kind for kind in {**own, **base} if kind != BETWEEN]
    nothing = {"share": 0.0}
    shown = [
        kind
        for kind in kinds
        if max(parts.get(kind, nothing)["share"] for parts in (own, base)) >= _FAINT
    ]
    lines = []
    for kind in [*shown, BETWEEN]:
        other = {f"b{key}": value for key, value in base.get(kind, {}).items()}
        lines.append(own.get(kind, {}) | other | {"kind": kind})
    cells = "{kind} | {calls} | {ms:.3f} | {share:.1%}"
    numbers: tuple[str, ...] = ("calls", "ms", f"of {name}")
    if name != "baseline":
        cells += " | {bcalls} | {bms:.3f} | {bshare:.1%}"
        numbers += ("calls", "ms", "of baseline")
    filled = table_of(lines, cells, "operator", numbers=numbers, blank="")
    if left := len(kinds) - len(shown):
        filled.caption, filled.caption_justify = f"and {left} below {_FAINT:.1%}", "left"
    return filled


def _slowest(record: dict[str, Any], name: str, row: dict[str, Any], top: int) -> Table:
    if name == "chain":
        layers = [
            layer | {"where": str(segment["segment"])}
            for segment in record["segments"]
            for layer in segment["layers"]
        ]
    else:
        layers = [layer | {"where": name.removeprefix("segment ")} for layer in row["layers"]]
    layers.sort(key=lambda layer: -layer["ms"])
    total = sum(part["ms"] for part in parts_of(row).values())
    filled = table("segment", "block", numbers=("ms", f"of {name}"))
    for header in ("operator", "layer, and what computes it"):
        filled.add_column(header, overflow="fold")
    for layer in layers[:top]:
        filled.add_row(
            layer["where"],
            layer["block"] or "",
            f"{layer['ms']:.3f}",
            f"{layer['ms'] / total:.1%}",
            plain(layer["kind"]),
            plain(_short(f"{layer['name']}  {layer['how']}".rstrip())),
        )
    return filled


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\u2026"
