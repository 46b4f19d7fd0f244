"""Tuning on recorded logits: costs, outcomes, curves, search, goals, exits that never pay."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import recorded, views

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.manifest import Manifest, SegmentSpec
from lgvit_edge.bundle.points import check_name
from lgvit_edge.errors import DataError, TuningError, UsageError
from lgvit_edge.policies import (
    Confidence,
    Ensemble,
    Entropy,
    Never,
    Patience,
    PatientConfidence,
    ThresholdPolicy,
    from_json,
)
from lgvit_edge.policies.calibration import calibration_errors, temperatures
from lgvit_edge.policies.evaluate import ExitCosts, Images, Outcome, evaluate
from lgvit_edge.tuning import Goal, TuneOptions, tune
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.front import Line, front
from lgvit_edge.tuning.prune import prune
from lgvit_edge.tuning.record import UNREADABLE
from lgvit_edge.tuning.search import SWEEP, search
from lgvit_edge.tuning.shapes import Scorer, Shape

# Beyond the baseline: 0.5 + 7 - 6 = 1.5 ms, of which heads take 2, 3 and 5 tenths.
COSTS = Costs(0.5, (1.0, 2.0, 3.0, 1.0), 6.0, (10, 20, 30, 10), (2, 3, 5), 60, (1, 2, 3, 4), 4)
FEW = TuneOptions(trials=2)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return open_bundle(bundle).manifest


def test_costs_add_up_and_heads_share_what_the_chain_takes_beyond_the_baseline() -> None:
    assert COSTS.ms.tolist() == [1.5, 3.5, 6.5, 7.5]
    times = (1.5, 3.5, 6.5, 7.5)
    assert COSTS.by_exit == ExitCosts((1, 2, 3, 4), 4, (10, 30, 60, 70), 60, times, 6.0)
    assert COSTS.head_ms == pytest.approx([0.3, 0.45, 0.75])
    quick = dataclasses.replace(COSTS, baseline_ms=8.0)
    assert quick.head_ms.tolist() == [0, 0, 0]
    free = dataclasses.replace(COSTS, head_macs=(0, 0, 0)).head_ms
    assert free.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("exits", "ms", "macs", "heads"),
    [
        ([1], (2.7, 3, 1), (28, 30, 10), (3, 5)),
        ([3], (1, 2, 3.25), (10, 20, 35), (2, 3)),
        ([1, 2], (5.25, 1), (55, 10), (5,)),
        ([1, 3], (2.7, 3.25), (28, 35), (3,)),
        ([2, 3], (1, 4.8), (10, 52), (2,)),
        ([1, 2, 3], (5.5,), (60,), ()),  # which is the baseline
    ],
)
def test_without_exits_blocks_stay_and_heads_go(
    exits: list[int], ms: tuple[float, ...], macs: tuple[int, ...], heads: tuple[int, ...]
) -> None:
    fewer = COSTS.without(exits)
    assert fewer.segment_ms == pytest.approx(ms)
    assert (fewer.segment_macs, fewer.head_macs) == (macs, heads)
    assert fewer.blocks == tuple(block for block in (1, 2, 3, 4) if block not in exits)
    kept = [h for e, h in enumerate([0.3, 0.45, 0.75], 1) if e not in exits]
    assert fewer.head_ms == pytest.approx(kept)  # those that stay cost what they did


def test_where_a_pass_ends_there_is_no_head_to_leave_out() -> None:
    """Two passes: exits 1 and 2 in the first, which ends in exit 2; exit 3 in the second."""
    passes = dataclasses.replace(COSTS, head_macs=(2, None, 6))
    assert passes.head_ms == pytest.approx([1.0 * 2 / 10, 0.0, 3.0 * 6 / 30])
    fewer = passes.without([1, 3])
    assert fewer.segment_ms == pytest.approx((2.8, 3.4))
    assert (fewer.segment_macs, fewer.head_macs) == ((28, 34), (None,))
    with pytest.raises(ValueError, match="a pass ends in exit 2"):
        passes.without([2])


def test_recorded_times_are_means_of_what_was_measured(manifest: Manifest) -> None:
    kept = recorded(views(4, 0))
    kept.rows["baseline_ms"] = (2, np.nan, 4, 1000)
    kept.rows["segment_ms"][:, 1] = (1, 2, 6, 1000)
    kept.rows["state"][3] = UNREADABLE
    costs = kept.costs(manifest)
    assert (costs.prepare_ms, costs.segment_ms, costs.baseline_ms) == (0.5, (1, 3, 1, 1), 3)
    assert costs.by_exit == ExitCosts.of(manifest, [1.5, 4.5, 5.5, 6.5], 3.0, heads_apart=False)
    assert costs.head_macs == tuple(s.head_macs for s in manifest.segments[:-1])
    assert costs.baseline_macs == manifest.baseline.macs


def test_times_of_heads_are_measured_where_they_are_apart(manifest: Manifest) -> None:
    kept = recorded(views(4, 0))
    kept.rows["segment_ms"][:2] = (1, 2, 3, 4)
    kept.rows["blocks_ms"][:2] = (0.75, 1, 3.5, 3)  # a head takes no less than nothing
    costs = kept.costs(manifest)
    assert costs.ms_apart == (0.25, 1, 0) and costs.head_ms.tolist() == [0.25, 1, 0]
    assert costs.macs_apart == tuple(s.head_macs for s in manifest.segments[:-1])
    assert costs.without([2]).ms_apart == (0.25, 0)
    kept.rows["blocks_ms"][0, 1] = np.inf
    with pytest.raises(DataError, match="times that are not positive numbers"):
        kept.costs(manifest)


def test_what_is_not_apart_saves_nothing(manifest: Manifest) -> None:
    kept = recorded(views(4, 0))
    kept.rows["segment_ms"], kept.rows["blocks_ms"] = (1, 2, 3, 4), (0.5, 1, 2, 3)
    first, *others = manifest.segments
    whole = dataclasses.replace(first, parts=None)
    (own,) = manifest.passes
    passes = (dataclasses.replace(own, segments=(whole, *others)),)
    costs = kept.costs(dataclasses.replace(manifest, passes=passes))
    assert costs.ms_apart == (0, 1, 1) and costs.macs_apart[0] == 0


def test_a_saturated_score_leaves_no_exit_out() -> None:
    """A threshold of 1 would, of an ensemble's sum too: its levels stay below."""
    images = views(200, 0)
    images.logits[:] *= 1000  # every probability is 1
    for unread, expected in (((), (True,) * 3), ((2,), (True, False, True))):
        curve = Scorer(images, COSTS).curve(Shape(Ensemble(), slope=0.3, unread=unread))
        assert {p.exits_read(3) for p in curve.policies()} == {expected}
        for policy, accuracy in zip(curve.policies(), curve.accuracy, strict=True):
            found = evaluate(policy, images, COSTS.by_exit).accuracy
            assert found == pytest.approx(float(accuracy))


