"""Reads several sources of images ahead, each in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lgvit_edge.errors import StalledError
from lgvit_edge.images.inputs import Inputs

_POLL = 0.1  # seconds after which a waiting consumer may look after other things
_FAREWELL = 1.0  # seconds in which readers may end; a camera that hangs is not waited for


@dataclass(frozen=True)
class StreamError:
    """Reports an image or a source that failed, in the place of a ``Result``.

    Attributes:
        error: a ``DataError`` where an image could not be used, a ``StalledError`` where the next
            one is overdue, or what the source raised.
        image: the number of that image in its source, from 0.
        ended: whether the source is over; otherwise its next image follows.
    """

    error: BaseException
    image: int
    ended: bool


@dataclass(frozen=True)
class Intake:
    """How one source is read.

    Attributes:
        images: what it delivers, one after the other.
        prepare: turns one of them into input for the session, in memory of its own, as the source
            may fill its array again.
        ahead: how many may wait in its line.
        drop_oldest: whether then the first of the line is dropped; otherwise the source waits.
    """

    images: Iterable[Any]
    prepare: Callable[[Any], Inputs]
    ahead: int
    drop_oldest: bool


@dataclass
class Item:
    """One message of a source: one prepared image, an error, or the end.

    ``image`` is what the source delivered, ``start`` the ``time.perf_counter()`` of that, and
    ``dropped`` how many images of the source were dropped since its last message.
    """

    source: str
    image: Any = None
    images: Inputs | None = None
    start: float = 0.0
    error: StreamError | None = None
    ended: bool = False
    dropped: int = 0


@dataclass
class _Line:
    """What a source has delivered, and since when (``time.monotonic()``) its reader waits."""

    source: str
    intake: Intake
    waiting: deque[Item] = field(default_factory=deque)
    number: int = 0  # of the image that the source delivers next
    dropped: int = 0
    asked: float | None = None  # None while the source has nothing to deliver
    due: float = 0.0  # when it is called stalled, again


class Readers:
    """Threads that read sources ahead; what they have read waits in a line for each source.

    Attributes:
        open: how many sources are not over.
    """

    def __init__(
        self,
        sources: Mapping[str, Intake],
        *,
        timeout: float | None,
        patient: bool,
    ) -> None:
        """Make the threads; ``start`` starts them.

        Args:
            sources: what is read, by name.
            timeout: seconds after which a source that delivers nothing is reported.
            patient: whether a source goes on after an image that cannot be used.
        """
        self._timeout, self._patient = timeout, patient
        self._changed, self._stopped = threading.Condition(), False
        # Who was served last stands last.
        self._lines = [_Line(source, intake) for source, intake in sources.items()]
        self.open = len(self._lines)
        self._threads = [
            threading.Thread(
                target=self._read,
                args=(line,),
                name=f"lgvit-edge {line.source}",
                daemon=True,
            )
            for line in self._lines
        ]

    def start(self) -> None:
        """Start to read."""
        with self._changed:
            for line in self._lines:
                self._ask(line)
        for thread in self._threads:
            thread.start()

    def take(self, most: int) -> list[Item]:
        """Return what is there: at most ``most`` messages, one of each source in turn, and stalls.

        Without any it waits a moment, and may return none.
        """
        with self._changed:
            now = time.monotonic()
            taken = [self._stall(line, now) for line in self._lines if self._due(line) <= now]
            for _ in range(most):
                line = next((line for line in self._lines if line.waiting), None)
                if line is None:
                    break
                self._lines.remove(line)
                self._lines.append(line)
                item = line.waiting.popleft()
                item.dropped, line.dropped = line.dropped, 0
                self.open -= item.ended
                taken.append(item)
            if taken:
                self._changed.notify_all()  # there is room
            else:
                due = min(map(self._due, self._lines), default=now)
                self._changed.wait(min(_POLL, max(0.0, due - now)))
            return taken

    def stop(self) -> None:
        """End the threads; one whose source does not return within a second is left behind."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        end = time.monotonic() + _FAREWELL
        for thread in self._threads:
            # A garbage collection may call this in one of them.
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))

    def _read(self, line: _Line) -> None:
        """Read a source to its end; runs in a thread."""
        # Decoding and resizing happen here, in parallel with the network, which releases the GIL.
        end = Item(line.source, ended=True)
        try:
            for image in line.intake.images:
                start = time.perf_counter()
                if self._stopped:
                    return
                try:
                    item = Item(line.source, image, line.intake.prepare(image), start)
                except Exception as error:
                    if not self._patient:
                        raise
                    failure = StreamError(error, line.number, ended=False)
                    item = Item(line.source, error=failure)
                if not self._put(line, item):
                    return
        except BaseException as error:  # handed to whoever reads the results
            end.error = StreamError(error, line.number, ended=True)
        with self._changed:
            line.asked = None
            line.waiting.append(end)
            self._changed.notify_all()

    def _put(self, line: _Line, item: Item) -> bool:
        """Line an image up, and return whether the next one is wanted."""
        with self._changed:
            line.asked = None  # a source that waits for room is not stalled
            while len(line.waiting) >= line.intake.ahead and not self._stopped:
                if line.intake.drop_oldest:
                    line.waiting.popleft()
                    line.dropped += 1
                else:
                    self._changed.wait()
            line.waiting.append(item)
            line.number += 1
            self._ask(line)
            self._changed.notify_all()
            return not self._stopped

    def _ask(self, line: _Line) -> None:
        line.asked = time.monotonic()
        line.due = line.asked + (self._timeout or 0.0)

    def _due(self, line: _Line) -> float:
        """When a source will be called stalled; what it has delivered comes first."""
        if self._timeout is None or line.asked is None or line.waiting:
            return float("inf")
        return line.due

    def _stall(self, line: _Line, now: float) -> Item:
        """Report a source that is overdue; the next report is due as much later."""
        assert self._timeout is not None and line.asked is not None
        line.due = now + self._timeout
        who = f"source {line.source!r}" if line.source else "the source"
        error = StalledError(
            f"{who} has delivered no image for {now - line.asked:.3g} s, expected one within "
            f"{self._timeout:g} s: check the camera and its connection, or give a longer timeout"
        )
        return Item(line.source, error=StreamError(error, line.number, ended=False))
