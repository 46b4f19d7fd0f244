"""Sessions that average answers over the frames of a camera, whatever runs and ends the frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small import Frame, frames, point

from lgvit_edge import LGViTEdgeError
from lgvit_edge.bundle.directory import add_to_manifest
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.policies import (
    Averages,
    Confidence,
    Departures,
    Ensemble,
    Entropy,
    FixedExit,
    Memory,
    Never,
    Patience,
    PatientConfidence,
    Policy,
)
from lgvit_edge.runtime import Result, Session, TargetRate


@pytest.fixture(scope="module")
def session(bundle: Path) -> Iterator[Session]:
    with Session.open(bundle, backend="onnxruntime") as opened:
        yield opened


def scene(seed: int, count: int = 6) -> list[Frame]:
    """Frames of one scene, with noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 230, (2, 2, 3)).repeat(24, 0).repeat(25, 1)
    return [(blocks + rng.integers(0, 25, blocks.shape)).astype(np.uint8) for _ in range(count)]


def middling(session: Session, kind: Any = Confidence, **about: Any) -> Policy:
    """A policy whose exits are sure of about half of the scenes."""
    images = [scene(seed, 1)[0] for seed in range(12)]
    logits = session.exit_logits(images)
    measure, levels = kind.measure, []
    for exit in range(logits.shape[1] - 1):
        levels.append(float(np.median(measure.of(logits[:, exit]))))
    return kind(tuple(levels), **about)  # type: ignore[no-any-return]


def replayed(
    policy: Policy, logits: NDArray[np.float32], memory: Memory | None, start: float, session: Any
) -> tuple[int, int, float]:
    """What a frame's logits, ``[M + 1, C]``, give: exit, class and score."""
    classes = session.manifest.labels
    averages = Averages([memory], [start], classes)
    batch = Departures(policy, len(logits) - 1, 1, averages)
    while True:
        left = batch.see(logits[None, batch.exit])
        if not len(batch.rows):
            averages.keep()
            return left.exit, int(left.classes[0]), float(left.scores[0])


def told(result: Result) -> tuple[int, int, float]:
    return result.exit, result.class_index, result.confidence


@pytest.mark.parametrize("which", ["bundle", "passes_bundle", "swin_bundle"])
@pytest.mark.parametrize("kind", [Confidence, Entropy, Ensemble])
def test_answers_are_those_of_all_logits(
    which: str, kind: Any, request: pytest.FixtureRequest
) -> None:
    with Session.open(request.getfixturevalue(which), backend="onnxruntime") as session:
        session.policy = policy = middling(session, kind)
        mine, theirs, exits = Memory(4), Memory(4), set()
        differ = 0
        for number, image in enumerate([*scene(1), *scene(2), *scene(3)]):
            start = float(number)
            logits = session.exit_logits([image])[0]
            (result,) = session.run(session.prepare([image]), starts=[start], memories=[mine])
            assert told(result) == replayed(policy, logits, theirs, start, session)
            differ += told(result) != told(session.predict(image))
            exits.add(result.exit)
        assert mine.frames == theirs.frames > 1
        assert len(exits) > 1 and differ > 3


def test_heads_that_nobody_reads_change_nothing(bundle: Path) -> None:
    """Not even where a deadline makes such an exit answer: its answer is averaged too."""
    for backend in ("onnxruntime", "openvino"):
        if backend == "openvino":
            pytest.importorskip("openvino")
        precision = "fp32" if backend == "openvino" else None
        with Session.open(bundle, backend=backend, precision=precision, device="cpu") as session:
            full = middling(session)
            assert isinstance(full, Confidence) and isinstance(full.threshold, tuple)
            session.policy = policy = Confidence((1.0, full.threshold[1], 1.0))
            session.warm_up(2)
            mine, theirs, ample = Memory(4), Memory(4), Memory(4)
            for number, image in enumerate([*scene(1), *scene(2)]):
                ready, start = session.prepare([image]), [float(number)]
                logits = session.exit_logits([image])[0]
                (result,) = session.run(ready, starts=start, memories=[mine])
                expected = replayed(policy, logits, theirs, start[0], session)
                assert told(result)[:2] == expected[:2]
                assert result.confidence == pytest.approx(expected[2], abs=1e-5)
                with_time = session.predict(image, deadline_ms=1e6, memory=ample)
                assert told(with_time)[:2] == expected[:2]
            assert mine.frames == ample.frames == 12
            (hurried,) = session.run(ready, starts=[12.0], memories=[mine], deadline_ms=1e-6)
            expected = replayed(FixedExit(1), logits, theirs, 12.0, session)
            assert hurried.stopped == "deadline" and told(hurried)[:2] == expected[:2]
            assert mine.frames == 13