def test_heads_are_left_out_where_that_pays(manifest: Manifest) -> None:
    """Each head takes half of its segment, and the first exits know next to nothing."""
    images = views(600, 5, (9.0, 9.0, 1.6, 1.6))
    plain, apart = recorded(images), recorded(images)
    apart.rows["blocks_ms"] = (0.5, 0.5, 0.5, 1)
    goal = Goal(max_drop=0.1)
    before, after = (
        tune(kept, manifest, TuneOptions(goal=goal, trials=3)) for kept in (plain, apart)
    )
    (point,), (other,) = after.points.values(), before.points.values()
    policy = from_json(point.policy)
    read = policy.exits_read(3)
    assert read == (False, False, True) and all(from_json(other.policy).exits_read(3))
    assert point.latency_ms < other.latency_ms
    # An image that leaves at an exit has run the heads on its way that are read.
    exit_ms = 0.5 + np.cumsum([0.5 + 0.5 * r for r in (*read, True)])
    assert point.latency_ms == pytest.approx(float(np.dot(point.shares, exit_ms)))
    heads = np.array([s.head_macs for s in manifest.segments[:-1]]) * ~np.array(read)
    spared = np.dot(point.shares, [*np.cumsum(heads), heads.sum()])
    whole = np.dot(point.shares, [manifest.cumulative_macs(e) for e in range(1, 5)])
    assert point.macs == pytest.approx(float(whole - spared))
    assert after.pruning is not None and after.pruning.gain is None
    assert after.pruning.dropped == [e for e in (1, 2, 3) if not read[e - 1]]


