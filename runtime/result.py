"""The result of one image, and the pace it was given by ``TargetRate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lgvit_edge.policies.scores import PROBABILITY, Measure


@dataclass(frozen=True)
class Pace:
    """Holds the operating point that ``TargetRate`` chose for an image, and why.

    Attributes:
        point: name of the operating point.
        level: its place, 1 the most accurate.
        levels: how many there are.
        load: time of the segments at present, relative to warm-up.
        expected_ms: mean time of a frame at this point and load.
        budget_ms: mean time of a frame that keeps the rate.
    """

    point: str
    level: int
    levels: int
    load: float
    expected_ms: float
    budget_ms: float

    def __str__(self) -> str:
        """Return one line for a log."""
        return (
            f"point {self.point} (level {self.level} of {self.levels}): {self.expected_ms:.1f} ms "
            f"expected of {self.budget_ms:.1f} at load {self.load:.2f}"
        )


@dataclass(frozen=True)
class Result:
    """Holds the answer for one image: class, confidence, exit and times.

    Attributes:
        class_index: predicted class, 0..C - 1.
        label: its name, or the index as text where the bundle has no names.
        confidence: how sure, at the exit taken: the number that the policy compared, whatever
            ended the chain. ``Confidence`` and ``PatientConfidence``: the largest probability, of
            the logits divided by the temperature; ``Ensemble``: the same of the logits added up;
            ``Entropy``: the entropy in nats, where less is surer. ``Patience``, ``FixedExit`` and
            ``Never`` compare no such number: the largest probability. The final classifier has no
            threshold: the same number of its logits, divided by a temperature where one holds for
            all exits. With a ``Memory``, the same of the average over frames.
        exit: exit taken, 1..M + 1, counted through all passes; M + 1 is the final classifier.
        block: block after which that exit lies, in its pass.
        pass_number: the pass that answered, from 1.
        latency_ms: from decoded frame to label; in a batch, until this image's exit.
        network_ms: the part of it spent in the chain and the policy.
        stopped: what stopped it: ``policy``, ``final`` (no exit did), or ``deadline``; ``limit``
            for ``Session.run_until``.
        late: whether it took longer than the deadline it was given.
        pace: the operating point chosen for it and why, under ``TargetRate``.
        measure: what ``confidence`` is, ``PROBABILITY`` or ``ENTROPY`` for the policies here.
        bundle: the bundle that answered: the first 12 digits of its ``Manifest.digest``.
        upstream: of a ``SplitSession``: ``answered`` where the server answered, else why it did
            not, such as ``no answer in 200 ms``; empty where it was not asked.
    """

    class_index: int
    label: str
    confidence: float
    exit: int
    block: int
    pass_number: int
    latency_ms: float
    network_ms: float
    stopped: str = "policy"
    late: bool = False
    pace: Pace | None = None
    measure: Measure = PROBABILITY
    bundle: str = ""
    upstream: str = ""

    @property
    def sureness(self) -> float:
        """The confidence as a number to sort by: larger is always surer."""
        return self.measure.sureness(self.confidence)

    @property
    def confidence_text(self) -> str:
        """The confidence as text for people, with its unit."""
        return self.measure.text(self.confidence)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain types, for logs.

        ``confidence`` is the number that the policy compared, ``measure`` what that is:
        ``probability`` (0..1) or ``entropy`` (nats, less is surer).
        """
        row = {**vars(self), "measure": self.measure.name}
        row["pace"] = None if self.pace is None else dict(vars(self.pace))
        return row
