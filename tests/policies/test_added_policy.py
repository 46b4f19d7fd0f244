"""Policies from outside the package: registered once, known everywhere."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import recordings
from recordings import recorded
from small import frames, write_photos

from lgvit_edge.benchmarks import measure_images
from lgvit_edge.benchmarks.report.gallery import Gallery
from lgvit_edge.benchmarks.report.page import write_page
from lgvit_edge.benchmarks.report.survey import survey
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.errors import TuningError, UsageError
from lgvit_edge.images.labelled import find_images
from lgvit_edge.policies import POLICIES, Policy, ThresholdPolicy, Tracker, from_json, parse
from lgvit_edge.policies.base import (
    Mask,
    PerExit,
    ThresholdTracker,
    count,
    numbers,
    register_policy,
)
from lgvit_edge.policies.evaluate import evaluate
from lgvit_edge.policies.scores import Floats, Measure
from lgvit_edge.runtime import Session
from lgvit_edge.tuning import TuneOptions, tune
from lgvit_edge.tuning.costs import Costs
from lgvit_edge.tuning.search import search
from lgvit_edge.tuning.shapes import Scorer, Shape


def lead(logits: Floats) -> Floats:
    """How far the best class leads, ``[B, C] -> [B]``."""
    best = np.sort(logits, axis=-1)
    return best[:, -1] - best[:, -2]  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class Margin(ThresholdPolicy):
    """Stop when the best class leads by more than the threshold."""

    threshold: PerExit = numbers(1.0, 0.0, 1e6)
    name = "margin"
    label = "margin of logits"
    help = "the best class leads by more"
    example = "margin:1.5"
    measure = Measure("margin", lead, "leads by {:.2f}", surest=math.inf)

    @classmethod
    def settings(cls, exits: int, steps: int = 22) -> Sequence[Policy]:
        return [cls(float(gap)) for gap in np.linspace(0, 10, steps)]


@dataclasses.dataclass(frozen=True)
class Even(Policy):
    """Stop at an exit that is a multiple of a number; no score is compared."""

    every: int = count(2)
    name = "even"
    label = "every so many exits"
    help = "its number is a multiple"
    example = "even:2"

    def start(self, exits: int) -> Tracker:
        every = self.every

        class Stops(Tracker):
            def step(self, exit: int, logits: Floats) -> Mask:
                return np.full(len(logits), exit % every == 0)

        return Stops()

    @classmethod
    def settings(cls, exits: int, steps: int = 22) -> Sequence[Policy]:
        return [cls(every) for every in range(1, exits + 2)]


@pytest.fixture
def added() -> Iterator[None]:
    with mock.patch.dict(POLICIES):
        register_policy(Margin)
        register_policy(Even)
        yield


NEW = [Margin(1.5), Margin((0.5, 1.0, 2.0)), Even(2)]
COSTS = Costs(0.5, (1.0, 1.0, 1.0, 1.0), 4.0, (1, 1, 1, 1), (0, 0, 0), 4, (1, 2, 3, 4), 4)


views = functools.partial(recordings.views, noise=(1.0,) * 4)  # shifts and scales tell nothing


@pytest.mark.usefixtures("added")
def test_it_is_typed_and_written() -> None:
    assert parse("margin:0.5,1,2") == Margin((0.5, 1.0, 2.0)) and parse("even:3") == Even(3)
    for policy in NEW:
        assert from_json(json.loads(json.dumps(policy.to_json()))) == policy
    with pytest.raises(UsageError, match=r"never, margin:1\.5 or even:2; found 'odd'"):
        parse("odd")
    with pytest.raises(UsageError, match="a threshold must be in 0..1e.06, found -1"):
        parse("margin:-1")


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("policy", NEW, ids=repr)
def test_a_session_runs_it_from_a_manifest(policy: Policy, bundle_copy: Path) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["policy"] = policy.to_json()
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    images = frames(7)
    with Session.open(bundle_copy) as session:
        assert session.policy == policy
        logits = session.exit_logits(images)
        exits, classes = policy.replay(logits)
        alone = [session.predict(frame) for frame in images]
        for found in (alone, session.predict_batch(images)):
            assert [r.exit for r in found] == exits.tolist()
            assert [r.class_index for r in found] == classes.tolist()
        for row, result in enumerate(alone):
            margin = isinstance(policy, Margin)
            if margin:
                gap = lead(logits[row, result.exit - 1][None])[0]
                assert result.confidence == pytest.approx(gap, abs=1e-4)
                assert result.confidence_text == f"leads by {result.confidence:.2f}"
            assert result.to_json()["measure"] == ("margin" if margin else "probability")


@pytest.mark.usefixtures("added")
def test_tuning_searches_it_as_what_it_is() -> None:
    images = views(300, 0)
    curves = search(Scorer(images, COSTS), trials=3, seed=0)
    found = {kind: [c for c in curves if type(c.shape.policy) is kind] for kind in (Margin, Even)}
    assert found[Margin] and [c.shape.policy for c in found[Even]] == [Even(n) for n in range(1, 5)]
    for curve in (found[Margin][0], *found[Even]):
        for i, policy in list(enumerate(curve.policies()))[::9]:
            given = evaluate(policy, images, COSTS.by_exit)
            assert given.accuracy == pytest.approx(curve.accuracy[i], abs=1e-9)
            assert given.latency_ms == pytest.approx(curve.latency_ms[i], abs=1e-9)
    assert len(found[Margin][0].accuracy) > 40


@pytest.mark.usefixtures("added")
def test_points_may_be_of_it_and_are_written(bundle_copy: Path) -> None:
    manifest = open_bundle(bundle_copy).manifest
    images = views(400, 1)
    # Even exits are right and odd ones wrong, all as sure as can be, but for a half of the first's.
    told = np.stack([images.labels + 1, images.labels] * 2, axis=1) % 5
    images.logits[:] = 1000 * np.eye(5)[told]
    images.logits[::2, 0] = 0
    found = tune(recorded(images), manifest, TuneOptions(trials=2)).points
    assert {point.policy["name"] for point in found.values()} == {"even"}
    add_to_manifest(bundle_copy, manifest.identity, found)
    with Session.open(bundle_copy, point="balanced") as session:
        assert isinstance(session.policy, Even)


class Contrary(ThresholdTracker):
    """Stops where the score is not above the threshold."""

    def step(self, exit: int, logits: Floats) -> Mask:
        return ~super().step(exit, logits)


def test_a_policy_that_stops_elsewhere_than_it_says_is_not_tuned() -> None:
    @dataclasses.dataclass(frozen=True)
    class Unsure(Margin):
        name = "unsure"

        def start(self, exits: int) -> Tracker:
            return Contrary(self, exits)

    with pytest.raises(TuningError, match=r"policy unsure cannot be tuned: .*Unsure\.held say"):
        Scorer(views(300, 0), COSTS).curve(Shape(Unsure()))


@pytest.mark.usefixtures("added")
def test_reports_draw_it(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    images = find_images(write_photos(tmp_path / "photos", "abcde", 4), num_classes=5)
    with Session.open(bundle, policy=Margin(1.0)) as session:
        gallery = Gallery(())
        record: dict[str, Any] = measure_images(session, images, watch=gallery)
        record["survey"] = survey(session, images, record)
        write_page(tmp_path / "r.html", record, session.manifest, gallery)
    assert {"margin", "even", "confidence"} <= record["survey"]["policies"].keys()
    text = (tmp_path / "r.html").read_text()
    assert "leads by " in text


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (type("Bare", (Policy,), {"name": "bare"}), "Bare lacks label, help, example, @dataclass"),
        (Margin, "there is a policy 'confidence' already"),
        (dataclasses.dataclass(frozen=True)(type("E", (Even,), {"example": "odd"})), "must begin"),
        (
            dataclasses.dataclass(frozen=True)(
                type("S", (Margin,), {"searched": {"decay": (0.1,)}, "calibrated": True})
            ),
            "S lacks a field decay, a field temperature",
        ),
    ],
)
def test_what_is_not_described_is_not_registered(
    kind: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is Margin:
        monkeypatch.setattr(Margin, "name", "confidence")
    before = dict(POLICIES)
    with pytest.raises(ValueError, match=message):
        register_policy(kind)
    assert before == POLICIES
