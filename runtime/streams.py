"""Runs streams of images through one session: read ahead, batched, answered in order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.forks import Birthplace
from lgvit_edge.images.preprocess import ImageLike
from lgvit_edge.runtime.result import Result

_POLL = 0.05  # seconds between a waiting reader's checks whether it should stop


@dataclass(frozen=True)
class StreamError:
    """Reports an image or a source that failed, in the place of a ``Result``.

    Attributes:
        error: a ``DataError`` where an image could not be used, or what the source raised.
        image: the number of that image in its source, from 0.
        ended: whether the source is over; otherwise its next image follows.
    """

    error: BaseException
    image: int
    ended: bool


@dataclass(frozen=True)
class _Item:
    """One message of a reader: a prepared image, an error, or the end of its source."""

    source: str
    images: NDArray[Any] | None = None
    start: float = 0.0
    error: StreamError | None = None
    ended: bool = False


def run_streams(
    prepare: Callable[[ImageLike], NDArray[Any]],
    run: Callable[[NDArray[Any], Sequence[float]], list[Result]],
    sources: Mapping[str, Iterable[ImageLike]],
    *,
    batch: int,
    ahead: int,
    patient: bool,
) -> Iterator[tuple[str, Result | StreamError]]:
    """Classify the images of several sources, each read by a thread; see ``Session.streams``.

    ``prepare`` turns one image into network input ``[1, ...]``, in memory of its own, as the source
    may fill its array again; ``run`` turns network input ``[B, ...]``, and when each image's
    latency began, into results. A ``patient`` source goes on after an image that cannot be used.
    """
    birthplace = Birthplace()
    items: queue.Queue[_Item] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: _Item) -> None:
        while not stop.is_set():
            try:
                return items.put(item, timeout=_POLL)
            except queue.Full:
                continue

    def read(name: str, images: Iterable[ImageLike]) -> None:
        # Decoding and resizing happen here, in parallel with the network, which releases the GIL.
        number, last = 0, _Item(name, ended=True)
        try:
            for image in images:
                start = time.perf_counter()
                try:
                    put(_Item(name, prepare(image), start))
                except Exception as error:
                    if not patient:
                        raise
                    put(_Item(name, error=StreamError(error, number, ended=False)))
                if stop.is_set():
                    return
                number += 1
        except BaseException as error:  # handed to whoever reads the results
            last = _Item(name, error=StreamError(error, number, ended=True), ended=True)
        put(last)

    readers = [
        threading.Thread(target=read, args=pair, name=f"lgvit-edge {pair[0]}", daemon=True)
        for pair in sources.items()
    ]
    for reader in readers:
        reader.start()
    open_sources = len(readers)
    try:
        while open_sources:
            birthplace.check()  # a forked process has no readers: it would wait for ever
            items_read = [items.get()]
            while len(items_read) < batch:  # only what is ready: a full batch is not waited for
                try:
                    items_read.append(items.get_nowait())
                except queue.Empty:
                    break
            open_sources -= sum(item.ended for item in items_read)
            ready = [item for item in items_read if item.images is not None]
            results: Iterator[Result] = iter(())
            if ready:
                images = np.concatenate([item.images for item in ready])
                results = iter(run(images, [item.start for item in ready]))
            for item in items_read:
                if item.error is not None:
                    yield item.source, item.error
                elif item.images is not None:
                    yield item.source, next(results)
    finally:
        stop.set()
        for reader in readers:
            reader.join(timeout=1.0)  # a camera that hangs is not waited for
