"""How output looks in a terminal, in one place."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

console = Console()
errors = Console(stderr=True)


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


@contextlib.contextmanager
def progress_bar(text: str) -> Iterator[Callable[..., None]]:
    """A bar; call it with steps done, steps in all and, if it changes, the text.

    It is drawn when called, never by a thread of its own, which would disturb what is measured.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(text, total=1)

        def update(done: int, total: int, detail: str | None = None) -> None:
            description = text if detail is None else f"{text} {detail}"
            bar.update(task, completed=done, total=total, description=description, refresh=True)

        yield update
