"""The address that the page listens at."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import suppress

from lgvit_edge.errors import UsageError


def is_loopback(name: str) -> bool:
    """Whether a host name or address can only be this machine itself."""
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        UsageError: that cannot be; with the cure.
    """
    cure = "name another with --page HOST:PORT; port 0 takes a free one"
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the page cannot listen at {host}: this is no address of this machine, and no name "
            f"that resolves ({reason}); {cure}, such as 127.0.0.1:{port}"
        ) from error
    family, kind, protocol, _, address = places[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        listening.close()
        reasons = {
            errno.EADDRINUSE: "another program listens there, or another lgvit-edge",
            errno.EADDRNOTAVAIL: "this is no address of this machine",
            errno.EACCES: "ports below 1024 need more rights",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise UsageError(f"the page cannot listen at {host}:{port}: {reason}; {cure}") from error
    return listening


def own_address(anywhere: str) -> str:
    """Return an address at which others reach this machine, where it listens at all of them."""
    family = socket.AF_INET6 if ":" in anywhere else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking, suppress(OSError):
        # Sends nothing: it only chooses the network. The addresses are for documentation.
        asking.connect(("2001:db8::1" if ":" in anywhere else "192.0.2.1", 9))
        return str(asking.getsockname()[0])
    return socket.gethostname()
