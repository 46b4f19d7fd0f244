"""Certificates: exact tails, the order of tests, and how often what was certified does not hold."""

from __future__ import annotations

import dataclasses
import functools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings
from numpy.typing import NDArray
from recordings import recorded

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import TuningError, UsageError
from lgvit_edge.policies import Never, from_json
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.tuning import Goal, Tuned, TuneOptions, tune
from lgvit_edge.tuning.certify import certified, images_needed, p_value
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.record import UNREADABLE
from lgvit_edge.tuning.search import policies_by, search
from lgvit_edge.tuning.shapes import Scorer
from lgvit_edge.tuning.tune import _certify, _split

DRAWS = 500
COSTS = Costs(0.5, (1.0, 1.0, 1.0, 1.0), 4.0, (1, 1, 1, 1), (0, 0, 0), 4, (1, 2, 3, 4), 4)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return open_bundle(bundle).manifest


views = functools.partial(recordings.views, noise=(1.0, 0.8, 0.7, 0.6))  # less at deep exits


def interval(hits: int, draws: int) -> tuple[float, float]:
    """The 95% interval of a share (normal)."""
    share = hits / draws
    half = 1.96 * math.sqrt(share * (1 - share) / draws)
    return share - half, share + half


@pytest.mark.parametrize("images", [1, 5, 20, 60])
@pytest.mark.parametrize("risk", [0.01, 0.05, 0.3, 0.9])
def test_a_p_value_is_the_exact_tail(images: int, risk: float) -> None:
    p = Fraction(risk)
    tail = Fraction(0)
    for errors in range(images + 1):
        tail += math.comb(images, errors) * p**errors * (1 - p) ** (images - errors)
        assert p_value(errors, images, risk) == pytest.approx(float(tail), rel=1e-9)
    assert p_value(images, images, risk) == 1


def test_more_errors_are_less_surprising() -> None:
    values = [p_value(k, 200, 0.05) for k in range(201)]
    assert (np.diff(values) >= -1e-12).all() and 0 < values[0] < 1e-4 and values[-1] == 1
    assert p_value(3, 400, 0.05) < p_value(3, 200, 0.05) < p_value(3, 200, 0.01)


def test_many_images_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    # As scipy.stats.binom.cdf has it.
    assert p_value(500, 50_000, 0.01) == pytest.approx(0.511891271851574, rel=1e-8)
    computed = []

    def counted(*given: Any) -> float:
        computed.append(given)
        return p_value(*given)

    monkeypatch.setattr("lgvit_edge.tuning.certify.p_value", counted)
    assert (images_needed(0.049, 0.05, 0.05) or 0) > 100_000
    assert images_needed(0.2999, 0.3, 0.05) is None  # millions
    assert 0 < len(computed) < 100
    assert p_value(433, 50_000, 0.01) == pytest.approx(0.001140576594550, rel=1e-8)
    for errors, risk in ((0, 0.5), (0, 1e-9), (49_999, 1e-9), (25_000, 0.999), (10, 0.01)):
        assert 0 <= p_value(errors, 50_000, risk) <= 1


def test_testing_ends_at_the_first_that_fails() -> None:
    assert p_value(5, 1000, 0.02) < 0.05 < p_value(15, 1000, 0.02)
    assert certified([0, 5, 15, 5, 0], 1000, 0.02, 0.05) == 2
    assert certified([15, 0], 1000, 0.02, 0.05) == 0
    assert certified([0, 5, 5], 1000, 0.02, 0.05) == 3
    assert certified([], 1000, 0.02, 0.05) == 0


def test_the_images_that_would_do() -> None:
    assert images_needed(0.0, 0.01, 0.05) == 299  # 0.99^299 = 0.0495
    for share, risk, delta in [(0.0, 0.01, 0.05), (0.0, 0.3, 0.1), (0.0, 0.02, 0.01)]:
        needed = images_needed(share, risk, delta)
        assert needed is not None
        assert certified([0], needed, risk, delta) == 1
        assert certified([0], needed - 1, risk, delta) == 0
    for share in (0.001, 0.004, 0.008, 0.0095):
        needed = images_needed(share, 0.01, 0.05)
        assert needed is not None and needed > 299
        assert certified([math.ceil(share * needed)], needed, 0.01, 0.05) == 1
        half = needed // 2
        assert certified([math.ceil(share * half)], half, 0.01, 0.05) == 0
    for share in (0.01, 0.02, 1.0):
        assert images_needed(share, 0.01, 0.05) is None
    assert images_needed(0.01 - 1e-9, 0.01, 0.05) is None  # no help to know


def broken(risks: NDArray[np.float64], counts: list[int], bound: float) -> int:
    """In how many draws a policy was certified whose risk is above the bound."""
    return sum(bool((risks[:count] > bound).any()) for count in counts)


