"""Shows what is known of precisions below float32, for several commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lgvit_edge._support.terminal import note, plain, say, table

if TYPE_CHECKING:
    from lgvit_edge.images.labelled import LabelledImage
    from lgvit_edge.runtime.backends.base import ChainOptions
    from lgvit_edge.tuning.record import Recording

_ACCURACIES = ("accuracy", "reference_accuracy")


def print_evidence(
    records: Sequence[dict[str, Any]], console: Console, options: ChainOptions | None = None
) -> None:
    """Print what ``evidence_records`` returns as a table, and below it why some does not count.

    ``options`` tell which hardware is here; by default that of a session without options.
    """
    if not records:
        return
    from lgvit_edge.runtime.backends.base import ChainOptions
    from lgvit_edge.runtime.precision import runs_here

    options = options or ChainOptions()
    found = dict.fromkeys((record["backend"], record["hardware"]) for record in records)
    machines = {machine: runs_here(*machine, options) for machine in found}
    numbers = {machine: str(number) for number, machine in enumerate(machines, 1)}
    rows = table(
        *("precision", "policy", "auto may take it here"),
        numbers=("images", "same exit", "same answer", "top-1", "in float32", "on"),
    )
    names = [
        (f"{r['backend']} {r['precision']}", ", ".join(r["at"]) or str(r["policy"]["name"]))
        for r in records
    ]
    for record, name in zip(records, names, strict=True):
        machine = record["backend"], record["hardware"]
        top1 = ["-" if (a := record[k]) is None else f"{a:.2%}" for k in _ACCURACIES]
        rows.add_row(
            *map(plain, name),
            "yes" if machines[machine] and not record["faults"] else "no",
            str(record["images"]),
            f"{record['same_exit']:.2%}",
            f"{record['same_label']:.2%}",
            *top1,
            numbers[machine],
        )
    listed = [
        f"on {numbers[machine]}: {machine[1]} ({'here' if here else 'not here'})"
        for machine, here in machines.items()
    ]
    rows.caption = plain("\n".join(listed))
    rows.caption_justify = "left"
    console.print(rows)
    for record, (way, policy) in zip(records, names, strict=True):
        if record["faults"]:
            say(f"{way}, {policy}: {'; '.join(record['faults'])}", console)


def tell_unreadable(recording: Recording, images: Sequence[LabelledImage]) -> None:
    """Say how many images could not be read, and name one."""
    if len(unreadable := recording.unreadable):
        note(
            f"{len(unreadable)} of {len(images)} images cannot be read and were left out, such as "
            f"{images[unreadable[0]].path}"
        )
