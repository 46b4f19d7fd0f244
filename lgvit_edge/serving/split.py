"""``SplitSession``: a session on a device whose unsure images a server goes on with."""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections import Counter
from functools import partial
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.numbers import positive, whole
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.errors import UpstreamError, UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.preprocess import ImageLike, to_pixels
from lgvit_edge.policies import Policy
from lgvit_edge.runtime.result import Result
from lgvit_edge.runtime.session import Session
from lgvit_edge.runtime.splitting import Part, registered
from lgvit_edge.serving.upstream import NOT_ASKED, Rest, Upstream

SENDS = ("jpeg", "hidden")
ANSWERED = "answered"
_LARGEST = float(np.finfo(np.float16).max)
_MARGIN_MS = 2.0  # of a deadline, for what follows an answer that does not come


@dataclasses.dataclass
class SplitStatistics:
    """Counts what became of a ``SplitSession``'s images.

    Attributes:
        images: all of them.
        asked: requests to the server.
        answered: answers of the server.
        alone: how often an unsure image was answered without the server, by
            ``UpstreamError.kind``.
        sent_bytes: sizes of the JPEGs or hidden states that were sent, added up.
    """

    images: int = 0
    asked: int = 0
    answered: int = 0
    alone: Counter[str] = dataclasses.field(default_factory=Counter)
    sent_bytes: int = 0


class SplitSession:
    """Answers images on a device as far as an exit; a server goes on with those that are unsure.

    Both have the same bundle, and the device's policy decides on both. So an image gets the answer
    that one session would give it, apart from what JPEG or float16 changes. Where the server
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
            after: the last exit that the device reads, 1..M; 0 to send every image, where there is
                one pass. None, for a bundle of several passes, for the last exit before the last
                pass.
            send: ``jpeg``, what the last pass sees of the image, with which the server begins that
                pass; or ``hidden``, the hidden state after the exit.
            quality: (jpeg) 1 to 100.

        Raises:
            UsageError: an argument is none, or the chain cannot be split there.
        """
        if send not in SENDS:
            raise UsageError(f"send must be one of {', '.join(SENDS)}, found {send!r}")
        if whole("quality", quality) > 100:
            raise UsageError(f"quality must be 1..100, found {quality}")
        manifest, first = session.manifest, _last_pass(session.manifest)
        if after is None:
            if not first:
                most = len(manifest.segments) - 1
                raise UsageError(
                    f"after which exit does the server go on? after must be 0..{most}, found none"
                )
            after = first
        after = whole("after, where it is not 0,", after) if after != 0 else 0
        if not after and send == "hidden":
            raise UsageError("there is no hidden state after=0: take a later exit, or send='jpeg'")
        self.session, self.upstream, self.after, self.send = session, upstream, after, send
        self._quality, self._lock, self._stats = quality, Lock(), SplitStatistics()
        self._fits = self._check()

    def predict(
        self, image: ImageLike, *, color: str = "rgb", deadline_ms: float | None = None
    ) -> Result:
        """Classify one image, here or with the server's help.

        Takes an image as ``Session.predict`` does. Where the device cannot run its next segment
        before the deadline, the server is asked, unless its latest answers took longer than what is
        left. When time is up, the exit reached answers.

        Raises:
            DataError, UsageError, BackendError: as ``Session.predict``; never because of the
                server. A ``UsageError`` also where the session got another bundle or policy, which
                cannot be split there.
        """
        start = time.perf_counter()
        if deadline_ms is not None:
            positive("deadline_ms", deadline_ms)
            if not self.session.first_exit_ms:
                self.session.warm_up()  # as ``Session.predict`` does, or the first would be late
        if self._fits != self.session.state:
            self._fits = self._check()
        run = partial(self.session.run_until, start=start, deadline_ms=deadline_ms)
        images, part = self.session.prepare([image], color=color), None
        with self._lock:
            self._stats.images += 1
        try:
            if self.upstream.breaker.paused:
                raise UpstreamError(NOT_ASKED, "paused")
            if self.after:
                part = run(images, self.after, hidden=self.send == "hidden")
                if part.result.stopped == "policy":
                    self.session.count([part.result])
                    return part.result
            result = self._ask(images, part, start, deadline_ms)
        except UpstreamError as error:
            result = self._alone(images, part, start, deadline_ms, error)
            self.session.count([result])
            return result
        for hook in self.session.hooks:
            hook(result)
        return result

    @property
    def stats(self) -> SplitStatistics:
        """A copy of the counts so far; ``session.stats`` has the device's own answers alone."""
        with self._lock:
            return dataclasses.replace(self._stats, alone=Counter(self._stats.alone))

    def _check(self) -> tuple[Manifest, Policy, str | None]:
        """Return ``Session.state``, which can be split as was asked for.

        Raises:
            UsageError: they cannot.
        """
        manifest, policy, point = state = self.session.state
        first = _last_pass(manifest)
        if self.after:
            self.session.check_split(self.after, hidden=self.send == "hidden")
        if self.after < first:
            raise UsageError(
                f"the last pass begins after exit {first}, and needs more of the image than an "
                f"earlier one sees: expected after={first} or later, found {self.after}"
            )
        if not registered(policy):
            raise UsageError(
                f"the policy {type(policy).__name__} is known on this machine alone; set one that "
                "the server knows, such as confidence:0.8"
            )
        if point is not None and manifest.points[point].guarantee is not None:
            raise UsageError(
                f"the point {point} is certified, and a certificate does not cover what JPEG, "
                "float16 or another machine changes; set another point or a policy"
            )
        return state

    def _ask(
        self, images: Inputs, part: Part | None, start: float, deadline_ms: float | None
    ) -> Result:
        """Return the server's answer, or raise ``UpstreamError``."""
        # Weights, identity and policy are of one moment: the session may get others meanwhile.
        if part is None:
            (manifest, policy, _), exit, network_ms = self._fits, 0, 0.0
            reserve = _MARGIN_MS + self.session.first_exit_ms
        else:
            manifest, policy = part.manifest, part.policy
            exit, network_ms, reserve = part.result.exit, part.result.network_ms, _MARGIN_MS
        payload: bytes | NDArray[np.float16]
        if part is not None and part.hidden is not None:
            segment, payload = exit, half(part.hidden, exit)
        else:
            segment = max(exit, _last_pass(manifest))
            payload = jpeg(_crop(images), self._quality)
        left = None
        if deadline_ms is not None:
            left = deadline_ms - reserve - (time.perf_counter() - start) * 1e3
            if left <= self.upstream.expected_ms:
                raise UpstreamError("no time left to ask", "late")
        rest = Rest(segment, payload, manifest.identity, policy.to_json())

        def read(answer: dict[str, Any]) -> Result:
            _check_answer(answer, segment, manifest)
            now = (time.perf_counter() - start) * 1e3
            return Result(
                class_index=answer["class_index"],
                label=answer["label"],
                confidence=answer["confidence"],
                exit=answer["exit"],
                block=manifest.segments[answer["exit"] - 1].last_block,
                pass_number=manifest.pass_numbers[answer["exit"] - 1],
                latency_ms=now,
                network_ms=min(now, network_ms + answer["latency_ms"]),
                stopped=answer["stopped"],
                late=deadline_ms is not None and now > deadline_ms,
                measure=policy.start(len(manifest.segments) - 1).measure,
                bundle=manifest.digest[:12],
                upstream=ANSWERED,
            )

        asked = True
        try:
            result = self.upstream.ask(rest, read, left)
        except UpstreamError as error:
            asked = error.kind != "paused"
            raise
        finally:
            with self._lock:
                self._stats.asked += asked
                self._stats.sent_bytes += rest.size * asked
        with self._lock:
            self._stats.answered += 1
        return result

    def _alone(
        self,
        images: Inputs,
        part: Part | None,
        start: float,
        deadline_ms: float | None,
        error: UpstreamError,
    ) -> Result:
        """Answer an unsure image without the server, from the beginning if there is time for it.

        Nothing of the first part is kept: while one thread waits for the server, others run images.
        """
        local = None if part is None else part.result
        now = (time.perf_counter() - start) * 1e3
        result = None
        # In less time it would hardly come further than it came before.
        if local is None or deadline_ms is None or deadline_ms - now > 2 * local.network_ms:
            again = self.session.run_until(images, None, start=start, deadline_ms=deadline_ms)
            result = again.result
        if deadline_ms is not None and local is not None:
            if result is None or result.exit < local.exit:
                now = (time.perf_counter() - start) * 1e3
                late = now > deadline_ms
                result = dataclasses.replace(local, stopped="deadline", latency_ms=now, late=late)
        assert result is not None  # without a deadline it ran again
        if result.exit > self.after or result.stopped == "deadline":
            result = dataclasses.replace(result, upstream=str(error))
            with self._lock:
                self._stats.alone[error.kind] += 1
        return result


