"""Checks on real images that the exported chain decides as the float32 model does.

Logits may differ a little at lower precision. What matters is that images still leave at the same
exits with the same answers, because thresholds are compared with confidences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lgvit_edge.bundle.manifest import Agreement, GraphSpec
from lgvit_edge.errors import ParityError
from lgvit_edge.export.checks.parity import graph_runner, reference_logits
from lgvit_edge.images import labelled
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.images.preprocess import load_rgb, network_input, to_float
from lgvit_edge.model import LGViT
from lgvit_edge.policies import Policy
from lgvit_edge.policies.scores import confidence

# By precision, as shares: top-1 that may be lost, and images that may leave at another exit.
ALLOWED = {"fp32": (0.0005, 0.001), "fp16": (0.002, 0.01), "int8": (0.01, 0.03)}
_CHUNK = 16

Logits = NDArray[np.float32]  # [images, M + 1, C]


def compare(
    model: LGViT,
    root: Path,
    graphs: list[GraphSpec],
    images: Sequence[LabelledImage],
    *,
    input: str,
    policy: Policy,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Agreement:
    """Run every image through the float32 model and the exported chain, and compare decisions.

    Args:
        model: in eval mode.
        root: the bundle's directory.
        graphs: its segments in order.
        images: at least one.
        input: ``uint8`` or ``float32``, as the bundle takes it.
        policy: the bundle's.
        progress: called with images done and images in all.

    Raises:
        DataError: an image cannot be read.
    """
    spec, size = model.config.preprocess, model.config.image_size
    runners = [graph_runner(root / graph.graph.file, graph) for graph in graphs]
    expected, exported = [], []
    for first in range(0, len(images), _CHUNK):
        progress(first, len(images))
        frames = [load_rgb(image.path) for image in images[first : first + _CHUNK]]
        pixels = network_input(frames, spec, size, "uint8")
        normalised = to_float(pixels, spec)
        expected.append(reference_logits(model, torch.from_numpy(normalised)))
        hidden: NDArray[Any] = pixels if input == "uint8" else normalised
        logits = []
        for run in runners:
            *rest, answer = run(hidden)
            logits.append(answer)
            hidden = rest[0] if rest else hidden
        exported.append(np.stack(logits, axis=1))
    return judge(np.concatenate(expected), np.concatenate(exported), images, policy)


def judge(
    expected: Logits, exported: Logits, images: Sequence[LabelledImage], policy: Policy
) -> Agreement:
    """Compare decisions; ``expected`` and ``exported`` are ``[n, M + 1, C] float32``."""
    exits, answers = policy.replay(expected)
    exported_exits, exported_answers = policy.replay(exported)
    change = np.abs(
        [confidence(exported[:, i]) - confidence(expected[:, i]) for i in range(expected.shape[1])]
    )
    return Agreement(
        images=len(images),
        sha256=labelled.content_hash([image.path for image in images]),
        policy=policy.to_json(),
        accuracy=_accuracy(exported, images),
        reference_accuracy=_accuracy(expected, images),
        same_exit=float((exits == exported_exits).mean()),
        same_label=float((answers == exported_answers).mean()),
        confidence_change=tuple(float(c) for c in change.mean(axis=1)),
    )


def _accuracy(logits: Logits, images: Sequence[LabelledImage]) -> float | None:
    """Return top-1 of the final classifier over the images that have a class."""
    pairs = zip(logits[:, -1].argmax(axis=-1), [i.class_index for i in images], strict=True)
    correct = [answer == index for answer, index in pairs if index is not None]
    return float(np.mean(correct)) if correct else None


def gate(agreement: Agreement, precision: str) -> None:
    """Refuse a chain whose decisions differ more often than the precision allows.

    Raises:
        ParityError: names the segment whose confidence moved most.
    """
    lost, moved = ALLOWED[precision]
    faults = []
    images, before, after = agreement.images, agreement.reference_accuracy, agreement.accuracy
    if before is not None and after is not None:
        if (before - after) * images > math.ceil(lost * images) + 1e-6:
            faults.append(f"top-1 fell from {before:.2%} to {after:.2%} (allowed: {lost:.2%})")
    other = 1 - agreement.same_exit
    if other * images > math.ceil(moved * images) + 1e-6:
        faults.append(f"{other:.2%} of the images leave at another exit (allowed: {moved:.2%})")
    if faults:
        worst = int(np.argmax(agreement.confidence_change))
        raise ParityError(
            f"{precision} on {images} images: {'; '.join(faults)}; the confidence moves most "
            f"at segment {worst}, by {agreement.confidence_change[worst]:.4f} on average; nothing "
            f"was written; {_CURE[precision]}"
        )


_CURE = {
    "fp32": "report this with the checkpoint's configuration",
    "fp16": "try --keep-fp32 layernorm,softmax, or --precision fp32",
    "int8": "calibrate on more images of the kind the camera sees (--calib), or --precision fp16",
}
