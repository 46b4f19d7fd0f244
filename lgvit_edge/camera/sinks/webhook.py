"""Answers to a web server, as JSON in POST requests."""

from __future__ import annotations

import contextlib
import http.client
import os
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from lgvit_edge._support.finite_json import dumps
from lgvit_edge._support.numbers import real
from lgvit_edge.camera.shot import Shot
from lgvit_edge.camera.sinks.addresses import split_address
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.camera.sinks.tls import tls_context
from lgvit_edge.errors import SinkError, UsageError, in_one_line

TOKEN = "LGVIT_EDGE_WEBHOOK_TOKEN"
_LATER = (408, 425, 429)  # of those that say that the request is wrong, these may pass
_WRONG_PLACE = (401, 403, 404, 405, 410)  # these say it of the token or the address
_REFUSED_FOR = 10.0  # seconds in which the server is then not asked again
_LONGEST_PAUSE = 300.0  # seconds, whatever the server asks for
_MOST_READ = 1 << 16  # bytes of a server's answer that are read to keep the connection


class Webhook(Sink):
    """Posts a JSON list of answers to an address: those of a shot, or of all that wait."""

    name = "webhook"
    batch = 100

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        changes: bool = False,
        cafile: str | os.PathLike[str] | None = None,
    ) -> None:
        """Name the address.

        A token in ``LGVIT_EDGE_WEBHOOK_TOKEN`` is sent along, as ``Authorization: Bearer``.

        Args:
            url: ``http://`` or ``https://``.
            timeout: seconds that the server may be silent.
            changes: whether an answer is left out that is the same as the one before, of this
                camera and region.
            cafile: file of certificates that vouch for the server, in PEM; None: the system's.

        Raises:
            UsageError: one of them cannot be; an address with a password is refused.
        """
        self._tls, self._host, self._port, self._target = _parsed(url)
        # What follows the host may be a secret, as in the addresses that chat services give out.
        self._shown = f"{'https' if self._tls else 'http'}://{self._host}"
        if not 0.1 <= real(timeout) <= 600:
            raise UsageError(f"timeout must be 0.1 to 600 seconds, found {timeout!r}")
        if cafile is not None and not self._tls:
            raise UsageError("cafile is for https://; give that address, or leave cafile out")
        if not isinstance(changes, bool):
            raise UsageError(f"changes must be true or false, found {changes!r}")
        self._timeout, self._changes, self._cafile = float(timeout), changes, cafile
        self._headers = {"Content-Type": "application/json", "User-Agent": "lgvit-edge"}
        self._connection: http.client.HTTPConnection | None = None
        self._posted: dict[tuple[str, str | None], str | None] = {}  # label by camera and region
        # Until which time.monotonic() nothing is posted, why, and whether for ever.
        self._pause = float("-inf"), "", False

    def open(self) -> None:
        """Read the token and the certificates; the server is not asked yet."""
        if token := os.environ.get(TOKEN):
            if not (token.isascii() and token.isprintable()) or " " in token:
                raise UsageError(f"{TOKEN} holds what no token has, such as a space or a new line")
            self._headers["Authorization"] = f"Bearer {token}"
        self._connection = self._connect()

    def take(self, shot: Shot) -> None:
        """Post the answers of a shot."""
        self.take_batch([shot])

    def take_batch(self, shots: Sequence[Shot]) -> None:
        """Post the answers of shots in one request; return once the server has accepted it."""
        posted, answers = dict(self._posted), []
        for shot in shots:
            for answer in shot.answers:
                place = answer.camera, answer.region
                if self._changes and place in posted and posted[place] == answer.label:
                    continue
                posted[place] = answer.label
                answers.append(answer.to_json())
        if not answers:
            return
        until, reason, final = self._pause
        if time.monotonic() < until:
            raise SinkError(reason, final=final)
        self._post(dumps(answers, indent=None).encode())
        self._posted = posted if self._changes else {}

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._timeout, context=tls_context(self._cafile)
        )

    def _post(self, body: bytes) -> None:
        if self._connection is None:
            self._connection = self._connect()
        reused = self._connection.sock is not None
        try:
            try:
                status, reason, later = self._exchange(self._connection, body)
            except (ConnectionError, http.client.BadStatusLine):
                if not reused:
                    raise
                # The server ended a connection that was idle: no fault of either side.
                self._connection.close()
                status, reason, later = self._exchange(self._connection, body)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            text = getattr(error, "strerror", None) or in_one_line(error)
            raise SinkError(f"cannot post to {self._shown}: {text}") from None
        if 200 <= status < 300:
            return
        text = f"{self._shown} answers {status} {reason}".rstrip()
        if 300 <= status < 400:
            # Followed, it would take the token and the answers to whoever the server names.
            raise SinkError(f"{text}, a redirect, which is not followed: give the final address")
        if status in (401, 403):
            text += f"; check {TOKEN}"
        final = 400 <= status < 500 and status not in _LATER
        if status in _WRONG_PLACE:  # whatever is posted
            later = _REFUSED_FOR
        if not final or status in _WRONG_PLACE:
            self._pause = time.monotonic() + later, text, final
        raise SinkError(text, final=final)

    def _exchange(
        self, connection: http.client.HTTPConnection, body: bytes
    ) -> tuple[int, str, float]:
        """Post; return status, reason, and for how many seconds the server wants to be left."""
        connection.request("POST", self._target, body, self._headers)
        response = connection.getresponse()
        if len(response.read(_MOST_READ)) == _MOST_READ:
            connection.close()
        reason = "".join(c for c in response.reason if c.isprintable())[:80]
        return response.status, reason, _seconds(response.getheader("Retry-After"))


def _seconds(text: str | None) -> float:
    """Return for how long a Retry-After header asks, within bounds; 0 where it cannot be read."""
    seconds = 0.0
    if text is not None and text.strip().isdecimal():
        seconds = float(text)
    elif text is not None:
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
    return min(max(0.0, seconds), _LONGEST_PAUSE)


def _parsed(url: str) -> tuple[bool, str, int | None, str]:
    """Return whether an address is one with TLS, its host, its port, and what follows."""
    expected = "expected http://HOST[:PORT]/PATH or https://..."
    parts = split_address(url, ("http", "https"), expected, TOKEN)
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    target = f"{target}?{query}" if query else target
    return parts.scheme == "https", str(parts.hostname), parts.port, target