def test_a_front_holds_what_nothing_beats() -> None:
    by: dict[str, Any] = {"cost": lambda item: item[0], "worth": lambda item: item[1]}
    items = [(4.0, 0.8), (1, 0.5), (5, 0.9), (2, 0.4), (3, 0.8), (3, 0.7), (1, 0.5)]
    assert front(items, **by) == [(1, 0.5), (3, 0.8), (5, 0.9)]
    assert front([], **by) == []
    # Thinned out, it still ends with the best.
    items = [(100, 0.1), (100.5, 0.2), (101, 0.3), (103, 0.4), (103.5, 0.5), (103.9, 0.6)]
    assert front(items, **by, gap=0.01) == [(100, 0.1), (101, 0.3), (103, 0.4), (103.9, 0.6)]


def point(accuracy: float, ms: float, error: float = 0.0) -> Outcome:
    return Outcome(Never(), accuracy, 0, error, (1.0,), (accuracy,), 1.0, 1.0, 1.0, ms, 1.0)


def test_a_line_between_points_by_hand() -> None:
    line = Line.through([point(0.6, 4), point(0.5, 1), point(0.7, 2)])
    found = line.accuracy_at(np.array([1.5, 3.0, 0.5, 9.0]))
    assert found == pytest.approx([0.6, 0.65, 0.5, 0.6])
    assert line.ms_at(0.6) == pytest.approx(1.5)  # first there, though it falls back to it later
    assert [line.ms_at(a) for a in (0.2, 0.5, 0.7)] == [1, 1, 2]
    assert line.ms_at(0.71) is None


SHAPES = [
    *(Shape(Confidence()), Shape(Confidence(temperature=0.5), 0.3)),
    Shape(Confidence(temperature=(0.35, 1.1, 0.7)), -0.2),
    *(Shape(Entropy(temperature=1.4), 0.1), Shape(Entropy(temperature=(1.3, 0.7, 0.3)))),
    Shape(Ensemble(decay=0.5, temperature=0.7), 0.2),
    Shape(Ensemble(decay=0.3, temperature=(0.6, 1.4, 0.9))),
    Shape(PatientConfidence(patience=2, temperature=0.7), 0.3),
    Shape(PatientConfidence(patience=3, temperature=(0.5, 0.9, 1.3)), -0.2),
    *(Shape(Patience(1)), Shape(Patience(3))),
]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_a_curve_is_what_its_policies_give(shape: Shape) -> None:
    images = views(600, 2)
    images.logits[:] *= 0.5  # no confidences crowd at 1
    scorer = Scorer(images, COSTS)
    own = scorer.curve(shape)
    least = 40 if isinstance(shape.policy, ThresholdPolicy) else 0
    assert len(own.policies()) == len(own.accuracy) > least
    for i, policy in enumerate(own.policies()):
        found = evaluate(policy, images, COSTS.by_exit)
        assert found.accuracy == pytest.approx(own.accuracy[i], abs=1e-12)
        assert found.errors / len(images) == pytest.approx(own.errors[i], abs=1e-12)
        assert found.latency_ms == pytest.approx(own.latency_ms[i], abs=1e-9)


def test_raising_the_level_takes_time() -> None:
    curve = Scorer(views(600, 3), COSTS).curve(SWEEP)
    assert (np.diff(curve.thresholds[:, 0]) > 0).all()
    assert (np.diff(curve.latency_ms) >= 0).all()
    assert curve.latency_ms[[0, -1]] == pytest.approx(COSTS.ms[[0, -1]], rel=0.01)
    assert (np.diff(curve.errors) <= 0.01).all() and curve.errors[-1] == 0


def test_a_slope_asks_more_of_deep_exits() -> None:
    curve = Scorer(views(600, 3), COSTS).curve(Shape(Confidence(), 0.3))
    assert (np.diff(curve.thresholds, axis=1) >= 0).all()
    assert (np.diff(curve.thresholds, axis=1) > 0).any()
    single = Scorer(Images(views(60, 3).logits[:, 2:], views(60, 3).labels), COSTS.without([1, 2]))
    assert single.curve(Shape(Confidence(), 0.3)).thresholds.shape[1] == 1


