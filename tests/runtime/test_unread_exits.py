"""Exits where no image can stop: their heads do not run, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import frames

from lgvit_edge.benchmarks.measure import measure_images
from lgvit_edge.bundle.directory import add_to_manifest
from lgvit_edge.bundle.points import OperatingPoint
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.policies.scores import confidence
from lgvit_edge.runtime import (
    Confidence,
    Ensemble,
    Entropy,
    FixedExit,
    Patience,
    Policy,
    Session,
    TargetRate,
)

BACKENDS = ("onnxruntime", "openvino")
BUNDLES = ("bundle", "swin_bundle", "passes_bundle")


def opened(bundle: Path, backend: str) -> Session:
    precision = "fp32" if backend == "openvino" else None
    return Session.open(bundle, backend=backend, precision=precision, device="cpu")


class Runs:
    """Counts the segments of a chain that run with their heads, and those without."""

    def __init__(self, chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole = self.blocks = 0
        for name in ("step", "step_blocks"):
            monkeypatch.setattr(chain, name, self._counted(name, getattr(chain, name)))

    def _counted(self, name: str, run: Any) -> Any:
        def counted() -> Any:
            which = "whole" if name == "step" else "blocks"
            setattr(self, which, getattr(self, which) + 1)
            return run()

        return counted

    def since(self) -> tuple[int, int]:
        """Returns both counts, and begins anew."""
        found, self.whole, self.blocks = (self.whole, self.blocks), 0, 0
        return found


@pytest.mark.parametrize("kind", [Confidence, Entropy, Ensemble])
@pytest.mark.parametrize("which", BUNDLES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_are_those_of_all_logits(
    backend: str, which: str, kind: Any, request: pytest.FixtureRequest
) -> None:
    images = frames(9)
    with opened(request.getfixturevalue(which), backend) as session:
        logits = session.exit_logits(images)
        exits = logits.shape[1] - 1
        measure = kind.measure
        middle = np.median([measure.of(logits[:, e]) for e in range(exits)], axis=1)
        for kept in range(1, exits + 1):
            levels = [middle[e] if e + 1 == kept else measure.surest for e in range(exits)]
            policy = kind(tuple(map(float, levels)))
            assert policy.exits_read(exits) == tuple(e + 1 == kept for e in range(exits))
            assert isinstance(policy, Policy)
            expected, classes = policy.replay(logits)
            assert 1 < len(set(expected)), "some stop early, and some do not"
            session.policy = policy
            for results in ([session.predict(i) for i in images], session.predict_batch(images)):
                assert [r.exit for r in results] == expected.tolist()
                assert [r.class_index for r in results] == classes.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_heads_do_not_run(backend: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = frames(1)[0]
    with opened(bundle, backend) as session:
        assert session.heads_apart
        session.policy = Confidence((1.0, 0.0, 1.0))
        runs = Runs(session.chain, monkeypatch)
        assert session.predict(image).exit == 2
        assert runs.since() == (1, 1)
        session.predict_batch([image, image])
        assert runs.since() == (1, 1)
        # The final classifier is no head, and is read under every policy.
        session.policy = Confidence((1.0, 1.0 - 1e-7, 1.0))
        assert session.predict(image).exit == 4
        assert runs.since() == (2, 2)
        for policy in (Confidence(0.0), Ensemble(0.9), Patience(3), FixedExit(4)):
            session.policy = policy
            session.predict(image)
            assert runs.since()[1] == 0, "their decisions may need every exit"


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_left_out_adds_nothing(backend: str, bundle: Path) -> None:
    """Neither to an ensemble's sum, nor where a deadline makes its head run."""
    images = frames(9)
    with opened(bundle, backend) as session:
        logits = session.exit_logits(images)
        level = float(np.median(confidence(logits[:, 1])))
        policy = Ensemble((1.0, level, 1.0), 0.5)
        without = Ensemble((level,), 0.5).replay(logits[:, [1, 3]])
        assert policy.replay(logits)[1].tolist() == without[1].tolist()
        session.policy = policy
        session.warm_up(2)
        ample = [session.predict(image, deadline_ms=1e6) for image in images]
        for results in ([session.predict(image) for image in images], ample):
            assert [r.class_index for r in results] == without[1].tolist()
            assert {r.exit for r in results} == {2, 4}
        hurried = [session.predict(image, deadline_ms=1e-6) for image in images]
        assert [r.class_index for r in hurried] == logits[:, 0].argmax(axis=-1).tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deadline_can_stop_at_an_exit_that_nobody_reads(
    backend: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = frames(1)[0]
    with opened(bundle, backend) as session:
        session.policy = Confidence((1.0, 1.0, 0.0))
        session.warm_up(2)
        runs = Runs(session.chain, monkeypatch)
        hurried = session.predict(image, deadline_ms=1e-6)
        assert (hurried.exit, hurried.stopped, runs.since()) == (1, "deadline", (1, 0))
        assert session.predict(image, deadline_ms=1e6).exit == 3
        assert runs.since() == (1, 2)


def test_without_exits_and_with_a_deadline_nothing_is_loaded_in_the_frame(bundle: Path) -> None:
    """The model without exits runs; where a deadline keeps it from that, the chain with heads."""
    with opened(bundle, "openvino") as session:
        session.policy = "never"
        session.warm_up(1)
        assert session.predict(frames(1)[0], deadline_ms=1e6).exit == 4
        assert not session.chain._blocks  # type: ignore[attr-defined]


def test_a_frame_rate_knows_what_points_cost_without_heads(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(bundle_copy, "onnxruntime") as session:
        manifest = session.manifest
        share = dict(shares=(0.0, 1.0, 0.0, 0.0), guarantee=None, goal="", data_sha256="a" * 64)
        figures = dict(accuracy=0.5, baseline_accuracy=0.6, macs=1.0, macs_speedup=1.0, images=9)
        times = dict(latency_ms=1.0, baseline_latency_ms=1.0, device="a desk")
        points = {
            name: OperatingPoint(policy=policy.to_json(), **share, **figures, **times)  # type: ignore[arg-type]
            for name, policy in (
                ("all", Confidence((0.9, 0.0, 0.9))),
                ("one", Confidence((1.0, 0.0, 1.0))),
            )
        }
        add_to_manifest(bundle_copy, manifest.identity, points)
    with opened(bundle_copy, "onnxruntime") as session:
        clock = session._walk.clock
        monkeypatch.setattr(clock, "exit_ms", lambda: np.array([2.0, 4.0, 6.0, 8.0]))
        monkeypatch.setattr(clock, "saved_ms", lambda: np.array([0.5, 0.0, 0.25, 0.0]))
        rate = TargetRate(1000.0)
        session.policy = rate
        costs = {level.name: level.cost for level in rate._levels}
        assert (costs["all"], costs["one"], costs["exit 1"]) == (4.0, 3.5, 2.0)
        assert clock._blocks.keys() == {0, 2}, "timed without the heads that a point leaves out"


def test_models_without_heads_are_compiled_when_the_policy_is_set(bundle: Path) -> None:
    """Not when the first image comes, which would be late; TargetRate may use every point."""
    with opened(bundle, "openvino") as session:
        assert not session.chain._blocks  # type: ignore[attr-defined]
        session.policy = Confidence((0.5, 1.0, 0.5))
        assert set(session.chain._blocks) == {1}  # type: ignore[attr-defined]
        session.policy = TargetRate(100.0)
        assert set(session.chain._blocks) == {1}  # type: ignore[attr-defined]
        assert session.predict(frames(1)[0]).pace is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_figures_are_of_what_ran(backend: str, bundle: Path, tmp_path: Path) -> None:
    images = [LabelledImage(tmp_path / f"{i}.png", i) for i in range(3)]
    for image, frame in zip(images, frames(3), strict=True):
        Image.fromarray(frame).save(image.path)

    def macs(policy: Policy) -> float:
        session.policy = policy
        found: float = measure_images(session, images)["mean_macs"]
        return found

    with opened(bundle, backend) as session:
        first, second = session.manifest.segments[:2]
        both = first.spec.macs + second.spec.macs
        assert macs(Confidence((1.0, 0.0, 1.0))) == both - (first.head_macs or 0)
        assert macs(Confidence((0.0, 1.0, 1.0))) == first.spec.macs
        assert macs(FixedExit(2)) == both


def test_times_without_heads(bundle: Path) -> None:
    with opened(bundle, "onnxruntime") as session:
        prepared = session.prepare(frames(1))
        times = session.timed_blocks(prepared)
        assert times.shape == (4,) and (times > 0).all()
        session.predict(frames(1)[0])  # nothing is left over for the next image
