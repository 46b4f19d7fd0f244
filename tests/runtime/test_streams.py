"""Streams of live cameras: what stalls, what is dropped, what fails, and how each is counted."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small import Frame

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BackendError, DataError, StalledError
from lgvit_edge.runtime import FixedExit, Result, Session, StreamError, reading

WAIT = 60.0  # seconds after which a test would fail rather than hang


class Chain:
    """Notes the images it runs by their first pixel; ``before`` is called first."""

    max_batch = 4

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.started, self.rows = threading.Event(), 1
        self.before: Callable[[], object] = lambda: None

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        self.started.set()
        self.before()
        self.seen.append(images[:, 0, 0, 0].tolist())
        self.rows = len(images)

    def step(self) -> NDArray[np.float32]:
        return np.zeros((self.rows, 5), np.float32)

    def keep(self, rows: NDArray[np.intp]) -> None:
        self.rows = len(rows)

    def describe(self) -> dict[str, Any]:
        return {"backend": "film"}

    def close(self) -> None:
        pass


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def session(bundle: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr(reading, "_FAREWELL", 0.1)  # tests have sources that hang
    with Session(open_bundle(bundle, verify=False), FixedExit(1), lambda _: chain) as opened:
        yield opened
    assert readers() == []


def readers() -> list[threading.Thread]:
    """The threads that still read, but for those whose source hangs: they are given a moment."""
    found = [t for t in threading.enumerate() if t.name.startswith("lgvit-edge ")]
    for thread in found:
        thread.join(WAIT)
    return [thread for thread in found if thread.is_alive()]


def film(*numbers: int) -> list[Frame]:
    return [np.full((32, 32, 3), number, np.uint8) for number in numbers]


class Clock:
    """Time that passes when a test says so."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reading, "time", clock)
    return clock


def test_a_camera_that_stalls_is_reported_until_it_comes_back(
    session: Session, clock: Clock
) -> None:
    yard_is_over, back = threading.Event(), threading.Event()

    def gate() -> Iterator[Frame]:
        yield film(1)[0]
        yard_is_over.wait(WAIT)
        clock.now += 5.5
        back.wait(WAIT)
        yield film(2)[0]

    found: dict[str, list[Any]] = {"gate": [], "yard": []}
    for name, answer in session.streams({"gate": gate(), "yard": film(3, 4, 5)}, timeout=5):
        found[name].append(answer)
        if len(found["yard"]) == 3:
            yard_is_over.set()
        if len(found["gate"]) == 2:
            clock.now += 5.0
        if len(found["gate"]) == 3:
            back.set()
    first, stalled, again, last = found["gate"]
    assert all(isinstance(answer, Result) for answer in (first, last, *found["yard"]))
    for report, seconds in ((stalled, "5.5"), (again, "10.5")):
        assert isinstance(report, StreamError) and (report.image, report.ended) == (1, False)
        assert isinstance(report.error, StalledError) and isinstance(report.error, TimeoutError)
        assert str(report.error) == (
            f"source 'gate' has delivered no image for {seconds} s, expected one within 5 s: "
            "check the camera and its connection, or give a longer timeout"
        )
    assert session.stats.streams["gate"].errors == 2


def test_a_stream_raises_that_its_source_stalls(session: Session, clock: Clock) -> None:
    over = threading.Event()

    def camera() -> Iterator[Frame]:
        clock.now += 3.0
        over.wait(WAIT)
        yield film(1)[0]

    with pytest.raises(StalledError, match="^the source has delivered no image for 3 s, .* 2.5 s"):
        next(session.stream(camera(), timeout=2.5))
    over.set()


def test_who_waits_for_a_slow_application_is_not_stalled(session: Session, clock: Clock) -> None:
    second = threading.Event()

    def camera() -> Iterator[Frame]:
        yield film(1)[0]
        yield film(2)[0]
        second.set()
        yield from film(3, 4)

    stream = session.stream(camera(), ahead=1, timeout=5)
    seen = [next(stream)]
    assert second.wait(WAIT)
    end = time.monotonic() + WAIT
    (reader,) = (t for t in threading.enumerate() if t.name.startswith("lgvit-edge "))
    while sys._current_frames()[reader.ident or 0].f_code.co_name != "wait":
        assert time.monotonic() < end
        time.sleep(0.005)
    clock.now += 100.0  # meanwhile one image waits in the line, and one for its turn
    assert len([*seen, *stream]) == 4