def test_temperatures_undo_overconfidence() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (4000, 5))
    odds = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    labels = (odds.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
    factors = (0.5, 1.0, 3.0)
    logits = honest[:, None] * np.array([*factors, 1.0])[:, None]
    images = Images(logits.astype(np.float32), labels)
    found = temperatures(images)
    assert found == pytest.approx(factors, rel=0.07)
    before, after = calibration_errors(images, (1.0,) * 3), calibration_errors(images, found)
    assert before[0] > 0.1 and before[2] > 0.1
    assert max(after) < 0.03


def test_a_calibration_error_by_hand() -> None:
    """Three quarters sure and half right; at temperature 0.5 nine tenths sure."""
    logits = np.full((4, 2, 2), [math.log(3), 0], np.float32)
    images = Images(logits, np.array([0, 1, 0, 1]))
    assert calibration_errors(images, (1.0,)) == pytest.approx([0.25])
    assert calibration_errors(images, (0.5,)) == pytest.approx([0.4])


def test_the_same_seed_finds_the_same() -> None:
    scorer = Scorer(views(200, 4), COSTS)
    steps: list[tuple[int, int]] = []
    first = search(scorer, trials=6, seed=3, progress=lambda *step: steps.append(step))
    again = search(Scorer(views(200, 4), COSTS), trials=6, seed=3)
    assert [c.shape for c in first] == [c.shape for c in again]
    assert all((a.accuracy == b.accuracy).all() for a, b in zip(first, again, strict=True))
    assert steps == [(done, 24) for done in range(25)]
    assert first[0].shape == SWEEP == Shape(Confidence())
    assert (first[0].accuracy == scorer.curve(SWEEP).accuracy).all()


def test_a_search_beats_one_threshold_on_images_it_has_not_seen(manifest: Manifest) -> None:
    kept, other = recorded(views(1500, 5)), views(1500, 6)
    found = tune(kept, manifest, TuneOptions(trials=25), report=recorded(other, "b"))
    gain = found.gain()
    assert gain["mean_accuracy"] > 0.05 and gain["least_accuracy"] > -0.02
    tuned, sweep = Line.through(found.front), Line.through(found.sweep)
    times = np.linspace(1.6, 4.4, 50)
    assert (tuned.accuracy_at(times) - sweep.accuracy_at(times)).mean() > 0.05
    assert any(isinstance(p.policy, Ensemble) for p in found.front)
    assert {type(p.policy) for p in found.sweep} == {Confidence, Never}
    mine, plain = gain["speedup_at_drop"]["0.01"]
    assert mine == pytest.approx(4 / (tuned.ms_at(found.baseline_accuracy - 0.01) or 0))
    assert mine >= plain > 1
    for given in (*found.front, *found.sweep):
        assert given == evaluate(given.policy, other, found.costs.by_exit)


DEAR = Costs(0.5, (1.0, 3.0, 1.0, 1.0), 4.0, (10, 30, 10, 10), (1, 48, 1), 40, (1, 2, 3, 4), 4)


def test_an_exit_of_noise_with_a_dear_head_is_dropped(manifest: Manifest) -> None:
    noise = (1.2, 50.0, 0.8, 0.5)
    tuning, report = views(800, 7, noise), views(800, 8, noise)
    for shape in (SWEEP, Shape(Confidence(temperature=(1.0, 9.0, 1.0))), Shape(Entropy())):
        found = prune(tuning, report, DEAR, shape, manifest, [0.01, 0.02])
        assert found is not None
        assert (found.dropped, found.kept, found.blocks) == ([2], [1, 3], [[1, 3]])
        assert found.gain > 1.2


def test_of_passes_a_head_may_go_and_an_end_of_a_pass_stays(passes_bundle: Path) -> None:
    """Exit 3 ends the first pass. It is noise, as exit 2 is, and stays; heads go."""
    manifest = open_bundle(passes_bundle).manifest
    noise = (1.2, 50.0, 60.0, 0.8, 0.5)
    tuning, report = views(800, 7, noise), views(800, 8, noise)
    ms, macs = (1.0, 4.0, 1.0, 3.0, 1.0), (10, 40, 10, 30, 10)
    costs = Costs(0.5, ms, 5.0, macs, (1, 38, None, 1), 40, (1, 2, 3, 5, 7), 4)
    found = prune(tuning, report, costs, SWEEP, manifest, [0.01, 0.02])
    assert found is not None
    assert (found.dropped, found.kept) == ([2, 4], [1, 3])
    assert found.blocks == [[1], []]
    only_ends = dataclasses.replace(costs, head_macs=(None,) * 4)
    assert prune(tuning, report, only_ends, SWEEP, manifest, [0.01]) is None


def test_what_helps_on_the_tuning_images_alone_is_chance(manifest: Manifest) -> None:
    noise = (1.2, 1.6, 0.8, 0.5)
    tuning, report = views(800, 7, noise), views(800, 8, noise)
    report.logits[:, 1] = 4 * np.eye(5)[report.labels]
    cheap = dataclasses.replace(DEAR, baseline_ms=5.0)
    assert prune(tuning, tuning, cheap, SWEEP, manifest, [0.01]) is not None
    assert prune(tuning, report, cheap, SWEEP, manifest, [0.01]) is None


def test_exits_that_cost_nothing_and_help_are_kept(manifest: Manifest) -> None:
    free = dataclasses.replace(COSTS, baseline_ms=7.5)
    tuning, report = (views(800, seed, (1.2, 1.0, 0.8, 0.5)) for seed in (9, 10))
    assert prune(tuning, report, free, SWEEP, manifest, [0.01, 0.03]) is None


POINTS = [point(0.9, 4), point(0.895, 3, 0.001), point(0.895, 2, 0.01), point(0.8, 1, 0.03)]


@pytest.mark.parametrize(
    ("goal", "ms", "text"),
    [
        (Goal(max_drop=0.02), 3, "--max-drop 0.02"),  # 1.645 standard errors to spare: not 2
        (Goal(max_drop=0.022), 2, "--max-drop 0.022"),
        (Goal(max_drop=0), 4, "--max-drop 0"),
        (Goal(max_drop=0.5), 1, "--max-drop 0.5"),
        (Goal(latency_ms=3.5), 2, "--latency-ms 3.5"),  # as accurate as 3, and faster
        (Goal(latency_ms=1), 1, "--latency-ms 1"),
        (Goal(latency_ms=9), 4, "--latency-ms 9"),
        (Goal(latency_ms=1e6), 4, "--latency-ms 1e+06"),
        (Goal(min_speedup=3), 2, "--min-speedup 3"),
        (Goal(min_speedup=1.5), 4, "--min-speedup 1.5"),
        (Goal(min_speedup=6), 1, "--min-speedup 6"),
    ],
)
def test_a_goal_chooses_the_best_it_can_afford(goal: Goal, ms: float, text: str) -> None:
    assert goal.choose(POINTS, 0.9, COSTS).latency_ms == ms
    assert (goal.text, goal.name) == (text, text[2:].replace(" ", "-").replace("+", ""))
    check_name(goal.name)


def test_a_goal_out_of_reach_says_what_is_possible() -> None:
    drop = r"impossible: --max-drop 0\.05; .* gives up 0\.1000 \(standard error 0\.0300\)"
    with pytest.raises(TuningError, match=drop):
        Goal(max_drop=0.05).choose(POINTS[3:], 0.9, COSTS)
    reach = r"fastest available point takes 1\.00 ms and the baseline 6\.00 ms, 6\.00x .*: 0\.50 ms"
    for goal in (Goal(latency_ms=0.9), Goal(min_speedup=6.1)):
        with pytest.raises(TuningError, match=f"impossible: {goal.text}; .*{reach}"):
            goal.choose(POINTS, 0.9, COSTS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_drop": 0.01, "latency_ms": 3.0}, "give one of --max-drop, --latency-ms and"),
        ({"latency_ms": 3.0, "min_speedup": 2.0}, "give one of --max-drop"),
        ({"max_drop": 1.0}, "--max-drop is a share of all images, 0.01 for one point; found 1"),
        ({"max_drop": -0.1}, "found -0.1"),
        ({"max_drop": math.nan}, "found nan"),
        ({"latency_ms": 0.0}, "--latency-ms must be above 0 and below 1e9, found 0"),
        ({"latency_ms": math.nan}, "--latency-ms must be .* found nan"),
        ({"min_speedup": -1.0}, "--min-speedup must be .* found -1"),
    ],
)
def test_goals_that_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Goal(**values)


