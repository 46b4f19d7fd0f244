"""Answers smoothed over a camera's frames: votes, averages, and what is forgotten."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from small import frames

from lgvit_edge.camera.smoothing import Smoother, Smoothing, parse_smoothing
from lgvit_edge.errors import UsageError
from lgvit_edge.policies.scores import ENTROPY, PROBABILITY
from lgvit_edge.runtime import Confidence, Result, Session


def result(label: str, confidence: float = 0.8, **changes: Any) -> Result:
    fields = dict(exit=2, block=3, pass_number=1, latency_ms=4.0, network_ms=3.0) | changes
    return Result("abcde".index(label), label, confidence, **fields)


def voted(smoother: Smoother, labels: str) -> str:
    """What each frame of these is answered with, at 10 frames a second."""
    taken = [smoother.take(result(x), i / 10) for i, x in enumerate(labels)]
    assert [r.class_index for r in taken] == ["abcde".index(r.label) for r in taken]
    return "".join(r.label for r in taken)


@pytest.mark.parametrize(
    ("text", "smoothing"),
    [
        (None, Smoothing("none")),
        ("majority:8", Smoothing("majority", 8)),
        (" average:16 ", Smoothing("average", 16)),
        ("average:4:30", Smoothing("average", 4, 30.0)),
        ("majority:1000:0.5", Smoothing("majority", 1000, 0.5)),
    ],
)
def test_what_is_typed(text: str | None, smoothing: Smoothing) -> None:
    assert parse_smoothing(text) == smoothing


def test_votes_of_another_bundle_do_not_count() -> None:
    smoother = Smoothing("majority", 4).start()
    for start, bundle in enumerate("ppp"):
        smoother.take(result("a", bundle=bundle), start / 10)
    assert smoother.take(result("b", bundle="q"), 0.4).label == "b"


@pytest.mark.parametrize(
    "text", ["", "majority", "majority:", "mean:8", "majority:8:", "average:-8", "average:8.5", "8"]
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"must be majority:N or average:N .*found"):
        parse_smoothing(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("majority:1", r"smoothing 'majority:1': a window must be 2\.\.1000 frames, found 1"),
        ("average:1001", r"a window must be 2\.\.1000 frames, found 1001"),
        ("average:0", "window must be a whole number of at least 1, found 0"),
        ("average:" + "9" * 5000, "smoothing 'average:9999"),
        ("majority:8:0", "lifetime must be a positive number of seconds, found 0"),
        ("majority:8:" + "9" * 400, "lifetime must be a positive number of seconds, found inf"),
    ],
    ids=lambda value: value[:20],
)
def test_numbers_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_smoothing(text)


def test_none_leaves_answers_as_they_are() -> None:
    smoother = parse_smoothing(None).start()
    assert smoother.memory is None and voted(smoother, "abcab") == "abcab"
    smoother.reset()
    one = result("a")
    assert smoother.take(one, 0.0) is one


def test_the_majority_answers_and_of_equals_the_newest() -> None:
    assert voted(parse_smoothing("majority:4").start(), "aaabbbbcaacc") == "aaaabbbbbacc"
    assert voted(parse_smoothing("majority:2").start(), "abba") == "abba"
    # The newest of those that lead, not of all.
    assert voted(parse_smoothing("majority:5").start(), "aabbc") == "aaabb"


def test_the_confidence_is_that_of_the_voters_times_their_share() -> None:
    smoother = parse_smoothing("majority:4").start()
    given = [("a", 0.9), ("a", 0.7), ("b", 0.6), ("a", 0.8), ("b", 1.0), ("b", 0.5)]
    taken = [smoother.take(result(x, p, exit=i), i / 10) for i, (x, p) in enumerate(given)]
    sure = [0.9, 0.8, 0.8 * 2 / 3, 0.8 * 3 / 4, 0.8 * 2 / 4, 0.7 * 3 / 4]
    assert [r.confidence for r in taken] == pytest.approx(sure)
    assert [r.label for r in taken] == ["a", "a", "a", "a", "b", "b"]
    assert [r.exit for r in taken] == list(range(6)), "all else is the frame's own"
    assert taken[0].measure is PROBABILITY
    smoother.reset()
    given = [("a", 0.2), ("b", 0.1), ("a", 0.4)]
    taken = [smoother.take(result(x, p, measure=ENTROPY), 1.0) for x, p in given]
    assert taken[2].confidence == pytest.approx(0.3 / (2 / 3)), "more nats are less sure"
    assert taken[2].sureness < taken[0].sureness and taken[2].measure is ENTROPY


@pytest.mark.parametrize("kind", ["majority", "average"])
@pytest.mark.parametrize("text", ["{}:8", "{}:8:2"])
def test_what_is_too_old_is_forgotten(kind: str, text: str, bundle: Path) -> None:
    smoothing = parse_smoothing(text.format(kind))
    with Session.open(bundle, policy="never") as session:
        image = session.prepare(frames(1))
        (plain,) = session.run(image)
        other = "abcde"[plain.class_index - 1]

        def answered(start: float) -> float:
            (found,) = session.run(image, starts=[start], memories=[smoother.memory])
            return smoother.take(found, start).confidence

        for gap, kept in (
            (smoothing.seconds, True),
            (smoothing.seconds + 0.01, False),
            (-1, False),
        ):
            smoother = smoothing.start()
            if kind == "majority":
                before = dataclasses.replace(result(other, 1.0), bundle=plain.bundle)
                smoother.take(before, 100.0)
                assert (answered(100.0 + gap) < plain.confidence) is kept
            else:
                answered(100.0)
                answered(100.0 + gap)
                assert smoother.memory is not None and smoother.memory.frames == 1 + kept
            smoother.reset()
            assert answered(100.0 + gap) == pytest.approx(plain.confidence)


def test_the_average_is_the_sessions_own(bundle: Path) -> None:
    """Each camera and region has a smoother of its own, and one batch serves them all."""
    images = frames(3)
    with Session.open(bundle, policy=Confidence(0.6)) as session:
        smoothers = [parse_smoothing(text).start() for text in ("average:4", "majority:4", None)]
        for number in range(3):
            found = session.run(
                session.prepare(images),
                starts=[float(number)] * 3,
                memories=[smoother.memory for smoother in smoothers],
            )
            taken = [s.take(r, float(number)) for s, r in zip(smoothers, found, strict=True)]
        assert [s.memory and s.memory.frames for s in smoothers] == [3, None, None]
        assert taken[0] is found[0] and taken[2] is found[2]
        smoothers[0].reset()
        assert smoothers[0].memory is not None and smoothers[0].memory.frames == 0
