"""Several passes over an image: what each sees, when it begins, and what that costs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundles import list_again
from numpy.typing import NDArray
from small import Frame, frames

from lgvit_edge.bundle.directory import Bundle, open_bundle
from lgvit_edge.errors import BackendError, ParityError, UsageError
from lgvit_edge.images import inputs as inputs_module
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.runtime import (
    Confidence,
    Ensemble,
    FixedExit,
    Never,
    Policy,
    Result,
    Session,
    TargetRate,
)
from lgvit_edge.runtime import loaded as loaded_module
from lgvit_edge.runtime import runner as walk
from lgvit_edge.runtime import session as session_module
from lgvit_edge.runtime.backends.device_exit import check_supported
from lgvit_edge.runtime.deadlines import SegmentClock

BACKENDS = ("onnxruntime", "openvino")
WHOLE_CHAIN = FixedExit(5)


@pytest.fixture(scope="module", params=BACKENDS)
def session(passes_bundle: Path, request: pytest.FixtureRequest) -> Iterator[Session]:
    with opened(passes_bundle, request.param) as found:
        yield found


@pytest.fixture(autouse=True)
def as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "session" in request.fixturenames:
        request.getfixturevalue("session").policy = Confidence(0.8)


def opened(bundle: Path, backend: str) -> Session:
    precision = "fp32" if backend == "openvino" else None
    return Session.open(bundle, backend=backend, precision=precision, device="cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_exits_are_those_of_two_separate_sessions(
    passes_bundle: Path, apart: list[Path], backend: str
) -> None:
    images = frames(7)
    each = []
    for bundle in apart:
        with opened(bundle, backend) as alone:
            each.append(alone.exit_logits(images))
    with opened(passes_bundle, backend) as session:
        found = session.exit_logits(images)
        one = np.concatenate([session.exit_logits([image]) for image in images])
    assert found.shape == (7, 5, 5)
    np.testing.assert_array_equal(found, np.concatenate(each, axis=1))
    np.testing.assert_allclose(one, found, atol=1e-5)


def test_an_image_stops_in_the_pass_that_is_sure(session: Session) -> None:
    (image,) = frames(1)
    logits = session.exit_logits([image])[0]
    expected = [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (5, 4, 2)]
    for exit, block, number in expected + expected[::-1]:
        session.policy = FixedExit(exit)
        found = session.predict(image)
        assert (found.exit, found.block, found.pass_number) == (exit, block, number)
        assert found.class_index == logits[exit - 1].argmax()
        assert found.to_json()["pass_number"] == number


def colours(count: int, seed: int = 0) -> list[Frame]:
    """Four blocks of one colour each, with some noise, of several sizes."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(count):
        blocks = rng.integers(0, 230, (2, 2, 3)).repeat(20 + i % 3, 0).repeat(25, 1)
        images.append((blocks + rng.integers(0, 25, blocks.shape)).astype(np.uint8))
    return images


