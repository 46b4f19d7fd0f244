"""Answers without an end: what is new goes to each viewer at the viewer's own speed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from lgvit_edge.camera.page.guard import Receive, Scope, Send, say


class Ticks:
    """Counts what happens; many may wait for it, all in one event loop."""

    def __init__(self) -> None:
        self.number = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def tick(self) -> None:
        """Count, and wake who waits."""
        self.number += 1
        for woken in self._waiting:
            _wake(woken)
        self._waiting = set()

    async def after(self, number: int, seconds: float) -> int:
        """Wait until there are more than ``number``, or for so long; return how many there are."""
        if self.number == number:
            # Not asyncio.wait_for: before Python 3.12 it goes on when it is cancelled while woken.
            loop = asyncio.get_running_loop()
            woken = loop.create_future()
            self._waiting.add(woken)
            later = loop.call_later(seconds, _wake, woken)
            try:
                await woken
            finally:
                later.cancel()
                self._waiting.discard(woken)
        return self.number


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


class Room:
    """How many streams there may be.

    Attributes:
        taken: how many there are.
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0


class Stream:
    """Answers a request with parts, until they or the viewer end; with 503 where there is no room.

    A part is asked for when the one before has gone out, so that nothing waits for a slow viewer.
    """

    def __init__(self, parts: AsyncGenerator[bytes, None], kind: str, room: Room) -> None:
        self._parts, self._kind, self._room = parts, kind, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        async with contextlib.aclosing(self._parts):
            if self._room.taken >= self._room.most:
                text = f"there are {self._room.most} viewers already"
                await say(send, 503, {"error": text}, (b"retry-after", b"5"))
                return
            # nginx would keep parts back.
            headers = [(b"content-type", self._kind.encode()), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            self._room.taken += 1
            try:
                if scope["method"] != "HEAD":
                    await self._flow(receive, send)
            finally:
                self._room.taken -= 1
            await send({"type": "http.response.body", "body": b""})

    async def _flow(self, receive: Receive, send: Send) -> None:
        flowing = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({flowing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (flowing, leaving):
                task.cancel()
            await asyncio.gather(flowing, leaving, return_exceptions=True)
        if not flowing.cancelled():
            flowing.result()

    async def _send(self, send: Send) -> None:
        async for part in self._parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
