"""Prints a bench record as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from string import Formatter
from typing import Any

from rich.console import Console
from rich.table import Table

from lgvit_edge._support.terminal import plain, table
from lgvit_edge.bundle.inspection import both_counts


def table_of(
    rows: Iterable[Mapping[str, Any]],
    cells: str,
    *headers: str,
    numbers: tuple[str, ...],
    blank: str = "-",
) -> Table:
    """Returns a table of rows, with their ``cells`` as for ``str.format`` and ``|`` between them.

    Values that are None or missing become ``blank``; text is shown as it is.
    """

    class Cells(Formatter):
        def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
            return kwargs.get(key)

        def format_field(self, value: Any, form: str) -> str:
            return blank if value is None else format(value, form)

    filled = table(*headers, numbers=numbers)
    for row in rows:
        filled.add_row(*(plain(Cells().vformat(cell, (), row)) for cell in cells.split(" | ")))
    return filled


def print_report(record: dict[str, Any], console: Console) -> None:
    """Prints the conditions, latencies, exits and speed-ups of a record, and warnings."""
    speedup, base = record["speedup"], record["baseline"]
    runtime = record["env"]["runtime"]
    say = partial(console.print, highlight=False)
    machine = (
        f", {runtime['backend']} {runtime['version']} on {runtime['device']}, {runtime['threads']} "
        f"threads, {precision_of(record)}, {record['env']['cpu']}"
    )
    say(plain(f"{record['samples']} images", "bold") + plain(machine))
    if precision := computed_in(runtime):
        console.print(plain(precision), soft_wrap=True)
    columns = ("mean", "p50", "p90", "p95", "p99")
    latencies = table("latency (ms)", numbers=(*columns, "network p50"))
    for name, part in (("baseline", base), ("early exit", record)):
        figures = [f"{part['latency_ms'][k]:.2f}" for k in columns]
        latencies.add_row(name, *figures, f"{part['network_ms']['p50']:.2f}")
    console.print(latencies)
    console.print(_exits(record))
    low, high = speedup["wall_clock_95"]
    say(
        f"speed-up: layers {speedup['layers']:.2f}x, MACs {speedup['macs']:.2f}x, "
        f"[bold]wall clock {speedup['wall_clock']:.2f}x[/] (95 %: {low:.2f} to {high:.2f}); "
        f"[bold]efficiency {record['efficiency']:.3f}[/] (network alone "
        f"{record['network_efficiency']:.3f})"
    )
    say(both_counts(base))
    say(
        f"throughput {record['throughput_per_s']:.1f} images/s, peak memory "
        f"{record['env']['peak_memory_mb']:.0f} MB (chain and baseline together)"
    )
    if record["accuracy"] is not None:
        say(
            f"accuracy: early exit [bold]{record['accuracy']:.2%}[/], baseline "
            f"{record['baseline_accuracy']:.2%}"
        )
    elif "mix" in record:
        say(
            "random frames were stopped at every exit in turn, in the shares above; for accuracy "
            "and real shares add --data DIR"
        )
    _energy(record.get("energy"), console)
    if skipped := record.get("skipped"):
        left_out = f"images that cannot be read were skipped: {len(skipped)}, such as {skipped[0]}"
        console.print(plain(left_out, "yellow"), soft_wrap=True)
    for text in record["plain_models"]:
        console.print(plain(text, "yellow"), soft_wrap=True)
    for reason in record["unstable"]:
        console.print(plain(f"unstable: {reason}", "yellow"), soft_wrap=True)


def computed_in(runtime: dict[str, Any]) -> str:
    """Returns in words the precision below float32 that ran and its evidence; empty for float32."""
    if "evidence" not in runtime:
        return ""
    evidence = runtime["evidence"]
    known = "at this policy its decisions were never compared with float32's here"
    return f"computed in {runtime['precision']}: {evidence['text'] if evidence else known}"


def precision_of(record: dict[str, Any]) -> str:
    """Returns the precision of a bundle's graphs, and what else float32 was computed in."""
    bundle: str = record["bundle"]["precision"]
    computed = record["env"]["runtime"].get("precision", "fp32")
    return bundle if computed == "fp32" else f"{bundle} computed in {computed}"


def passes_of(record: dict[str, Any]) -> dict[int, str] | None:
    """Returns how the passes of a record's bundle are called, by number; None for a single one."""
    passes = record["bundle"]["passes"]
    return {each["number"]: each["title"] for each in passes} if len(passes) > 1 else None


def _exits(record: dict[str, Any]) -> Table:
    labelled = record["accuracy"] is not None
    accuracy = ("accuracy",) if labelled else ()
    passes = passes_of(record) or {}
    rest = ("p50 (ms)", "MACs (M)", "MACs x", "wall x", "efficiency")
    return table_of(
        [
            row
            | (row["latency_ms"] or {})
            | {"millions": row["macs"] / 1e6, "title": passes.get(row["pass_number"])}
            for row in record["exits"]
        ],
        "{index} | "
        + ("{title} | " if passes else "")
        + "{block} | {head} | {share:.1%} | "
        + ("{accuracy:.1%} | " if labelled else "")
        + "{p50:.2f} | {millions:,.0f} | {macs_speedup:.2f} | {wall_clock:.2f} | {efficiency:.3f}",
        *("exit", *(("pass",) if passes else ()), "block", "head"),
        numbers=("share", *accuracy, *rest),
    )


def _energy(energy: dict[str, Any] | None, console: Console) -> None:
    """Print energy where it was measured, and what was measured."""
    meters = [meter for meter in energy["meters"] if meter["chain"]] if energy else []
    if energy is None or not meters:
        return
    rows = [
        {"name": meter["name"], "idle": meter["idle_watts"], "ratio": meter["ratio"]}
        | {
            f"{part}_{unit}": meter[part][name]
            for part in ("baseline", "chain")
            for unit, name in (("mj", "mj_per_image"), ("w", "watts"))
        }
        for meter in meters
    ]
    cells = (
        "{name} | {baseline_mj:.2f} | {chain_mj:.2f} | {ratio:.2f} | {idle:.2f} | "
        "{baseline_w:.2f} | {chain_w:.2f}"
    )
    numbers = ("baseline", "early exit", "energy x", "idle W", "baseline W", "early exit W")
    console.print(table_of(rows, cells, "mJ per image", numbers=numbers))
    console.print(plain(what_was_measured(energy)), highlight=False, soft_wrap=True)
    for reason in energy["unstable"]:
        console.print(plain(f"unstable: {reason}", "yellow"), soft_wrap=True)


def what_was_measured(energy: dict[str, Any]) -> str:
    """Returns in words what the figures of energy are."""
    covered: dict[str, list[str]] = {}
    for meter in energy["meters"]:
        if meter["chain"]:
            covered.setdefault(f" ({meter['source']}): {meter['covers']}", []).append(meter["name"])
    what = "; ".join(", ".join(names) + words for words, names in covered.items())
    return (
        f"Energy of {what}. Idle power is included. Medians of {len(energy['turns']) // 2} turns "
        f"each, of passes over the same {energy['images_per_pass']} images"
    )
