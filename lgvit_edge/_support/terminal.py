"""How output looks in a terminal, in one place."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console()
errors = Console(stderr=True)
_ELAPSED = TimeElapsedColumn()
_LOG_EVERY = 60.0  # seconds


def say(text: str) -> None:
    """Print as it is: names of files are no markup, and commands stay on one line to be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def table(*headers: str, numbers: tuple[str, ...] = ()) -> Table:
    """A table that fits 80 columns: ``headers`` to the left, then ``numbers`` to the right."""
    made = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for header in headers:
        made.add_column(header, min_width=len(header))
    for header in numbers:
        made.add_column(header, justify="right", no_wrap=True)
    return made


@contextlib.contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the function that is yielded gets called; a second one is obeyed.

    Raised in the middle of PyTorch's exporter, KeyboardInterrupt now and then meets native code
    that aborts the process, and nothing is tidied up. Other threads and handlers are left alone.
    """
    caught = 0

    def hold(*_: object) -> None:
        nonlocal caught
        caught += 1
        if caught > 1:
            raise KeyboardInterrupt

    def check() -> None:
        if caught:
            raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Update(Protocol):
    """Says how far a loop is."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Say it.

        Args:
            done: steps done.
            total: steps in all.
            detail: what is being done; what changes too often for a log stands after a colon, as
                in ``epoch 2/50: loss 0.71``.
        """
        ...


@contextlib.contextmanager
def progress_bar(text: str, *, to: Console = errors, lasting: bool = False) -> Iterator[Update]:
    """Show how far a loop is: a bar in a terminal, a line now and then in a log.

    Both are written when the loop speaks, never by a thread of their own, which would disturb what
    is measured. A log gets a line for every new ``detail``, one a minute while that stays, and one
    for what was said last.

    Args:
        text: what the loop does.
        to: where to show it.
        lasting: of a bar: it remains, tells the time left, and is drawn by a thread.
    """
    with _bar(text, to, lasting) if to.is_terminal else _log(text, to) as update:
        yield update


@contextlib.contextmanager
def _bar(text: str, to: Console, lasting: bool) -> Iterator[Update]:
    detail = TextColumn("{task.fields[detail]}", markup=False)
    counted = (BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    columns = (*counted, detail, TimeRemainingColumn()) if lasting else (detail, *counted, _ELAPSED)
    name = TextColumn("{task.description}", markup=False)
    with Progress(name, *columns, console=to, transient=not lasting, auto_refresh=lasting) as bar:
        task = bar.add_task(text, total=1, detail="")

        def update(done: int, total: int, detail: str = "") -> None:
            bar.update(task, completed=done, total=total, detail=detail, refresh=not lasting)

        yield update


@contextlib.contextmanager
def _log(text: str, to: Console) -> Iterator[Update]:
    subject: str | None = None
    due, last, written = 0.0, "", ""

    def update(done: int, total: int, detail: str = "") -> None:
        nonlocal subject, due, last, written
        last = f"{text} {detail} ({done}/{total})" if detail else f"{text} ({done}/{total})"
        if (now := detail.partition(":")[0]) != subject or time.monotonic() >= due:
            subject, due, written = now, time.monotonic() + _LOG_EVERY, last
            write(last)

    def write(line: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {line}"
        to.print(line, markup=False, highlight=False, soft_wrap=True)
        to.file.flush()

    yield update
    if last != written:
        write(last)
