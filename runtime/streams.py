"""Many frames through one session: read ahead, batched, answered in order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import UsageError
from lgvit_edge.runtime.result import Result

if TYPE_CHECKING:
    from lgvit_edge.runtime.session import Session

_POLL = 0.05  # seconds after which a reader that waits for room looks whether it should stop


@dataclass(frozen=True)
class _Item:
    """A frame that was read and resized, or the end of its source."""

    source: str
    images: NDArray[Any] | None = None
    start: float = 0.0
    error: BaseException | None = None


def run_streams(
    session: Session,
    sources: Mapping[str, Iterable[NDArray[np.uint8]]],
    *,
    batch: int,
    ahead: int,
) -> Iterator[tuple[str, Result]]:
    """See ``Session.streams``."""
    if ahead < 1 or batch < 1:
        raise UsageError(f"batch and ahead must be at least 1, found {batch} and {ahead}")
    items: queue.Queue[_Item] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: _Item) -> None:
        while not stop.is_set():
            try:
                return items.put(item, timeout=_POLL)
            except queue.Full:
                continue

    def read(name: str, frames: Iterable[NDArray[np.uint8]]) -> None:
        # Decoding and resizing happen here, beside the network, which leaves Python alone.
        error: BaseException | None = None
        try:
            for frame in frames:
                start = time.perf_counter()
                put(_Item(name, session.prepare([frame]), start))
                if stop.is_set():
                    return
        except BaseException as raised:  # handed to whoever reads the results
            error = raised
        put(_Item(name, error=error))

    readers = [
        threading.Thread(target=read, args=pair, name=f"lgvit-edge {pair[0]}", daemon=True)
        for pair in sources.items()
    ]
    for reader in readers:
        reader.start()
    open_sources = len(readers)
    try:
        while open_sources:
            taken, failed = [items.get()], None
            while len(taken) < batch:  # what is there by now; nobody waits for a full batch
                try:
                    taken.append(items.get_nowait())
                except queue.Empty:
                    break
            ready = [item for item in taken if item.images is not None]
            open_sources -= len(taken) - len(ready)
            failed = next((item.error for item in taken if item.error is not None), None)
            if ready:
                images = np.concatenate([item.images for item in ready])
                results = session.run(images, starts=[item.start for item in ready])
                yield from zip((item.source for item in ready), results, strict=True)
            if failed is not None:
                raise failed
    finally:
        stop.set()
        for reader in readers:
            reader.join(timeout=1.0)  # a camera that hangs is not waited for
