"""What a user can afford, and the operating point that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lgvit_edge.errors import TuningError, UsageError
from lgvit_edge.policies.evaluate import Outcome
from lgvit_edge.tuning.costs import Costs

# Without a goal: how much accuracy each point may give up.
_SURE = 1.645  # standard errors to spare: on other images it holds nineteen times in twenty
USUAL = {"accurate": 0.0, "balanced": 0.01, "fast": 0.03}


@dataclass(frozen=True)
class Goal:
    """At most one of the three.

    Attributes:
        max_drop: accuracy that may be given up, as a share of all images: 0.01 is one point.
        latency_ms: mean from decoded frame to label.
        min_speedup: of the mean latency, against the baseline.
    """

    max_drop: float | None = None
    latency_ms: float | None = None
    min_speedup: float | None = None

    def __post_init__(self) -> None:
        """Refuse more than one, and what nothing could mean.

        Raises:
            UsageError: naming it.
        """
        given = [v for v in (self.max_drop, self.latency_ms, self.min_speedup) if v is not None]
        if len(given) > 1:
            raise UsageError("give one of --max-drop, --latency-ms and --min-speedup, not more")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise UsageError(
                f"--max-drop is a share of all images, 0.01 for one point; found {self.max_drop:g}"
            )
        for name in ("latency_ms", "min_speedup"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} must be above 0 and below 1e9, found {value:g}")

    @property
    def text(self) -> str:
        """As typed; empty without a goal."""
        for name in ("max_drop", "latency_ms", "min_speedup"):
            value = getattr(self, name)
            if value is not None:
                return f"--{name.replace('_', '-')} {value:g}"
        return ""

    @property
    def name(self) -> str:
        """Of the operating point, unless the user names it."""
        return self.text.removeprefix("--").replace(" ", "-").replace("+", "")

    def choose(self, points: Sequence[Outcome], baseline: float, costs: Costs) -> Outcome:
        """The best of these points.

        Args:
            points: on the tuning images.
            baseline: its accuracy there.
            costs: of the chain.

        Raises:
            TuningError: none reaches the goal; says what the chain can do.
        """
        if self.max_drop is not None:
            # The whole chain, which loses nothing, has no error either.
            floor = baseline - self.max_drop - 1e-9
            good = [p for p in points if p.accuracy - _SURE * p.drop_error >= floor]
            if good:
                return min(good, key=lambda p: p.latency_ms)
            best = max(points, key=lambda p: p.accuracy)
            raise TuningError(
                f"impossible: {self.text}; of what may be chosen, the most accurate point gives up "
                f"{baseline - best.accuracy:.4f} (standard error {best.drop_error:.4f})"
            )
        limit = self.latency_ms or costs.baseline_ms / (self.min_speedup or 1)
        good = [p for p in points if p.latency_ms <= limit]
        if good:
            return max(good, key=lambda p: (p.accuracy, -p.latency_ms))
        fastest = min(points, key=lambda p: p.latency_ms)
        raise TuningError(
            f"impossible: {self.text}; of what may be chosen, the fastest point takes "
            f"{fastest.latency_ms:.2f} ms and the baseline {costs.baseline_ms:.2f} ms, "
            f"{costs.baseline_ms / fastest.latency_ms:.2f}x (resizing the image: "
            f"{costs.prepare_ms:.2f} ms)"
        )
