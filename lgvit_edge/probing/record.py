"""The record of a probe: all figures in plain JSON types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.probing.analysis import Answers, analysed, class_name, easiness
from lgvit_edge.probing.cka import Cka
from lgvit_edge.probing.collect import Collected, Subject
from lgvit_edge.probing.views import View

_SHOWN = 12  # of the easiest images, and of the hardest
_DIGITS = 5  # of CKA


def to_record(
    subjects: Sequence[Subject],
    collected: Collected,
    images: Sequence[Path],
    data: Path,
    views: Sequence[View | None],
) -> dict[str, Any]:
    """Returns what a run over ``images`` of the folder ``data`` tells of the networks.

    ``views`` say where their exits look, in some of the images.
    """
    read = [images[place] for place in collected.places]
    files = [_within(path, data) for path in read]
    return {
        "images": {
            "given": len(images),
            "read": len(read),
            "unreadable": len(collected.unreadable),
            "such_as": collected.unreadable[:1],
        },
        "models": [
            _model(subject, answers, collected, files, view)
            for subject, answers, view in zip(subjects, collected.answers, views, strict=True)
        ],
        "cka": None if collected.cka is None else _cka(subjects, collected.cka),
    }


def _within(path: Path, data: Path) -> str:
    return str(path.relative_to(data) if path.is_relative_to(data) else path)


def _model(
    subject: Subject,
    answers: Answers | None,
    collected: Collected,
    files: Sequence[str],
    view: View | None,
) -> dict[str, Any]:
    about: dict[str, Any] = {"name": subject.name, "kind": type(subject.network).__name__}
    about["sees"] = subject.preprocess.described(subject.size)
    if subject.lgvit is None or answers is None:
        return about
    config = subject.lgvit.config
    about |= {
        "kind": config.family,
        "blocks": config.num_blocks,
        "classes_in_all": config.num_classes,
        "labelled": answers.labels is not None,
    }
    about |= analysed(answers, config.labels, collected.looks)
    for row, head in zip(about["exits"], [*(e.head for e in config.exits), "final"], strict=True):
        row["head"] = head
    order = np.argsort(-easiness(answers), kind="stable")
    count = min(_SHOWN, (len(order) + 1) // 2)  # with few images, none is in both groups
    hard = order[count:][-count:][::-1]
    for name, places in (("easiest", order[:count]), ("hardest", hard)):
        about[name] = [_image(answers, place, files, config.labels) for place in places.tolist()]
    about["relevance"] = None if view is None else _relevance(view, files)
    return about


def _relevance(view: View, files: Sequence[str]) -> dict[str, Any]:
    images = [
        {"row": row, "file": files[row], "class": class_name(asked, view.names)}
        for row, asked in zip(view.rows, view.asked, strict=True)
    ]
    return {"images": images, "exits": view.exits, "left_out": view.left_out}


def _image(
    answers: Answers, place: int, files: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    label = None if answers.labels is None else int(answers.labels[place])
    return {
        "row": place,
        "file": files[place],
        "truth": None if label is None else class_name(label, names),
        "answer": class_name(int(answers.classes[place, -1]), names),
        "right": None if label is None else bool(answers.right[place, -1]),
        "confidence": float(answers.confidences[place, -1]),
        "exits_right": None if label is None else int(answers.right[place].sum()),
        "exit": int(answers.exits[place]),
    }


def _cka(subjects: Sequence[Subject], cka: Cka) -> dict[str, Any]:
    matrix = cka.matrix()
    owners = np.array([owner for owner, _ in cka.stages])
    names = [name for _, name in cka.stages]
    about: dict[str, Any] = {
        "images": cka.images,
        "batches": cka.batches,
        "stages": [
            {"model": int(owner), "name": name} for owner, name in zip(owners, names, strict=True)
        ],
        "matrix": np.round(matrix, _DIGITS).tolist(),
        "against": None,
    }
    if len(subjects) > 1:
        first, second = (np.flatnonzero(owners == number) for number in (0, 1))
        others = [names[place] for place in second]
        about["against"] = [
            {"stage": names[place], **closest(matrix[place, second], others)} for place in first
        ]
    return about


def closest(row: NDArray[np.float64], names: Sequence[str]) -> dict[str, Any]:
    """Returns what of another network a stage resembles, ``row`` being its CKA with each stage.

    ``depth`` says where the closest stage lies, 0 for the first and 1 for the last one.
    ``lower_half`` and ``upper_half`` are means of CKA. All are None where CKA is not defined.
    """
    if np.isnan(row).all():
        return dict.fromkeys(("closest", "cka", "depth", "lower_half", "upper_half"))
    place, half = int(np.nanargmax(row)), (len(row) + 1) // 2

    def mean(part: NDArray[np.float64]) -> float | None:
        known = part[~np.isnan(part)]
        return float(known.mean()) if len(known) else None

    return {
        "closest": names[place],
        "cka": float(row[place]),
        "depth": place / max(len(row) - 1, 1),
        "lower_half": mean(row[:half]),
        "upper_half": mean(row[half:]),
    }
