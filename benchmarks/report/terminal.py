"""Prints a bench record as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from string import Formatter
from typing import Any

from rich.console import Console
from rich.table import Table

from lgvit_edge._support.terminal import plain, table


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
        f"threads, {record['bundle']['precision']}, {record['env']['cpu']}"
    )
    say(plain(f"{record['samples']} images", "bold") + plain(machine))
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
    if skipped := record.get("skipped"):
        left_out = f"images that cannot be read were skipped: {len(skipped)}, such as {skipped[0]}"
        console.print(plain(left_out, "yellow"), soft_wrap=True)
    for reason in record["unstable"]:
        console.print(plain(f"unstable: {reason}", "yellow"), soft_wrap=True)


def _exits(record: dict[str, Any]) -> Table:
    labelled = record["accuracy"] is not None
    accuracy = ("accuracy",) if labelled else ()
    rest = ("p50 (ms)", "MACs (M)", "MACs x", "wall x", "efficiency")
    return table_of(
        [
            row | (row["latency_ms"] or {}) | {"millions": row["macs"] / 1e6}
            for row in record["exits"]
        ],
        "{index} | {block} | {head} | {share:.1%} | "
        + ("{accuracy:.1%} | " if labelled else "")
        + "{p50:.2f} | {millions:,.0f} | {macs_speedup:.2f} | {wall_clock:.2f} | {efficiency:.3f}",
        *("exit", "block", "head"),
        numbers=("share", *accuracy, *rest),
    )