def test_points_are_named_and_their_figures_are_the_reports(manifest: Manifest) -> None:
    kept, other = recorded(views(200, 13)), views(100, 14)
    kept.rows["state"][:20] = UNREADABLE
    found = tune(kept, manifest, FEW, report=recorded(other, "b"))
    assert list(found.points) == ["accurate", "balanced", "fast"]
    assert found.images == {"tune": 180, "report": 100}
    for name, drop in (("accurate", "0"), ("balanced", "0.01"), ("fast", "0.03")):
        point = found.points[name]
        exits, classes = from_json(point.policy).replay(other.logits)
        assert point.accuracy == pytest.approx((classes == other.labels).mean())
        assert point.latency_ms == pytest.approx(0.5 + exits.mean())
        assert point.shares == pytest.approx([(exits == e).mean() for e in (1, 2, 3, 4)])
        macs = np.mean([manifest.cumulative_macs(e) for e in exits])
        assert point.macs == pytest.approx(macs)
        assert point.macs_speedup == pytest.approx(manifest.baseline.macs / macs)
        assert (point.images, point.data_sha256, point.device) == (100, "b" * 64, "a desk")
        assert (point.goal, point.guarantee) == (f"--max-drop {drop}", None)
    ms = [point.latency_ms for point in found.points.values()]
    assert ms == sorted(ms, reverse=True)


