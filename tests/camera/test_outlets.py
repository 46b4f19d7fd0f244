"""The queue and the thread before each sink: nothing that a sink does reaches the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from shots import picture, shot, until

from lgvit_edge.camera.shot import Event, Shot
from lgvit_edge.camera.sinks import base
from lgvit_edge.camera.sinks.base import Outlet, Sink
from lgvit_edge.errors import SinkError


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_PAUSES", (0.01, 0.02))


class Recorder(Sink):
    """Keeps what it takes; fails and blocks as it is told."""

    name = "recorder"
    images = False
    room = 5

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.order: list[str] = []
        self.images_seen: list[Any] = []
        self.fault: Exception | None = None
        self.attempts = 0
        self.free = threading.Event()
        self.free.set()
        self.closed = 0

    def take(self, shot: Shot) -> None:
        self.attempts += 1
        assert self.free.wait(20)
        if self.fault is not None:
            raise self.fault
        self.frames.append(shot.frame)
        self.order.append(f"shot {shot.frame}")
        self.images_seen.append(shot.image)

    def event(self, event: Event) -> None:
        self.order.append(event.text)

    def close(self) -> None:
        self.closed += 1


class Batches(Recorder):
    room = 100
    batch = 4

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def take_batch(self, shots: Sequence[Shot]) -> None:
        super().take_batch(shots)
        self.sizes.append(len(shots))


Make = Callable[..., tuple[Outlet, list[Event]]]


@pytest.fixture
def started() -> Iterator[Make]:
    """Makes outlets that are started, with the events that they tell; ends them."""
    made: list[tuple[Outlet, Any]] = []

    def make(sink: Sink, **options: Any) -> tuple[Outlet, list[Event]]:
        events: list[Event] = []
        outlet = Outlet(sink, events.append, **options)
        made.append((outlet, sink))
        outlet.start()
        return outlet, events

    yield make
    for outlet, sink in made:
        sink.free.set()
        sink.fault = None
        outlet.close()


def test_order_is_kept_with_events_between_and_pictures_are_left_out(started: Make) -> None:
    sink = Recorder()
    outlet, events = started(sink)
    for frame in range(3):
        outlet.put(shot(frame=frame, image=picture()))
        outlet.put_event(Event(0.0, "gate", f"event {frame}"))
    counts = outlet.close()
    assert sink.order == [f"{what} {i}" for i in range(3) for what in ("shot", "event")]
    assert sink.images_seen == [None] * 3
    assert (counts.taken, counts.lost, counts.refused, counts.waiting) == (3, 0, 0, 0)
    assert sink.closed == 1 and not events


def test_a_sink_of_pictures_gets_them(started: Make) -> None:
    class Pictures(Recorder):
        images = True

    sink, image = Pictures(), picture()
    outlet, _ = started(sink)
    outlet.put(shot(image=image))
    outlet.close()
    assert sink.images_seen[0] is image


def test_a_blocking_sink_loses_its_oldest_and_blocks_nobody(started: Make) -> None:
    sink, other = Recorder(), Recorder()
    sink.free.clear()
    (outlet, events), (beside, _) = started(sink), started(other)
    start = time.monotonic()
    outlet.put(shot(frame=0))
    until(lambda: sink.attempts)
    for frame in range(1, 20):
        for each in (outlet, beside):
            each.put(shot(frame=frame))
        until(lambda frame=frame: other.frames[-1:] == [frame])
    assert time.monotonic() - start < 5
    assert (outlet.counts.lost, outlet.counts.waiting) == (14, 6)  # five wait, one is in its hands
    sink.free.set()
    until(lambda: outlet.counts.waiting == 0)
    assert sink.frames == [0, 15, 16, 17, 18, 19] and other.frames == list(range(1, 20))
    assert [event.text for event in events] == [
        "recorder does not keep up; 14 shots were lost so far"
    ]


def test_a_failing_sink_gets_all_of_it_once_it_works(started: Make) -> None:
    sink = Recorder()
    sink.fault = OSError(28, "No space left on device", "/x")
    outlet, events = started(sink)
    for frame in range(3):
        outlet.put(shot(frame=frame))
    until(lambda: sink.attempts > 5)
    assert outlet.counts.error == "/x: No space left on device" and outlet.counts.waiting == 3
    sink.fault = None
    until(lambda: outlet.counts.taken == 3)
    assert sink.frames == [0, 1, 2] and outlet.counts.error == ""
    assert [(event.text, event.level) for event in events] == [
        ("recorder fails: /x: No space left on device", "error"),
        ("recorder works again", "info"),
    ]


def test_a_failing_sink_loses_the_oldest_and_says_how_many(started: Make) -> None:
    sink = Recorder()
    sink.fault = SinkError("the broker is gone")
    outlet, events = started(sink)
    for frame in range(20):
        outlet.put(shot(frame=frame))
        until(lambda: sink.attempts)
    until(lambda: outlet.counts.waiting <= 5)
    sink.fault = None
    until(lambda: outlet.counts.waiting == 0)
    counts = outlet.counts
    assert counts.taken + counts.lost == 20 and counts.lost >= 14
    assert sink.frames == sorted(sink.frames) and sink.frames[-1] == 19
    assert events[-1].text == f"recorder works again; {counts.lost} shots were lost so far"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (SinkError("the server refuses it", final=True), "the server refuses it"),
        (KeyError("x"), "internal error, KeyError: 'x'"),
    ],
)
def test_what_can_never_be_taken_is_refused_and_the_rest_goes_on(
    started: Make, fault: Exception, error: str
) -> None:
    sink = Recorder()
    sink.fault = fault
    outlet, events = started(sink)
    outlet.put(shot(frame=0))
    until(lambda: outlet.counts.refused)
    assert outlet.counts.error == error
    sink.fault = None
    outlet.put(shot(frame=1))
    until(lambda: outlet.counts.taken)
    assert sink.frames == [1] and sink.attempts == 2
    assert [event.text for event in events] == [
        f"recorder fails: {error}",
        "recorder works again",
    ]


def test_a_sink_that_fails_now_and_then_floods_nobody_with_events(started: Make) -> None:
    sink = Recorder()
    outlet, events = started(sink)
    for frame in range(40):
        sink.fault = SinkError(f"no {frame}", final=True) if frame % 2 else None
        outlet.put(shot(frame=frame))
        until(lambda: outlet.counts.waiting == 0)
    assert (outlet.counts.taken, outlet.counts.refused) == (20, 20)
    assert [e.text for e in events] == ["recorder fails: no 1", "recorder works again"]


def test_another_failure_is_told_once_it_lasts(
    started: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_QUIET", 0.1)
    sink = Recorder()
    sink.fault = SinkError("it is gone")
    outlet, events = started(sink)
    outlet.put(shot())
    until(lambda: events)
    sink.fault = SinkError("the password is wrong")
    until(lambda: len(events) == 2)
    assert events[1].text == "recorder fails: the password is wrong"


def test_who_puts_waits_for_a_patient_outlet_and_nothing_is_lost(started: Make) -> None:
    sink = Recorder()
    sink.free.clear()
    outlet, _ = started(sink, patient=True)
    put = 0

    def produce() -> None:
        nonlocal put
        for frame in range(30):
            outlet.put(shot(frame=frame))
            put += 1

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    until(lambda: put == 6)  # five wait, one is in the sink's hands
    assert outlet.counts.waiting == 6 and producer.is_alive()
    sink.free.set()
    producer.join(10)
    outlet.close()
    assert sink.frames == list(range(30)) and outlet.counts.lost == 0


def test_closing_frees_who_waits_for_a_patient_outlet(started: Make) -> None:
    sink = Recorder()
    sink.fault = SinkError("it is gone")
    outlet, _ = started(sink, patient=True)
    producer = threading.Thread(
        target=lambda: [outlet.put(shot(frame=frame)) for frame in range(30)], daemon=True
    )
    producer.start()
    until(lambda: outlet.counts.waiting == 6)
    counts = outlet.close(0.05)
    producer.join(10)
    assert not producer.is_alive()
    counts = outlet.counts
    assert counts.taken == 0 and counts.lost == 30 and counts.waiting == 0 and sink.closed == 1


def test_closing_feeds_what_waits(started: Make) -> None:
    sink = Recorder()
    sink.free.clear()
    outlet, _ = started(sink)
    for frame in range(5):
        outlet.put(shot(frame=frame))
    threading.Timer(0.1, sink.free.set).start()
    counts = outlet.close()
    assert counts.taken == 5 and counts.lost == 0 and sink.closed == 1
    outlet.put(shot())
    outlet.put_event(Event(0.0, "", "late"))
    assert outlet.counts.lost == 1 and outlet.counts.waiting == 0


def test_a_slow_sink_is_closed_in_time_and_still_ends_its_files(started: Make) -> None:
    class Slow(Recorder):
        room = 1000

        def take(self, shot: Shot) -> None:
            time.sleep(0.01)
            super().take(shot)

    sink = Slow()
    outlet, _ = started(sink)
    for frame in range(500):
        outlet.put(shot(frame=frame))
    start = time.monotonic()
    counts = outlet.close(0.1)
    assert time.monotonic() - start < 2 and sink.closed == 1
    assert counts.taken == len(sink.frames) and counts.taken + counts.lost == 500


def test_a_sink_that_hangs_is_left_behind(started: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_FAREWELL", 0.1)
    sink = Recorder()
    sink.free.clear()
    outlet, _ = started(sink)
    for frame in range(3):
        outlet.put(shot(frame=frame))
    until(lambda: sink.attempts)
    start = time.monotonic()
    counts = outlet.close(0.1)
    assert time.monotonic() - start < 2
    assert (counts.taken, counts.lost, counts.waiting) == (0, 3, 0)
    sink.free.set()
    until(lambda: sink.closed)
    assert outlet.counts == counts  # what is counted as lost stays so


def test_an_outlet_that_was_never_started_closes_its_sink() -> None:
    sink = Recorder()
    outlet = Outlet(sink, lambda event: None)
    outlet.close()
    outlet.close()
    assert sink.closed == 1


def test_events_never_fill_the_memory(started: Make) -> None:
    sink = Recorder()
    sink.free.clear()
    outlet, _ = started(sink)
    outlet.put(shot())
    until(lambda: sink.attempts)
    for number in range(100):
        outlet.put_event(Event(0.0, "", str(number)))
    for frame in range(1, 8):
        outlet.put(shot(frame=frame))
    sink.free.set()
    outlet.close()
    assert sink.order[0] == "shot 0" and len(sink.order) == 1 + 10 + 5
    assert sink.frames[-1] == 7


def test_a_batch_holds_what_waits_and_stops_at_an_event(started: Make) -> None:
    sink = Batches()
    sink.free.clear()
    outlet, _ = started(sink)
    outlet.put(shot(frame=0))
    until(lambda: sink.attempts)
    for frame in range(1, 7):
        outlet.put(shot(frame=frame))
    outlet.put_event(Event(0.0, "", "event"))
    outlet.put(shot(frame=7))
    sink.free.set()
    outlet.close()
    assert sink.sizes == [1, 4, 2, 1] and sink.frames == list(range(8))
    assert sink.order[7] == "event"


def test_a_failed_batch_comes_again_as_a_whole(started: Make) -> None:
    class Fragile(Batches):
        def take_batch(self, shots: Sequence[Shot]) -> None:
            if self.fault is not None:
                self.attempts += 1
                raise self.fault
            super().take_batch(shots)

    sink = Fragile()
    sink.fault = SinkError("not now")
    outlet, _ = started(sink)
    for frame in range(10):
        outlet.put(shot(frame=frame))
    until(lambda: sink.attempts > 2)
    assert outlet.counts.waiting == 10
    sink.fault = None
    outlet.close()
    assert sink.frames == list(range(10)) and outlet.counts.taken == 10


def test_of_a_refused_batch_only_what_is_at_fault_is_refused(started: Make) -> None:
    class Particular(Batches):
        def take_batch(self, shots: Sequence[Shot]) -> None:
            self.attempts += 1
            assert self.free.wait(20)
            if any(shot.frame == 3 for shot in shots):
                raise SinkError("it is too large", final=True)
            super().take_batch(shots)

    sink = Particular()
    sink.free.clear()
    outlet, _ = started(sink)
    outlet.put(shot(frame=0))
    until(lambda: sink.attempts)
    for frame in range(1, 9):
        outlet.put(shot(frame=frame))
    sink.free.set()
    counts = outlet.close()
    assert (counts.taken, counts.refused, counts.lost, counts.waiting) == (8, 1, 0, 0)
    assert sink.frames == [0, 1, 2, 4, 5, 6, 7, 8] and sink.sizes == [1, 1, 1, 1, 4]
