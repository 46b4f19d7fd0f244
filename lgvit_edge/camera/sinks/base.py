"""What a sink is, and the outlet that feeds it: a bounded queue, a thread, and counts."""

from __future__ import annotations

import dataclasses
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lgvit_edge.camera.shot import Event, Shot
from lgvit_edge.errors import SinkError, in_one_line

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next attempt; the last one repeats
_FAREWELL = 3.0  # seconds in which a sink may end what it writes, once it is given no more
_QUIET = 10.0  # seconds between two events that say that a sink fails
_LOSSES = 60.0  # seconds between two events that say that a sink is too slow


class Sink(ABC):
    """Takes shots and does something with them; an ``Outlet`` calls it, in a thread of its own.

    Attributes:
        name: what it is called in counts, logs and settings.
        images: whether it needs the picture.
        room: shots that may wait for it, while it is slow or fails.
        batch: shots that it takes at once, where so many wait.
    """

    name: ClassVar[str]
    images: ClassVar[bool] = False
    room: ClassVar[int] = 10_000
    batch: ClassVar[int] = 1

    def open(self) -> None:  # noqa: B027 - most sinks have nothing to check
        """Check, before any camera is opened, that it can work as asked.

        Raises:
            UsageError: it cannot, and never will without another setting.
            MissingDependency: a package is not installed.
        """

    @abstractmethod
    def take(self, shot: Shot) -> None:
        """Take one shot; return when it is safe there.

        Raises:
            SinkError: it cannot be taken now. The outlet tries again, later, unless ``final``.
            OSError: likewise.
        """

    def take_batch(self, shots: Sequence[Shot]) -> None:
        """Take at most ``batch`` shots, in their order; raises as ``take``.

        Where it raises, all of them are given again; with a final error each of them, alone.
        """
        for shot in shots:
            self.take(shot)

    def event(self, event: Event) -> None:  # noqa: B027 - most sinks show no events
        """Take an event; raises as ``take``, but is not tried again."""

    def close(self) -> None:  # noqa: B027 - most sinks hold nothing open
        """End; what was taken is safe afterwards. Raises as ``take``."""


@dataclass(frozen=True)
class SinkCounts:
    """What a sink has done so far.

    Every shot that was put counts as one of the four.

    Attributes:
        taken: shots it took.
        lost: shots it will never get, because too many waited, or because it was closed.
        refused: shots it will never take.
        waiting: shots that wait, with those that it is being given.
        error: what keeps it from working now; empty where nothing does.
    """

    taken: int
    lost: int
    refused: int
    waiting: int
    error: str


