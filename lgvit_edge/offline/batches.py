"""Batches of images through a session: threads decode ahead while the network computes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from lgvit_edge._support.files import reading
from lgvit_edge.errors import DataError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.offline.listing import Listed
from lgvit_edge.offline.rows import answer, fault
from lgvit_edge.runtime import Session

Batch = Sequence[Listed]


def answer_batches(
    session: Session,
    batches: Iterable[Batch],
    *,
    decoders: int,
    times: bool = False,
    readable: str | None = None,
) -> Generator[list[bytes], None, None]:
    """Yield the lines of each batch, in order; what cannot be read has a line too.

    A batch holds the same images at every run, because logits differ in their last bits between
    batches of unlike sizes.

    Args:
        session: what answers.
        batches: each of at most the session's largest batch.
        decoders: threads that decode and resize.
        times: whether answers have latencies.
        readable: an image that was read before, to notice by it that the storage is gone.

    Raises:
        DataError: the storage is gone.
        BackendError: as ``Session.run``.
    """

    def decode(image: Listed) -> Inputs | DataError:
        try:
            # For all passes at once: the image itself, which may be large, goes.
            return session.prepare([image.path]).resized()
        except DataError as error:
            return error

    def run(batch: Batch, decoding: list[Future[Inputs | DataError]]) -> list[bytes]:
        nonlocal readable
        decoded = [each.result() for each in decoding]
        ready = [each for each in decoded if isinstance(each, Inputs)]
        pairs = list(zip(batch, decoded, strict=True))
        readable = next((i.path for i, each in pairs if isinstance(each, Inputs)), readable)
        if readable is not None and len(ready) < len(batch):
            _check_still_there(readable)
        results = iter(session.run(Inputs.join(ready)) if ready else ())
        return [
            answer(image, next(results), times=times)
            if isinstance(each, Inputs)
            else fault(image, str(each))
            for image, each in pairs
        ]

    pool = ThreadPoolExecutor(decoders, "decode")
    waiting: deque[tuple[Batch, list[Future[Inputs | DataError]]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, [pool.submit(decode, image) for image in batch]))
            if len(waiting) > max(2, math.ceil(2 * decoders / len(batch))):
                yield run(*waiting.popleft())
        while waiting:
            yield run(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _check_still_there(path: str) -> None:
    """Refuse to list images as unreadable after their storage went away.

    Raises:
        DataError: an image that could be read a moment ago is not there any more.
    """
    try:
        with reading(path) as file:
            file.read(1)
    except OSError as error:
        raise DataError(
            f"{path} could be read before and cannot any more: {error.strerror}; is the storage "
            "still there? What is answered is kept: run the same command again when it is back"
        ) from None
