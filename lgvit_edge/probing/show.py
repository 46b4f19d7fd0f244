"""Prints a probe's record as tables and sentences in a terminal."""

from __future__ import annotations

from functools import partial
from typing import Any

from rich.console import Console

from lgvit_edge._support import terminal
from lgvit_edge.benchmarks.report.terminal import table_of
from lgvit_edge.probing.cka import FEW, LEAST


def notes(record: dict[str, Any]) -> list[str]:
    """Returns what was left out, and why, in sentences."""
    told, images = list(record["notes"]), record["images"]
    if images["unreadable"]:
        told.append(
            f"{images['unreadable']} of {images['given']} images cannot be read, such as: "
            f"{images['such_as'][0]}"
        )
    if record["cka"] is None:
        told.append(f"CKA is left out: it needs at least {LEAST} images")
    else:
        count = record["cka"]["images"]
        if left := images["read"] - count:
            told.append(f"CKA is of {count} images: {left} fill no minibatch")
        if count < FEW:
            told.append(
                f"CKA is of {count} images: below {FEW}, stages that have nothing in common can "
                "look alike; give more with --samples"
            )
    for model in record["models"]:
        for reason in (model.get("relevance") or {}).get("left_out", ()):
            told.append(f"{model['name']}, where exits look: {reason}")
        if "exits" in model and not model["labelled"]:
            told.append(
                f"{model['name']}: images have no labels, so that accuracy, calibration, AUROC, "
                "overthinking and classes are left out"
            )
    return told


def print_probe(record: dict[str, Any], console: Console) -> None:
    """Prints exits, what going on mends and spoils, and what the stages resemble."""
    say = partial(terminal.say, to=console)
    for model in record["models"]:
        if "exits" not in model:
            continue
        last = len(model["exits"])
        rows = [
            row | {"name": "final" if row["exit"] == last else str(row["exit"]), "agrees": agrees}
            for row, agrees in zip(model["exits"], model["agreement"][-1], strict=True)
        ]
        cells = (
            "{name} | {block} | {head} | {accuracy:.2%} | {confidence:.1%} | "
            "{calibration_error:.3f} | {auroc:.3f} | {agrees:.1%} | {share:.1%}"
        )
        numbers = ("accuracy", "confidence", "ECE", "AUROC", "as the final", "share")
        say(f"{model['name']}, {record['images']['read']} images", style="bold")
        console.print(table_of(rows, cells, "exit", "block", "head", numbers=numbers))
        policy, thought = model["policy"], model["overthinking"]
        text = (
            f"under {record['policy']['name']} {policy['mean_block']:.2f} of {model['blocks']} "
            f"blocks run on average ({policy['layers_speedup']:.2f}x fewer)"
        )
        if thought is not None:
            text += (
                f", {policy['accuracy']:.2%} are right; {thought['destructive']:.2%} are right "
                "early and wrong at the end; an oracle of exits would be right on "
                f"{thought['oracle_accuracy']:.2%} after {thought['oracle_mean_block']:.2f} blocks"
            )
        say(text)
        for row in model["looks"]:
            if row["correlation"] is not None:
                say(f"depth and {row['name']}: rank correlation {row['correlation']:+.2f}")
        if model["relevance"]:
            _looks(model, console)
    if record["cka"] is not None and record["cka"]["against"]:
        _against(record, console)
    for text in notes(record):
        say(text, style="yellow")


def _looks(model: dict[str, Any], console: Console) -> None:
    relevance = model["relevance"]
    rows = [
        row | {"name": "final" if row["head"] == "final" else str(row["exit"])}
        for row in relevance["exits"]
    ]
    cells = (
        "{name} | {block} | {head} | {method} | {effective_area[mean]:.3f} | {gini[mean]:.3f} | "
        "{spread[mean]:.3f} | {random_weights[mean]:+.2f}"
    )
    numbers = ("area", "Gini", "spread", "alike with random weights")
    terminal.say(f"where exits look, {len(relevance['images'])} images", console, style="bold")
    names = ("exit", "block", "head", "method")
    console.print(table_of(rows, cells, *names, numbers=numbers))


def _against(record: dict[str, Any], console: Console) -> None:
    other = record["models"][1]["name"]
    cells = "{stage} | {closest} | {cka:.2f} | {depth:.0%} | {lower_half:.2f} | {upper_half:.2f}"
    numbers = ("CKA", "lies at", "lower half", "upper half")
    terminal.say(f"what each stage resembles in {other}", console, style="bold")
    console.print(table_of(record["cka"]["against"], cells, "stage", "closest", numbers=numbers))
