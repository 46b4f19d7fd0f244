"""Does the exported chain decide as the float32 model decides, on real images?

Logits may drift a little at lower precision; what matters is whether images still leave at the same
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

# Per precision: top-1 that may be lost, and images that may leave elsewhere, as shares.
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
    """Run every image through the float32 model and the exported chain.

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
    wanted, found = [], []
    for first in range(0, len(images), _CHUNK):
        progress(first, len(images))
        frames = [load_rgb(image.path) for image in images[first : first + _CHUNK]]
        pixels = network_input(frames, spec, size, "uint8")
        normalised = to_float(pixels, spec)
        wanted.append(reference_logits(model, torch.from_numpy(normalised)))
        hidden: NDArray[Any] = pixels if input == "uint8" else normalised
        logits = []
        for run in runners:
            *rest, answer = run(hidden)
            logits.append(answer)
            hidden = rest[0] if rest else hidden
        found.append(np.stack(logits, axis=1))
    return judge(np.concatenate(wanted), np.concatenate(found), images, policy)


def judge(
    wanted: Logits, found: Logits, images: Sequence[LabelledImage], policy: Policy
) -> Agreement:
    """Compare decisions; ``wanted`` and ``found`` are ``[n, M + 1, C] float32``."""
    (leaves, answers), (found_leaves, found_answers) = map(policy.replay, (wanted, found))
    change = np.abs(
        [confidence(found[:, i]) - confidence(wanted[:, i]) for i in range(wanted.shape[1])]
    )
    return Agreement(
        images=len(images),
        sha256=labelled.content_hash([image.path for image in images]),
        policy=policy.to_json(),
        accuracy=_accuracy(found, images),
        reference_accuracy=_accuracy(wanted, images),
        same_exit=float((leaves == found_leaves).mean()),
        same_label=float((answers == found_answers).mean()),
        confidence_change=tuple(float(c) for c in change.mean(axis=1)),
    )


def _accuracy(logits: Logits, images: Sequence[LabelledImage]) -> float | None:
    """Top-1 of the final classifier over the images that have a class."""
    known = [
        (i, image.class_index) for i, image in enumerate(images) if image.class_index is not None
    ]
    if not known:
        return None
    rows, classes = zip(*known, strict=True)
    return float((logits[list(rows), -1].argmax(axis=-1) == np.array(classes)).mean())


def gate(found: Agreement, precision: str) -> None:
    """Refuse a chain that decides otherwise more often than the precision allows.

    Raises:
        ParityError: naming the segment whose confidence moved most.
    """
    lost, moved = ALLOWED[precision]
    faults = []
    if found.accuracy is not None and found.reference_accuracy is not None:
        drop = found.reference_accuracy - found.accuracy
        if drop * found.images > math.ceil(lost * found.images) + 1e-6:
            faults.append(
                f"top-1 fell from {found.reference_accuracy:.2%} to {found.accuracy:.2%} "
                f"(allowed: {lost:.2%})"
            )
    if (1 - found.same_exit) * found.images > math.ceil(moved * found.images) + 1e-6:
        faults.append(
            f"{1 - found.same_exit:.2%} of the images leave at another exit (allowed: {moved:.2%})"
        )
    if faults:
        worst = int(np.argmax(found.confidence_change))
        raise ParityError(
            f"{precision} on {found.images} images: {'; '.join(faults)}; the confidence moves most "
            f"at segment {worst}, by {found.confidence_change[worst]:.4f} on average; nothing was "
            f"written; {_CURE[precision]}"
        )


_CURE = {
    "fp32": "report this with the checkpoint's configuration",
    "fp16": "try --keep-fp32 layernorm,softmax, or --precision fp32",
    "int8": "calibrate on more images of the kind the camera sees (--calib), or --precision fp16",
}
