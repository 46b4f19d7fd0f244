"""Connections of uvicorn, with what they lack: bounds on their number and on how long they idle."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

PATIENCE = 10.0  # seconds in which something must happen on a connection


def connections(most: int, patience: float = PATIENCE) -> type[asyncio.Protocol]:
    """Return the class of connections, of which ``most`` may be open; more are closed at once.

    A connection that brings no whole request in ``patience`` seconds, or takes nothing of what it
    is sent, is closed too, within twice that. Nothing is logged: addresses may hold tokens.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    silent = logging.Logger("lgvit-edge page", logging.CRITICAL + 1)  # in no tree of loggers

    class Connection(H11Protocol):
        _watch: asyncio.TimerHandle | None = None

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.logger, self.access_log = silent, False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._look(None)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._watch is not None:
                self._watch.cancel()

        def _look(self, before: object) -> None:
            """Close the connection if it waits for the same thing as last time."""
            unsent = self.transport.get_write_buffer_size()
            idle = self.cycle is None or self.cycle.response_complete
            waits = ("to send", unsent) if unsent else ("to hear", self.cycle) if idle else None
            if waits is not None and waits == before:
                self.transport.abort()
            else:
                self._watch = self.loop.call_later(patience, self._look, waits)

    return Connection
