"""What the answers of all exits to the same images tell, without PyTorch.

n images, M exits, C classes; exits are numbered 1..M, and the final classifier is M + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.policies.calibration import Reliability

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# How much accuracy a class may lose at an exit that is called safe for it: about what users accept
SAFE_DROP = 0.01
_PARTS = 4  # groups of equally many images, sorted by one measure such as sharpness


@dataclass(frozen=True)
class Answers:
    """What a model answered to images at every exit, and where a policy stopped."""

    classes: Ints  # the likeliest class, [n, M + 1]
    confidences: NDArray[np.float32]  # its probability, [n, M + 1]
    exits: Ints  # where the policy stopped, [n], 1..M + 1
    answers: Ints  # what it answered there, [n]
    blocks: tuple[int, ...]  # how many run before each exit, the final classifier last, [M + 1]
    labels: Ints | None  # [n]; None where the images have none

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def right(self) -> Bools:
        """Whether each exit is right, ``[n, M + 1]``; only with labels."""
        assert self.labels is not None
        return np.asarray(self.classes == self.labels[:, None])

    @cached_property
    def depth(self) -> Floats:
        """The block at which each image was answered, ``[n]``."""
        return np.array(self.blocks, np.float64)[self.exits - 1]


def analysed(answers: Answers, names: Sequence[str], looks: dict[str, Floats]) -> dict[str, Any]:
    """Returns everything that the answers tell, as JSON; what needs labels is None without them.

    ``names`` are those of the classes. ``looks`` has measures of the images, ``[n]`` each, by name:
    ``pixels``, ``sharpness``, ``brightness``.
    """
    labelled = answers.labels is not None
    return {
        "exits": exit_rows(answers),
        "policy": policy_row(answers),
        "agreement": agreement(answers.classes).tolist(),
        "overthinking": overthinking(answers.right, answers.blocks) if labelled else None,
        "classes": class_rows(answers, names) if labelled else None,
        "looks": [look_row(name, values, answers) for name, values in looks.items()],
    }


def class_name(label: int, names: Sequence[str]) -> str:
    """Returns the name of a class, or its number where classes have no names."""
    return names[label] if names else str(label)


def exit_rows(answers: Answers) -> list[dict[str, Any]]:
    """Returns a row for each exit: how often it is right, and what its confidence is worth.

    ``accuracy`` is of all images, ``accuracy_there`` of those that the policy stops at the exit.
    Without labels only ``exit``, ``block``, ``share`` and ``confidence`` are known.
    """
    rows = []
    for m, block in enumerate(answers.blocks):
        confidence = answers.confidences[:, m]
        took = answers.exits == m + 1
        row: dict[str, Any] = {
            "exit": m + 1,
            "block": block,
            "share": float(took.mean()),
            "confidence": float(confidence.mean(dtype=np.float64)),
        }
        names = ("accuracy", "accuracy_there", "calibration_error", "auroc", "calibration")
        row |= dict.fromkeys(names)
        if answers.labels is not None:
            right = answers.right[:, m]
            bins = Reliability.of(confidence, right)
            hit = answers.answers == answers.labels
            row |= {
                "accuracy": float(right.mean()),
                "accuracy_there": float(hit[took].mean()) if took.any() else None,
                "calibration_error": bins.error,
                "auroc": auroc(confidence, right),
                "calibration": [
                    {"images": int(n), "confidence": float(c / n), "accuracy": float(r / n)}
                    for n, c, r in zip(bins.count, bins.confidence, bins.right, strict=True)
                    if n
                ],
            }
        rows.append(row)
    return rows


def policy_row(answers: Answers) -> dict[str, Any]:
    """Returns how deep the policy goes on average, and how often it is right."""
    depth = float(answers.depth.mean())
    hit = None if answers.labels is None else float((answers.answers == answers.labels).mean())
    return {"mean_block": depth, "layers_speedup": answers.blocks[-1] / depth, "accuracy": hit}


def auroc(scores: NDArray[Any], right: Bools) -> float | None:
    """Returns how likely a right answer has a higher score than a wrong one; ties count half.

    It is the area under the ROC curve, 0..1. None where all answers are right, or all wrong.
    """
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return None
    sum_of_ranks = ranks(scores)[right].sum()
    least = positives * (positives + 1) / 2
    return float((sum_of_ranks - least) / (positives * negatives))


def ranks(values: NDArray[Any]) -> Floats:
    """Returns the ranks of values, ``[n]`` from 1; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place.reshape(-1)])


def correlation(x: NDArray[Any], y: NDArray[Any]) -> float | None:
    """Returns Spearman's rank correlation of ``x`` and ``y``, ``[n]``.

    None where one of them is the same for all images.
    """
    a, b = (ranks(values) for values in (x, y))
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else None


