"""Addresses of servers that answers go to."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from lgvit_edge.camera.sources.base import without_secrets
from lgvit_edge.errors import UsageError


def split_address(url: str, schemes: Collection[str], expected: str, instead: str) -> SplitResult:
    """Return the parts of an address with a host, and a port that is a number if there is one.

    Args:
        url: the address.
        schemes: those it may have.
        expected: what addresses look like, for a message.
        instead: where a user name or a password is to be given.

    Raises:
        UsageError: it is none of these, or holds a user name or a password.
    """
    shown = without_secrets(url)
    try:
        parts = urlsplit(url)
        fits = parts.scheme in schemes and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        raise UsageError(f"{expected}, found {shown!r}") from None
    if "@" in parts.netloc:
        raise UsageError(
            f"{shown}: an address with a user name or password would be seen by others; "
            f"set {instead} instead"
        )
    if not fits:
        raise UsageError(f"{expected}, found {shown!r}")
    return parts
