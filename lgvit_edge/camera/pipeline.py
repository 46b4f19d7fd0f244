"""``Camera``: reads cameras, answers their frames with one session, and hands the answers on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.text import escaped
from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.settings import CameraSettings
from lgvit_edge.camera.shot import Answer, Event, Frame, Shot, State
from lgvit_edge.camera.sinks.base import Outlet, Sink, SinkCounts
from lgvit_edge.camera.smoothing import Smoother, parse_smoothing
from lgvit_edge.camera.sources.base import without_secrets
from lgvit_edge.camera.sources.feed import Feed
from lgvit_edge.errors import SourceError, UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.runtime.reading import Intake, Item, Readers, StreamError
from lgvit_edge.runtime.result import Result
from lgvit_edge.runtime.session import Session

Box = tuple[int, int, int, int]
_AHEAD = 2  # batches that files are read ahead


class Camera:
    """Answers the frames of one camera or several, in an iteration that ends with its sources.

    Example:
        with Session.open("out/") as session:
            for answer in Camera("rtsp://camera.local/stream", session):
                print(answer.label, answer.confidence)

    A recording that cannot be read to its end, or a package that is missing, is raised once all
    sources are over.

    Of live sources the newest frame counts: those that come while the session is busy are dropped,
    and counted. Of files every frame is answered. A source that stalls, dies or comes back is told
    (``monitor``, ``on_event``), and disturbs no other.

    A ``Camera`` runs once. Iterate over it, ``async for`` as well, or call ``run``.

    Attributes:
        monitor: counts, states and events of all cameras.
        turned: the ``time.monotonic()`` at which it last looked for frames, at least ten times a
            second unless the session hangs.
    """

    def __init__(
        self,
        source: str | int | CameraSettings | Mapping[str, str | int | CameraSettings],
        session: Session,
        *,
        sinks: Sequence[Sink] = (),
        on_event: Callable[[Event], None] | None = None,
        **settings: Any,
    ) -> None:
        """Make the cameras; nothing is opened yet.

        Args:
            source: the address of a camera, or several by name.
            session: answers the frames.
            sinks: are given every answer as well.
            on_event: is called with every event, in the thread that it happens in.
            settings: fields of ``CameraSettings`` for every camera given as an address.

        Raises:
            UsageError: a source or a setting is invalid.
        """
        sources = source if isinstance(source, Mapping) else {"camera": source}
        if not sources:
            raise UsageError("expected at least one source, found none")
        self._session, self._on_event = session, on_event
        self._stopped, self._begun = threading.Event(), False
        self.turned = time.monotonic()
        self._failures: dict[str, BaseException] = {}  # of sources that are over, by camera
        self._lines: dict[str, _Line] = {}
        for name, given in sources.items():
            if not isinstance(name, str) or not name:
                raise UsageError(f"a camera's name must be text, such as 'gate', found {name!r}")
            if not isinstance(given, CameraSettings):
                given = CameraSettings(given, **settings)
            self._lines[name] = _Line(name, given, self)
        self.monitor = Monitor(session, {n: line.feed.shown for n, line in self._lines.items()})
        # Where every source can wait, nothing is lost: sinks may slow the reading.
        patient = not any(line.feed.live for line in self._lines.values())
        self._outlets = [Outlet(sink, self._tell, patient=patient) for sink in sinks]
        self.monitor.watch_sinks(self.sinks)
        self._check_measures()

    def _check_measures(self) -> None:
        """Refuse a threshold for unsure answers that a policy does not speak of."""
        if all(line.settings.unsure_below is None for line in self._lines.values()):
            return
        from lgvit_edge import policies

        session, exits = self._session, len(self._session.manifest.segments) - 1
        named = {"the policy": session.policy} | {
            f"the operating point {name}": policies.from_json(point.policy)
            for name, point in session.manifest.points.items()
        }
        for name, policy in named.items():
            if (measure := policy.start(exits).measure.name) != "probability":
                raise UsageError(
                    f"unsure_below is a probability, and {name} decides by {measure}: leave it "
                    "out, or take a policy such as confidence:0.8"
                )

    def sinks(self) -> dict[str, SinkCounts]:
        """Return what each sink has done so far, by name; a second of a kind is ``jsonl 2``."""
        counts: dict[str, SinkCounts] = {}
        for outlet in self._outlets:
            kind = outlet.sink.name
            number = sum(other == kind or other.startswith(f"{kind} ") for other in counts) + 1
            counts[kind if number == 1 else f"{kind} {number}"] = outlet.counts
        return counts

    def stop(self) -> None:
        """End the iteration soon; any thread may call it."""
        self._stopped.set()
        for line in self._lines.values():
            line.feed.stop()

    def run(self, on_answer: Callable[[Answer], None] | None = None) -> None:
        """Answer frames until all sources are over or ``stop`` is called; raises as iterating."""
        for answer in self:
            if on_answer is not None:
                on_answer(answer)

    def __iter__(self) -> Generator[Answer, None, None]:
        with contextlib.closing(self.shots()) as shots:
            for shot in shots:
                yield from shot.answers

    async def __aiter__(self) -> AsyncIterator[Answer]:
        """Yield answers; the network runs in a thread, so the event loop stays free."""
        answers, loop = iter(self), asyncio.get_running_loop()
        thread = ThreadPoolExecutor(1, "lgvit-edge camera")
        try:
            while (answer := await loop.run_in_executor(thread, next, answers, None)) is not None:
                yield answer
        finally:
            self.stop()
            # Behind the answer that the thread may be waiting for. Sinks take their time to end.
            await asyncio.shield(loop.run_in_executor(thread, answers.close))
            thread.shutdown()  # it is idle

    def shots(self) -> Generator[Shot, None, None]:
        """Yield frames with their answers, as the sinks are given them.

        Raises:
            UsageError: it has run before, or a sink cannot work as asked.
            BackendError: a logit is NaN or infinite, or the session is closed.
            SourceError: all sources are over, and recordings could not be read to their ends.
            MissingDependency: likewise, a package of the extra ``camera`` is not installed.
        """
        if self._begun:
            raise UsageError("this Camera has run; make another one")
        self._begun = True
        with contextlib.ExitStack() as opened:  # all of them, or none
            for outlet in self._outlets:
                outlet.sink.open()
                opened.callback(outlet.sink.close)
            opened.pop_all()
        ahead = _AHEAD * self._session.max_batch
        readers = Readers(
            {
                name: Intake(
                    line.feed, line.prepare, 1 if line.feed.live else ahead, line.feed.live
                )
                for name, line in self._lines.items()
            },
            timeout=None,  # a feed looks after its own source
            patient=True,
        )
        for outlet in self._outlets:
            outlet.start()
        try:
            readers.start()
            while readers.open and not self._stopped.is_set():
                self.turned = time.monotonic()
                yield from self._answer(readers.take(self._session.max_batch))
            self._raise_failures()
        finally:
            self.stop()
            readers.stop()
            # Together, for each may take its time to deliver what waits.
            with ThreadPoolExecutor(max(1, len(self._outlets))) as threads:
                list(threads.map(Outlet.close, self._outlets))

    def _answer(self, items: list[Item]) -> Iterator[Shot]:
        """Answer the frames among what the readers read; tell of the rest."""
        frames: deque[_Answered] = deque()
        for item in items:
            line = self._lines[item.source]
            if item.dropped:
                self._missed(item.source, dropped=item.dropped)
            if item.error is not None:
                self._missed(item.source, errors=1)
                if item.error.ended:
                    self._failures[item.source] = item.error.error
                line.fail(item.error)
            if item.images is not None:
                frames.append(_Answered(line, item.image, item.images, line.take_dropped()))
        for batch in self._batches(list(frames)):
            self._run(batch)
            while frames and frames[0].whole:  # at once: the next batch need not be waited for
                yield self._deliver(frames.popleft())

    def _raise_failures(self) -> None:
        """Raise why sources ended, unless they came to their ends."""
        if len(self._failures) == 1:
            raise next(iter(self._failures.values()))
        if self._failures:
            raise SourceError("; ".join(f"{n}: {error}" for n, error in self._failures.items()))

    def _batches(self, frames: Iterable[_Answered]) -> Iterator[_Batch]:
        """Group regions of frames as they can run together; a batch is run before the next is made.

        A region of a frame with a deadline runs alone. Of a camera whose answers are averaged, no
        two frames run together: the second needs what the first leaves. Before a frame that has
        nothing to do with those before it, they are forgotten.
        """
        batch: _Batch = []
        for frame in frames:
            line, alone = frame.line, frame.line.settings.deadline_ms is not None
            known = any(other.line is line for other, _ in batch)
            fresh = line.begins_anew(frame.frame)
            if batch and (alone or (known and (fresh or line.averages))):
                yield batch
                batch = []
            if fresh:
                line.forget()
            for row in range(len(frame.images)):
                batch.append((frame, row))
                if alone or len(batch) == self._session.max_batch:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _run(self, batch: _Batch) -> None:
        """Run regions of frames together, and keep the answers."""
        frames = [frame for frame, _ in batch]
        smoothers = [frame.line.smoothers[row] for frame, row in batch]
        averages = any(frame.line.averages for frame in frames)
        results = self._session.run(
            Inputs.join(
                [f.images if len(f.images) == 1 else f.images[row : row + 1] for f, row in batch]
            ),
            starts=[frame.frame.start for frame in frames],
            deadline_ms=frames[0].line.settings.deadline_ms,  # one that has any is alone
            streams=[frame.line.name for frame in frames],
            memories=[smoother.memory for smoother in smoothers] if averages else None,
        )
        for (frame, row), smoother, result in zip(batch, smoothers, results, strict=True):
            frame.answers.append(frame.line.answer(frame, row, smoother, result))

    def _deliver(self, frame: _Answered) -> Shot:
        line = frame.line
        shot = Shot(
            line.name,
            frame.frame.number,
            frame.frame.time,
            tuple(frame.answers),
            frame.frame.image,
            line.feed.fps,
        )
        self.monitor.shot(shot)
        for outlet in self._outlets:
            outlet.put(shot)
        return shot

    def _tell(self, event: Event) -> None:
        self.monitor.event(event)
        for outlet in self._outlets:
            outlet.put_event(event)
        if self._on_event is not None:
            self._on_event(event)

    def _missed(self, camera: str, *, dropped: int = 0, skipped: int = 0, errors: int = 0) -> None:
        self.monitor.missed(camera, dropped=dropped, skipped=skipped, errors=errors)
        self._lines[camera].count_dropped(dropped)
        if dropped or errors:
            self._session.miss(camera, dropped=dropped, errors=errors)


class _Line:
    """One camera: its feed, its regions, and what its answers remember."""

    def __init__(self, name: str, settings: CameraSettings, camera: Camera) -> None:
        self.name, self.settings, self._session = name, settings, camera._session
        self._tell = camera._tell
        self.feed = Feed(
            name,
            settings.address,
            tell=camera._tell,
            missed=partial(camera._missed, name),
            every=settings.every,
            motion=settings.motion,
            loop=settings.loop,
            pace=settings.pace,
            timeout=settings.timeout,
        )
        self.regions: list[str | None] = list(settings.regions) or [None]
        self.smoothers = [parse_smoothing(settings.smooth).start() for _ in self.regions]
        self.averages = any(smoother.memory is not None for smoother in self.smoothers)
        self._dropped, self._lock = 0, threading.Lock()  # since the last answered frame
        self._boxes: tuple[tuple[int, int], list[Box]] = ((0, 0), [])
        self._last: tuple[int, tuple[int, ...]] | None = None  # connection and shape, of a frame
        self._fault = ""

    def count_dropped(self, count: int) -> None:
        """Count frames that newer ones replaced; from any thread."""
        with self._lock:
            self._dropped += count

    def take_dropped(self) -> int:
        """Return how many were dropped since the last call."""
        with self._lock:
            count, self._dropped = self._dropped, 0
            return count

    def boxes(self, image: NDArray[np.uint8]) -> list[Box]:
        """Return the regions in this picture; raises ``DataError`` where one lies outside."""
        size = (image.shape[1], image.shape[0])
        known, boxes = self._boxes  # of the last picture that a thread asked for
        if known != size:
            regions = self.settings.regions
            boxes = [r.box(*size, name) for name, r in regions.items()] or [(0, 0, *size)]
            self._boxes = size, boxes
        return boxes

    def begins_anew(self, frame: Frame) -> bool:
        """Return whether the frames before have nothing to do with this one."""
        last, self._last = self._last, (frame.connection, frame.image.shape)
        return last not in (None, self._last)

    def forget(self) -> None:
        """Forget the answers before."""
        for smoother in self.smoothers:
            smoother.reset()

    def prepare(self, frame: Frame) -> Inputs:
        """Resize a frame, or its regions, for the network; in the thread that reads the camera."""
        crops = [frame.image[y : y + h, x : x + w] for x, y, w, h in self.boxes(frame.image)]
        return self._session.prepare(crops, own=False)  # no source fills an array again

    def answer(self, frame: _Answered, row: int, smoother: Smoother, result: Result) -> Answer:
        """Make the answer for one region."""
        smoothed = smoother.take(result, frame.frame.start)
        low = self.settings.unsure_below
        return Answer(
            camera=self.name,
            region=self.regions[row],
            box=self.boxes(frame.frame.image)[row],
            frame=frame.frame.number,
            time=frame.frame.time,
            label=None if low is not None and smoothed.confidence < low else smoothed.label,
            guess=smoothed.label,
            class_index=smoothed.class_index,
            confidence=smoothed.confidence,
            latency_ms=result.latency_ms,
            point=self._session.point if result.pace is None else result.pace.point,
            dropped=frame.dropped,
            result=result,
        )

    def fail(self, error: StreamError) -> None:
        """Tell of a frame that cannot be used, once for each kind of fault, or of the end."""
        if error.ended and self.feed.over:
            return  # it has told why
        text = without_secrets(escaped(str(error.error) or type(error.error).__name__))
        if error.ended or text != self._fault:
            self._fault = text
            state: State | None = "ended" if error.ended else None
            self._tell(Event(time.time(), self.name, text, "error", state))


@dataclass
class _Answered:
    """A frame on its way through the session, and the answers it has so far."""

    line: _Line
    frame: Frame
    images: Inputs  # one for each region
    dropped: int  # frames of its camera since the one before
    answers: list[Answer] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every region has its answer."""
        return len(self.answers) == len(self.images)


_Batch = list[tuple[_Answered, int]]  # frames, each with the number of one of its regions
