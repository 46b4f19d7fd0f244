"""Answers averaged over frames: the formula, what is forgotten, and when a memory changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lgvit_edge.errors import UsageError
from lgvit_edge.policies import (
    POLICIES,
    Averages,
    Confidence,
    Departures,
    Ensemble,
    Entropy,
    FixedExit,
    Memory,
    Never,
    Policy,
)

CLASSES = 5
Found = tuple[int, int, float]  # exit, class, score


def films(cameras: int, frames: int, seed: int = 0) -> NDArray[np.float32]:
    """Logits ``[frames, cameras, 4, 5]`` of cameras that look at one class each, more and more."""
    rng = np.random.default_rng(seed)
    seen = 1.2 * np.eye(CLASSES)[np.arange(cameras) % CLASSES][None, :, None]
    depth = np.linspace(0.7, 1.5, 4)[:, None]
    noise = rng.normal(0, 1, (frames, cameras, 4, CLASSES))
    return (depth * seen + noise).astype(np.float32)


def played(
    policy: Policy, logits: NDArray[np.float32], memories: list[Memory | None], start: float = 0.0
) -> list[Found]:
    """One frame of every camera, ``[cameras, 4, C]``."""
    averages = Averages(memories, [start] * len(logits), CLASSES)
    batch = Departures(policy, logits.shape[1] - 1, len(logits), averages)
    found: dict[int, Found] = {}
    while len(batch.rows):
        left = batch.see(logits[batch.rows, batch.exit])
        for row, index, score in zip(left.rows, left.classes, left.scores, strict=True):
            found[int(row)] = (left.exit, int(index), float(score))
    averages.keep()
    return [found[row] for row in range(len(logits))]


def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x - np.log(np.exp(x).sum()))


class Reference:
    """One camera by the formula, in float64: all frames' own logits are kept, and weighed anew."""

    def __init__(self, window: int, thresholds: list[float], low: bool = False) -> None:
        self.fade, self.thresholds, self.low = 1 - 2 / (window + 1), thresholds, low
        self.past: list[NDArray[np.float64]] = []  # the newest last
        self.last = [1.0] * 4  # temperatures that make exits alike
        self.sharp = 1.0  # one temperature for all
        self.decay = 0.0

    def answer(self, logits: NDArray[np.float32]) -> Found:
        total = np.zeros(CLASSES)
        for exit in range(1, 5):
            total = logits[exit - 1] + self.decay * total
            own = log_softmax(total.astype(np.float64) / self.last[exit - 1])
            past = self.past
            if past and own.max() > np.log(0.9):
                weighed = sum(self.fade**k * p for k, p in enumerate(reversed(past)))
                if np.argmax(weighed) != own.argmax():
                    past = []
            weights = [self.fade**k for k in range(len(past) + 1)]
            every = [own, *reversed(past)]
            mean = sum(w * p for w, p in zip(weights, every, strict=True)) / sum(weights)
            logs = log_softmax(mean / self.sharp)
            score = float(-(np.exp(logs) * logs).sum()) if self.low else float(np.exp(logs.max()))
            limit = self.thresholds[exit - 1] if exit < 4 else None
            if limit is None or (score < limit if self.low else score > limit):
                self.past = [*past, own]
                return exit, int(mean.argmax()), score
        raise AssertionError


CASES: list[tuple[Policy, list[float], dict[str, Any]]] = [
    (Confidence(0.6), [0.6] * 3, {}),
    (Confidence((0.7, 0.6, 0.5)), [0.7, 0.6, 0.5], {}),
    (Confidence(0.6, 0.5), [0.6] * 3, {"sharp": 0.5}),
    (Confidence(0.6, (2.0, 1.5, 0.8)), [0.6] * 3, {"last": [2.0, 1.5, 0.8, 1.0]}),
    (Entropy(1.0), [1.0] * 3, {"low": True}),
    (Entropy(1.0, (2.0, 1.5, 0.8)), [1.0] * 3, {"low": True, "last": [2.0, 1.5, 0.8, 1.0]}),
    (Ensemble(0.7, 0.5), [0.7] * 3, {"decay": 0.5}),
    (FixedExit(2), [2.0, -1.0, -1.0], {}),
    (Never(), [2.0] * 3, {}),
]