def naive(errors: list[int], images: int, bound: float) -> int:
    """As ``certified``, by what was seen alone."""
    over = [count / images > bound for count in errors]
    return over.index(True) if any(over) else len(over)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_known_risks_are_kept_to(nested: bool, delta: float) -> None:
    """One policy has a hair more than the bound, which is where a certificate breaks most often."""
    risks, bound, images = np.array([0.0, 0.01, 0.02, 0.03, 0.0501, 0.0502, 0.1, 0.2]), 0.05, 600
    rng = np.random.default_rng(0)
    counts, by_eye, largest = [], [], []
    for _ in range(DRAWS):
        luck = rng.random((images, 1 if nested else len(risks)))
        errors = (luck < risks).sum(axis=0).tolist()
        counts.append(certified(errors, images, bound, delta))
        by_eye.append(naive(errors, images, bound))
        # Not stopping at the first that fails.
        passed = [i for i, e in enumerate(errors) if p_value(e, images, bound) <= delta]
        largest.append(passed[-1] + 1)
    assert interval(broken(risks, counts, bound), DRAWS)[0] <= delta
    assert min(counts) >= 1 and max(counts) > 4  # some do break: the bound is used up
    assert interval(broken(risks, by_eye, bound), DRAWS)[0] > 2 * delta
    if not nested:
        assert broken(risks, largest, bound) > broken(risks, counts, bound)


def test_policies_that_are_not_tested_in_order_break_the_bound() -> None:
    risks = np.full(20, 0.0501)
    errors = np.random.default_rng(1).binomial(600, risks, (DRAWS, 20))
    counts = [certified(row.tolist(), 600, 0.05, 0.1) for row in errors]
    assert interval(broken(risks, counts, 0.05), DRAWS)[0] <= 0.1
    anyone = sum(any(p_value(e, 600, 0.05) <= 0.1 for e in row) for row in errors.tolist())
    assert interval(anyone, DRAWS)[0] > 0.5


# Exits 1 and 2 in the first pass, whose own classifier exit 2 is; exit 3, in the second pass, sees
# less than that, and what the passes see is no more alike than other exits' views are.
PASSES = dataclasses.replace(
    COSTS, segment_ms=(1.0, 1.0, 2.5, 2.0), segment_macs=(1, 1, 3, 2), head_macs=(0, None, 0)
)
PASS_NOISE = (1.0, 0.65, 0.9, 0.6)


@pytest.mark.parametrize(
    ("costs", "noise"), [(COSTS, (1.0, 0.8, 0.7, 0.6)), (PASSES, PASS_NOISE)], ids=["one", "passes"]
)
def test_a_searched_path_keeps_to_the_risk_on_a_population(
    costs: Costs, noise: tuple[float, ...]
) -> None:
    """The search sees other images; the certificate, 1000 drawn from 20,000 whose risks we know."""
    views = functools.partial(recordings.views, noise=noise)
    curves = search(Scorer(views(600, 0), costs), trials=10, seed=0)
    path = policies_by(curves, lambda curve: -curve.errors)[::-1]
    assert isinstance(path[0], Never) and len(path) > 20
    world = views(20_000, 1)
    wrong = np.array(
        [world.baseline_right & (policy.replay(world.logits)[1] != world.labels) for policy in path]
    )
    risks = wrong.mean(axis=1)
    # A hair less than what one of them risks, which is where a certificate breaks most often.
    bound, delta = 0.99 * risks[risks > 0.015][0], 0.1
    assert risks[0] == 0 and risks[1] < bound / 2
    rng = np.random.default_rng(2)
    draws = [rng.integers(0, 20_000, 1000) for _ in range(DRAWS)]
    errors = [wrong[:, rows].sum(axis=1).tolist() for rows in draws]
    counts = [certified(found, 1000, bound, delta) for found in errors]
    assert interval(broken(risks, counts, bound), DRAWS)[0] <= delta
    by_eye = [naive(found, 1000, bound) for found in errors]
    assert interval(broken(risks, by_eye, bound), DRAWS)[0] > 2 * delta
    assert np.mean(counts) > 2  # it does certify something
    # What ``tune`` certifies is this.
    options = TuneOptions(risk=bound, delta=delta)
    for rows, count, found in list(zip(draws, counts, errors, strict=True))[:5]:
        images = Images(world.logits[rows], world.labels[rows])
        safe, more = _certify(curves, images, options, costs)
        assert safe == path[:count]
        assert more == images_needed(found[count] / 1000, bound, delta)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"risk": 0.0}, "--risk must lie between 0 and 1, found 0"),
        ({"risk": 1.0}, "--risk must lie between 0 and 1, found 1"),
        ({"delta": math.nan}, "--delta must lie between 0 and 1, found nan"),
        ({"name": "mine"}, "--name names one point: give a goal"),
    ],
)
def test_options_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TuneOptions(**values)
    TuneOptions(name="mine", goal=Goal(max_drop=0.1))
    TuneOptions(name="mine", risk=0.1)


