"""Runs streams of images through one session: read ahead, batched, answered in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lgvit_edge._support.forks import Birthplace
from lgvit_edge.runtime.reading import Item, Readers, StreamError
from lgvit_edge.runtime.result import Result


def run_streams(
    readers: Readers,
    batch: int,
    run: Callable[[list[Item]], list[Result]],
    check: Callable[[], None],
    miss: Callable[[Item], None],
) -> Iterator[tuple[str, Result | StreamError]]:
    """Classify what the readers read, at most ``batch`` images together; see ``Session.streams``.

    ``run`` turns the items of a batch into results. ``check`` raises where nothing more can be run.
    ``miss`` is told of each item that says that an image failed, is overdue or was dropped.
    """
    birthplace = Birthplace()
    check()  # before any source is touched
    try:
        readers.start()
        while readers.open:
            birthplace.check()  # a forked process has no readers: it would wait for ever
            check()
            items = readers.take(batch)  # only what is ready: a full batch is not waited for
            for item in items:
                if item.error is not None or item.dropped:
                    miss(item)
            images = [item for item in items if item.images is not None]
            results = iter(run(images) if images else ())
            for item in items:
                if item.error is not None:
                    yield item.source, item.error
                elif item.images is not None:
                    yield item.source, next(results)
    finally:
        if not birthplace.left:
            readers.stop()
