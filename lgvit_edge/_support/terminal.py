"""Output to the terminal: messages, tables, progress and held-back interrupts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lgvit_edge._support.text import escaped

_WIDE = 10_000  # characters
_RULE = 80


class _Output(Console):
    """A console whose lines are cut in a terminal only: a file or a pipe gets all of them."""

    @property  # type: ignore[misc]  # nobody sets it
    def size(self) -> ConsoleDimensions:
        """The columns and lines that there are."""
        width, height = super().size
        # ``is_terminal`` is also true of a pipe where FORCE_COLOR is set, as in CI.
        shown = self.is_terminal and self.file.isatty()
        return ConsoleDimensions(width if shown else _WIDE, height)

    def rule(self, title: Any = "", **options: Any) -> None:
        """Print a line with a title, of a terminal's width at most."""
        self.print(Rule(title, **options), width=min(self.width, _RULE))


console = _Output(emoji=False)
errors = _Output(stderr=True, emoji=False)
_ELAPSED = TimeElapsedColumn()
_LOG_EVERY = 60.0  # seconds


def plain(text: str, style: str = "") -> Text:
    """Make text that is shown as it is: names may look like markup, or hold control characters."""
    return Text(escaped(text), style)


def say(text: str, to: Console = console, style: str = "") -> None:
    """Print text as it is, unwrapped, so that commands can be copied."""
    to.print(plain(text, style), soft_wrap=True)


def note(text: str) -> None:
    """Print a remark to standard error, beside the results."""
    say(f"note: {text}", errors)


def table(*headers: str, numbers: tuple[str, ...] = ()) -> Table:
    """Make an empty table with left-aligned ``headers``, then right-aligned ``numbers``."""
    empty = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for header in headers:
        empty.add_column(header, min_width=len(header))
    for header in numbers:
        empty.add_column(header, justify="right", no_wrap=True)
    return empty


@contextlib.contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C back until the yielded function is called; a second Ctrl-C acts at once.

    Inside PyTorch's exporter, KeyboardInterrupt sometimes reaches native code that aborts the
    process without clean-up. Other threads and handlers are left alone.
    """
    caught = 0

    def hold(*_: object) -> None:
        nonlocal caught
        caught += 1
        if caught > 1:
            raise KeyboardInterrupt
        # Not through Python's streams, which may be half-way through a write.
        os.write(2, b"\nStopping after this step; Ctrl-C again stops at once.\n")

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
    """A function that reports how far a loop is."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Report that ``done`` steps of ``total`` are done, and the current work.

        Parts of ``detail`` that change too often for a log follow a colon: ``epoch 2/50: loss
        0.71``.
        """
        ...


@contextlib.contextmanager
def progress_bar(text: str, *, to: Console = errors, lasting: bool = False) -> Iterator[Update]:
    """Show how far the loop ``text`` is: as a bar in a terminal, as lines in a log.

    Only the loop's own calls draw, because a drawing thread would disturb measurements. A log gets
    a line for every new ``detail``, one a minute while the detail stays, and one at the end. A
    ``lasting`` bar remains at the end, shows the time left, and is drawn by a thread.
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
        task = bar.add_task(escaped(text), total=1, detail="")

        def update(done: int, total: int, detail: str = "") -> None:
            shown = escaped(detail)
            bar.update(task, completed=done, total=total, detail=shown, refresh=not lasting)

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
        say(line, to)
        to.file.flush()

    yield update
    if last != written:
        write(last)