@pytest.mark.parametrize(
    ("risk", "shares"),
    [(None, {"tune": 2, "report": 2}), (0.1, {"tune": 1, "certify": 2, "report": 1})],
)
def test_parts_share_no_image_and_are_all(risk: float | None, shares: dict[str, int]) -> None:
    kept, other = recorded(views(400, 11)), recorded(views(30, 12))
    kept.rows["logits"][:, 0, 0] = np.arange(400)
    kept.rows["state"][::10] = UNREADABLE
    kept.rows["logits"][::10] = np.nan
    parts = _split(kept, TuneOptions(risk=risk), None)
    assert {name: len(part) // 90 for name, part in parts.items()} == shares
    numbers = np.concatenate([part.logits[:, 0, 0] for part in parts.values()])
    assert sorted(numbers.tolist()) == [i for i in range(400) if i % 10]
    again, moved = (_split(kept, TuneOptions(risk=risk, seed=s), None) for s in (0, 1))
    assert (again["tune"].logits == parts["tune"].logits).all()
    assert not np.array_equal(moved["tune"].logits, parts["tune"].logits)
    parts = _split(kept, TuneOptions(risk=risk), other)
    assert len(parts["report"]) == 30
    assert sum(len(part) for part in parts.values()) == 360 + 30


def certify(manifest: Manifest, count: int, risk: float, **options: object) -> Tuned:
    chosen = TuneOptions(risk=risk, trials=3, **options)  # type: ignore[arg-type]
    return tune(recorded(views(count, 3)), manifest, chosen)


def test_too_few_images_to_certify_on_say_how_many_would_do(manifest: Manifest) -> None:
    nothing = r"{} images to certify on certify nothing at --risk {} --delta 0\.05: {} .*half of"
    for count, risk, message in (
        (100, 0.01, "even without a single error 299 would be needed"),
        (1000, 0.02, "the most careful point gets 7 of them .* 149 would .* 1799 images would do"),
    ):
        with pytest.raises(TuningError, match=nothing.format(count // 2, risk, message)):
            certify(manifest, count, risk)


def test_errors_beyond_the_risk_no_number_of_images_mends(manifest: Manifest) -> None:
    kept = recorded(views(1200, 3))
    certify_on = _split(kept, TuneOptions(risk=0.01), None)["certify"]
    # On those images, which are not those it was tuned on, every exit is surely wrong.
    mine = (kept.rows["logits"][:, None, 0] == certify_on.logits[None, :, 0]).all(2).any(1)
    kept.rows["logits"][mine, :-1] = 99 * np.eye(5)[(kept.rows["label"][mine, None] + 1) % 5]
    with pytest.raises(TuningError, match="600 images .* errors more images would not help"):
        tune(kept, manifest, TuneOptions(risk=0.01, trials=3))


def test_a_certified_point_says_what_it_was_certified_on(manifest: Manifest) -> None:
    found = certify(manifest, 1600, 0.02, delta=0.1)
    assert list(found.points) == ["risk-0.02"]
    assert found.images == {"tune": 400, "certify": 800, "report": 400}
    point = found.points["risk-0.02"]
    bound = point.guarantee
    assert bound is not None and point.goal == ""
    assert (bound.risk, bound.delta, bound.images) == (0.02, 0.1, 800)
    assert bound.data_sha256 == "a" * 64
    parts = _split(recorded(views(1600, 3)), TuneOptions(risk=0.02, delta=0.1), None)
    on = parts["certify"]
    answers = from_json(point.policy).replay(on.logits)[1]
    assert bound.errors == (on.baseline_right & (answers != on.labels)).sum()
    assert p_value(bound.errors, 800, 0.02) <= 0.1
    assert point.images == 400 and point.latency_ms < COSTS.ms[-1]
    assert found.more_images is None or found.more_images > 800


def test_a_certificate_costs_speed_and_never_gives_any(manifest: Manifest) -> None:
    drop = Goal(max_drop=0.1)
    strict, loose, anything = (
        certify(manifest, 1600, risk, goal=drop, name="door").points["door"]
        for risk in (0.02, 0.05, 0.999)
    )
    assert strict.latency_ms > loose.latency_ms > anything.latency_ms
    assert strict.goal == "--max-drop 0.1" and strict.guarantee is not None
    plain = tune(recorded(views(1600, 3)), manifest, TuneOptions(goal=drop, trials=3))
    assert strict.latency_ms > plain.points["max-drop-0.1"].latency_ms
    assert plain.points["max-drop-0.1"].guarantee is None
    named = certify(manifest, 1600, 0.02, goal=drop)
    assert list(named.points) == ["max-drop-0.1"]
    with pytest.raises(TuningError, match="impossible: --min-speedup 2; the fastest"):
        certify(manifest, 1600, 0.02, goal=Goal(min_speedup=2))


def test_images_to_report_on_leave_more_to_certify_on(manifest: Manifest) -> None:
    options = TuneOptions(risk=0.05, trials=3)
    found = tune(recorded(views(1000, 3)), manifest, options, report=recorded(views(100, 4)))
    assert found.images == {"tune": 500, "certify": 500, "report": 100}
    (point,) = found.points.values()
    assert point.guarantee is not None and point.guarantee.images == 500
    assert point.images == 100
