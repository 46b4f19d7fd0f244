"""A chain in two parts, as two machines run them: together they answer as one session does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import frames

from lgvit_edge.errors import BackendError, DataError, UsageError
from lgvit_edge.runtime import Confidence, Ensemble, Never, Result, Session
from lgvit_edge.runtime.backends.ort import OrtChain

BACKENDS = ("onnxruntime", "openvino")


def opened(bundle: Path, backend: str, policy: Any = None) -> Session:
    precision = "fp32" if backend == "openvino" else None
    return Session.open(bundle, backend=backend, precision=precision, device="cpu", policy=policy)


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    with opened(bundle, "onnxruntime", Confidence(0.5)) as session:
        yield session


def thresholds(session: Session, share: float) -> Confidence:
    """A policy at which about this share of images stops at each exit."""
    logits = session.exit_logits(frames(16, seed=3))[:, :-1]
    sure = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return Confidence(tuple(float(t) for t in np.quantile(sure.max(-1), 1 - share, axis=0)))


def key(result: Result) -> tuple[Any, ...]:
    return result.class_index, result.exit, result.block, result.pass_number, result.stopped


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exit", [1, 3])
@pytest.mark.parametrize("what", ["hidden", "image"])
def test_two_parts_answer_as_one_session(bundle: Path, backend: str, exit: int, what: str) -> None:
    images = frames(16, seed=3)
    with opened(bundle, backend) as device, opened(bundle, backend) as server:
        device.policy = server.policy = thresholds(device, 0.25)
        whole = [device.predict(image) for image in images]
        assert {r.exit <= exit for r in whole} == {True, False}
        left, sent = [], []
        for number, image in enumerate(images):
            ready = device.prepare([image])
            result, hidden, *_ = device.run_until(ready, exit, hidden=what == "hidden")
            if result.stopped == "limit":
                assert (result.exit, whole[number].exit > exit) == (exit, True)
                left.append(number)
                sent.append(ready if what == "image" else hidden)
            else:
                assert key(result) == key(whole[number]) and hidden is None
        for number, rest in zip(left, sent, strict=True):
            (found,) = server.run_from(exit, rest)
            assert key(found) == key(whole[number])
            assert found.confidence == pytest.approx(whole[number].confidence, abs=2e-3)
        batch = sent[:4]
        together = server.run_from(
            exit,
            np.concatenate(batch)
            if what == "hidden"
            else server.prepare([images[number] for number in left[:4]]),
        )
        assert [key(r) for r in together] == [key(whole[number]) for number in left[:4]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_passes_are_split_between_machines(passes_bundle: Path, backend: str) -> None:
    images = frames(8, seed=5)
    with opened(passes_bundle, backend) as session:
        session.policy = Confidence(0.999)  # nobody is that sure: all reach the second pass
        whole = [session.predict(image) for image in images]
        for image, expected in zip(images, whole, strict=True):
            ready = session.prepare([image])
            result = session.run_until(ready, 3).result
            assert (result.exit, result.stopped, result.pass_number) == (3, "limit", 1)
            (found,) = session.run_from(3, ready)
            assert key(found) == key(expected)
        with pytest.raises(UsageError, match="a pass begins after exit 2, which needs the image"):
            session.run_until(ready, 2, hidden=True)
        hidden = session.run_until(ready, 4, hidden=True).hidden
        assert hidden is not None and key(session.run_from(4, hidden)[0]) == key(expected)


def test_a_limit_stops_where_the_policy_reads_no_exit(session: Session) -> None:
    """And where it never stops early: the model without exits would run otherwise."""
    image = session.prepare(frames(1))
    for policy in (Confidence((1.0, 1.0, 0.5)), Never()):
        session.policy = policy
        result = session.run_until(image, 2).result
        logits = session.exit_logits(frames(1))[0, 1]
        assert (result.exit, result.stopped) == (2, "limit")
        assert result.class_index == logits.argmax()
        (rest,) = session.run_from(2, image)
        assert rest.exit > 2 and rest.stopped in ("policy", "final")


def test_parts_are_counted_only_when_told(session: Session) -> None:
    seen: list[Result] = []
    session.hooks.append(seen.append)
    session.policy = Confidence(1.0)
    image = session.prepare(frames(1))
    result = session.run_until(image, 1).result
    with pytest.raises(UsageError, match="has no answer yet"):
        session.count([result])
    results = session.run_from(1, image)
    assert session.stats.images == 0 and not seen
    session.count(results)
    assert session.stats.images == 1 and seen == results


def test_a_deadline_holds_before_the_limit(session: Session) -> None:
    session.policy = Confidence(1.0)
    image = session.prepare(frames(1))
    result, hidden, *_ = session.run_until(image, 3, deadline_ms=1e-6, hidden=True)
    assert hidden is not None and session.run_from(1, hidden)[0].exit == 4
    assert (result.exit, result.stopped, result.late) == (1, "deadline", True)


def test_what_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    image = session.prepare(frames(1))
    for exit in (0, 9, True, 1.5):
        with pytest.raises(UsageError, match="exit"):
            session.run_until(image, exit)  # type: ignore[arg-type]
        if exit != 0:
            with pytest.raises(UsageError, match="exit"):
                session.run_from(exit, image)  # type: ignore[arg-type]
    good = np.zeros(session.hidden_spec(1).for_batch(1), np.float16)
    for bad in (
        good.astype("f8"),
        good[:, :-1],
        good[:0],
        np.zeros((9, *good.shape[1:]), "f2"),
        np.array(3.0),
    ):
        with pytest.raises(UsageError, match="expected hidden states"):
            session.run_from(1, bad)
    with pytest.raises(UsageError, match="expected 1 starts, one per image, found 2"):
        session.run_from(1, image, starts=[0.0, 0.0])
    with pytest.raises(DataError, match="not finite"):
        session.run_from(1, np.full_like(good, np.inf))
    session.policy = Confidence(1.0)
    monkeypatch.delattr(OrtChain, "hidden")
    with pytest.raises(UsageError, match="the backend onnxruntime does not hand hidden states"):
        session.run_until(image, 1, hidden=True)
    session.policy = Ensemble(0.9)
    with pytest.raises(UsageError, match="ensemble does not decide from each exit alone"):
        session.run_until(image, 1)
    with pytest.raises(UsageError, match="ensemble does not decide from each exit alone"):
        session.run_from(1, image)
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run_from(1, image)
