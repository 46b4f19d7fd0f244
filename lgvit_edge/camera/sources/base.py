"""What a source is, and the registry of their kinds."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.errors import UsageError

# A slash in a password is not valid, but is typed; digits after a host are a port. All is bounded,
# so that a long text of strangers takes no longer than it must.
_LOGIN = re.compile(r"(?<=://)(?:[^/\s]{0,999}@|[^/\s:@]{1,99}:(?!\d+/)\S{0,999}@)")
_SECRET = re.compile(
    r"(?i)((?:pass|pwd|pw|token|key|secret|auth|user|usr|login)[\w-]{0,99}=)"
    r"""("[^"]{0,999}"?|'[^']{0,999}'?|[^&;\s!]+)"""
)


def without_secrets(text: str) -> str:
    """Return an address, or a message that quotes one, without user names, passwords and tokens."""
    return _SECRET.sub(r"\1***", _LOGIN.sub("***@", text))


class Source(ABC):
    """One open connection to pictures.

    Attributes:
        fps: frames per second that it says it has; None where it does not say.
        position: of a recording, how many seconds after its first picture the one belongs that was
            read last; None where pictures come at the pace of whoever sends them.
        mixed: whether pictures of several sizes are nothing to report.
    """

    fps: float | None = None
    position: float | None = None
    mixed: ClassVar[bool] = False

    @abstractmethod
    def read(self) -> NDArray[np.uint8] | None:
        """Return the next picture, ``[H, W, 3] uint8`` RGB; None at the end.

        The array is the caller's: it is not filled again.

        Raises:
            SourceError: the connection is broken: open it again. Without passwords.
            DataError: this picture cannot be decoded: read on.
            StalledError: nothing came in time.
        """

    def interrupt(self) -> None:  # noqa: B027 - some return soon anyway
        """Let a ``read`` in another thread return soon; what it returns or raises is of no use."""

    def close(self) -> None:  # noqa: B027 - some hold nothing open
        """Free what is open; may be called twice."""


@dataclass(frozen=True)
class SourceKind:
    """Describes one kind of source: how it is written, and how it is opened.

    Attributes:
        name: such as ``rtsp``.
        example: an address as a user types it.
        help: what it is, in a few words.
        live: whether frames come whether or not they are read: then only the newest counts, and the
            source is opened again when it ends.
        matches: whether an address is of this kind.
        check: raises ``UsageError`` where the address can never be opened, such as a file that is
            not there; looks, but opens nothing.
        repeats: whether a recording can be read again from its beginning.
        open: opens the address; ``timeout`` is how long, in seconds, opening and each frame may
            take. Raises ``SourceError`` and ``MissingDependency``.
    """

    name: str
    example: str
    help: str
    live: bool
    matches: Callable[[str], bool]
    open: Callable[[str, float], Source]
    check: Callable[[str], None] = lambda address: None
    repeats: bool = True


_KINDS: dict[str, SourceKind] = {}


def register_source(kind: SourceKind) -> None:
    """Add a kind of source; of those that match an address, the first one registered opens it.

    Raises:
        ValueError: the name is in use.
    """
    if kind.name in _KINDS:
        raise ValueError(f"there is a source kind {kind.name!r} already")
    _KINDS[kind.name] = kind


def source_kinds() -> list[SourceKind]:
    """Return all kinds, in the order in which they are tried."""
    return list(_KINDS.values())


def kind_of(address: str) -> SourceKind:
    """Return the kind of source that an address is.

    Raises:
        UsageError: it is of none; lists them.
    """
    for kind in _KINDS.values():
        if kind.matches(address):
            return kind
    listed = "; ".join(f"{kind.example} ({kind.help})" for kind in _KINDS.values())
    raise UsageError(
        f"no source can be made of {without_secrets(address)!r}; expected one of: {listed}"
    )
