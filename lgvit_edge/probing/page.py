"""Writes a probe as one self-contained web page, in the manner of ``bench --report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lgvit_edge import __version__
from lgvit_edge._support.outputs import write
from lgvit_edge.benchmarks.report.gallery import Picture, inlined, thumbnail
from lgvit_edge.benchmarks.report.html import rendered
from lgvit_edge.errors import DataError
from lgvit_edge.probing import plots
from lgvit_edge.probing.overlay import Column, described, overlaid, scale, short_name
from lgvit_edge.probing.show import notes
from lgvit_edge.probing.views import View

_CLASSES = 20  # rows of those that leave latest, and as many of those that leave earliest


def write_page(
    path: Path, record: dict[str, Any], images: Sequence[Path], views: Sequence[View | None]
) -> None:
    """Writes the page, completely or not at all.

    ``record`` is complete, ``images`` the files that were read, in the order of its rows, and
    ``views`` what to draw of where the exits of each model look.

    Raises:
        MissingDependency: jinja2 or matplotlib is not installed.
        OSError: the page cannot be written.
    """
    models, cka = record["models"], record["cka"]
    pairs = [(0, 0)] if len(models) == 1 else [(0, 0), (0, 1), (1, 1)]
    names = [model["name"] for model in models]
    text = rendered(
        "probe.html.j2",
        folder=Path(__file__).parent,
        title=f"Probe of {' and '.join(names)}",
        subtitle=f"{record['images']['read']} images, lgvit-edge {__version__}",
        notes=notes(record),
        tiles=_tiles(record),
        heatmaps=[] if cka is None else [plots.heatmap(record, *pair) for pair in pairs],
        against=None if cka is None else cka["against"],
        names=names,
        models=[
            _model(model, images, view)
            for model, view in zip(models, views, strict=True)
            if "exits" in model
        ],
        policy=_named(record["policy"]),
        command=record["command"],
        conditions=_conditions(record),
        percent=lambda v, digits: "-" if v is None else f"{100 * v:.{digits}f} %",
        number=lambda v, digits: "-" if v is None else f"{v:.{digits}f}",
    )
    write(path, text)


def _named(policy: dict[str, Any]) -> str:
    values = ", ".join(f"{k} {v}" for k, v in policy.items() if k != "name")
    return f"{policy['name']} ({values})" if values else str(policy["name"])


def _tiles(record: dict[str, Any]) -> list[tuple[str, str]]:
    tiles = [(str(record["images"]["read"]), "images")]
    for model in record["models"]:
        if "exits" not in model:
            continue
        of, policy = f" of {model['name']}" * (len(record["models"]) > 1), model["policy"]
        depth = f"of {model['blocks']} blocks run on average under the policy"
        tiles.append((f"{policy['mean_block']:.1f}", depth + of))
        if model["labelled"]:
            final, lost = model["exits"][-1]["accuracy"], model["overthinking"]["destructive"]
            right = f"right under the policy; {100 * final:.2f} % without exits"
            tiles.append((f"{100 * policy['accuracy']:.2f} %", right + of))
            tiles.append((f"{100 * lost:.1f} %", f"right early and wrong at the end{of}"))
    return tiles


def _model(model: dict[str, Any], images: Sequence[Path], view: View | None) -> dict[str, Any]:
    drawn = []
    if model["labelled"]:
        drawn += [plots.accuracies(model), plots.calibration(model)]
    if len(model["exits"]) > 1:
        drawn.append(plots.agreement(model))
    rows = sorted(model["classes"] or [], key=lambda row: -float(row["mean_block"]))
    shown = rows if len(rows) <= 2 * _CLASSES else [*rows[:_CLASSES], *rows[-_CLASSES:]]
    right = "Right at most exits, and sure" if model["labelled"] else "Sure at most exits"
    wrong = (
        "Wrong or unsure at most exits. Where they are sure and wrong, look for wrong labels, and "
        "for classes that mean the same"
        if model["labelled"]
        else "Unsure at most exits"
    )
    galleries = [
        ("Easiest images", f"{right}.", _pictures(model["easiest"], images)),
        ("Hardest images", f"{wrong}.", _pictures(model["hardest"], images)),
    ]
    return {
        "about": model,
        "plots": drawn,
        "classes": shown,
        "left_out": len(rows) - len(shown),
        "galleries": [gallery for gallery in galleries if gallery[2]],
        "maps": [] if view is None else _maps(view),
    }


def _maps(view: View) -> list[dict[str, Any]]:
    """Returns for each image what stands in its row: itself, and the map of each exit over it."""
    colours = scale().cmap
    rows = []
    for row, (frame, label, asked) in enumerate(
        zip(view.frames, view.labels, view.asked, strict=True)
    ):
        title = short_name(asked, view.names)
        cells = [
            _cell(column, row, inlined(_overlay(frame, column, row, colours)), view.names, label)
            for column in view.columns
        ]
        rows.append({"source": inlined(Image.fromarray(frame)), "title": title, "cells": cells})
    return rows


def _overlay(frame: Any, column: Column, row: int, colours: Any) -> Image.Image:
    blended = overlaid(frame, column.maps[row], colours)
    return Image.fromarray((255 * blended).round().astype(np.uint8))


def _cell(
    column: Column, row: int, source: str, names: Sequence[str], label: int | None
) -> dict[str, Any]:
    answer = int(column.answers[row])
    return {
        "source": source,
        "alt": described(column, row, names, label),
        "answer": short_name(answer, names),
        "confidence": f"{column.confidences[row]:.0%}",
        "right": None if label is None else answer == label,
        "empty": not column.maps[row].any(),
    }


def _pictures(rows: list[dict[str, Any]], images: Sequence[Path]) -> list[Picture]:
    pictures = []
    for row in rows:
        try:
            source = thumbnail(images[row["row"]])
        except DataError:
            continue  # the file was removed since
        sure = f"{100 * row['confidence']:.0f} % at the end; under the policy"
        pictures.append(
            Picture(source, row["answer"], row["truth"], row["right"], sure, row["exit"])
        )
    return pictures


def _conditions(record: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(f"images of {model['name']}", model["sees"]) for model in record["models"]]
    if (cka := record["cka"]) is not None:
        told = f"{cka['images']} images in {cka['batches']} minibatches"
        told += ", tokens of blocks normed" * record["normed"]
        rows.append(("CKA", f"linear, unbiased (HSIC_1), {told}"))
    env = record["env"]
    packages = ", ".join(f"{k} {v}" for k, v in env["packages"].items())
    return [
        *rows,
        ("policy", _named(record["policy"])),
        *((name, str(record[name])) for name in ("batch", "seed", "device")),
        *((name, str(env[name])) for name in ("cpu", "system", "python")),
        ("packages", packages),
    ]