class Outlet:
    """Feeds one sink from a queue of its own, so that it can neither stop nor slow the others.

    While the sink fails, the same shots are tried again with growing pauses. When ``sink.room``
    shots wait, the oldest is lost and counted; or, with ``patient``, whoever puts the next one
    waits. Shots and events arrive in the order in which they were put.
    """

    def __init__(self, sink: Sink, tell: Callable[[Event], None], *, patient: bool = False) -> None:
        """Make the outlet; ``start`` starts it.

        Args:
            sink: what is fed.
            tell: is given an event when the sink begins to fail, works again, or loses shots; not
                more often than every few seconds.
            patient: whether nothing may be lost: for sources that can wait, such as files.
        """
        self.sink, self._tell, self._patient = sink, tell, patient
        self._queue: deque[Shot | Event] = deque()
        self._shots = 0  # of the queue
        self._busy = 0  # shots that the sink is being given
        self._changed = threading.Condition()
        self._taken = self._lost = self._refused = 0
        self._error = ""
        self._deadline: float | None = None  # time.monotonic() after which nothing is tried again
        self._closed = False
        # What people know: the last failure, empty where it works, and how many shots were lost.
        self._told, self._told_at = "", float("-inf")
        self._told_lost, self._told_lost_at = 0, float("-inf")
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)

    def start(self) -> None:
        """Start to feed."""
        self._thread.start()

    @property
    def counts(self) -> SinkCounts:
        """What the sink has done so far."""
        with self._changed:
            waiting = self._shots + self._busy
            return SinkCounts(self._taken, self._lost, self._refused, waiting, self._error)

    def put(self, shot: Shot) -> None:
        """Line a shot up; after ``close`` it is lost."""
        if not self.sink.images:
            shot = dataclasses.replace(shot, image=None)  # pictures that wait would fill memory
        with self._changed:
            while self._patient and self._shots >= self.sink.room and self._deadline is None:
                self._changed.wait()
            if self._closed:
                self._lost += 1
                return
            if self._shots >= self.sink.room:
                self._drop_oldest()
            self._queue.append(shot)
            self._shots += 1
            self._changed.notify_all()

    def put_event(self, event: Event) -> None:
        """Line an event up, if there is room."""
        with self._changed:
            if len(self._queue) < 2 * self.sink.room and not self._closed:
                self._queue.append(event)
                self._changed.notify_all()

    def close(self, seconds: float = 5.0) -> SinkCounts:
        """Feed what waits, for at most so many seconds, then close the sink; return its counts.

        What is left then is lost. A sink that hangs is left behind, a few seconds later.
        """
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + seconds
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(seconds)
            with self._changed:
                self._lost, self._shots = self._lost + self._shots, 0
                self._queue.clear()
            self._thread.join(_FAREWELL)
        elif not self._closed:
            self._guarded(self.sink.close)
        with self._changed:
            self._lost += self._shots + self._busy
            self._shots = self._busy = 0
            self._queue.clear()
            self._closed = True
        return self.counts

    def _drop_oldest(self) -> None:
        place = next(i for i, item in enumerate(self._queue) if isinstance(item, Shot))
        del self._queue[place]
        self._shots -= 1
        self._lost += 1

    def _run(self) -> None:
        """Feed the sink to the end; runs in a thread."""
        while (item := self._next()) is not None:
            if isinstance(item, Event):
                self._guarded(lambda item=item: self.sink.event(item))  # type: ignore[misc]
            else:
                self._feed(item)
        self._guarded(self.sink.close)

    def _next(self) -> list[Shot] | Event | None:
        """Return the next shots, as many as the sink takes at once, or the next event."""
        with self._changed:
            while not self._queue and self._deadline is None:
                self._changed.wait()
            shots: list[Shot] = []
            while self._queue and len(shots) < self.sink.batch:
                if isinstance(self._queue[0], Event) and shots:
                    break
                item = self._queue.popleft()
                if isinstance(item, Event):
                    return item
                shots.append(item)
            self._shots -= len(shots)
            self._busy = len(shots)
            self._changed.notify_all()  # there is room
            return shots or None

    def _feed(self, shots: list[Shot]) -> None:
        attempt = 0
        while (fate := self._try(shots)) is None:
            with self._changed:
                self._wait(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1
        if fate == "refused" and len(shots) > 1:
            for shot in shots:  # perhaps only one of them is the reason
                self._feed([shot])
            return
        with self._changed:
            if self._closed:
                return  # they were counted as lost
            self._busy -= len(shots)
            self._taken += len(shots) * (fate == "taken")
            self._lost += len(shots) * (fate == "lost")
            self._refused += len(shots) * (fate == "refused")
        if fate == "taken":
            self._works()

    def _try(self, shots: list[Shot]) -> Literal["taken", "lost", "refused"] | None:
        """Give shots to the sink once; return what became of them, None if it is not decided."""
        fault, final = self._guarded(lambda: self.sink.take_batch(shots))
        if not fault:
            return "taken"
        if final:
            return "refused"
        with self._changed:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return "lost"
            if not self._patient and self._shots >= self.sink.room:
                return "lost"  # they are the oldest
        return None

    def _wait(self, pause: float) -> None:
        """Wait so long, until the outlet begins to close, or while it closes until it must."""
        if self._deadline is not None:
            pause = min(pause, max(0.0, self._deadline - time.monotonic()))
            self._changed.wait_for(lambda: self._closed, pause)
        else:
            self._changed.wait_for(lambda: self._deadline is not None, pause)

    def _guarded(self, call: Callable[[], None]) -> tuple[bool, bool]:
        """Call the sink; return whether it failed, and whether it would fail for ever."""
        try:
            call()
            return False, False
        except SinkError as error:
            self._fails(str(error))
            return True, error.final
        except OSError as error:
            of = f"{error.filename}: " if error.filename is not None else ""
            self._fails(f"{of}{error.strerror or error}")
            return True, False
        except Exception as error:  # a bug of one sink disturbs no other
            self._fails(f"internal error, {in_one_line(error)}")
            return True, True

    def _fails(self, text: str) -> None:
        """Remember a failure, and tell of it unless people know, or were told of one just now."""
        with self._changed:
            self._error = text
            now = time.monotonic()
            if text == self._told or now - self._told_at < _QUIET:
                return
            self._told, self._told_at = text, now
        self._tell(Event(time.time(), "", f"{self.sink.name} fails: {text}", "error"))

    def _works(self) -> None:
        """Tell that the sink works again, or that it is too slow, where people should know."""
        with self._changed:
            known, self._told, self._error = self._told, "", ""
            lost, now = self._lost, time.monotonic()
            slow = lost > self._told_lost and now - self._told_lost_at >= _LOSSES
            if known or slow:
                self._told_lost, self._told_lost_at = lost, now
        more = f"; {lost} shots were lost so far" if lost else ""
        if known:
            self._tell(Event(time.time(), "", f"{self.sink.name} works again{more}"))
        elif slow:
            text = f"{self.sink.name} does not keep up{more}"
            self._tell(Event(time.time(), "", text, "warning"))
