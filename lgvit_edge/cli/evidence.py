"""Shows what is known of precisions below float32, for several commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lgvit_edge._support.terminal import plain, say, table

_ACCURACIES = ("accuracy", "reference_accuracy")


def print_evidence(records: Sequence[dict[str, Any]], console: Console) -> None:
    """Print what ``evidence_records`` returns as a table, and below it why some does not count."""
    if not records:
        return
    rows = table(
        *("precision", "policy", "auto may take it"),
        numbers=("images", "same exit", "same answer", "top-1", "in float32"),
    )
    names = [
        (f"{r['backend']} {r['precision']}", ", ".join(r["at"]) or str(r["policy"]["name"]))
        for r in records
    ]
    for record, name in zip(records, names, strict=True):
        top1 = ["-" if (a := record[k]) is None else f"{a:.2%}" for k in _ACCURACIES]
        rows.add_row(
            *map(plain, name),
            "no" if record["faults"] else "yes",
            str(record["images"]),
            f"{record['same_exit']:.2%}",
            f"{record['same_label']:.2%}",
            *top1,
        )
    rows.caption = plain("on " + "; ".join(sorted({record["hardware"] for record in records})))
    rows.caption_justify = "left"
    console.print(rows)
    for record, (way, policy) in zip(records, names, strict=True):
        if record["faults"]:
            say(f"{way}, {policy}: {'; '.join(record['faults'])}", console)
