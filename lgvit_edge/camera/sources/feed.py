"""Delivers the frames of one camera, whatever happens to it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Literal

from lgvit_edge._support.numbers import real, whole
from lgvit_edge.camera.shot import Event, Frame, State
from lgvit_edge.camera.sources.base import kind_of, without_secrets
from lgvit_edge.camera.sources.connection import Connection, News, Read
from lgvit_edge.camera.sources.motion import Motion
from lgvit_edge.errors import (
    LGViTEdgeError,
    MissingDependency,
    SourceError,
    StalledError,
    UsageError,
    in_one_line,
)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before a source is opened again
_JITTER = 0.2  # of a pause: many cameras do not come back at one moment
_GOOD = 10.0  # seconds of delivery after which pauses begin anew
_BURST = 10.0  # seconds after which damaged frames are reported again
# A stream may be joined long before the next picture that can be decoded without earlier ones.
_PATIENCE = 4  # timeouts
_SILENCE = "silence"  # as a reason: whether the feed or the source notices it first


class Feed:
    """The frames of one source, to be iterated in one thread.

    A live source delivers its newest frame, is opened again when it fails, and never ends by
    itself. A recording delivers every frame and ends, or begins again.

    Attributes:
        name: of the camera.
        kind: what kind of source it is.
        live: whether only the newest frame counts.
        shown: the address without user names, passwords and tokens.
        fps: frames per second that the source says it has; None where it does not say.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        tell: Callable[[Event], None],
        missed: Callable[..., None],
        every: int = 1,
        motion: float | None = None,
        loop: bool = False,
        pace: Literal["real", "fast"] = "real",
        timeout: float = 5.0,
    ) -> None:
        """Prepare a feed; nothing is opened yet.

        Args:
            name: of the camera.
            address: of the source, as ``kind_of`` understands it.
            tell: is given an event when the source's state changes, and of what people should know.
            missed: is called with ``dropped``, ``skipped`` or ``errors``: how many frames newer
                ones replaced, are not wanted, or cannot be decoded.
            every: of so many frames one is wanted.
            motion: share of changed pixels, 0..1, below which a frame is not wanted, as ``Motion``
                tells; None wants all.
            loop: whether a recording begins again at its end; what is piped in cannot.
            pace: ``real`` delivers the frames of a recording when they are due by its own clock,
                ``fast`` as fast as they are taken.
            timeout: seconds within which the source must open, and then deliver a frame.

        Raises:
            UsageError: the address is none, or can never be opened; or a value is out of range.
        """
        self.name, self.kind, self.shown = name, kind_of(address), without_secrets(address)
        self.kind.check(address)
        self.live = self.kind.live
        self.fps: float | None = None
        if motion is not None and not 0 < real(motion) <= 1:
            raise UsageError(f"motion must be a share of pixels, 0..1, found {motion!r}")
        if not 0 < real(timeout) < 1e6:
            raise UsageError(f"the timeout must be a number of seconds above 0, found {timeout!r}")
        if pace not in ("real", "fast"):
            raise UsageError(f"the pace must be real or fast, found {pace!r}")
        self._address, self._tell, self._missed = address, tell, missed
        self._every, self._loop, self._pace = whole("every", every), loop, pace
        self._timeout = timeout
        self._motion = None if motion is None else Motion(motion)
        self._stopped = threading.Event()
        self._connection: Connection | None = None
        self._connections = self._count = 0  # earlier ones, and their frames
        self._delivered = 0
        self._size: tuple[int, int] | None = None
        self._state: State | None = None
        self._reported = ""  # why it is in this state
        self._bad = float("-inf")  # time.monotonic() of the last damaged frame
        self._away = 0.0  # since when it does not deliver
        self._began: float | None = None  # since when this connection does

    def __iter__(self) -> Iterator[Frame]:
        """Yield its frames.

        Raises:
            SourceError: a recording cannot be opened, or read to its end.
            MissingDependency: a package is not installed.
        """
        self._report("opening", f"opens {self.shown}")
        self._away = time.monotonic()
        attempt = 0
        while not self._stopped.is_set():
            delivered = self._delivered
            failure = yield from self._connect()
            if self._stopped.is_set():
                break
            if isinstance(failure, (MissingDependency, UsageError)):
                self._end(str(failure), "error")
                raise failure
            if not self.live:
                again = self._loop and self.kind.repeats
                if again and failure is None and self._delivered > delivered:
                    continue
                self._finish(failure, self._delivered > delivered)
                return
            if self._began is not None and time.monotonic() - self._began >= _GOOD:
                attempt = 0
            self._wait_to_reopen(failure, attempt)
            attempt += 1
        self._end(f"stopped after {self._delivered:,} frames")

    @property
    def over(self) -> bool:
        """Whether it has told that it ended."""
        return self._state == "ended"

    def stop(self) -> None:
        """End it, from any thread; what waits for its next frame returns at once."""
        self._stopped.set()
        if (connection := self._connection) is not None:
            connection.close()

    def _connect(self) -> Generator[Frame, None, BaseException | None]:
        """Deliver what one connection brings; return why it ended."""
        connection = Connection(self.kind, self._address, self._timeout, self._every)
        self._connection, self._began = connection, None
        try:
            if self._stopped.is_set():
                return None
            return (yield from self._frames(connection))
        finally:
            connection.close()
            self._count += connection.count
            self._connections += 1

    def _frames(self, connection: Connection) -> Generator[Frame, None, BaseException | None]:
        heard = time.monotonic()  # of its last picture
        bad_since: float | None = None  # of damaged frames alone
        patience, film_start = _PATIENCE * self._timeout, None
        while True:
            news = connection.take(self._timeout)
            now = time.monotonic()
            if self._stopped.is_set():
                return None
            self._note_missed(news, now)
            if news.skipped:
                heard, bad_since = now, None  # it delivers, if nothing that is wanted
            if (read := news.picture) is not None:
                heard, bad_since, patience = now, None, self._timeout
                self._note_live(connection, read)
                if read.position is not None and self._pace == "real":
                    film_start = now - read.position if film_start is None else film_start
                    if self._stopped.wait(max(0.0, film_start + read.position - now)):
                        return None
                if self._wanted(read):
                    yield self._frame(read)
                    heard = time.monotonic()  # the time of whoever takes them does not count
            elif news.over:
                return news.failure
            elif news.errors and self.live:
                bad_since = now if bad_since is None else bad_since
                if now - bad_since >= patience:
                    text = f"nothing that can be decoded came for {now - bad_since:.0f} s"
                    return SourceError(f"{text}: {news.fault}")
            if connection.source is None:
                heard = now  # it is still being opened
            elif now - heard >= self._timeout and self._state != "stalled":
                text = f"has delivered no frame for {self._timeout:g} s"
                self._report("stalled", text, "warning", reason=_SILENCE)

    def _wanted(self, read: Read) -> bool:
        moment = read.start if read.position is None else read.position
        if self._motion is None or self._motion.passes(read.image, moment):
            return True
        self._missed(skipped=1)
        return False

    def _frame(self, read: Read) -> Frame:
        self._delivered += 1
        # A recording's frame is delivered now, whenever it was read ahead.
        start = read.start if self.live else time.perf_counter()
        moment = read.time if self.live else time.time()
        return Frame(read.image, self._count + read.number, self._connections, start, moment)

    def _note_missed(self, news: News, now: float) -> None:
        for what in ("dropped", "skipped", "errors"):
            if count := getattr(news, what):
                self._missed(**{what: count})
        if news.errors:
            if now - self._bad >= _BURST:
                self._say(f"a frame cannot be used: {news.fault}", "warning")
            self._bad = now

    def _note_live(self, connection: Connection, read: Read) -> None:
        """Report that it delivers, again, or in another size."""
        height, width = read.image.shape[:2]
        source = connection.source
        assert source is not None  # it delivered this
        self._began = time.monotonic() if self._began is None else self._began
        self.fps = source.fps
        size = f"{width} x {height}"
        if self._state != "live":
            text = f"delivers {size}" + (f" at {self.fps:.4g} frames/s" if self.fps else "")
            if self._size is not None:
                text = f"is back after {time.monotonic() - self._away:.0f} s; {text}"
            self._report("live", text)
        elif self._size not in (None, (height, width)) and not source.mixed:
            self._say(f"now delivers {size}, before {self._size[1]} x {self._size[0]}")
        self._size = (height, width)

    def _wait_to_reopen(self, failure: BaseException | None, attempt: int) -> None:
        """Report a loss, once, and wait."""
        denied = isinstance(failure, SourceError) and failure.denied
        pause = (
            _LONGEST_PAUSE if denied else min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(attempt, 9))
        )
        pause *= random.uniform(1 - _JITTER, 1 + _JITTER)
        again = f"it is opened again, in {pause:.1f} s at first, later every {_LONGEST_PAUSE:g} s"
        if denied:
            again = f"tried again every {_LONGEST_PAUSE:g} s"
        reason = "the stream ended" if failure is None else _words(failure)
        if isinstance(failure, StalledError):
            self._report("stalled", f"{reason}; {again}", "warning", reason=_SILENCE)
        else:
            self._report("lost", f"{reason}; {again}", "error", reason=reason)
        connection, begun = self._connection, time.monotonic()
        # One that hangs in a driver keeps the camera: a second call would hang there too.
        while connection is not None and not connection.gone and not self._stopped.wait(0.05):
            if time.monotonic() - begun > self._timeout:
                self._report("lost", "does not come back from an earlier call", "error")
        self._stopped.wait(pause)

    def _finish(self, failure: BaseException | None, any_delivered: bool) -> None:
        """End a recording."""
        if failure is None and any_delivered:
            self._end(f"ended after {self._delivered:,} frames")
            return
        if failure is None:
            failure = SourceError(f"{self.shown} holds no picture that can be decoded")
        text = _words(failure)
        self._end(text, "error")
        raise failure if isinstance(failure, LGViTEdgeError) else SourceError(text) from failure

    def _end(self, text: str, level: Literal["info", "error"] = "info") -> None:
        if self._state != "ended":
            self._report("ended", text, level)

    def _report(
        self,
        state: State,
        text: str,
        level: Literal["info", "warning", "error"] = "info",
        *,
        reason: str = "",
    ) -> None:
        """Tell of a state, unless it was told, for the same reason."""
        reason = reason or text
        if (state, reason) == (self._state, self._reported):
            return
        if state in ("stalled", "lost") and self._state == "live":
            self._away = time.monotonic()
        self._state, self._reported = state, reason
        self._say(text, level, state)

    def _say(
        self,
        text: str,
        level: Literal["info", "warning", "error"] = "info",
        state: State | None = None,
    ) -> None:
        self._tell(Event(time.time(), self.name, without_secrets(text), level, state))


def _words(failure: BaseException) -> str:
    if isinstance(failure, LGViTEdgeError):
        return str(failure)
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror
    return f"internal error, {in_one_line(failure)}"
