"""What a sink is, and the outlet that feeds it: a bounded queue, a thread, and counts."""

from __future__ import annotations

import dataclasses
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from lgvit_edge.camera.shot import Event, Shot
from lgvit_edge.errors import SinkError, in_one_line

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before the next attempt; the last one repeats


class Sink(ABC):
    """Takes shots and does something with them; an ``Outlet`` calls it, in a thread of its own.

    Attributes:
        name: what it is called in counts, logs and settings.
        images: whether it needs the picture.
        room: shots that may wait for it, while it is slow or fails.
    """

    name: ClassVar[str]
    images: ClassVar[bool] = False
    room: ClassVar[int] = 10_000

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

    def event(self, event: Event) -> None:  # noqa: B027 - most sinks show no events
        """Take an event; raises as ``take``, but is not tried again."""

    def close(self) -> None:  # noqa: B027 - most sinks hold nothing open
        """End; what was taken is safe afterwards. Raises as ``take``."""


@dataclass(frozen=True)
class SinkCounts:
    """What a sink has done so far.

    Attributes:
        taken: shots it took.
        lost: shots it will never get, because too many waited.
        refused: shots it will never take.
        waiting: shots that wait.
        error: what keeps it from working now; empty where nothing does.
    """

    taken: int
    lost: int
    refused: int
    waiting: int
    error: str


class Outlet:
    """Feeds one sink from a queue of its own, so that it can neither stop nor slow the others.

    While the sink fails, the same shot is tried again with growing pauses. When ``sink.room`` shots
    wait, the oldest is lost and counted; or, with ``patient``, whoever puts the next one waits.
    """

    def __init__(self, sink: Sink, tell: Callable[[Event], None], *, patient: bool = False) -> None:
        """Make the outlet; ``start`` starts it.

        Args:
            sink: what is fed.
            tell: is given an event when the sink begins to fail, works again, or loses shots.
            patient: whether nothing may be lost: for sources that can wait, such as files.
        """
        self.sink, self._tell, self._patient = sink, tell, patient
        self._queue: deque[Shot | Event] = deque()
        self._shots = 0  # of the queue
        self._changed = threading.Condition()
        self._taken = self._lost = self._refused = 0
        self._error, self._hurry = "", False
        self._deadline: float | None = None  # time.monotonic() after which nothing is tried again
        self._thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)

    def start(self) -> None:
        """Start to feed."""
        self._thread.start()

    @property
    def counts(self) -> SinkCounts:
        """What the sink has done so far."""
        with self._changed:
            return SinkCounts(self._taken, self._lost, self._refused, self._shots, self._error)

    def put(self, shot: Shot) -> None:
        """Line a shot up."""
        if not self.sink.images:
            shot = dataclasses.replace(shot, image=None)  # pictures that wait would fill memory
        with self._changed:
            while self._patient and self._shots >= self.sink.room and self._deadline is None:
                self._changed.wait()
            if self._shots >= self.sink.room:
                self._drop_oldest()
            self._queue.append(shot)
            self._shots += 1
            self._changed.notify_all()

    def put_event(self, event: Event) -> None:
        """Line an event up, if there is room."""
        with self._changed:
            if len(self._queue) < 2 * self.sink.room:
                self._queue.append(event)
                self._changed.notify_all()

    def close(self, seconds: float = 5.0) -> SinkCounts:
        """Feed what waits, for at most so many seconds, then close the sink; return its counts.

        What is left then is lost. A sink that hangs is left behind.
        """
        with self._changed:
            self._deadline = time.monotonic() + seconds
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds + 1.0)
        with self._changed:
            self._lost, self._shots = self._lost + self._shots, 0
            self._queue.clear()
        return self.counts

    def _drop_oldest(self) -> None:
        place = next(i for i, item in enumerate(self._queue) if isinstance(item, Shot))
        del self._queue[place]
        self._shots -= 1
        self._lost += 1

    def _run(self) -> None:
        """Feed the sink to the end; runs in a thread."""
        while (item := self._next()) is not None:
            if isinstance(item, Shot):
                self._feed(item)
            else:
                self._guarded(lambda item=item: self.sink.event(item))  # type: ignore[misc]
        self._guarded(self.sink.close)

    def _next(self) -> Shot | Event | None:
        with self._changed:
            while not self._queue and self._deadline is None:
                self._changed.wait()
            if not self._queue:
                return None
            item = self._queue.popleft()
            if isinstance(item, Shot):
                self._shots -= 1
                self._changed.notify_all()
            return item

    def _feed(self, shot: Shot) -> None:
        attempt = 0
        while True:
            fault, final = self._guarded(lambda: self.sink.take(shot))
            if not fault:
                with self._changed:
                    self._taken += 1
                self._works()
                return
            with self._changed:
                if final:
                    self._refused += 1
                    return
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self._lost += 1
                    return
                if not self._patient and self._shots >= self.sink.room:
                    self._lost += 1  # it is the oldest
                    return
                pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
                if self._deadline is not None:
                    pause = min(pause, max(0.0, self._deadline - time.monotonic()))
                self._wait(pause)
            attempt += 1

    def _wait(self, pause: float) -> None:
        """Wait so long, or until the outlet is to close."""
        end = time.monotonic() + pause
        begun_closing = self._deadline is not None
        while (left := end - time.monotonic()) > 0:
            self._changed.wait(left)
            if self._deadline is not None and not begun_closing:
                return

    def _guarded(self, call: Callable[[], None]) -> tuple[bool, bool]:
        """Call the sink; return whether it failed, and whether it would fail for ever."""
        try:
            call()
            return False, False
        except SinkError as error:
            self._fails(str(error))
            return True, error.final
        except OSError as error:
            self._fails(error.strerror or str(error))
            return True, False
        except Exception as error:  # a bug of one sink disturbs no other
            self._fails(f"internal error, {in_one_line(error)}")
            return True, True

    def _fails(self, text: str) -> None:
        with self._changed:
            known, self._error = self._error, text
        if known != text:
            self._tell(Event(time.time(), "", f"{self.sink.name} fails: {text}", "error"))

    def _works(self) -> None:
        if not self._error:
            return
        with self._changed:
            self._error, lost = "", self._lost
        more = f"; {lost} shots were lost so far" if lost else ""
        self._tell(Event(time.time(), "", f"{self.sink.name} works again{more}"))
