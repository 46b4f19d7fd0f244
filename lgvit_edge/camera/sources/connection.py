"""One connection to a source, read by a thread of its own, so that nobody waits for one that hangs.

Drivers, name servers and file systems can keep a call for minutes, and nothing can end it. So the
thread alone waits; whoever takes the frames may leave at any time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.camera.sources.base import Source, SourceKind
from lgvit_edge.errors import DataError, StalledError

_AHEAD = 2  # pictures of a recording that are read ahead


@dataclass(frozen=True)
class Read:
    """A picture as it was read.

    Attributes:
        image: ``[H, W, 3] uint8`` RGB.
        number: which frame of this connection it is, from 0.
        start: the ``time.perf_counter()`` at which it came.
        time: the same moment in seconds since 1970.
        position: as ``Source.position``.
    """

    image: NDArray[np.uint8]
    number: int
    start: float
    time: float
    position: float | None


@dataclass
class News:
    """What came since the last look.

    Attributes:
        picture: the next one, of a live source the newest; None where there is none.
        dropped: pictures that newer ones replaced.
        skipped: pictures that lie between those that are wanted.
        errors: pictures that cannot be decoded.
        fault: what is wrong with the last of them.
        over: whether nothing more will come.
        failure: why; None at the end of a recording, or of a stream.
    """

    picture: Read | None = None
    dropped: int = 0
    skipped: int = 0
    errors: int = 0
    fault: str = ""
    over: bool = False
    failure: BaseException | None = None


class Connection:
    """Opens a source and reads it until it is over or closed.

    Attributes:
        source: the source, once it is open; None before.
        count: frames so far, those that cannot be decoded included.
    """

    def __init__(self, kind: SourceKind, address: str, timeout: float, every: int = 1) -> None:
        """Begin to open an address; of its frames every ``every``-th is wanted."""
        self._kind, self._address, self._timeout, self._every = kind, address, timeout, every
        self._changed = threading.Condition()
        self._news, self._pictures = News(), deque[Read]()
        self._closed = self._over = False
        self._failure: BaseException | None = None
        self.source: Source | None = None
        self.count = 0
        self._thread = threading.Thread(target=self._run, name=f"source {kind.name}", daemon=True)
        self._thread.start()

    @property
    def gone(self) -> bool:
        """Whether its thread has ended, and with it all that the source held."""
        return not self._thread.is_alive()

    def take(self, seconds: float) -> News:
        """Return what came; wait for it for at most so many seconds."""
        with self._changed:
            self._changed.wait_for(self._anything, seconds)
            news, self._news = self._news, News()
            if self._pictures:
                news.picture = self._pictures.popleft()
                self._changed.notify_all()  # there is room
            elif self._over:
                news.over, news.failure = True, self._failure
            return news

    def close(self) -> None:
        """Let its thread end, as soon as the source returns; does not wait for it."""
        with self._changed:
            self._closed = True
            source = self.source
            self._changed.notify_all()
        if source is not None:
            source.interrupt()

    def _anything(self) -> bool:
        return bool(self._pictures) or self._over or self._closed or self._news.errors > 0

    def _run(self) -> None:
        """Read the source to its end; runs in a thread."""
        failure: BaseException | None = None
        try:
            source = self._kind.open(self._address, self._timeout)
            with contextlib.closing(source):
                with self._changed:
                    self.source = source
                while not self._closed and self._read(source):
                    pass
        except BaseException as error:  # handed to whoever takes the frames
            failure = error
        with self._changed:
            self._over, self._failure = True, failure
            self._changed.notify_all()

    def _read(self, source: Source) -> bool:
        """Read one picture; return whether there may be another."""
        try:
            image = source.read()
        except StalledError:
            if self._kind.live:
                raise  # it is opened again
            return True
        except DataError as error:
            with self._changed:
                self._news.errors += 1
                self._news.fault = str(error)
                self.count += 1
                self._changed.notify_all()
            return True
        if image is None:
            return False
        read = Read(image, self.count, time.perf_counter(), time.time(), source.position)
        with self._changed:
            self.count += 1
            if read.number % self._every:
                self._news.skipped += 1
                return True
            if self._kind.live:
                self._news.dropped += len(self._pictures)
                self._pictures.clear()
            while len(self._pictures) >= _AHEAD and not self._closed:
                self._changed.wait()
            self._pictures.append(read)
            self._changed.notify_all()
        return True
