"""Where the exits of a model look in some images: maps to draw, and measures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lgvit_edge._support.terminal import Update
from lgvit_edge.errors import ConfigError, DataError
from lgvit_edge.images.preprocess import load_rgb, network_input, to_float
from lgvit_edge.model import LGViT
from lgvit_edge.probing.analysis import Answers
from lgvit_edge.probing.collect import Subject
from lgvit_edge.probing.concentration import MEASURES
from lgvit_edge.probing.overlay import Column, column
from lgvit_edge.probing.ranks import rank_correlation
from lgvit_edge.probing.relevance import relevance, usual_method
from lgvit_edge.probing.sanity import random_twin
from lgvit_edge.probing.ways import way_to


@dataclass
class View:
    """What the exits of a model look at in n images.

    ``left_out`` says of exits why they have no map. The others have a row of measures and a column.
    """

    rows: list[int]  # of the images, among those that were read
    frames: NDArray[np.uint8]  # as the network sees them, [n, S, S, 3] RGB
    labels: list[int | None]  # classes of the images, where they are known
    asked: list[int]  # the classes whose relevance is shown
    names: Sequence[str]  # of all classes; empty: they have numbers
    columns: list[Column] = field(default_factory=list)
    exits: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def chosen_rows(easiness: NDArray[np.float64], count: int) -> list[int]:
    """Returns images spread from the easiest to the hardest, both included."""
    order = np.argsort(-easiness, kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(row) for row in order[places]]


def view(
    subject: Subject,
    answers: Answers,
    files: Sequence[Path],
    rows: Sequence[int],
    *,
    seed: int,
    progress: Update = lambda done, total, detail="": None,
) -> View | None:
    """Returns where each exit of an LGViT looks in some images; None where none can be read.

    It is the relevance of the image's class, and without a label of the class that the final
    classifier answers, so that the maps of an image can be compared.

    Args:
        subject: the network.
        answers: what it answered, by row.
        files: the images, by row.
        rows: which of them; files that were removed since are left out.
        seed: of the random weights that maps are compared with.
        progress: is told how many exits are done.
    """
    model = subject.lgvit
    assert model is not None
    seen = _read(subject, answers, files, rows)
    if not seen.rows:
        return None
    pixels = torch.from_numpy(to_float(seen.frames, subject.preprocess))
    twin, last = random_twin(model, seed), len(model.heads) + 1
    for exit in range(1, last + 1):
        progress(exit - 1, last, "where exits look")
        try:
            shown, method, broken = _maps(model, twin, pixels, exit, torch.tensor(seen.asked))
        except (ConfigError, DataError) as error:
            seen.left_out.append(f"{'final' if exit == last else f'exit {exit}'}: {error}")
            continue
        maps = torch.from_numpy(shown.maps)
        measures = {name: measure(maps) for name, measure in MEASURES.items()}
        measures["random_weights"] = rank_correlation(maps, broken)
        kind = way_to(model, exit).kind
        about = {"exit": exit, "block": shown.block, "head": kind, "method": method}
        values = {name: _summary(found) for name, found in measures.items()}
        seen.exits.append(about | {"empty": int((~shown.maps.any((1, 2))).sum())} | values)
        seen.columns.append(shown)
    progress(last, last, "where exits look")
    return seen


def _read(subject: Subject, answers: Answers, files: Sequence[Path], rows: Sequence[int]) -> View:
    crops, kept = [np.zeros((0, subject.size, subject.size, 3), np.uint8)], []
    for row in rows:
        try:
            frame = load_rgb(files[row])
        except DataError:
            continue  # the file was removed since
        crops.append(np.array(network_input([frame], subject.preprocess, subject.size, "uint8")))
        kept.append(row)
    labels = [None if answers.labels is None else int(answers.labels[row]) for row in kept]
    final = (int(answers.classes[row, -1]) for row in kept)
    asked = [
        answer if label is None else label for label, answer in zip(labels, final, strict=True)
    ]
    assert subject.lgvit is not None
    return View(kept, np.concatenate(crops), labels, asked, subject.lgvit.config.labels)


def _maps(
    model: LGViT, twin: LGViT, pixels: Tensor, exit: int, classes: Tensor
) -> tuple[Column, str, Tensor]:
    """Returns the column of an exit, the method that suits it, and maps of random weights."""
    method = usual_method(model, exit)
    try:
        shown = column(model, pixels, exit, method=method, classes=classes)
    except ConfigError as error:
        if method == "gradcam":
            raise
        method = "gradcam"  # which reads no attention
        try:
            shown = column(model, pixels, exit, method=method, classes=classes)
        except ConfigError:
            raise error from None
    return shown, method, relevance(twin, pixels, exit=exit, classes=classes, method=method)


def _summary(values: Tensor) -> dict[str, Any]:
    """Returns the number of each image and their mean; None where there is none."""
    known = values[values.isfinite()]
    mean = float(known.mean()) if len(known) else None
    # A map that is zero everywhere has no measures.
    return {"mean": mean, "values": [v if np.isfinite(v) else None for v in values.tolist()]}
