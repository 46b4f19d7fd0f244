"""How servers prove who they are."""

from __future__ import annotations

import os
import ssl

from lgvit_edge.errors import UsageError


def tls_context(cafile: str | os.PathLike[str] | None) -> ssl.SSLContext:
    """Return what checks a server's certificate and name, against a file or the system's CAs.

    Raises:
        UsageError: the file cannot be read, or holds no certificates.
    """
    try:
        return ssl.create_default_context(cafile=cafile)
    except (OSError, ValueError) as error:
        reason = "expected certificates in PEM" if isinstance(error, ssl.SSLError) else error
        text = getattr(reason, "strerror", None) or reason
        raise UsageError(f"cannot use cafile {os.fspath(cafile or '')!r}: {text}") from None