def agreement(classes: Ints) -> Floats:
    """Returns the share of images to which each two exits give the same answer.

    ``[n, M + 1] -> [M + 1, M + 1]``; no label is needed.
    """
    same = [(classes == classes[:, m : m + 1]).mean(axis=0) for m in range(classes.shape[1])]
    return np.array(same)


def overthinking(right: Bools, blocks: Sequence[int]) -> dict[str, Any]:
    """Returns how often going on spoils a right answer (Kaya et al., 1810.07052).

    ``right`` is ``[n, M + 1]``, ``blocks`` those that an image goes through, ``[M + 1]``. The
    oracle leaves every image at the first exit that is right, and at the end where none is; its
    accuracy is the final classifier's and ``destructive``.
    """
    early, final = right[:, :-1], right[:, -1]
    some, every = early.any(axis=1), right.any(axis=1)
    first = np.where(every, right.argmax(axis=1), len(blocks) - 1)
    return {
        "wasteful": float((some & final).mean()),  # right early and at the end: time is lost
        "destructive": float((some & ~final).mean()),  # right early and wrong at the end
        "oracle_accuracy": float(every.mean()),
        "oracle_mean_block": float(np.array(blocks)[first].mean()),
        "spoilt_by_exit": (early & ~final[:, None]).mean(axis=0).tolist(),
        "mended_by_exit": (~early & final[:, None]).mean(axis=0).tolist(),
    }


def class_rows(answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a row for each class that has images: which exit answers it, and how well.

    ``safe_exit`` is the first exit whose accuracy on the class is at most ``SAFE_DROP`` below the
    final classifier's. ``drop_error`` is the standard error of the difference there, with half an
    image added to each way in which two exits can be right or wrong (Agresti and Min, 2005):
    otherwise it would be 0 where both are right on the same images, however few these are. It is 0
    where the final classifier alone is safe.
    """
    assert answers.labels is not None
    rows = []
    for label in np.unique(answers.labels):
        own = answers.labels == label
        right, count = answers.right[own], int(own.sum())
        last = right.shape[1] - 1
        hits = right.sum(axis=0)
        safe = int(np.argmax(hits >= hits[-1] - SAFE_DROP * count - 1e-9))  # 0.07 - 0.01 > 0.06
        lost = int((right[:, -1] & ~right[:, safe]).sum())
        won = int((~right[:, -1] & right[:, safe]).sum())
        variance = (lost + won + 1) - (lost - won) ** 2 / (count + 2)
        shares = np.bincount(answers.exits[own] - 1, minlength=right.shape[1]) / count
        rows.append(
            {
                "class": int(label),
                "name": class_name(label, names),
                "images": count,
                "accuracy": (hits / count).tolist(),
                "policy_accuracy": float((answers.answers[own] == label).mean()),
                "shares": shares.tolist(),
                "mean_block": float(answers.depth[own].mean()),
                "safe_exit": safe + 1,
                "drop": (lost - won) / count,
                "drop_error": math.sqrt(variance) / (count + 2) if safe < last else 0.0,
            }
        )
    return rows


def easiness(answers: Answers) -> Floats:
    """Returns how easy each image is, ``[n]``: the mean of its exits' confidences.

    With labels the confidence in a wrong answer counts against it.
    """
    sign = 1.0 if answers.labels is None else np.where(answers.right, 1.0, -1.0)
    return np.asarray((answers.confidences * sign).mean(axis=1, dtype=np.float64))


def look_row(name: str, values: Floats, answers: Answers) -> dict[str, Any]:
    """Returns how depth goes with a measure of the images, ``[n]``: rank correlation, and by parts.

    Parts hold about equally many images, from the smallest values to the largest; images of one
    value are in one part. ``parts`` is None where all values are the same, ``correlation`` also
    where all images stop at the same block.
    """
    row: dict[str, Any] = {"name": name, "correlation": correlation(values, answers.depth)}
    if values.min() == values.max():
        return row | {"parts": None}
    order = np.argsort(values, kind="stable")
    steps = np.flatnonzero(np.diff(values[order])) + 1  # where another value begins
    wanted = len(values) * np.arange(1, _PARTS) / _PARTS
    cuts = np.unique(steps[np.abs(steps[:, None] - wanted).argmin(axis=0)])
    parts = np.split(order, cuts)
    hit = None if answers.labels is None else answers.answers == answers.labels
    return row | {
        "parts": [
            {
                "from": float(values[part[0]]),
                "to": float(values[part[-1]]),
                "mean_block": float(answers.depth[part].mean()),
                "accuracy": None if hit is None else float(hit[part].mean()),
            }
            for part in parts
        ]
    }