def test_a_goal_makes_one_point(manifest: Manifest) -> None:
    kept, goal = recorded(views(100, 15)), Goal(latency_ms=2.5)
    for name in (None, "door"):
        found = tune(kept, manifest, dataclasses.replace(FEW, goal=goal, name=name))
        assert list(found.points) == [name or "latency-ms-2.5"]
        assert found.points[name or "latency-ms-2.5"].data_sha256 == "a" * 64
    with pytest.raises(TuningError, match="impossible: --min-speedup 50; .* takes 1.5"):
        tune(kept, manifest, dataclasses.replace(FEW, goal=Goal(min_speedup=50)))


def test_what_cannot_be_tuned_on(manifest: Manifest) -> None:
    parts = r"at least 20 images in each part \(tune, {}report\), found "
    few, one = recorded(views(39, 16)), recorded(views(60, 16))
    other, risky = recorded(views(5, 16)), TuneOptions(risk=0.1)
    one.rows["label"] = 3
    for kept, options, report, message in (
        (few, FEW, None, parts.format("") + "19 to tune on; give more"),
        (few, FEW, other, "found 5 to report on"),
        (recorded(views(60, 16)), risky, None, parts.format("certify, ") + "15 to tune"),
        (one, FEW, None, "all 30 images of the part 'tune' are of one class"),
    ):
        with pytest.raises(DataError, match=message):
            tune(kept, manifest, options, report=report)
    parity = dataclasses.replace(manifest.parity, max_difference=(0.0,))
    graph = dataclasses.replace(manifest.baseline.graph, file="whole.onnx")
    only = (SegmentSpec(dataclasses.replace(manifest.baseline, graph=graph), 1, 4, "final"),)
    passes = (dataclasses.replace(manifest.passes[0], segments=only),)
    whole = dataclasses.replace(manifest, passes=passes, parity=parity)
    with pytest.raises(UsageError, match="this bundle has no exits: there is nothing to tune"):
        tune(recorded(views(60, 16)), whole, FEW)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("logits", np.nan, "logits that are not finite numbers"),
        ("logits", -np.inf, "logits that are not finite numbers"),
        ("label", 5, r"labels beyond 0\.\.4"),
        ("label", -1, r"labels beyond 0\.\.4"),
        ("prepare_ms", np.nan, "times that are not positive"),
        ("segment_ms", -1.0, "times that are not positive"),
        ("baseline_ms", np.inf, "times that are not positive"),
    ],
)
def test_logits_of_a_damaged_file_are_not_tuned_on(
    manifest: Manifest, field: str, value: float, message: str
) -> None:
    kept = recorded(views(60, 17))
    kept.rows[field][7] = value
    with pytest.raises(DataError, match=rf"kept\.npy holds {message}.*remove it to run"):
        tune(kept, manifest, FEW)


def test_a_baseline_that_was_never_timed(manifest: Manifest) -> None:
    kept = recorded(views(60, 17))
    kept.rows["baseline_ms"] = np.nan
    with pytest.raises(DataError, match="times that are not positive"):
        tune(kept, manifest, FEW)
