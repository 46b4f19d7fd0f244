"""Who may ask the page for what: by the token, its name, and where a request comes from."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from lgvit_edge._support.finite_json import dumps
from lgvit_edge.camera.page.address import is_loopback
from lgvit_edge.errors import UsageError, in_one_line

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:[0-9]{1,5})?")
_HEADERS = 8192  # bytes
_PAUSE = 1.0  # seconds before a wrong token is answered
_PAUSES = 4  # wrong tokens that wait so at a time; more are sent away at once
_OPEN = ("/healthz",)  # says nothing, so that probes need no token
# Scripts, styles and pictures come from here alone, and no other page holds this one.
_ALWAYS = [
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        b"object-src 'none'; require-trusted-types-for 'script'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def check_token(token: str) -> str:
    """Return a token that is hard to guess and needs no quoting in an address.

    Raises:
        UsageError: it is too short, or has other characters; does not quote it.
    """
    if not _TOKEN.fullmatch(token):
        raise UsageError(
            "the page's token must be 16 to 256 letters, digits or any of . _ ~ -, found another "
            f"of {len(token)} characters; leave it out to have one made"
        )
    return token


class Guard:
    """Lets requests through to an ASGI application that may come in; marks all answers.

    Without a token, it takes requests to the loopback names of this machine alone: a page of
    another site may resolve its own name to 127.0.0.1, and would read all (DNS rebinding).
    """

    def __init__(
        self,
        app: App,
        *,
        token: str | None,
        cookie: str,
        denied: bytes,
        names: Iterable[str] = (),
        tell: Callable[[str], None],
    ) -> None:
        """Guard ``app``.

        Args:
            app: what is guarded.
            token: what viewers must know; None where none is needed.
            cookie: name of the cookie that keeps the token.
            denied: the HTML page for viewers without the token.
            names: host names that are this machine's too.
            tell: is given the text of an internal error.
        """
        self._app, self._token, self._cookie, self._denied = app, token, cookie, denied
        self._names = {name.lower() for name in names}
        self._tell = tell
        self._pausing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application do so."""
        if scope["type"] != "http":
            return
        started = False

        async def marked(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                known = {name for name, _ in message["headers"]}
                extra = [*_ALWAYS, (b"cache-control", b"no-store")]
                message["headers"] = [
                    *message["headers"],
                    *(header for header in extra if header[0] not in known),
                ]
            await send(message)

        try:
            if not await self._refuses(scope, marked):
                await self._app(scope, receive, marked)
        except Exception as error:
            self._tell(in_one_line(error))
            if not started:
                await say(marked, 500, {"error": "internal error; the page's events have more"})
            else:
                raise

    async def _refuses(self, scope: Scope, send: Send) -> bool:
        """Whether the request may not come in; then it has been answered."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size + len(scope["query_string"]) > _HEADERS:
            await say(send, 431, {"error": f"a request's head may have {_HEADERS} bytes"})
            return True
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            known = "127.0.0.1 or localhost"
            text = f"this page is for the machine itself: open it as {known}, not as another name"
            await say(send, 421, {"error": text})
            return True
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and headers.get("sec-fetch-mode") != "navigate":
            await say(send, 403, {"error": "another site's page may not use this one"})
            return True
        by_header = False
        if self._token is not None and scope["path"] not in _OPEN:
            if scope["path"] == "/" and (given := _query_token(scope)) is not None:
                if await self._admits(given, scope, send):
                    await self._welcome(send)
                return True
            bearer = headers.get("authorization", "")
            by_header = bearer[:7].lower() == "bearer "
            given = bearer[7:].strip() if by_header else self._cookie_of(headers.get("cookie", ""))
            if given is None:
                await self._ask(scope, send)
                return True
            if not await self._admits(given, scope, send):
                return True
        if scope["method"] == "POST":
            allowed = {f"http://{host}".lower(), f"https://{host}".lower()}
            missing = origin is None and by_header  # a program, no browser
            if not missing and (origin or "").lower() not in allowed:
                await say(send, 403, {"error": "only the page itself may change something here"})
                return True
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                await say(send, 415, {"error": "expected content of type application/json"})
                return True
        return False

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        # The port says nothing: it is another one behind ssh -L or a container's mapping.
        name = found[1].lower()
        return self._token is not None or is_loopback(name) or name in self._names

    async def _admits(self, given: str, scope: Scope, send: Send) -> bool:
        """Whether this is the token; otherwise that is answered, after a pause."""
        assert self._token is not None
        if hmac.compare_digest(given.encode(), self._token.encode()):
            return True
        if self._pausing >= _PAUSES:
            await say(send, 429, {"error": "too many wrong tokens"}, (b"retry-after", b"5"))
            return False
        self._pausing += 1
        try:
            await asyncio.sleep(_PAUSE)
        finally:
            self._pausing -= 1
        await self._ask(scope, send)
        return False

    async def _welcome(self, send: Send) -> None:
        """Keep the token in a cookie, and have the browser forget the address with it."""
        cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        await say(send, 303, {}, (b"set-cookie", cookie.encode()), (b"location", b"./"))

    def _cookie_of(self, header: str) -> str | None:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(header)
        except CookieError:
            return None
        found = cookies.get(self._cookie)
        return None if found is None else found.value

    async def _ask(self, scope: Scope, send: Send) -> None:
        if scope["path"] == "/":
            await answer(send, 401, self._denied, "text/html; charset=utf-8")
        else:
            text = (
                "this needs the token that the command printed: open the page's address with "
                "?token=... once, or send it as a Bearer token"
            )
            await say(send, 401, {"error": text}, (b"www-authenticate", b"Bearer"))


def _query_token(scope: Scope) -> str | None:
    try:
        query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=8)
    except ValueError:
        return None
    return query["token"][0] if "token" in query else None


async def say(send: Send, status: int, record: Any, *headers: tuple[bytes, bytes]) -> None:
    """Answer with JSON."""
    await answer(send, status, dumps(record, indent=None).encode(), "application/json", *headers)


async def answer(
    send: Send, status: int, body: bytes, kind: str, *headers: tuple[bytes, bytes]
) -> None:
    """Answer with a body of a content type."""
    about = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*about, *headers]})
    await send({"type": "http.response.body", "body": body})
