"""The live page's server: one thread beside the pipeline, which it must not slow."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lgvit_edge._support.finite_json import dumps, loads
from lgvit_edge._support.optional import require
from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.page.address import is_loopback, listen, own_address
from lgvit_edge.camera.page.connections import connections
from lgvit_edge.camera.page.guard import App, Guard, check_token
from lgvit_edge.camera.page.pictures import Pictures
from lgvit_edge.camera.page.streams import Room, Stream, Ticks
from lgvit_edge.camera.shot import Event
from lgvit_edge.errors import LGViTEdgeError, UsageError, in_one_line
from lgvit_edge.runtime.session import Session

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_STATIC = Path(__file__).parent / "static"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_EVERY = 0.5  # seconds between two snapshots
_QUIET = 5.0  # seconds after which a stream without news says that it lives
_STREAMS = 32  # viewers; an open page is two: figures and pictures
_CONNECTIONS = 112  # beyond, 503; a browser opens up to six
_ALL_CONNECTIONS = 128  # beyond, closed at once
_BODY = 1024  # bytes
_BODY_TIME = 5.0  # seconds
_FIRST_PICTURE = 3.0  # seconds that a request for one picture waits for it
_FAREWELL = 0.3  # seconds in which viewers may take what is on its way when the page stops
_ALIVE = bytes(8)  # two lengths of 0: no picture
_BORDER = "lgvit-edge-picture"


class Page:
    """Serves the live page of a camera application."""

    def __init__(
        self,
        monitor: Monitor,
        session: Session,
        host: str = "127.0.0.1",
        port: int = 8765,
        token: str | None = None,
        *,
        names: Sequence[str] = (),
        metrics: Callable[[], str] | None = None,
    ) -> None:
        """Make the page; ``open`` takes its address, ``start`` serves it.

        Args:
            monitor: what is shown.
            session: its operating point may be changed on the page.
            host: the address that is listened at. Off this machine, viewers need a token.
            port: its port; 0 takes a free one.
            token: what viewers must know; by default one is made where it is needed.
            names: further names under which the page may be asked for, such as a reverse proxy's.
                Then viewers need a token.
            metrics: returns the text for ``/metrics``; without it there is none.

        Raises:
            UsageError: the token is too short, or the address is none.
        """
        if not host or not 0 <= port <= 65535:
            raise UsageError(
                f"the page's address must be a host and a port of 0 to 65535, such as "
                f"127.0.0.1:8765, found {host}:{port}"
            )
        if token is not None:
            check_token(token)
        elif names or not is_loopback(host):
            token = secrets.token_urlsafe(24)
        self.token = token
        self._monitor, self._session, self._metrics = monitor, session, metrics
        self._host, self._port, self._names = host, port, tuple(names)
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()
        self._stopping = False
        self._pictures = Pictures(monitor, self._tell_pictures)
        self._changer = ThreadPoolExecutor(1, "page point")
        self._files = _read_files()
        self._room = Room(_STREAMS)
        self._states, self._shots = Ticks(), Ticks()
        self._watchers = 0
        self._looking: asyncio.Task[None] | None = None  # while there are any
        self._state, self._told = b"", 0  # the last snapshot, and the number of its last event
        self._events: deque[tuple[int, bytes]] = deque(maxlen=200)
        self._faults: set[str] = set()

    @property
    def url(self) -> str:
        """The page's address, without the token; its port is known once it is open."""
        host = own_address(self._host) if self._host in ("0.0.0.0", "::") else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/"

    @property
    def link(self) -> str:
        """The address that lets a viewer in: with the token, where one is needed."""
        return f"{self.url}?token={self.token}" if self.token else self.url

    def open(self) -> None:
        """Take the address: viewers may connect, and wait for ``start``.

        Raises:
            UsageError: it cannot be listened at.
            MissingDependency: starlette, uvicorn or OpenCV is not installed.
        """
        for module in ("starlette", "uvicorn", "cv2"):
            require(module, extra="camera")
        self._socket = listen(self._host, self._port)
        self._port = self._socket.getsockname()[1]

    def start(self) -> None:
        """Serve, in a thread."""
        self._pictures.start()
        self._thread.start()

    def stop(self) -> None:
        """End, whoever looks; takes a second or two at most."""
        self._stopping = True
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._ending.set)
        if self._thread.is_alive():
            self._thread.join(2.0)
        self._pictures.stop()
        self._changer.shutdown(wait=False)
        if self._socket is not None:
            self._socket.close()

    # What follows runs in the page's thread.

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._fault(in_one_line(error))

    async def _serve(self) -> None:
        from uvicorn import Config, Server

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, about: None)  # of connections that broke
        loop.set_default_executor(ThreadPoolExecutor(4, "page"))
        config = Config(
            self._app(),
            http=connections(_ALL_CONNECTIONS),
            ws="none",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            backlog=64,
            timeout_graceful_shutdown=1,
        )
        server = Server(config)
        assert self._socket is not None
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        self._loop = loop
        if not self._stopping:
            ending = asyncio.create_task(self._ending.wait())
            await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        self._states.tick()
        self._shots.tick()
        end = time.monotonic() + _FAREWELL
        while self._room.taken and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await serving

    def _app(self) -> App:
        from starlette.routing import Route, Router

        router = Router(
            [
                Route("/", self._file),
                Route("/static/{name}", self._file),
                Route("/healthz", self._health),
                Route("/metrics", self._text),
                Route("/api/state", self._snapshot),
                Route("/api/events", self._figures),
                Route("/api/pictures", self._all_pictures),
                Route("/api/point", self._set_point, methods=["POST"]),
                Route("/camera/{name:path}", self._camera),
            ],
            redirect_slashes=False,
        )
        return Guard(
            router,
            token=self.token,
            cookie=f"lgvit_edge_{self._port}",
            denied=self._files["denied.html"][0],
            names=self._names,
            tell=self._fault,
        )

    def _fault(self, text: str) -> None:
        """Tell of an internal error, once: it disturbs the page alone."""
        if text not in self._faults and len(self._faults) < 20:
            self._faults.add(text)
            self._monitor.event(Event(time.time(), "", f"the page fails: {text}", "warning"))

    # Files

    async def _file(self, request: Request) -> Response:
        from starlette.responses import Response

        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            return _unknown(f"there is no file {name}")
        body, kind, tag = self._files[name]
        headers = {"etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=kind, headers=headers)

    async def _health(self, _: Request) -> Response:
        from starlette.responses import PlainTextResponse

        return PlainTextResponse("ok\n")

    async def _text(self, _: Request) -> Response:
        from starlette.responses import Response

        if self._metrics is None:
            return _unknown("no metrics are kept here")
        text = await asyncio.get_running_loop().run_in_executor(None, self._metrics)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    # Figures

    async def _snapshot(self, request: Request) -> Response:
        after = request.query_params.get("events_after", "0")
        if not after.isascii() or not after.isdigit() or len(after) > 15:
            return _json({"error": "events_after must be the number of an event"}, 400)
        return _json(await self._look(int(after)))

    async def _look(self, after: int) -> dict[str, Any]:
        def look() -> dict[str, Any]:
            # JavaScript would sort names that are numbers.
            names = self._monitor.cameras
            return self._monitor.snapshot(events_after=after) | {"names": names}

        return await asyncio.get_running_loop().run_in_executor(None, look)

    async def _figures(self, _: Request) -> Stream:
        return Stream(self._news(), "text/event-stream; charset=utf-8", self._room)

    async def _news(self) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events: a snapshot each time, and before it the events that are new."""
        seen, sent = self._states.number - 1, 0
        self._watchers += 1
        if self._looking is None:
            seen += 1  # the last snapshot is old
            self._looking = asyncio.create_task(self._keep_looking())
        try:
            while not self._stopping:
                before, seen = seen, await self._states.after(seen, _QUIET)
                if seen == before:
                    yield b":\n\n"
                    continue
                new = b",".join(text for number, text in self._events if number > sent)
                sent = self._told
                yield (b"event: events\ndata: [%b]\n\n" % new if new else b"") + self._state
        finally:
            self._watchers -= 1

    async def _keep_looking(self) -> None:
        """Take a snapshot now and then, once for all viewers, while there are any."""
        while self._watchers and not self._stopping:
            try:
                record = await self._look(self._told)
                for event in record.pop("events"):
                    self._events.append((event["number"], dumps(event, indent=None).encode()))
                self._told = record["last_event"]
                self._state = b"data: %b\n\n" % dumps(record, indent=None).encode()
                self._states.tick()
            except Exception as error:  # the next one may do
                self._fault(in_one_line(error))
            await asyncio.sleep(_EVERY)
        self._looking = None

    # Pictures

    def _tell_pictures(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._shots.tick)

    async def _all_pictures(self, request: Request) -> Stream | Response:
        """Answer with pictures of several cameras in one stream: a browser opens only six."""
        cameras, asked = self._monitor.cameras, request.query_params.getlist("camera")
        if not asked or not all(n.isascii() and n.isdigit() and len(n) < 5 for n in asked):
            return _json({"error": "expected camera=N, with their places in names, from 0"}, 400)
        places = sorted(set(map(int, asked)))
        if places[-1] >= len(cameras):
            return _unknown(f"there are {len(cameras)} cameras, found {places[-1]}")
        parts = self._new_pictures([cameras[place] for place in places], drawn=False)
        return Stream(_joined(parts), "application/octet-stream", self._room)

    async def _camera(self, request: Request) -> Stream | Response:
        name, _, kind = request.path_params["name"].rpartition(".")
        if name not in self._monitor.cameras or kind not in ("jpg", "mjpeg"):
            return _unknown("expected /camera/NAME.jpg or .mjpeg of a camera")
        if kind == "jpg":
            return await self._one_picture(name)
        parts = _multipart(self._new_pictures([name], drawn=True))
        return Stream(parts, f"multipart/x-mixed-replace; boundary={_BORDER}", self._room)

    async def _new_pictures(
        self, cameras: list[str], *, drawn: bool
    ) -> AsyncGenerator[list[bytes], None]:
        """Yield those pictures that are newer than the last ones; none, now and then."""
        sent: dict[str, int] = {}
        seen = self._shots.number - 1
        with self._pictures.watching(cameras, drawn=drawn):
            while not self._stopping:
                seen = await self._shots.after(seen, _QUIET)
                new = []
                for camera in cameras:
                    picture = self._pictures.newest(camera, drawn=drawn)
                    if picture is not None and picture.number != sent.get(camera):
                        sent[camera] = picture.number
                        new.append(picture.body)
                yield new

    async def _one_picture(self, camera: str) -> Response:
        from starlette.responses import Response

        end = time.monotonic() + _FIRST_PICTURE
        seen = self._shots.number
        with self._pictures.watching([camera], drawn=True):
            while (left := end - time.monotonic()) > 0 and not self._stopping:
                picture = self._pictures.newest(camera, drawn=True)
                if picture is not None:
                    return Response(picture.body, media_type="image/jpeg")
                seen = await self._shots.after(seen, left)
        response = _json({"error": "this camera has delivered no picture lately"}, 503)
        response.headers["retry-after"] = "5"
        return response

    # Control

    async def _set_point(self, request: Request) -> Response:
        try:
            body = await asyncio.wait_for(_read(request), _BODY_TIME)
            record = loads(body)
        except asyncio.TimeoutError:
            return _json({"error": "the request came too slowly"}, 408)
        except ValueError as error:
            return _json({"error": f"expected JSON of at most {_BODY} bytes: {error}"}, 400)
        name = record.get("point", "") if isinstance(record, dict) else ""
        own, points = self._monitor.own_policy, list(self._session.manifest.points)
        if not (name in points if isinstance(name, str) else name is None and own is not None):
            known = ", ".join(points) or "none, `lgvit-edge tune` makes some"
            return _json({"error": f"there is no such operating point; there are: {known}"}, 400)
        what = "the policy it began with" if name is None else f"operating point {name}"
        try:
            await asyncio.get_running_loop().run_in_executor(self._changer, self._change, name)
        except LGViTEdgeError as error:
            self._tell(f"{what}, chosen on the page, cannot be used: {error}")
            return _json({"error": str(error)}, 409)
        self._tell(f"{what}, chosen on the page", "info")
        return _json({"point": name})

    def _change(self, point: str | None) -> None:
        if point is not None:
            self._session.point = point
        elif (own := self._monitor.own_policy) is not None:
            self._session.policy = own

    def _tell(self, text: str, level: Literal["info", "warning"] = "warning") -> None:
        self._monitor.event(Event(time.time(), "", text, level))


def _json(record: Any, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(dumps(record, indent=None), status, media_type="application/json")


def _unknown(text: str) -> Response:
    return _json({"error": text}, 404)


async def _read(request: Request) -> bytes:
    """Return the body; raises ``ValueError`` when it is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _BODY:
            raise ValueError("it is larger")
    return body


async def _joined(parts: AsyncGenerator[list[bytes], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        async for bodies in parts:
            yield b"".join(bodies) or _ALIVE


async def _multipart(parts: AsyncGenerator[list[bytes], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        # The border that ends a picture goes out with it: browsers show it only then.
        yield b"--%b\r\n" % _BORDER.encode()
        async for bodies in parts:
            for body in bodies:
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
                yield b"%b%b\r\n--%b\r\n" % (head.encode(), body, _BORDER.encode())


def _read_files() -> dict[str, tuple[bytes, str, str]]:
    """Return the page's files by name, with their type and tag: no other file can be asked for."""
    files = {}
    for path in sorted(_STATIC.iterdir()):
        if path.suffix in _KINDS:
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
            files[path.name] = (body, _KINDS[path.suffix], tag)
    return files
