"""Deadlines and frame rates, on a chain whose times are known."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small import point

from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.bundle.points import OperatingPoint
from lgvit_edge.errors import UsageError
from lgvit_edge.runtime import Confidence, FixedExit, Never, Policy, Session, TargetRate, reading
from lgvit_edge.runtime import runner as walk
from lgvit_edge.runtime import session as session_module
from lgvit_edge.runtime.deadlines import MISS, SegmentClock

SEGMENT_MS = (4.0, 2.0, 2.0, 2.0)
FRAME = np.zeros((32, 32, 3), np.uint8)


class Clock:
    """Time that passes only when a segment runs, and a microsecond when somebody looks."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    monotonic = perf_counter


CLOCK = Clock()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (session_module, walk, reading):
        monkeypatch.setattr(module, "time", CLOCK)


class TimedChain:
    """Takes what it is told to take, times its load, and is never sure of anything."""

    max_batch = 4

    def __init__(self) -> None:
        self.load, self.next, self.rows = 1.0, 0, 1

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        self.next, self.rows = segment, len(images)

    def step(self) -> NDArray[np.float32]:
        CLOCK.now += SEGMENT_MS[self.next] * self.load * self.rows / 1e3
        self.next += 1
        return np.zeros((self.rows, 5), np.float32)

    def keep(self, rows: NDArray[np.intp]) -> None:
        self.rows = len(rows)

    def describe(self) -> dict[str, Any]:
        return {"backend": "timed"}

    def close(self) -> None:
        pass


def open_timed(
    bundle: Bundle, policy: Policy | None = None, *, warm_up: bool = True
) -> tuple[Session, TimedChain]:
    chain = TimedChain()
    session = Session(bundle, Never(), lambda names: chain)
    if warm_up:
        session.warm_up(5)
    session.policy = policy or Never()
    return session, chain


@pytest.fixture
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle, verify=False)


@pytest.mark.parametrize(("deadline", "exit"), [(40.0, 4), (6.9, 1), (7.1, 2), (8.9, 2), (9.1, 3)])
def test_the_best_exit_that_fits_answers(opened: Bundle, deadline: float, exit: int) -> None:
    """4 ms to the first exit, 2 for each other, each half as long again to be sure."""
    session, _ = open_timed(opened)
    found = session.predict(FRAME, deadline_ms=deadline)
    assert (found.exit, found.late) == (exit, False)
    assert found.stopped == ("final" if exit == 4 else "deadline")


def test_a_policy_may_stop_before_the_deadline(opened: Bundle) -> None:
    session, _ = open_timed(opened, FixedExit(2))
    found = session.predict(FRAME, deadline_ms=500)
    assert (found.exit, found.stopped) == (2, "policy")


def test_what_cannot_be_kept_is_late_and_says_so(opened: Bundle) -> None:
    session, _ = open_timed(opened)
    found = session.predict(FRAME, deadline_ms=1.0)
    assert (found.exit, found.stopped, found.late) == (1, "deadline", True)
    assert session.stats.late == 1 and session.stats.stopped["deadline"] == 1


def test_load_is_noticed_and_forgotten(opened: Bundle) -> None:
    session, chain = open_timed(opened)
    deadline = 26.0
    assert session.predict(FRAME, deadline_ms=deadline).exit == 4
    chain.load = 3.0  # 12 ms to the first exit, 6 for each other
    loaded = [session.predict(FRAME, deadline_ms=deadline) for _ in range(12)]
    assert {r.exit for r in loaded[4:]} <= {1, 2, 3}
    assert sum(r.late for r in loaded[2:]) <= 1
    chain.load = 1.0
    after = [session.predict(FRAME, deadline_ms=deadline) for _ in range(12)]
    assert after[-1].exit == 4


def test_a_first_deadline_warms_the_session_up(opened: Bundle) -> None:
    session, _ = open_timed(opened, warm_up=False)
    assert session.predict(FRAME, deadline_ms=500).exit == 4
    assert session.stats.images == 1


@pytest.mark.parametrize("deadline", [0, -3.0, float("nan"), float("inf")])
def test_a_deadline_that_means_nothing_is_refused(opened: Bundle, deadline: float) -> None:
    session, _ = open_timed(opened)
    with pytest.raises(UsageError, match="deadline_ms must be a positive number, found"):
        session.predict(FRAME, deadline_ms=deadline)
    with pytest.raises(UsageError, match="a deadline is for one image, found 2"):
        session.run(session.prepare([FRAME] * 2), deadline_ms=9.0)