def a_quarter(session: Session, images: list[Frame], decay: float) -> Policy:
    """An ensemble whose every exit is sure of a quarter of the images, by some distance."""
    policy = Ensemble(0.5, decay)
    tracker, thresholds = policy.start(4), []
    logits = session.exit_logits(images)
    for exit in range(1, 5):
        scores = np.sort(tracker.score(exit, tracker.combine(logits[:, exit - 1])))
        cut = 3 * len(scores) // 4
        thresholds.append(float(scores[cut - 1 : cut + 1].mean()))
    return Ensemble(tuple(thresholds), decay)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_one_by_one_or_in_batches_rows_leave_as_replayed(session: Session, decay: float) -> None:
    """Rows leave in both passes, and those that go on are gathered in their order."""
    images = colours(40)
    policy = a_quarter(session, images, decay)
    exits, classes = policy.replay(session.exit_logits(images))
    assert set(exits.tolist()) == {1, 2, 3, 4, 5} and len(set(classes.tolist())) > 1
    session.policy = policy
    alone = [session.predict(image) for image in images]
    together = session.predict_batch(images)
    for results in (alone, together):
        assert [r.exit for r in results] == exits.tolist()
        assert [r.class_index for r in results] == classes.tolist()
    for one, other in zip(alone, together, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


def test_only_rows_that_go_on_are_resized_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = frames(4, seed=5)
    sizes: list[tuple[int, int]] = []
    resize = inputs_module.network_input

    def counted(frames: list[Frame], spec: Any, size: int, *others: Any) -> Any:
        sizes.append((len(frames), size))
        return resize(frames, spec, size, *others)

    monkeypatch.setattr(inputs_module, "network_input", counted)
    session.policy = FixedExit(3)
    session.predict(images[0])
    session.predict_batch(images)
    assert sizes == [(1, 16), (4, 16)]
    sizes.clear()
    last = np.sort(session.exit_logits(images)[:, 2].max(axis=1))
    sizes.clear()

    class Two(FixedExit):
        """Lets the two rows with the largest logits of exit 3 leave there."""

        def start(self, exits: int) -> Any:
            tracker = super().start(exits)
            plain = tracker.step
            tracker.step = lambda exit, logits: (  # type: ignore[method-assign]
                logits.max(axis=1) >= last[2] if exit == 3 else plain(exit, logits)
            )
            return tracker

    session.policy = Two(5)
    assert sorted(r.exit for r in session.predict_batch(images)) == [3, 3, 5, 5]
    assert sizes == [(4, 16), (2, 32)]
    sizes.clear()
    session.timed_baseline(images[0])
    assert sizes == [(1, 32)]  # the baseline never sees the coarse image


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("shape", [(40, 50, 3), (32, 32, 3), (16, 16, 3), (36, 36), (36, 36, 4)])
def test_later_passes_see_the_frame_as_it_was(
    session: Session, shape: tuple[int, ...], color: str
) -> None:
    """A camera fills its array again while the frame waits."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, shape, np.uint8)
    expected = session.exit_logits([image], color=color)
    ready = session.prepare([image], color=color)
    several = session.prepare([image, image], color=color)
    base = session.baseline_logits(ready)
    np.testing.assert_array_equal(
        session.timed_exits(session.prepare([image], color=color, own=False))[0], expected[0]
    )
    image[:] = 0
    np.testing.assert_array_equal(session.timed_exits(ready)[0], expected[0])
    np.testing.assert_array_equal(session.timed_exits(several[1:])[0], expected[0])
    np.testing.assert_array_equal(session.baseline_logits(ready), base)
    np.testing.assert_allclose(base, expected[:, -1], atol=1e-5)


def test_a_source_may_reuse_its_array(session: Session) -> None:
    images = [frame[:40] for frame in colours(9)]
    session.policy = a_quarter(session, images, 0.5)
    expected = [(r.label, r.exit) for r in map(session.predict, images)]
    assert len({exit for _, exit in expected}) > 1

    def camera() -> Iterator[Frame]:
        array = np.empty((40, 50, 3), np.uint8)
        for image in images:
            array[:] = image
            yield array
            array[:] = 0

    found = list(session.stream(camera(), ahead=9))
    assert [(r.label, r.exit) for r in found] == expected
    answers = list(session.streams({"a": camera(), "b": camera()}, batch=3))
    for name in "ab":
        own = [r for source, r in answers if source == name and isinstance(r, Result)]
        assert [(r.label, r.exit) for r in own] == expected
    assert session.stats.streams["a"].images == 9


def test_parity_is_checked_in_every_pass(passes_bundle: Path, tmp_path: Path) -> None:
    with opened(passes_bundle, "onnxruntime") as session:
        assert session.check_parity() < 1e-4
        assert session.warm_up() > 0
    copy = shutil.copytree(passes_bundle, tmp_path / "copy")
    with np.load(copy / "parity.npz") as samples:
        arrays = dict(samples)
    assert arrays["images_1"].shape[1:] == (16, 16, 3) and arrays["images_2"].shape[1] == 32
    arrays["logits"][:, 3] += 1
    np.savez(copy / "parity.npz", **arrays)
    list_again(copy)
    with opened(copy, "onnxruntime") as session:
        with pytest.raises(ParityError, match="segment 3 diverges from PyTorch"):
            session.check_parity()


def test_images_prepared_for_another_bundle_are_refused(
    session: Session, apart: list[Path]
) -> None:
    with Session.open(apart[1]) as fine:
        ready = fine.prepare(frames(1))
    with pytest.raises(UsageError, match="16 px uint8, 32 px uint8; found 1 of 32 px uint8, for"):
        session.run(ready)


def test_statistics_name_the_pass(session: Session) -> None:
    before = session.stats
    for exit in (1, 3, 4, 4, 5):
        session.policy = FixedExit(exit)
        session.predict(frames(1)[0])
    found = session.stats
    assert np.subtract(found.exits, before.exits).tolist() == [1, 0, 1, 2, 1]
    assert np.subtract(found.passes, before.passes).tolist() == [2, 3]
    assert f'exit="4",pass="2"}} {found.exits[3]}' in found.prometheus()


# Time. Beginning the second pass takes START_MS here, each segment a millisecond.

START_MS = 3.0
FRAME = np.zeros((32, 32, 3), np.uint8)


class Clock:
    """Time that passes only in segments and in resizing, and a microsecond when somebody looks."""

    def __init__(self) -> None:
        self.now, self.start_ms = 100.0, START_MS

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now


class TimedChain:
    """Takes a millisecond for each segment, and is never sure of anything."""

    max_batch = 4

    def __init__(self, clock: Clock) -> None:
        self.clock, self.begun = clock, list[tuple[int, int]]()

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        self.rows = len(images)
        self.begun.append((segment, images.shape[1]))

    def step(self) -> NDArray[np.float32]:
        self.clock.now += 1e-3
        return np.zeros((self.rows, 5), np.float32)

    def keep(self, rows: NDArray[np.intp]) -> None:
        self.rows = len(rows)

    def describe(self) -> dict[str, Any]:
        return {"backend": "timed"}

    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, of = Clock(), Inputs.of

    def slow(self: Inputs, index: int, rows: Any = None) -> Any:
        clock.now += clock.start_ms / 1e3 * (self._ready[index] is None)
        return of(self, index, rows)

    for module in (session_module, walk, loaded_module):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Inputs, "of", slow)
    return clock


@pytest.fixture
def two(passes_bundle: Path) -> Bundle:
    return open_bundle(passes_bundle, verify=False)


def timed(bundle: Bundle, clock: Clock, policy: Policy | None = None) -> tuple[Session, TimedChain]:
    chain = TimedChain(clock)
    session = Session(bundle, WHOLE_CHAIN, lambda names: chain)
    session.warm_up(5)
    session.policy = policy or WHOLE_CHAIN
    chain.begun.clear()
    return session, chain


def test_resizing_again_belongs_to_the_exit_after_it(two: Bundle, clock: Clock) -> None:
    session, chain = timed(two, clock)
    times = session.timed_exits(session.prepare([FRAME]))[1]
    assert times == pytest.approx([1, 1, 1, 1 + START_MS, 1], abs=0.1)
    assert chain.begun == [(0, 16), (3, 32)]
    found = session.predict(FRAME)
    assert found.latency_ms == pytest.approx(5 + START_MS, abs=0.1)
    session.policy = FixedExit(3)
    assert session.predict(FRAME).latency_ms == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(("deadline", "exit"), [(6, 3), (7.4, 3), (7.7, 4), (9.2, 5), (20, 5)])
def test_no_pass_begins_that_may_end_late(
    two: Bundle, clock: Clock, deadline: float, exit: int
) -> None:
    """A segment takes 1 ms, and half as long again to be sure; beginning the second pass 3."""
    session, chain = timed(two, clock)
    found = session.predict(FRAME, deadline_ms=deadline)
    assert (found.exit, found.late) == (exit, False)
    assert chain.begun == [(0, 16), (3, 32)][: 1 + (exit > 3)]


def test_larger_frames_are_noticed_by_the_first_that_is_late(two: Bundle, clock: Clock) -> None:
    session, _ = timed(two, clock)
    assert session.predict(FRAME, deadline_ms=12).exit == 5
    clock.start_ms = 9.0
    first, *others = [session.predict(FRAME, deadline_ms=12) for _ in range(20)]
    assert first.late and not any(r.late for r in others)
    assert {r.exit for r in others} == {3}
    clock.start_ms = START_MS  # no pass is begun any more, so nothing tells; a longer deadline does
    assert [session.predict(FRAME, deadline_ms=40).exit for _ in range(60)][-1] == 5
    assert session.predict(FRAME, deadline_ms=12).exit == 5


def test_a_first_deadline_measures_its_own_frame(two: Bundle, clock: Clock) -> None:
    chain = TimedChain(clock)
    session = Session(two, Never(), lambda names: chain)
    clock.start_ms = 6.0
    found = session.predict(FRAME, deadline_ms=500.0)
    assert (found.exit, found.late) == (5, False)
    assert session._walk.clock.longest(3) == pytest.approx(1.5 + 6.0, abs=0.2)


def test_a_frame_rate_counts_the_second_resizing(two: Bundle, clock: Clock) -> None:
    """All exits cost 1, 2, 3, 7 and 8 ms."""
    session, _ = timed(two, clock, TargetRate(1000 / 7.5, headroom=0.0))
    found = [session.predict(FRAME) for _ in range(20)][-1]
    assert found.exit == 4 and found.pace is not None
    assert found.pace.expected_ms == pytest.approx(7, abs=0.2)
    session.policy = TargetRate(1000 / 6.5, headroom=0.0)
    assert [session.predict(FRAME) for _ in range(20)][-1].exit == 3


def test_a_start_is_the_longest_of_late() -> None:
    clock = SegmentClock()
    clock.add_start(1, 5.0)  # before warm-up nothing is known
    clock.calibrate(np.full((3, 2), 4.0), np.array([[0, 2.0]] * 3))
    assert clock.exit_ms() == pytest.approx([4, 8])
    assert clock.longest(1) == pytest.approx(2 * 1.5 + 2)
    clock.add_start(1, 6.0)
    assert clock.longest(1) == pytest.approx(3 + 6)
    for _ in range(200):
        clock.add_start(1, 2.0)
    assert clock.longest(1) == pytest.approx(3 + 2, abs=0.01)


def test_the_device_does_not_decide_over_passes() -> None:
    gpu = SimpleNamespace(driver="13.0")
    check_supported(gpu, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="bundles of one pass, found 2 passes; export one net"):
        check_supported(gpu, 1, 2)  # type: ignore[arg-type]