def _last_pass(manifest: Manifest) -> int:
    """Return the segment that begins the last pass."""
    return max(segment for segment, begun in enumerate(manifest.begins) if begun is not None)


def _check_answer(answer: dict[str, Any], segment: int, manifest: Manifest) -> None:
    """Refuse an answer that this bundle cannot give, with ``UpstreamError``."""
    index, exit, labels = answer["class_index"], answer["exit"], manifest.labels
    if not 0 <= index < manifest.num_classes or not segment < exit <= len(manifest.segments):
        raise UpstreamError(f"a reply of class {index} at exit {exit}, which cannot be")
    label = labels[index] if labels else str(index)
    if answer["label"] != label:
        raise UpstreamError(
            f"the server calls class {index} {answer['label']!r:.60}, this bundle {label!r:.60}"
        )
    if answer["stopped"] not in ("policy", "final"):
        raise UpstreamError(f"a reply that was stopped by {answer['stopped']!r:.60}")
    for name in ("confidence", "latency_ms"):
        if not 0 <= answer[name] < math.inf:
            raise UpstreamError(f"a reply with the {name} {answer[name]}")


def half(hidden: NDArray[Any], exit: int) -> NDArray[np.float16]:
    """Return a hidden state in float16; raises ``UpstreamError`` where that cannot hold it."""
    if not (np.abs(hidden) <= _LARGEST).all():
        raise UpstreamError(f"the hidden state after exit {exit} is too large for float16")
    return hidden.astype(np.float16)


def _crop(images: Inputs) -> NDArray[np.uint8]:
    """Return what the last pass sees of an image, ``[size, size, 3] uint8``."""
    array, (spec, _, dtype) = images.of(len(images.views) - 1), images.views[-1]
    crop: NDArray[np.uint8] = (array if dtype == "uint8" else to_pixels(array, spec))[0]
    return crop


def jpeg(crop: NDArray[np.uint8], quality: int) -> bytes:
    """Encode ``[size, size, 3] uint8`` RGB as a JPEG file, colours at full resolution."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(crop).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()