@pytest.mark.parametrize(("policy", "thresholds", "about"), CASES, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("window", [2, 8])
def test_it_is_the_formula(
    policy: Policy, thresholds: list[float], about: dict[str, Any], window: int
) -> None:
    logits = films(6, 25)
    memories: list[Memory | None] = [Memory(window) for _ in range(6)]
    by_hand = [Reference(window, thresholds, low=about.get("low", False)) for _ in range(6)]
    for reference in by_hand:
        vars(reference).update({k: v for k, v in about.items() if k != "low"})
    exits = set()
    for number, frame in enumerate(logits):
        found = played(policy, frame, memories, start=number / 30)
        expected = [each.answer(row) for each, row in zip(by_hand, frame, strict=True)]
        assert [f[:2] for f in found] == [e[:2] for e in expected]
        assert [f[2] for f in found] == pytest.approx([e[2] for e in expected], abs=1e-5)
        exits |= {f[0] for f in found}
        assert [m and m.frames for m in memories] == [len(r.past) for r in by_hand]
    assert len(exits) > 1 or isinstance(policy, (FixedExit, Never))


def test_what_is_remembered_lets_a_steady_scene_leave_earlier_and_more_often_right() -> None:
    logits, policy = 2 * films(40, 30), Confidence(0.8)
    memories: list[Memory | None] = [Memory(8) for _ in range(40)]
    right = np.arange(40) % CLASSES
    exits, hits = np.zeros(2), np.zeros(2)
    for number, frame in enumerate(logits):
        for which, given in enumerate(([None] * 40, memories)):
            taken, classes, _ = zip(*played(policy, frame, given, number / 30), strict=True)
            exits[which] += np.mean(taken)
            hits[which] += np.mean(np.equal(classes, right))
    assert exits[1] < exits[0] - 15 and hits[1] > hits[0] + 4  # of 30 frames each


def test_the_first_frame_and_rows_without_a_memory_are_as_without() -> None:
    logits, policy, memory = films(3, 4), Confidence(0.6), Memory(4)
    alone = [played(policy, frame, [None] * 3) for frame in logits]
    assert played(policy, logits[0], [None, memory, None]) == alone[0]
    for number, frame in enumerate(logits[1:], 1):
        found = played(policy, frame, [None, memory, Memory(4)])
        assert [found[0], found[2]] == [alone[number][0], alone[number][2]]
    assert memory.frames == 4


@pytest.mark.parametrize(
    ("start", "frames"), [(10.0, 3), (12.0, 3), (12.001, 1), (9.999, 1), (70.0, 1)]
)
def test_what_is_too_old_is_forgotten(start: float, frames: int) -> None:
    """And so is all where the clock of the frames was set back."""
    memory, logits = Memory(8, lifetime=2), films(1, 3)
    for at, frame in zip((8.0, 10.0), logits, strict=False):
        played(Confidence(0.6), frame, [memory], at)
    found = played(Confidence(0.6), logits[2], [memory], start)
    assert memory.frames == frames
    assert (found == played(Confidence(0.6), logits[2], [None])) is (frames == 1)


def test_an_exit_that_is_sure_of_another_class_is_believed() -> None:
    scene = np.zeros((1, 4, CLASSES), np.float32)
    scene[..., 0] = 8.0
    other = np.zeros((1, 4, CLASSES), np.float32)
    other[:, :2, 1], other[:, 2:, 1] = 3.0, 6.0  # exits 1 and 2 are not that sure
    memory = Memory(16)
    for _ in range(16):
        assert played(Confidence(0.95), scene, [memory])[0][:2] == (1, 0)
    assert memory.frames == 16
    unsure = other.copy()
    unsure[..., 1] = 3.0
    assert played(Confidence(0.95), unsure, [memory])[0][:2] == (1, 0), "one frame is not enough"
    assert memory.frames == 17
    memory = Memory(16)
    for _ in range(3):
        played(Confidence(0.999), scene, [memory])
    assert played(Confidence(0.999), other, [memory])[0][1] == 1
    assert memory.frames == 1, "what was before is forgotten"


def test_policies_may_change_between_frames() -> None:
    """One temperature for all exits is the policy's own: no memory keeps it."""
    logits = films(1, 8)
    for temperature in (0.25, 4.0):
        memory, plain = Memory(8), Memory(8)
        for number, frame in enumerate(logits):
            sharp = FixedExit(4) if number == 7 else Confidence(1.0, temperature)
            a = played(sharp, frame, [memory], number / 10)
            b = played(FixedExit(4), frame, [plain], number / 10)
            assert a[0][:2] == b[0][:2]
        assert a[0][2] == pytest.approx(b[0][2], abs=1e-6)


def test_logits_of_any_size_leave_numbers() -> None:
    memory, huge = Memory(8), np.zeros((1, 4, CLASSES), np.float32)
    huge[..., 0], huge[..., 1] = 1e18, -1e18
    for frame in (huge, -huge, films(1, 1)[0], huge):
        for policy in (Confidence(0.5, 0.01), Entropy(0.5, (0.01, 100.0, 1.0))):
            exit, _, score = played(policy, frame, [memory])[0]
            assert np.isfinite(score) and 1 <= exit <= 4
    assert memory._state is not None and np.isfinite(memory._state.logs).all()


def test_nothing_is_kept_before_it_is_said() -> None:
    memory, logits = Memory(8), films(1, 2)
    played(Confidence(0.6), logits[0], [memory])
    before = memory._state
    averages = Averages([memory], [0.1], CLASSES)
    batch = Departures(Confidence(0.0), 3, 1, averages)
    batch.see(logits[1][:, 0])
    assert memory._state is before
    averages.keep()
    assert memory.frames == 2
    memory.forget()
    assert memory.frames == 0


def test_other_classes_are_refused() -> None:
    memory, logits = Memory(8), films(1, 1)[0]
    played(Confidence(0.6), logits, [memory])
    for other in (CLASSES + 1, tuple("abcde")):
        with pytest.raises(UsageError, match=r"told apart into other classes; forget\(\) it"):
            Averages([memory], [0.0], other)
        assert memory.frames == 1
    memory.forget()
    Averages([memory], [0.0], tuple("abcde"))


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (1, r"a window must be 2\.\.1000 frames, found 1"),
        (1001, r"a window must be 2\.\.1000 frames, found 1001"),
        (0, "window must be a whole number of at least 1, found 0"),
        (2.5, "window must be a whole number"),
        (True, "window must be a whole number"),
        ("8", "window must be a whole number"),
    ],
)
def test_a_window_is_some_frames(window: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Memory(window)


@pytest.mark.parametrize("lifetime", [0, -1, float("nan"), float("inf"), "5", True, None])
def test_a_lifetime_is_some_seconds(lifetime: Any) -> None:
    with pytest.raises(UsageError, match="lifetime must be a positive number of seconds, found"):
        Memory(8, lifetime=lifetime)


def test_what_counts_exits_that_agree_takes_no_memory() -> None:
    refused = {name for name, kind in POLICIES.items() if not kind.averages}
    assert refused == {"patience", "patient_confidence"}