def test_images_of_a_stream_have_a_deadline_each(opened: Bundle) -> None:
    """It counts from when the source delivered the image, its wait for its turn included."""
    session, chain = open_timed(opened)
    answered, all_read = threading.Event(), threading.Event()

    def camera() -> Iterator[Any]:
        yield FRAME
        answered.wait(60)
        yield from [FRAME] * 3
        all_read.set()

    stream = session.stream(camera(), deadline_ms=40.0, ahead=4)
    first = next(stream)
    assert (first.exit, first.stopped, first.late, chain.rows) == (4, "final", False, 1)
    answered.set()
    assert all_read.wait(60)
    CLOCK.now += 0.030  # 10 ms are left
    second = next(stream)
    assert (second.exit, second.stopped, second.late) == (3, "deadline", False)
    CLOCK.now += 1.0
    for late in stream:
        assert (late.exit, late.stopped, late.late, chain.rows) == (1, "deadline", True, 1)
    assert (session.stats.images, session.stats.late) == (4, 2)


def test_a_stream_with_a_deadline_warms_up_before_its_first_image(opened: Bundle) -> None:
    session, _ = open_timed(opened, warm_up=False)
    found = [answer for _, answer in session.streams({"gate": [FRAME]}, deadline_ms=40.0)]
    assert [(result.exit, result.late) for result in found] == [(4, False)]  # type: ignore[union-attr]


def test_the_clock_is_exceeded_as_often_as_it_says() -> None:
    """On times with a heavy tail, whose level doubles half-way."""
    rng = np.random.default_rng(0)
    clock = SegmentClock()
    clock.calibrate(np.tile([4.0, 2.0, 2.0], (5, 1)), np.zeros((5, 3)), {1: 1.5})
    assert clock.saved_ms().tolist() == [0, 0.5, 0]
    clock.add(0, 400.0, head=False)  # was never timed so: it says nothing
    assert clock.load == 1
    clock.add(1, 3.0, head=False)  # twice as long as it takes without its head
    assert clock.load == 1 + 1 / 8
    clock.calibrate(np.tile([4.0, 2.0, 2.0], (5, 1)), np.zeros((5, 3)))
    missed = []
    for frame in range(8000):
        level = 1.0 if frame < 4000 else 2.0
        for segment, base in enumerate((4.0, 2.0, 2.0)):
            spent = base * level * float(rng.lognormal(0, 0.2)) * (4 if rng.random() < 0.002 else 1)
            missed.append(spent > clock.longest(segment))
            clock.add(segment, spent)
    share = np.mean(missed[3000:])
    assert MISS / 3 < share < 1.5 * MISS
    assert clock.load == pytest.approx(2.0, rel=0.4)


@pytest.fixture
def tuned(opened: Bundle) -> Bundle:
    """Three points whose shares are those of the exits they force: 10, 8 and 6 ms."""
    points = {"fast": at_exit(2, 0.7), "accurate": at_exit(4, 0.9), "balanced": at_exit(3, 0.8)}
    return with_points(opened, points)


def at_exit(exit: int, accuracy: float) -> OperatingPoint:
    shares = tuple(float(e == exit) for e in (1, 2, 3, 4))
    return point(FixedExit(exit), shares=shares, accuracy=accuracy)


def with_points(bundle: Bundle, points: dict[str, OperatingPoint]) -> Bundle:
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, points=points))


def run(session: Session, count: int) -> list[Any]:
    return [session.predict(FRAME) for _ in range(count)]


def test_a_rate_is_kept_while_load_rises_and_falls(tuned: Bundle) -> None:
    rate = TargetRate(60)  # 16.7 ms a frame, 15 for us
    session, chain = open_timed(tuned, rate)
    calm = run(session, 20)
    assert {r.exit for r in calm} == {4} and calm[-1].pace.point == "accurate"
    chain.load = 2.0  # 20, 16, 12 ms and 8 at the first exit
    loaded = run(session, 60)
    assert {r.pace.point for r in loaded[30:]} == {"fast"}  # settled within 30 frames
    assert np.mean([r.latency_ms for r in loaded[30:]]) < 1e3 / 60
    chain.load = 1.0
    after = run(session, 40)
    assert {r.pace.point for r in after[30:]} == {"accurate"}
    points = [r.pace.point for r in (*calm, *loaded, *after)]
    changes = sum(a != b for a, b in zip(points, points[1:], strict=False))
    assert changes <= 6  # down in a step or two, up likewise, and no way back


def test_the_last_resort_is_the_first_exit(tuned: Bundle) -> None:
    session, chain = open_timed(tuned, TargetRate(60))
    chain.load = 8.0
    found = run(session, 20)[-1]
    assert found.exit == 1 and found.pace.point == "exit 1"
    assert found.pace.level == found.pace.levels == 4
    text = str(found.pace)
    assert "point exit 1 (level 4 of 4)" in text and "expected of 15.0 at load" in text


