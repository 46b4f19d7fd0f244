"""The page's pictures: the newest of each watched camera, encoded once for all who watch it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lgvit_edge.camera.drawing import draw, jpeg
from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.shot import Event, Shot
from lgvit_edge.errors import in_one_line

_RATE = 8  # pictures of a camera per second
_MOST = 3  # pictures of all cameras in the time of one: 24 per second
_SIDE = 640  # longest side in pixels
_QUALITY = 75
_POLL = 0.01  # seconds between looks for a picture that is due
_NICE = 10


@dataclass(frozen=True)
class Picture:
    """One encoded picture.

    Attributes:
        number: larger for newer ones, over all cameras.
        shot: the frame's number and time.
        body: the JPEG; of one that is not drawn on, what ``packed`` returns.
    """

    number: int
    shot: tuple[int, float]
    body: bytes


class Pictures:
    """Encodes the newest picture of each watched camera, in a thread; nothing while nobody looks.

    A picture is wanted with its answers drawn on it, or without, for who draws them.
    """

    def __init__(self, monitor: Monitor, tell: Callable[[], None]) -> None:
        """Make the thread; ``start`` starts it, and ``tell`` is called when pictures are new."""
        self._monitor, self._tell = monitor, tell
        self._changed, self._ended = threading.Condition(), False
        self._watched: Counter[tuple[str, bool]] = Counter()
        self._newest: dict[tuple[str, bool], Picture] = {}
        self._made = 0
        self._faults: set[str] = set()  # cameras whose fault was told
        self._thread = threading.Thread(target=self._run, name="page pictures", daemon=True)

    def start(self) -> None:
        """Start to encode what is watched."""
        # OpenCV's own threads have the priority of the thread that first needs them. Others do too.
        jpeg(np.zeros((720, 1280, 3), np.uint8), _SIDE, _QUALITY)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._ended, self._monitor.images = True, False
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(1.0)

    @contextlib.contextmanager
    def watching(self, cameras: Iterable[str], *, drawn: bool) -> Iterator[None]:
        """Keep pictures of these cameras coming."""
        keys = [(camera, drawn) for camera in cameras]
        with self._changed:
            self._watched.update(keys)
            self._monitor.images = not self._ended
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._watched.subtract(keys)
                self._watched += Counter()  # without those that nobody watches
                for key in keys:
                    if key not in self._watched:
                        self._newest.pop(key, None)  # old, when somebody looks again
                self._monitor.images = bool(self._watched) and not self._ended

    def newest(self, camera: str, *, drawn: bool) -> Picture | None:
        """Return the newest picture of a watched camera; None before the first."""
        return self._newest.get((camera, drawn))

    def _run(self) -> None:
        stand_back()
        while True:
            with self._changed:
                while not self._watched and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                # Those whose turn is longest ago first.
                wanted = sorted(self._watched, key=self._age)
            begun, made = time.monotonic(), self._made
            for camera, drawn in wanted:
                if self._made - made < _MOST:
                    self._encode(camera, drawn)
            if self._made > made:
                self._tell()
            # The next picture is made as soon as it is there: then the session often rests.
            pause = begun + 1 / _RATE - time.monotonic() if self._made > made else _POLL
            with self._changed:
                if not self._ended:
                    self._changed.wait(max(_POLL, pause))

    def _age(self, key: tuple[str, bool]) -> int:
        picture = self._newest.get(key)
        return picture.number if picture else 0

    def _encode(self, camera: str, drawn: bool) -> None:
        shot, known = self._monitor.picture(camera), self._newest.get((camera, drawn))
        if shot is None or shot.image is None:
            return
        name = (shot.frame, shot.time)
        if known is not None and known.shot == name:
            return
        try:
            if drawn:
                body = jpeg(draw(shot.image, shot.answers), _SIDE, _QUALITY)
            else:
                body = packed(shot, jpeg(shot.image, _SIDE, _QUALITY))
        except Exception as error:  # a picture that cannot be shown disturbs nothing else
            if camera not in self._faults:
                self._faults.add(camera)
                text = f"the page cannot show its pictures: {in_one_line(error)}"
                self._monitor.event(Event(time.time(), camera, text, "warning"))
            return
        with self._changed:
            if (camera, drawn) in self._watched:
                self._made += 1
                self._newest[camera, drawn] = Picture(self._made, name, body)


def stand_back() -> None:
    """Let other threads go first, from now on; on Linux, where threads have priorities."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def packed(shot: Shot, body: bytes) -> bytes:
    """Return a picture with its answers as the page reads it: sizes, JSON and JPEG.

    Two lengths in bytes, big-endian, of 4 bytes each; the JSON; the JPEG.
    """
    assert shot.image is not None
    about: dict[str, Any] = {
        "camera": shot.camera,
        "frame": shot.frame,
        "time": shot.time,
        "width": shot.image.shape[1],
        "height": shot.image.shape[0],
        "boxes": [
            {"box": a.box, "region": a.region, "label": a.label, "guess": a.guess}
            for a in shot.answers
        ],
    }
    text = json.dumps(about).encode()
    return b"".join((len(text).to_bytes(4, "big"), len(body).to_bytes(4, "big"), text, body))
