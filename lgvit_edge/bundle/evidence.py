"""How much decisions may differ in lower precision, and the evidence of how much they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lgvit_edge.bundle.codec import to_json

# By precision, as shares: top-1 that may be lost, and images that may leave at another exit.
ALLOWED = {"fp32": (0.0005, 0.001), "fp16": (0.002, 0.01), "int8": (0.01, 0.03)}
# Where none of 300 images differs, less than 1 % of all do, 19 times in 20.
LEAST_IMAGES = 300
_MOST_IMAGES = 10**9


def differences(
    precision: str,
    images: int,
    *,
    accuracy: float | None,
    reference_accuracy: float | None,
    same_exit: float,
) -> list[str]:
    """Say where a precision differs from float32 by more than it may; empty if nowhere.

    Top-1 is not judged where the images have no labels. One image may always differ.
    """
    lost, moved = ALLOWED[precision]
    faults = []
    if accuracy is not None and reference_accuracy is not None:
        if _beyond(reference_accuracy - accuracy, lost, images):
            faults.append(
                f"top-1 fell from {reference_accuracy:.2%} to {accuracy:.2%} (allowed: {lost:.2%})"
            )
    other = 1 - same_exit
    if _beyond(other, moved, images):
        faults.append(f"{other:.2%} of the images leave at another exit (allowed: {moved:.2%})")
    return faults


def _beyond(share: float, allowed: float, images: int) -> bool:
    return share * images > math.ceil(allowed * images) + 1e-6


@dataclass(frozen=True)
class Evidence:
    """What a backend decided in lower precision and in float32 at one policy, on the same images.

    It holds for the hardware and version that it names, because rounding is theirs: one processor
    adds products of bfloat16 in pairs, another in tiles, and a third computes them in float32.
    """

    backend: str
    precision: str  # that float32 graphs were computed in
    hardware: str  # device, and version of the backend, as the backend names them
    policy: dict[str, Any]  # as ``lgvit_edge.policies.rules`` writes it
    images: int  # how many there were
    sha256: str  # over the content of the image files, in order
    same_exit: float  # share of images that leave at the same exit
    same_label: float  # share of images that get the same answer
    accuracy: float | None  # top-1 of the answers, 0..1; None without labels
    reference_accuracy: float | None  # the same in float32
    failure: str = ""  # why it could not run the images at all; shares are 0 then

    def __post_init__(self) -> None:
        shares = (self.same_exit, self.same_label, self.accuracy, self.reference_accuracy)
        if not all(0 <= share <= 1 for share in shares if share is not None):
            raise ValueError("shares and accuracies must lie in 0..1")
        if not 1 <= self.images <= _MOST_IMAGES:
            raise ValueError(f"images must be 1..{_MOST_IMAGES}")
        if not (isinstance(name := self.policy.get("name"), str) and name):
            raise ValueError(f"a policy must have a name, found {name!r}")

    @property
    def _way(self) -> tuple[str, str, str]:
        return self.backend, self.precision, self.hardware

    @property
    def too_few(self) -> bool:
        """Return whether more images could make it good."""
        return self.images < LEAST_IMAGES and not self.failure

    @property
    def faults(self) -> list[str]:
        """Return why no session may rely on it; empty where sessions may."""
        if self.failure:
            return [f"it could not run: {self.failure}"]
        faults = differences(
            "fp16",
            self.images,
            accuracy=self.accuracy,
            reference_accuracy=self.reference_accuracy,
            same_exit=self.same_exit,
        )
        lost, moved = ALLOWED["fp16"]
        changed = 1 - self.same_label
        if _beyond(changed, moved, self.images):
            faults.append(f"{changed:.2%} of the answers differ (allowed: {moved:.2%})")
        elif self.accuracy is None and _beyond(changed, lost, self.images):
            faults.append(
                f"{changed:.2%} of the answers differ, and without labels all of them may be wrong "
                f"(allowed: {lost:.2%})"
            )
        if self.too_few:
            faults.append(f"{self.images} images are too few (expected at least {LEAST_IMAGES})")
        return faults

    @property
    def text(self) -> str:
        """Return a sentence for people."""
        if self.failure:
            return f"it could not run {self.images} images: {self.failure}"
        top1 = "without labels"
        if self.accuracy is not None and self.reference_accuracy is not None:
            top1 = f"top-1 {self.accuracy:.2%} ({self.reference_accuracy:.2%} in float32)"
        return (
            f"on {self.images} images {self.same_exit:.2%} leave where they do in float32, "
            f"{self.same_label:.2%} get the same answer, {top1}"
        )

    def to_record(self) -> dict[str, Any]:
        """Return it as JSON, with its ``text`` and ``faults``."""
        record: dict[str, Any] = to_json(self)
        return record | {"text": self.text, "faults": self.faults}


def merged(
    known: Sequence[Evidence], new: Sequence[Evidence]
) -> tuple[tuple[Evidence, ...], list[str]]:
    """Add evidence to what is known; return all of it, and notes of what is not taken.

    New evidence takes the place of that at the same policy on the same hardware, but fewer images
    do not outweigh more others. A failure to run is forgotten once there is anything else.
    """
    kept, notes = list(known), []
    for evidence in new:
        rivals = [
            e
            for e in kept
            if e._way == evidence._way and (e.failure or e.policy == evidence.policy)
        ]
        larger = [
            e
            for e in rivals
            if e.images > evidence.images and e.sha256 != evidence.sha256 and not e.failure
        ]
        if larger:
            notes.append(
                f"{evidence.backend} {evidence.precision} at {evidence.policy['name']}: "
                f"{evidence.images} images do not replace the {larger[0].images} that it was "
                f"compared on before ({larger[0].text}); give at least as many"
            )
            continue
        kept = [e for e in kept if e not in rivals] + [evidence]
    return tuple(kept), notes