def test_cameras_that_hang_delay_no_end(session: Session) -> None:
    over = threading.Event()

    def hangs() -> Iterator[Frame]:
        over.wait(WAIT)
        yield film(1)[0]

    stream = session.streams({**{str(i): hangs() for i in range(40)}, "good": film(1)})
    assert next(stream)[0] == "good"
    begun = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 3.0  # a tenth of a second for all, not for each
    over.set()


@pytest.mark.parametrize("name", ["gate", ""])
def test_only_the_newest_image_of_a_live_camera_is_answered(
    session: Session, chain: Chain, name: str
) -> None:
    """The camera is read on while the network computes."""
    all_read = threading.Event()
    chain.before = lambda: all_read.wait(WAIT)

    def camera() -> Iterator[Frame]:
        yield film(0)[0]
        chain.started.wait(WAIT)
        yield from film(*range(1, 10))
        all_read.set()

    if name:
        results = list(session.streams({name: camera()}, drop_oldest=True))
    else:
        results = list(session.stream(camera(), drop_oldest=True))
    assert len(results) == 2 and chain.seen == [[0], [9]]
    counts = session.stats.streams[name]
    assert (counts.images, counts.dropped, session.stats.dropped) == (2, 8, 8)


def test_the_line_of_a_live_camera_may_be_longer(session: Session, chain: Chain) -> None:
    all_read = threading.Event()

    def camera() -> Iterator[Frame]:
        yield from film(*range(10))
        all_read.set()

    stream = session.streams({"gate": camera()}, drop_oldest=True, ahead=3, batch=1)
    chain.before = lambda: all_read.wait(WAIT)
    list(stream)
    assert chain.seen[-3:] == [[7], [8], [9]]
    counts = session.stats.streams["gate"]
    assert counts.images + counts.dropped == 10


