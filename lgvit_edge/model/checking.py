"""Checks that a model answers as it should: against its own library, and by labelled images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lgvit_edge._support.terminal import Update
from lgvit_edge.errors import DataError
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.images.preprocess import load_rgb, network_input
from lgvit_edge.model.checkpoints.loading import Stored
from lgvit_edge.model.checkpoints.timm_names import published_accuracy
from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.model.originals import NotRun, Original, original

_BATCH = 8
_FEW = 16  # images, of which luck tells more than skill
_BELOW = 0.05  # of a published accuracy: images of another selection may lie as far below it
# Of the largest logit: float32 in another order moves far less, another activation far more.
_TOLERANCE = 1e-4
# Mean difference of the pixels of the worst image, in grey levels; libraries that round otherwise
# stay below, another interpolation or crop does not.
_GREY_LEVELS = 1.0


def check_model(
    model: LGViT,
    stored: Stored,
    images: Sequence[LabelledImage],
    *,
    use_ema: bool = False,
    progress: Update = lambda done, total, detail="": None,
) -> dict[str, Any]:
    """Compares a model with its original on images, and counts its right answers.

    Args:
        model: as it was made of ``stored``, in eval mode, with the preprocessing to check.
        stored: what was read from its path.
        images: all of which can be decoded.
        use_ema: as ``model`` was read.
        progress: is told how many images are done.

    Returns a record in plain JSON types. ``agrees`` is None where there is nothing to compare
    with, and ``not_compared`` says why.

    Raises:
        DataError: there are no labels either.
    """
    theirs, reason = None, None
    try:
        theirs = original(stored, model.config, use_ema=use_ema)
    except NotRun as error:
        reason = str(error)
    labelled = sum(image.class_index is not None for image in images)
    if theirs is None and not labelled:
        raise DataError(
            f"nothing to check answers with: {reason}, and the images have no labels; give a "
            "folder with one sub-folder per class, or --labels FILE"
        )
    counts = _Counts()
    with torch.no_grad():
        for start in range(0, len(images), _BATCH):
            progress(start, len(images))
            _batch(counts, model, theirs, images[start : start + _BATCH])
        progress(len(images), len(images))
    record: dict[str, Any] = {
        "images": len(images),
        "labelled": labelled,
        "accuracy": [right / labelled for right in counts.right] if labelled else None,
        "library": None if theirs is None else theirs.library,
        "not_compared": reason,
    }
    if theirs is not None:
        tolerance = _TOLERANCE * max(1.0, counts.largest_logit)
        record["same_pixels"] = {
            "agree": counts.agree,
            "largest_difference": counts.difference,
            "tolerance": tolerance,
        }
        record["not_prepared"] = theirs.unprepared or None
        record["own_preprocessing"] = None
        if theirs.prepare is not None:
            record["own_preprocessing"] = {
                "agree": counts.own_agree,
                "grey_levels": counts.grey_levels,
                "a_pixel_beside": counts.moved,
                "tolerance": _GREY_LEVELS,
                "accuracy": counts.own_right / labelled if labelled else None,
            }
    record["differs"] = _differs(record, counts, model)
    record["agrees"] = None if theirs is None else not record["differs"]
    record["chance"] = _is_chance(counts.right, labelled, model.config.num_classes)
    record["published"] = _promised(stored, model.config.num_classes)
    record["below"] = _is_below(counts.right, labelled, record["published"])
    return record


@dataclass
class _Counts:
    """What was counted so far."""

    right: list[int] = field(default_factory=list)  # of each exit, the final classifier last
    agree: int = 0  # equal answers on equal pixels
    difference: float = 0.0  # the largest, of logits on equal pixels
    largest_logit: float = 0.0
    own_agree: int = 0  # equal answers, each on its own pixels
    own_right: int = 0
    grey_levels: float = 0.0  # mean difference of pixels, of the worst image
    moved: int = 0  # images whose crop lies a pixel beside the library's
    shape: tuple[int, ...] | None = None  # of the library's images, if ours have another


def _batch(
    counts: _Counts, model: LGViT, theirs: Original | None, images: Sequence[LabelledImage]
) -> None:
    config = model.config
    frames = [load_rgb(image.path) for image in images]
    pixels = torch.from_numpy(
        network_input(frames, config.preprocess, config.image_size, "float32")
    )
    logits = model.exit_logits(pixels)  # [B, M + 1, C]
    answers = logits.argmax(-1)
    labels = torch.tensor([-1 if i.class_index is None else i.class_index for i in images])
    right = (answers == labels[:, None]).sum(0).tolist()
    counts.right = [a + b for a, b in zip(counts.right or [0] * len(right), right, strict=True)]
    if theirs is None:
        return
    final, decided = logits[:, -1], answers[:, -1]
    expected = theirs.logits(pixels).float()
    counts.agree += int((expected.argmax(-1) == decided).sum())
    counts.difference = _larger(counts.difference, (expected - final).abs())
    counts.largest_logit = _larger(counts.largest_logit, expected.abs())
    if theirs.prepare is None:
        return
    for frame, ours, answer, label in zip(frames, pixels, decided, labels, strict=True):
        own = theirs.prepare(frame)
        if own.shape != ours.shape:
            counts.shape = tuple(own.shape)
            continue
        std = torch.tensor(config.preprocess.std)[:, None, None]
        difference, moved = _apart(own * std * 255, ours * std * 255)
        counts.grey_levels = _larger(counts.grey_levels, torch.tensor(difference))
        counts.moved += moved
        theirs_answer = theirs.logits(own[None]).argmax(-1)[0]
        counts.own_agree += int(theirs_answer == answer)
        counts.own_right += int(theirs_answer == label)


def _apart(theirs: Tensor, ours: Tensor) -> tuple[float, bool]:
    """Returns the mean difference of images, and whether one lies a pixel beside the other.

    Libraries round the place of a crop otherwise where as many pixels cannot be left on both sides.
    """
    inner = ours[:, 1:-1, 1:-1]
    height, width = ours.shape[1:]
    apart = {
        (y, x): float((theirs[:, y : y + height - 2, x : x + width - 2] - inner).abs().mean())
        for y in range(3)
        for x in range(3)
    }
    place = min(apart, key=lambda place: apart[place])
    return apart[place], place != (1, 1)


def _larger(so_far: float, values: Tensor) -> float:
    """Returns the largest value, and NaN once there was one."""
    most = float(values.max())
    return most if math.isnan(most) or most > so_far else so_far


def _differs(record: dict[str, Any], counts: _Counts, model: LGViT) -> list[str]:
    """Returns what differs, and what to look at."""
    found, config, name = [], model.config, record["library"]
    same, own = record.get("same_pixels"), record.get("own_preprocessing")
    if same is not None and not same["largest_difference"] <= same["tolerance"]:
        found.append(
            f"on equal pixels logits differ from {name} by {same['largest_difference']:.2g}, "
            f"expected at most {same['tolerance']:.2g}: the model is computed otherwise; look at "
            f"its activation ({config.activation}), attention heads ({config.num_heads}), eps "
            f"({config.layer_norm_eps:g}) and pooling ({config.pooling})"
        )
    if own is None:
        return found
    ours = config.preprocess.described(config.image_size)
    cure = (
        f"here it is: {ours}; look at the library's, and give --mean, --std, --interpolation or "
        "--crop-pct"
    )
    if counts.shape is not None:
        found.append(
            f"{name} makes images {list(counts.shape)} of some, expected "
            f"{[3, config.image_size, config.image_size]}: the preprocessing is another; {cure}"
        )
    elif not own["grey_levels"] <= own["tolerance"]:
        found.append(
            f"pixels differ from those of {name} by {own['grey_levels']:.2g} grey levels on "
            f"average in the worst image, expected at most {own['tolerance']:g}: the preprocessing "
            f"is another; {cure}"
        )
    return found


def _is_chance(right: Sequence[int], labelled: int, classes: int) -> bool:
    """Says whether the final classifier is right no more often than one that guesses may be."""
    if labelled < _FEW:
        return False
    guessed = labelled / classes
    spread = math.sqrt(guessed * (1 - 1 / classes))
    return right[-1] <= guessed + 2 * spread


def _promised(stored: Stored, classes: int) -> float | None:
    """Returns the accuracy on ImageNet-1k that timm publishes for weights of this name, or None."""
    if stored.has_exits or classes != 1000:
        return None
    architecture, cfg = stored.config.get("architecture"), stored.config.get("pretrained_cfg")
    if not stored.config:
        return published_accuracy(stored.path.stem)
    tag = cfg.get("tag") if isinstance(cfg, dict) else None
    return published_accuracy(f"{architecture}.{tag}" if tag else f"{architecture}")


def _is_below(right: Sequence[int], labelled: int, promised: float | None) -> bool:
    """Says whether the final classifier is right far less often than published weights are."""
    if promised is None or labelled < _FEW:
        return False
    luck = 3 * math.sqrt(promised * (1 - promised) / labelled)
    return right[-1] / labelled < promised - _BELOW - luck