def test_a_load_at_the_edge_makes_no_oscillation(tuned: Bundle) -> None:
    """The load swings so that the accurate point fits for a while, again and again."""
    session, chain = open_timed(tuned, TargetRate(60))
    points = []
    for frame in range(400):
        chain.load = 1.6 if frame // 20 % 2 else 1.0
        points.append(session.predict(FRAME).pace.point)
    changes = [i for i, (a, b) in enumerate(zip(points, points[1:], strict=False)) if a != b]
    early, late = (sum(i // 200 == half for i in changes) for half in (0, 1))
    assert late <= early and late <= 8  # it was tried twenty times; patience grows


def test_without_points_the_exits_are_the_levels(opened: Bundle) -> None:
    session, chain = open_timed(opened, TargetRate(60))
    assert run(session, 3)[-1].pace.point == "exit 4"
    chain.load = 2.0
    assert run(session, 25)[-1].pace.point in ("exit 1", "exit 2")


def test_batches_keep_a_rate_too(tuned: Bundle) -> None:
    session, chain = open_timed(tuned, TargetRate(60))
    chain.load = 2.0
    for _ in range(20):
        found = session.predict_batch([FRAME] * 4)
    assert found[0].pace is not None and found[0].pace.point == "fast"


def test_waiting_in_a_stream_is_no_work(tuned: Bundle) -> None:
    """Frames read ahead wait for their turn; a rate that is kept must not fall for it."""
    session, _ = open_timed(tuned, TargetRate(60))
    images = session.prepare([FRAME])
    for _ in range(30):
        (found,) = session.run(images, starts=[CLOCK.now - 1.0])
        assert found.latency_ms > 1000 and found.pace is not None
        assert found.pace.point == "accurate"
    for _ in range(30):  # but whoever prepares in between pays
        (found,) = session.run(images, prepare_ms=6.0)
    assert found.pace is not None and found.pace.point == "balanced"


def test_rates_that_mean_nothing(tuned: Bundle) -> None:
    with pytest.raises(UsageError, match="fps must be a positive number, found 0"):
        TargetRate(0)
    with pytest.raises(UsageError, match=r"headroom must be in 0\.\.1, found 1"):
        TargetRate(30, headroom=1)
    session, _ = open_timed(tuned)
    with pytest.raises(UsageError, match="no operating point 'slow'; this bundle has "):
        session.policy = TargetRate(30, ["slow"])
    assert session.policy == Never()
    rate = TargetRate(30, ["fast"])
    session.policy = rate
    assert rate.to_json()["points"] == ["fast"] and rate.pace.levels == 2
    other, _ = open_timed(tuned)
    with pytest.raises(UsageError, match="serves another session; .* another policy first"):
        other.policy = rate
    session.policy = Confidence(0.5)
    assert session.predict(FRAME).pace is None


def test_a_rate_can_be_set_again_here_and_elsewhere(tuned: Bundle) -> None:
    rate = TargetRate(60)
    session, _ = open_timed(tuned, rate)
    session.policy = rate  # as it is
    session.policy = FixedExit(1)
    session.policy = rate
    assert session.predict(FRAME).pace.point == "accurate"  # type: ignore[union-attr]
    other, _ = open_timed(tuned)
    session.policy = Never()
    other.policy = rate
    assert other.predict(FRAME).pace is not None and session.predict(FRAME).pace is None
    with pytest.raises(UsageError, match="serves another session"):
        session.policy = rate
    other.close()
    session.policy = rate
    assert session.predict(FRAME).pace is not None


def test_what_is_dearer_need_not_be_more_accurate(opened: Bundle) -> None:
    points = {"dear": at_exit(4, 0.7), "best": at_exit(3, 0.8), "quick": at_exit(2, 0.75)}
    session, chain = open_timed(with_points(opened, points), TargetRate(60))
    calm = run(session, 30)[-1].pace
    assert (calm.point, calm.level) == ("best", 1)
    chain.load = 1.8  # 18 ms, 14.4 ms and 10.8 ms: all but the dear one fit
    assert {r.pace.point for r in run(session, 60)[30:]} <= {"best", "quick"}
    chain.load = 9.0
    assert run(session, 30)[-1].pace.point == "exit 1"


def test_accuracies_of_unlike_images_are_held_against_their_baselines(opened: Bundle) -> None:
    hard = dataclasses.replace(at_exit(3, 0.5), baseline_accuracy=0.5)
    easy = dataclasses.replace(at_exit(2, 0.8), baseline_accuracy=0.9)
    session, _ = open_timed(with_points(opened, {"easy": easy, "hard": hard}), TargetRate(60))
    assert run(session, 20)[-1].pace.point == "hard"