@pytest.mark.parametrize("drop_oldest", [True, False])
def test_cameras_are_served_in_turn(session: Session, chain: Chain, drop_oldest: bool) -> None:
    full = threading.Barrier(4)  # three cameras, and the network

    def camera(number: int) -> Iterator[Frame]:
        yield from film(*range(10 * number, 10 * number + 5))
        full.wait(WAIT)

    def before() -> None:
        if not chain.seen:
            full.wait(WAIT)

    chain.before = before
    sources = {name: camera(i) for i, name in enumerate("abc")}
    options = {"batch": 1, "ahead": 5, "drop_oldest": drop_oldest}
    names = [name for name, _ in session.streams(sources, **options)]  # type: ignore[arg-type]
    assert len(names) == 15
    for turn in range(1, 12):  # when the first was taken, not all were there
        assert len({*names[turn : turn + 3]}) == 3, names
    numbers = [number for (number,) in chain.seen]
    assert all([n for n in numbers if n // 10 == i] == [*range(10 * i, 10 * i + 5)] for i in (0, 1))


class Broken:
    """Fails before its first image."""

    def __iter__(self) -> Iterator[Frame]:
        raise OSError("no such camera")


def raises(error: BaseException) -> Iterator[Frame]:
    yield film(1)[0]
    raise error


@pytest.mark.parametrize(
    ("source", "kind", "images"),
    [
        (Broken, OSError, 0),
        (lambda: raises(SystemExit(3)), SystemExit, 1),
        (lambda: raises(KeyboardInterrupt()), KeyboardInterrupt, 1),
        (lambda: raises(MemoryError()), MemoryError, 1),
    ],
)
def test_a_source_that_fails_ends_alone(
    session: Session, source: Callable[[], Any], kind: type[BaseException], images: int
) -> None:
    found: dict[str, list[Any]] = {"bad": [], "good": []}
    for name, answer in session.streams({"bad": source(), "good": film(*range(6))}):
        found[name].append(answer)
    assert len(found["good"]) == 6 and all(isinstance(r, Result) for r in found["good"])
    *results, end = found["bad"]
    assert len(results) == images and isinstance(end.error, kind)
    assert (end.image, end.ended) == (images, True)
    with pytest.raises(kind):
        list(session.stream(source()))


def test_a_session_that_closes_ends_a_stream_that_waits(session: Session) -> None:
    answered, over = threading.Event(), threading.Event()

    def camera() -> Iterator[Frame]:
        yield film(1)[0]
        answered.wait(WAIT)
        session.close()
        over.wait(WAIT)

    stream = session.streams({"gate": camera()})
    next(stream)
    answered.set()
    with pytest.raises(BackendError, match="the session is closed; open another one"):
        next(stream)
    over.set()


def test_a_closed_session_touches_no_camera(session: Session) -> None:
    touched: list[int] = []
    stream = session.stream(touched.append(1) or frame for frame in film(1))
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        next(stream)
    assert not touched


def test_a_hook_that_raises_ends_the_stream_and_its_threads(session: Session) -> None:
    def full(_: Result) -> None:
        raise OSError("no space left on the log's disk")

    session.hooks.append(full)
    endless = itertools.repeat(film(1)[0])
    with pytest.raises(OSError, match="no space left"):
        next(session.streams({"gate": endless, "yard": film(2)}))
    assert readers() == []


def test_a_thread_that_does_not_start_ends_the_others(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = threading.Thread.start, []

    def short_of_threads(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", short_of_threads)
    endless = itertools.repeat(film(1)[0])
    with pytest.raises(RuntimeError, match="can't start new thread"):
        next(session.streams({"gate": endless, "yard": film(2)}))
    assert readers() == []


def test_each_source_is_counted_under_its_name(session: Session) -> None:
    def yard() -> Iterator[Frame]:
        yield from film(1, 2)
        raise OSError("the camera was unplugged")

    session.predict(film(1)[0])
    gate: list[Any] = [*film(3, 4, 5), np.zeros((4, 4), np.float32)]
    kinds = [type(answer) for _, answer in session.streams({"gate": gate, "yard": yard()})]
    assert kinds.count(StreamError) == 2
    with pytest.raises(DataError):
        list(session.stream(gate))
    session.run(session.prepare(film(6)), streams=["roof"])
    stats = session.stats
    counted = {name: (of.images, of.errors) for name, of in stats.streams.items()}
    assert counted == {"": (4, 1), "gate": (3, 1), "yard": (2, 1), "roof": (1, 0)}
    assert (stats.images, stats.errors, stats.window) == (10, 3, 10)
    for name in ("images", "late", "dropped", "errors", "latency_s", "window"):
        total = sum(getattr(of, name) for of in stats.streams.values())
        assert getattr(stats, name) == pytest.approx(total)
    assert stats.exits == (10, 0, 0, 0) and stats.streams["gate"].exits == (3, 0, 0, 0)
    row = json.loads(json.dumps(stats.to_json()))
    assert row["streams"]["gate"]["stopped"] == {"policy": 3, "final": 0, "deadline": 0}
    assert row["images"] == 10 and row["streams"]["yard"]["latency_ms"].keys() == {
        *("mean", "p50", "p90", "p95", "p99")
    }


def test_a_source_is_counted_before_its_first_image(session: Session) -> None:
    """A counter that begins at 0 shows its first increase."""
    session.streams({"gate": film(1)})
    text = session.stats.prometheus()
    assert 'lgvit_edge_images_total{stream="gate",exit="4",pass="1"} 0' in text
    assert 'lgvit_edge_images_total{stream="",exit="1",pass="1"} 0' in text


def test_prometheus_reads_each_stream(session: Session) -> None:
    name = 'the "north"\ngate \\ \udce9'
    list(session.streams({name: film(1, 2)}, drop_oldest=True, ahead=2, batch=1))
    session.predict(film(3)[0])
    text = session.stats.prometheus({"site": "harbour"})
    text.encode()  # as a page is sent
    shown = r'site="harbour",stream="the \"north\"\ngate \\ ?"'
    for line in (
        f'images_total{{{shown},exit="1",pass="1"}} 2',
        f"late_total{{{shown}}} 0",
        f"dropped_total{{{shown}}} 0",
        f"errors_total{{{shown}}} 0",
        f"latency_seconds_count{{{shown}}} 2",
        'images_total{site="harbour",stream="",exit="1",pass="1"} 1',
    ):
        assert f"lgvit_edge_{line}" in text.splitlines()
    samples: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            metric, rest = line.split("{", 1)
            labels = rest.replace(shown, 'site="harbour",stream=""').rsplit("}", 1)[0]
            names = ",".join(pair.split("=")[0] for pair in labels.split(","))
            samples.setdefault(metric + ("" if "quantile" not in names else ":q"), set()).add(names)
    assert len(samples) == 8 and all(len(names) == 1 for names in samples.values()), samples