def test_the_model_without_exits_averages_too(session: Session) -> None:
    """And goes on with what a policy with exits remembered, where that is set in between."""
    memory, by_hand = Memory(4), Memory(4)
    session.policy = rule = middling(session)
    for number, image in enumerate([*scene(1, 3), *scene(5, 5)]):
        if number == 3:
            session.policy = rule = Never()
        logits = session.exit_logits([image])[0]
        ready = session.prepare([image])
        (result,) = session.run(ready, starts=[float(number)], memories=[memory])
        expected = replayed(rule, logits, by_hand, float(number), session)
        assert told(result)[:2] == expected[:2]
        assert result.confidence == pytest.approx(expected[2], abs=1e-4)
    assert memory.frames == by_hand.frames > 3
    (alone, also) = session.run(session.prepare(frames(2)), memories=[Memory(), None])
    assert told(alone)[:2] == told(session.predict(frames(2)[0]))[:2]
    assert also.exit == 4


@pytest.mark.parametrize("which", ["bundle", "passes_bundle"])
def test_a_batch_of_cameras_is_as_one_by_one(which: str, request: pytest.FixtureRequest) -> None:
    with Session.open(request.getfixturevalue(which), backend="onnxruntime") as session:
        session.policy = middling(session)
        together = [Memory(4), Memory(8), None, Memory(16)]
        alone = [m and Memory(m.window) for m in together]
        films = [scene(seed) for seed in (1, 2, 3, 4)]
        for number, images in enumerate(zip(*films, strict=True)):
            starts = [float(number)] * 4
            batch = session.run(session.prepare(images), starts=starts, memories=together)
            for image, memory, found in zip(images, alone, batch, strict=True):
                ready = session.prepare([image])
                (one,) = session.run(ready, starts=starts[:1], memories=[memory])
                assert told(one)[:2] == told(found)[:2]
                assert one.confidence == pytest.approx(found.confidence, abs=1e-4)
        for a, b in zip(together, alone, strict=True):
            assert (a and a.frames) == (b and b.frames)


def test_without_memories_nothing_changes(session: Session) -> None:
    session.policy = middling(session)
    images = scene(3, 4)
    plain = session.run(session.prepare(images))
    given = session.run(session.prepare(images), memories=[None] * 4)
    assert list(map(told, plain)) == list(map(told, given))
    first = session.run(session.prepare(images), memories=[Memory() for _ in images])
    assert list(map(told, plain)) == list(map(told, first)), "the first frame is on its own"


