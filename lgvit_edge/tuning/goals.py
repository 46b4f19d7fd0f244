"""Goals for tuning, and the choice of the operating point that meets one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lgvit_edge.errors import TuningError, UsageError
from lgvit_edge.policies.evaluate import Outcome
from lgvit_edge.tuning.costs import Costs

_MARGIN = 1.645  # standard errors: a drop then holds on other images 19 times in 20


@dataclass(frozen=True)
class Goal:
    """Limits what an operating point may lose or take; at most one limit is set.

    Attributes:
        max_drop: accuracy that may be given up, as a share of all images: 0.01 is one point.
        latency_ms: mean from decoded frame to label.
        min_speedup: of the mean latency, against the baseline.
    """

    max_drop: float | None = None
    latency_ms: float | None = None
    min_speedup: float | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for more than one limit, and for values out of range."""
        given = self._given()
        if len(given) > 1:
            raise UsageError("give one of --max-drop, --latency-ms and --min-speedup, not more")
        for option, value in given:
            if option != "--max-drop":
                if not 0 < value < 1e9:
                    raise UsageError(f"{option} must be above 0 and below 1e9, found {value:g}")
            elif not 0 <= value < 1:
                raise UsageError(
                    f"--max-drop is a share of all images, 0.01 for one point; found {value:g}"
                )

    @property
    def text(self) -> str:
        """The goal as typed on the command line; empty without a goal."""
        return "".join(f"{option} {value:g}" for option, value in self._given())

    def _given(self) -> list[tuple[str, float]]:
        limits = asdict(self).items()
        return [(f"--{name.replace('_', '-')}", v) for name, v in limits if v is not None]

    @property
    def name(self) -> str:
        """The operating point's name where the user gives none."""
        return self.text.removeprefix("--").replace(" ", "-").replace("+", "")

    def choose(self, points: Sequence[Outcome], baseline: float, costs: Costs) -> Outcome:
        """Returns the best of these points that meets the goal; ``baseline`` is an accuracy, 0..1.

        Raises:
            TuningError: no point meets the goal; the message says what the chain can do.
        """
        if self.max_drop is not None:
            # ``Never`` always passes: it loses nothing, and its standard error is 0.
            floor = baseline - self.max_drop - 1e-9
            good = [p for p in points if p.accuracy - _MARGIN * p.drop_error >= floor]
            if good:
                return min(good, key=lambda p: p.latency_ms)
            best = max(points, key=lambda p: p.accuracy)
            raise TuningError(
                f"impossible: {self.text}; the most accurate available point gives up "
                f"{baseline - best.accuracy:.4f} (standard error {best.drop_error:.4f})"
            )
        limit = self.latency_ms or costs.baseline_ms / (self.min_speedup or 1)
        good = [p for p in points if p.latency_ms <= limit]
        if good:
            return max(good, key=lambda p: (p.accuracy, -p.latency_ms))
        fastest = min(points, key=lambda p: p.latency_ms)
        raise TuningError(
            f"impossible: {self.text}; the fastest available point takes "
            f"{fastest.latency_ms:.2f} ms and the baseline {costs.baseline_ms:.2f} ms, "
            f"{costs.baseline_ms / fastest.latency_ms:.2f}x (resizing the image: "
            f"{costs.prepare_ms:.2f} ms)"
        )
