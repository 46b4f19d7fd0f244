"""Tells whether this process was forked from the one that made something.

A fork copies memory and none of the threads: a lock that one of them held stays locked for ever,
and a pool of threads is empty.
"""

from __future__ import annotations

import os
import threading

from lgvit_edge.errors import BackendError

CURE = (
    "open sessions after the fork, in the process that uses them, or start processes with "
    "multiprocessing.get_context('spawn')"
)
_forks = 0  # between the first process and this one


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):  # there are no forks on Windows
    os.register_at_fork(after_in_child=_forked)


class Birthplace:
    """Remembers the process that it was made in."""

    def __init__(self) -> None:
        self._forks = _forks

    @property
    def left(self) -> bool:
        """Whether this process was forked since."""
        return self._forks != _forks

    def check(self) -> None:
        """Refuse a forked process.

        Raises:
            BackendError: says what to do instead.
        """
        if self._forks != _forks:
            raise BackendError(
                "this session was opened before this process was forked, and its threads stayed in "
                f"the other one; {CURE}"
            )


class OwnLock(Birthplace):
    """A lock that one thread may take several times; it refuses a forked process."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self.check()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