def test_a_run_that_fails_leaves_the_memory_as_it_was(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.policy = FixedExit(3)
    memories = [Memory(), Memory()]
    ready = session.prepare(scene(1, 2))
    session.run(ready, memories=memories)
    before = [memory._state for memory in memories]
    step, left = session.chain.step, [2]

    def broken() -> NDArray[np.float32]:
        left[0] -= 1
        if left[0] < 0:
            raise BackendError("out of memory")
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(session.chain, "step", broken)
        for run in (
            lambda: session.run(ready, memories=memories),
            lambda: session.predict(scene(1, 1)[0], memory=memories[0]),
        ):
            left[0] = 2
            with pytest.raises(BackendError, match="out of memory"):
                run()
        assert [memory._state for memory in memories] == before
    session.run(ready, memories=memories)
    assert [memory.frames for memory in memories] == [2, 2]


def test_a_camera_that_was_away_starts_anew(session: Session) -> None:
    session.policy = "never"
    memory, image = Memory(8, lifetime=2), scene(1, 1)[0]
    for start, remembered in ((0.0, 1), (1.0, 2), (60.0, 1), (61.0, 2)):
        session.run(session.prepare([image]), starts=[start], memories=[memory])
        assert memory.frames == remembered
    session.predict(image, memory=memory)  # begins now
    assert memory.frames == 1


def test_a_frame_rate_averages_at_every_point(bundle_copy: Path) -> None:
    with Session.open(bundle_copy, backend="onnxruntime") as session:
        memory = Memory()
        session.policy = TargetRate(1e4)  # without points: single exits
        for _ in range(3):
            assert session.predict(scene(1, 1)[0], memory=memory).pace is not None
        assert memory.frames == 3
        points = {"sure": point(Confidence(0.9)), "patient": point(Patience(2))}
        add_to_manifest(bundle_copy, session.manifest.identity, points)
    with Session.open(bundle_copy, backend="onnxruntime") as session:
        session.policy = TargetRate(30.0)
        with pytest.raises(UsageError, match="the policy patience cannot decide"):
            session.predict(scene(1, 1)[0], memory=memory)
        session.policy = TargetRate(30.0, ["sure"])
        session.predict(scene(1, 1)[0], memory=memory)


def test_the_counts_are_as_ever(bundle: Path) -> None:
    with Session.open(bundle, backend="onnxruntime") as session:
        memories = [Memory(), Memory()]
        for _ in range(2):
            session.run(session.prepare(frames(2)), memories=memories, streams=["gate", "yard"])
        assert {name: s.images for name, s in session.stats.streams.items()} == {
            "": 0,
            "gate": 2,
            "yard": 2,
        }


TWICE = Memory()


@pytest.mark.parametrize(
    ("memories", "message"),
    [
        ([Memory()], "expected 2 memories, one per image, found 1"),
        (Memory(), r"memories must be a list with one per image, found Memory\(8, lifetime=5\)"),
        ([Memory(), 8], "expected a Memory for each image, or None, found 8"),
        ([0, None], "expected a Memory for each image, or None, found 0"),
        ([TWICE, TWICE], "a memory is there for two images that run together"),
    ],
)
def test_memories_that_fit_no_images_are_refused(
    session: Session, memories: Any, message: str
) -> None:
    session.policy = "confidence:0.5"
    with pytest.raises(UsageError, match=message):
        session.run(session.prepare(frames(2)), memories=memories)
    with pytest.raises(UsageError, match="expected a Memory for each image, or None, found 'm'"):
        session.predict(frames(1)[0], memory="m")  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [Patience(2), PatientConfidence(0.5, 2)])
def test_a_policy_that_counts_exits_that_agree_is_refused(session: Session, policy: Policy) -> None:
    session.policy = policy
    memory = Memory()
    message = (
        f"the policy {policy.name} cannot decide from answers averaged over frames, .* expected "
        "one of confidence, entropy, ensemble, fixed, never; set such a policy, or leave out"
    )
    with pytest.raises(UsageError, match=message):
        session.predict(frames(1)[0], memory=memory)
    assert memory.frames == 0
    session.predict(frames(1)[0])
    session.policy = "confidence:0.5"
    session.predict(frames(1)[0], memory=memory)


def test_a_memory_of_another_bundle_is_refused(session: Session, swin_bundle: Path) -> None:
    session.policy = "confidence:0.5"
    memory = Memory()
    session.predict(frames(1)[0], memory=memory)
    other = dataclasses.replace(session.manifest, labels=tuple("vwxyz"))
    bundle = dataclasses.replace(session._bundle, manifest=other)
    with Session(bundle, "confidence:0.5", session._open_chain) as renamed:
        with pytest.raises(LGViTEdgeError, match="told apart into other classes"):
            renamed.predict(frames(1)[0], memory=memory)
        memory.forget()
        renamed.predict(frames(1)[0], memory=memory)
