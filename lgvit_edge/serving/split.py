"""``SplitSession``: a session on a device whose unsure images a server goes on with."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import whole
from lgvit_edge.errors import UpstreamError, UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.preprocess import ImageLike, to_pixels
from lgvit_edge.runtime.result import Result
from lgvit_edge.runtime.session import Session
from lgvit_edge.serving.upstream import NOT_ASKED, Rest, Upstream, jpeg

SENDS = ("jpeg", "hidden")
ANSWERED = "answered"
_PAUSED = UpstreamError(NOT_ASKED, "paused")


@dataclasses.dataclass
class SplitStatistics:
    """Counts what became of a ``SplitSession``'s images.

    Attributes:
        images: all of them.
        asked: requests to the server.
        answered: answers of the server.
        alone: how often an unsure image was answered without the server, by
            ``UpstreamError.kind``.
        sent_bytes: sizes of the images or hidden states that were sent, added up.
    """

    images: int = 0
    asked: int = 0
    answered: int = 0
    alone: Counter[str] = dataclasses.field(default_factory=Counter)
    sent_bytes: int = 0


class SplitSession:
    """Answers images on a device as far as an exit; a server goes on with those that are unsure.

    Both have the same bundle, and the device's policy decides on both. So an image gets the answer
    that a session would give it, but for what JPEG, or float16, changes. Where the server
    gives none, the device goes on alone: ``Result.upstream`` says why.

    Several threads may call: none keeps another waiting while it waits for the server.
    """

    def __init__(
        self,
        session: Session,
        upstream: Upstream,
        *,
        after: int | None = None,
        send: str = "jpeg",
        quality: int = 90,
    ) -> None:
        """Split a session's chain; neither session nor upstream is closed by this.

        Args:
            session: of the device. Its policy must decide from each exit alone, as confidence and
                entropy do.
            upstream: the way to the server.
            after: the last exit that the device reads, 1..M; 0 to send every image. None, for a
                bundle of several passes, for the last exit before the last pass.
            send: ``jpeg``, what the last pass sees of the image, with which the server begins that
                pass; or ``hidden``, the hidden state after the exit.
            quality: (jpeg) 1 to 100.

        Raises:
            UsageError: an argument is none, or the chain cannot be split there.
        """
        begins = session.manifest.begins
        first = max(segment for segment, begun in enumerate(begins) if begun is not None)
        if after is None:
            if not first:
                most = len(begins) - 1
                raise UsageError(
                    f"after which exit does the server go on? Expected 0..{most} as after"
                )
            after = first
        if send not in SENDS:
            raise UsageError(f"send must be one of {', '.join(SENDS)}, found {send!r}")
        if whole("quality", quality) > 100:
            raise UsageError(f"quality must be 1..100, found {quality}")
        if after or send == "hidden":
            session.check_split(after, hidden=send == "hidden")
        if after < first:
            raise UsageError(
                f"the last pass begins after exit {first}, and needs more of the image than an "
                f"earlier one sees: expected after={first} or later, found {after}"
            )
        self.session, self.upstream, self.after, self.send = session, upstream, after, send
        self._quality, self._first = quality, first
        self._lock, self._stats = Lock(), SplitStatistics()

    def predict(
        self, image: ImageLike, *, color: str = "rgb", deadline_ms: float | None = None
    ) -> Result:
        """Classify one image, here or with the server's help.

        Takes an image as ``Session.predict`` does. Where the device cannot run its next segment
        before the deadline, but the server usually answers by then, it is asked. When no time is
        left, the exit reached answers.

        Raises:
            DataError, UsageError, BackendError: as ``Session.predict``; never because of the
                server.
        """
        start = time.perf_counter()
        images = self.session.prepare([image], color=color)
        with self._lock:
            self._stats.images += 1
        if self.upstream.breaker.paused:
            return self._alone(images, None, start, deadline_ms, _PAUSED)
        local, hidden = None, None
        if self.after:
            local, hidden = self.session.run_until(
                images,
                self.after,
                start=start,
                deadline_ms=deadline_ms,
                hidden=self.send == "hidden",
            )
            if local.stopped == "policy":
                self.session.count([local])
                return local
        left = None if deadline_ms is None else deadline_ms - (time.perf_counter() - start) * 1e3
        try:
            if left is not None and left <= self.upstream.expected_ms:
                raise UpstreamError("no time left to ask", "late")
            result = self._ask(images, local, hidden, start, left)
        except UpstreamError as error:
            return self._alone(images, local, start, deadline_ms, error)
        result = dataclasses.replace(
            result, late=deadline_ms is not None and result.latency_ms > deadline_ms
        )
        with self._lock:
            self._stats.answered += 1
        for hook in self.session.hooks:
            hook(result)
        return result

    @property
    def stats(self) -> SplitStatistics:
        """A copy of the counts so far; ``session.stats`` has the device's own answers alone."""
        with self._lock:
            return dataclasses.replace(self._stats, alone=Counter(self._stats.alone))

    def _ask(
        self,
        images: Inputs,
        local: Result | None,
        hidden: NDArray[np.float16] | None,
        start: float,
        timeout_ms: float | None,
    ) -> Result:
        manifest, policy = self.session.manifest, self.session.policy
        segment = max(self._first, self.after if local is None else local.exit)
        payload = jpeg(self._crop(images), self._quality) if hidden is None else hidden
        rest = Rest(segment, payload, manifest.identity, policy.to_json())
        with self._lock:
            self._stats.asked += 1
            self._stats.sent_bytes += rest.size
        answer = self.upstream.ask(rest, timeout_ms)
        index, exit, labels = answer["class_index"], answer["exit"], manifest.labels
        if not 0 <= index < manifest.num_classes or not segment < exit <= len(manifest.segments):
            raise UpstreamError(f"a reply of class {index} at exit {exit}, which cannot be")
        label = labels[index] if labels else str(index)
        if answer["label"] != label:
            raise UpstreamError(
                f"the server calls class {index} {answer['label']!r:.60}, this bundle {label!r:.60}"
            )
        return Result(
            class_index=index,
            label=label,
            confidence=answer["confidence"],
            exit=exit,
            block=manifest.segments[exit - 1].last_block,
            pass_number=manifest.pass_numbers[exit - 1],
            latency_ms=(time.perf_counter() - start) * 1e3,
            network_ms=(0.0 if local is None else local.network_ms) + answer["latency_ms"],
            stopped=answer["stopped"],
            measure=policy.start(len(manifest.segments) - 1).measure,
            bundle=manifest.digest[:12],
            upstream=ANSWERED,
        )

    def _alone(
        self,
        images: Inputs,
        local: Result | None,
        start: float,
        deadline_ms: float | None,
        error: UpstreamError,
    ) -> Result:
        """Answer an unsure image without the server, from the beginning if there is time for it.

        Nothing of the first run is kept: while a thread waits for the server, others run images.
        """
        now = (time.perf_counter() - start) * 1e3
        # Less time, and it would hardly come further than it came before.
        if local is None or deadline_ms is None or deadline_ms - now > 2 * local.network_ms:
            final = len(self.session.manifest.segments)
            result, _ = self.session.run_until(images, final, start=start, deadline_ms=deadline_ms)
        else:
            late = now > deadline_ms
            result = dataclasses.replace(local, stopped="deadline", latency_ms=now, late=late)
        if result.exit > self.after or result.stopped == "deadline":
            result = dataclasses.replace(result, upstream=str(error))
            with self._lock:
                self._stats.alone[error.kind] += 1
        self.session.count([result])
        return result

    def _crop(self, images: Inputs) -> NDArray[np.uint8]:
        """Return what the last pass sees of an image, ``[size, size, 3] uint8``."""
        array, (spec, _, dtype) = images.of(len(images.views) - 1), images.views[-1]
        pixels = array if dtype == "uint8" else to_pixels(array, spec)
        crop: NDArray[np.uint8] = pixels[0]
        return crop
