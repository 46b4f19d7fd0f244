"""The live page's server, asked over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import io
import json
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from small import point

from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.page import pictures, server
from lgvit_edge.camera.page.server import Page
from lgvit_edge.camera.page.streams import Ticks
from lgvit_edge.camera.shot import Answer, Event, Shot
from lgvit_edge.errors import BackendError, MissingDependency, UsageError
from lgvit_edge.policies import Confidence
from lgvit_edge.runtime import Session, TargetRate

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("cv2")

HOSTILE = "<b>a/../b?c#d%2e</b> \"'&"
TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(scope="module")
def session(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    root = tmp_path_factory.mktemp("page") / "bundle"
    shutil.copytree(bundle, root)
    shares = {"shares": (1 / len(open_bundle(root).manifest.segments),) * 4}
    points = {name: point(Confidence(t), **shares) for name, t in (("fast", 0.1), ("sure", 0.9))}
    add_to_manifest(root, open_bundle(root).manifest.identity, points)
    with Session.open(root) as session:
        yield session


@pytest.fixture
def monitor(session: Session) -> Monitor:
    session.policy = Confidence(0.5)
    return Monitor(session, {HOSTILE: "rtsp://***@camera/", "7": "0"})


@pytest.fixture(scope="module")
def page(session: Session) -> Iterator[Page]:
    """A page for tests that only ask."""
    page = Page(Monitor(session, {HOSTILE: "", "7": ""}), session, port=0)
    page.open()
    page.start()
    yield page
    page.stop()


Serve = Callable[..., Page]


@pytest.fixture
def serve(monitor: Monitor, session: Session) -> Iterator[Serve]:
    """Serve a page at a free port until the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Page:
            page = Page(monitor, session, port=0, **options)
            stack.callback(page.stop)
            page.open()
            page.start()
            return page

        yield start


@pytest.fixture
def shoot(monitor: Monitor, session: Session) -> Callable[..., None]:
    """Answer a frame of a camera, as the pipeline does."""
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    image = np.asarray(Image.fromarray(image).resize((1600, 900)))
    result = session.run(session.prepare([image]))[0]

    def shot(camera: str = HOSTILE, number: int = 0, **changes: Any) -> None:
        values: dict[str, Any] = {"region": None, "box": (0, 0, 1600, 900), "label": "cat"}
        values |= {"guess": "cat", "class_index": 0, "confidence": 0.9, "point": None} | changes
        now = time.time()
        answer = Answer(
            camera, frame=number, time=now, latency_ms=5.0, dropped=0, result=result, **values
        )
        monitor.shot(Shot(camera, number, now, (answer,), image, 15.0))

    return shot


@pytest.fixture
def shooting(shoot: Callable[..., None]) -> Iterator[None]:
    """Answer frames of both cameras all the time."""
    ended = threading.Event()

    def run() -> None:
        number = 0
        while not ended.wait(0.02):
            shoot(HOSTILE, number)
            shoot("7", number)
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    yield
    ended.set()
    thread.join()


def connect(page: Page) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", int(page.url.rsplit(":", 1)[1][:-1]), timeout=10)


class Reply:
    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = answer.status, answer.headers, answer.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(page: Page, path: str, method: str = "GET", body: Any = None, **headers: str) -> Reply:
    with contextlib.closing(connect(page)) as connection:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        return Reply(connection.getresponse())


@contextlib.contextmanager
def watch(page: Page, path: str, **headers: str) -> Iterator[http.client.HTTPResponse]:
    with contextlib.closing(connect(page)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer


def set_point(page: Page, body: Any, **headers: str) -> Reply:
    own = {"Origin": page.url[:-1], "Content_Type": "application/json"}
    text = body if isinstance(body, (str, bytes)) else json.dumps(body)
    return ask(page, "/api/point", "POST", text, **{k: v for k, v in (own | headers).items() if v})


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


def read_events(answer: http.client.HTTPResponse) -> tuple[str, Any]:
    """The next server-sent event: its kind and its data."""
    kind = ""
    while True:
        line = answer.readline().decode().rstrip("\n")
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: "):
            answer.readline()
            return kind, json.loads(line[6:])


def read_picture(answer: http.client.HTTPResponse) -> tuple[dict[str, Any], bytes]:
    """The next picture of the page's stream, and what is said of it."""
    while True:
        sizes = answer.read(8)
        text, image = int.from_bytes(sizes[:4], "big"), int.from_bytes(sizes[4:], "big")
        if text:
            return json.loads(answer.read(text)), answer.read(image)


def size_of(jpeg: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(jpeg)) as image:
        image.load()
        assert image.format == "JPEG"
        return image.size


# What it serves


def test_serves_files_that_browsers_keep_and_let_nothing_else_in(page: Page) -> None:
    index = ask(page, "/")
    assert index.status == 200 and b"<title>" in index.body
    policy = index.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert index.headers["x-content-type-options"] == "nosniff"
    assert index.headers["referrer-policy"] == "same-origin"
    assert "access-control-allow-origin" not in index.headers and "server" not in index.headers
    again = ask(page, "/", If_None_Match=index.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    for name in re.findall(rb'(?:href|src)="(static/[^"]+)"', index.body):
        assert ask(page, f"/{name.decode()}").status == 200
    assert not re.search(rb"<script(?! type=.module. src=.static/)|<style|\son\w+=", index.body)


def test_names_in_the_pages_own_scripts_are_only_ever_text() -> None:
    for path in (Path(server.__file__).parent / "static").glob("*.js"):
        source = path.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source
        )
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source), path


@pytest.mark.parametrize(
    "path",
    ["/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "//etc/passwd"]
    + ["/static/", "/static/server.py", "/static//etc/passwd", "/camera/../../x.jpg", "/api/none"],
)
def test_no_path_leads_to_another_file(path: str, page: Page) -> None:
    assert ask(page, path).status == 404


def test_refuses_other_methods(page: Page) -> None:
    assert ask(page, "/", "PUT").status == 405
    assert ask(page, "/api/point").status == 405
    assert ask(page, "/api/events", "HEAD").status == 200


def test_state_is_the_monitors_snapshot(serve: Serve, shoot: Any, monitor: Monitor) -> None:
    page = serve()
    shoot(confidence=float("nan"))
    monitor.event(Event(time.time(), HOSTILE, "lost", "error", "lost"))
    reply = ask(page, "/api/state")
    state = reply.json
    assert reply.headers["cache-control"] == "no-store"
    assert state["names"] == [HOSTILE, "7"] and state["points"] == ["fast", "sure"]
    assert state["cameras"][HOSTILE]["state"] == "lost"
    assert state["cameras"][HOSTILE]["last"][0]["confidence"] is None  # JSON has no NaN
    assert [event["text"] for event in state["events"]] == ["lost"]
    assert ask(page, "/api/state?events_after=1").json["events"] == []
    for number in ("x", "-1", "9" * 99):
        assert ask(page, f"/api/state?events_after={number}").status == 400


def test_figures_come_as_events_and_are_looked_up_once_for_all(
    serve: Serve, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    snapshot = monitor.snapshot
    monkeypatch.setattr(
        monitor,
        "snapshot",
        lambda **after: looked.append(after["events_after"]) or snapshot(**after),
    )
    monkeypatch.setattr(server, "_EVERY", 0.1)
    page = serve()
    monitor.event(Event(1.0, "", "first"))
    with contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(watch(page, "/api/events")) for _ in range(5)]
        assert viewers[0].headers["content-type"].startswith("text/event-stream")
        for viewer in viewers:
            kind, events = read_events(viewer)
            assert kind == "events" and [event["text"] for event in events] == ["first"]
            assert read_events(viewer)[1]["names"] == [HOSTILE, "7"]
        looked.clear()
        monitor.event(Event(2.0, "", "second"))
        for viewer in viewers:
            while (found := read_events(viewer))[0] != "events":
                pass
            assert [event["number"] for event in found[1]] == [2]
        begun, times = time.monotonic(), len(looked)
        for _ in range(3):
            read_events(viewers[0])
        assert len(looked) - times <= (time.monotonic() - begun) / 0.1 + 2
    wait_for(lambda: page._looking is None)  # nobody looks: nothing is looked up


def test_a_snapshot_that_fails_is_told_and_the_next_one_shown(
    serve: Serve, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> dict[str, Any]:
        monitor.watch_sinks(dict)
        raise RuntimeError("no counts")

    monkeypatch.setattr(server, "_EVERY", 0.05)
    page = serve()
    monitor.watch_sinks(fail)
    reply = ask(page, "/api/state")
    assert reply.status == 500 and "internal error" in reply.json["error"]
    monitor.watch_sinks(fail)
    with watch(page, "/api/events") as viewer:
        kind, events = read_events(viewer)
    assert kind == "events" and events[0]["text"] == "the page fails: RuntimeError: no counts"


def test_metrics_and_health(serve: Serve, monitor: Monitor) -> None:
    page = serve(metrics=lambda: "frames_total 7\n")
    reply = ask(page, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert reply.body == b"frames_total 7\n"
    assert ask(page, "/healthz").body == b"ok\n"


def test_there_are_no_metrics_unless_somebody_makes_them(page: Page) -> None:
    assert ask(page, "/metrics").status == 404


# Pictures


def test_a_picture_by_the_name_of_its_camera(serve: Serve, shooting: None) -> None:
    page = serve()
    reply = ask(page, f"/camera/{quote(HOSTILE, safe='')}.jpg")
    assert reply.status == 200 and reply.headers["content-type"] == "image/jpeg"
    assert size_of(reply.body) == (640, 360)
    assert ask(page, "/camera/nobody.jpg").status == 404
    assert ask(page, "/camera/7.png").status == 404


def test_a_camera_without_pictures_is_not_waited_for_long(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_FIRST_PICTURE", 0.1)
    reply = ask(serve(), "/camera/7.jpg")
    assert reply.status == 503 and "no picture" in reply.json["error"]
    assert reply.headers["retry-after"]


def test_moving_pictures_in_parts(serve: Serve, shooting: None) -> None:
    with watch(serve(), "/camera/7.mjpeg") as viewer:
        kind = viewer.headers["content-type"]
        border = kind.partition("boundary=")[2].encode()
        assert kind.startswith("multipart/x-mixed-replace") and border
        assert viewer.readline().rstrip() == b"--" + border
        for _ in range(3):
            assert viewer.readline() == b"Content-Type: image/jpeg\r\n"
            length = int(viewer.readline().split(b":")[1])
            viewer.readline()
            assert size_of(viewer.read(length)) == (640, 360)
            assert viewer.readline() == b"\r\n"
            assert viewer.readline().rstrip() == b"--" + border


def test_all_pictures_in_one_stream_with_their_answers(serve: Serve, shoot: Any) -> None:
    page = serve()
    with watch(page, "/api/pictures?camera=0&camera=1") as viewer:
        wait_for(lambda: page._monitor.images)
        shoot(HOSTILE, 3, label=None, region=HOSTILE, box=(10, 20, 30, 40))
        about, jpeg = read_picture(viewer)
        assert (about["camera"], about["frame"]) == (HOSTILE, 3)
        assert (about["width"], about["height"]) == (1600, 900) and size_of(jpeg) == (640, 360)
        box = {"box": [10, 20, 30, 40], "region": HOSTILE, "label": None, "guess": "cat"}
        assert about["boxes"] == [box]
        shoot("7", 4)
        assert read_picture(viewer)[0]["camera"] == "7"  # not the first one again
    for wrong in ("", "?camera=x", "?camera=-1", "?camera=" + "9" * 9):
        assert ask(page, f"/api/pictures{wrong}").status == 400
    assert ask(page, "/api/pictures?camera=2").status == 404


def test_pictures_are_encoded_once_for_all_and_only_while_somebody_looks(
    serve: Serve, shoot: Any, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    jpeg = pictures.jpeg
    monkeypatch.setattr(pictures, "jpeg", lambda *of: encoded.append(1) or jpeg(*of))
    page = serve()
    encoded.clear()  # it tries itself
    shoot()
    assert monitor.picture(HOSTILE) is None and not monitor.images
    with contextlib.ExitStack() as stack:
        path = "/api/pictures?camera=0"
        viewers = [stack.enter_context(watch(page, path)) for _ in range(5)]
        wait_for(lambda: page._pictures._watched[HOSTILE, False] == 5)
        for number in range(3):
            shoot(HOSTILE, number)
            assert {read_picture(viewer)[0]["frame"] for viewer in viewers} == {number}
        assert len(encoded) == 3
    wait_for(lambda: not monitor.images)


def test_a_picture_that_cannot_be_encoded_is_told_once_and_disturbs_no_other(
    serve: Serve, shoot: Any, monitor: Monitor
) -> None:
    page = serve()
    with watch(page, "/api/pictures?camera=0&camera=1") as viewer:
        wait_for(lambda: monitor.images)
        for number in range(3):
            shoot(HOSTILE, number)
            broken = monitor.picture(HOSTILE)
            assert broken is not None
            monitor.shot(Shot(HOSTILE, number, 0.0, broken.answers, np.zeros((0, 0, 3), np.uint8)))
            shoot("7", number)
            while read_picture(viewer)[0]["camera"] != "7":
                pass
    texts = [event["text"] for event in monitor.snapshot()["events"]]
    assert len(texts) == 1 and "cannot show its pictures" in texts[0]


def test_a_slow_viewer_skips_pictures(
    serve: Serve, shoot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_RATE", 200)
    monkeypatch.setattr(pictures, "jpeg", lambda *of: bytes(1_000_000))
    page = serve()
    with (
        watch(page, "/api/pictures?camera=0") as slow,
        watch(page, "/api/pictures?camera=0") as fast,
    ):
        wait_for(lambda: page._pictures._watched[HOSTILE, False] == 2)
        for number in range(40):  # more than the system's buffers take
            shoot(HOSTILE, number)
            assert read_picture(fast)[0]["frame"] == number
        seen = [read_picture(slow)[0]["frame"]]
        while seen[-1] < 39:
            seen.append(read_picture(slow)[0]["frame"])
    assert seen == sorted(set(seen)) and len(seen) < 30


def test_a_viewer_that_goes_while_it_is_woken_is_gone() -> None:
    async def wait() -> bool:
        ticks = Ticks()
        viewer = asyncio.create_task(ticks.after(0, 60.0))
        await asyncio.sleep(0.01)
        ticks.tick()
        viewer.cancel()
        await asyncio.wait({viewer})
        return viewer.cancelled()

    assert asyncio.run(wait())


# Bounds


def test_too_many_viewers_are_sent_away_and_the_others_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_STREAMS", 2)
    page = serve()
    with watch(page, "/api/events"):
        with watch(page, "/api/events"):
            for path in ("/api/events", "/api/pictures?camera=0", "/camera/7.mjpeg"):
                reply = ask(page, path)
                assert reply.status == 503 and "2 viewers" in reply.json["error"]
            assert ask(page, "/api/state").status == 200
        wait_for(lambda: page._room.taken == 1)
        with watch(page, "/api/events"):
            pass


def test_too_many_connections_are_refused_and_many_more_closed_at_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CONNECTIONS", 4)
    monkeypatch.setattr(server, "_ALL_CONNECTIONS", 6)
    page = serve()
    assert ask(page, "/healthz").status == 200
    with contextlib.ExitStack() as stack:

        def idle() -> socket.socket:
            made = socket.create_connection((connect(page).host, connect(page).port), 10)
            return stack.enter_context(contextlib.closing(made))

        for _ in range(4):
            idle()
        assert ask(page, "/healthz").status == 503
        idle()
        idle()
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            ask(page, "/healthz")
    wait_for(lambda: _answers(page))


def _answers(page: Page) -> bool:
    try:
        return ask(page, "/healthz").status == 200
    except (ConnectionError, http.client.RemoteDisconnected):
        return False


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET / HTTP/1.1\r\nHost: 127.0", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET"],
)
def test_connections_that_wait_for_nothing_are_closed(
    begun: bytes, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "connections", functools.partial(server.connections, patience=0.1))
    page = serve()
    with socket.create_connection(("127.0.0.1", connect(page).port), 10) as idle:
        idle.sendall(begun)
        with contextlib.suppress(ConnectionResetError):
            while idle.recv(4096):
                pass
    assert ask(page, "/healthz").status == 200


def test_a_viewer_that_takes_nothing_is_sent_away(
    serve: Serve, shooting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "connections", functools.partial(server.connections, patience=0.3))
    monkeypatch.setattr(pictures, "_RATE", 200)
    page = serve()
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", connect(page).port))
        stuck.sendall(b"GET /api/pictures?camera=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: page._room.taken == 1)
        wait_for(lambda: page._room.taken == 0, 30)


def test_large_requests_are_refused(page: Page) -> None:
    assert ask(page, "/", X_Large="x" * 8192).status == 431
    assert ask(page, "/?" + "x" * 8192).status == 431
    with contextlib.suppress(ConnectionError):
        assert ask(page, "/", X_Large="x" * 1_000_000).status == 400
    assert set_point(page, {"point": "x" * 2000}).status == 400
    assert ask(page, "/api/state").status == 200


def test_a_request_that_comes_too_slowly_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_BODY_TIME", 0.05)
    page = serve()
    with contextlib.closing(connect(page)) as slow:
        slow.putrequest("POST", "/api/point")
        slow.putheader("Origin", page.url[:-1])
        slow.putheader("Content-Type", "application/json")
        slow.putheader("Content-Length", "20")
        slow.endheaders(b'{"point')
        assert slow.getresponse().status == 408


# Who may come in


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:9999", "[::1]:80"])
def test_answers_to_the_names_of_this_machine(host: str, page: Page) -> None:
    assert ask(page, "/api/state", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.9:8765", "localhost:x", "a b", ""]
)
def test_answers_to_no_other_name(host: str, page: Page) -> None:
    for path in ("/", "/api/state", "/camera/7.jpg", "/healthz", "/metrics"):
        reply = ask(page, path, Host=host)
        assert reply.status == 421 and "127.0.0.1 or localhost" in reply.json["error"]


def test_other_sites_use_nothing_but_may_link_here(page: Page) -> None:
    assert ask(page, "/camera/7.mjpeg", Sec_Fetch_Site="cross-site").status == 403
    assert ask(page, "/api/state", Sec_Fetch_Site="same-site").status == 403
    assert ask(page, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200
    assert ask(page, "/api/state", Sec_Fetch_Site="same-origin").status == 200


def test_off_this_machine_a_token_is_made(monitor: Monitor, session: Session) -> None:
    assert Page(monitor, session).token is None
    for options in ({"host": "0.0.0.0"}, {"host": "192.168.0.9"}, {"names": ["edge.example"]}):
        tokens = {Page(monitor, session, **options).token for _ in range(2)}  # type: ignore[arg-type]
        assert len(tokens) == 2 and all(token and len(token) >= 32 for token in tokens)
    page = Page(monitor, session, host="0.0.0.0")
    assert page.token and page.token in page.link and page.token not in page.url
    assert "0.0.0.0" not in page.url


@pytest.mark.parametrize("token", ["short", "x" * 257, "with blanks in it, and more", "ümlaut" * 5])
def test_a_weak_token_is_refused_and_not_quoted(
    token: str, monitor: Monitor, session: Session
) -> None:
    with pytest.raises(UsageError, match="16 to 256 letters") as error:
        Page(monitor, session, token=token)
    assert token not in str(error.value)


def test_without_the_token_nothing_is_shown(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lgvit_edge.camera.page.guard._PAUSE", 0.1)
    page = serve(token=TOKEN)
    asked = ask(page, "/")
    assert asked.status == 401 and b"needs its token" in asked.body
    assert asked.headers["content-type"].startswith("text/html")
    for path in ("/static/page.js", "/api/state", "/api/events", "/camera/7.jpg", "/metrics"):
        reply = ask(page, path)
        assert reply.status == 401 and "token" in reply.json["error"]
    wrong = {"Cookie": f"lgvit_edge_{connect(page).port}=x{TOKEN}"}, {"Authorization": "Bearer x"}
    for header in wrong:
        begun = time.monotonic()
        assert ask(page, "/api/state", **header).status == 401
        assert time.monotonic() - begun >= 0.1
    assert ask(page, "/?token=" + quote("ü" * 20)).status == 401
    assert ask(page, "/?token=" + "&" * 99).status == 401
    assert ask(page, "/api/state?token=" + TOKEN).status == 401  # only the page's own address
    assert ask(page, "/healthz", Host="any.example").status == 200
    assert TOKEN not in "".join(capfd.readouterr())


def test_the_token_opens_the_page_once_and_its_cookie_from_then_on(serve: Serve) -> None:
    page = serve(token=TOKEN, names=["edge.example"])
    welcome = ask(page, page.link[page.link.index("/?") :], Host="edge.example")
    assert welcome.status == 303 and welcome.headers["location"] == "./"
    cookie, *flags = welcome.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(flags)
    assert ask(page, "/", Cookie=f"other=1; {cookie}").status == 200
    assert ask(page, "/api/state", Authorization=f"Bearer {TOKEN}").status == 200
    with watch(page, "/api/events", Cookie=cookie):
        pass


def test_a_flood_of_wrong_tokens_is_sent_away_and_the_right_one_let_in(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lgvit_edge.camera.page.guard._PAUSE", 5.0)
    page = serve(token=TOKEN)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            guess = stack.enter_context(contextlib.closing(connect(page)))
            guess.request("GET", "/?token=wrong")
        wait_for(lambda: ask(page, "/?token=wrong").status == 429)
        assert ask(page, f"/?token={TOKEN}").status == 303


# Control


def test_changes_the_operating_point(serve: Serve, session: Session, monitor: Monitor) -> None:
    page = serve()
    reply = set_point(page, {"point": "fast"})
    assert (reply.status, reply.json) == (200, {"point": "fast"})
    assert session.point == "fast" and ask(page, "/api/state").json["point"] == "fast"
    assert "operating point fast" in monitor.snapshot()["events"][-1]["text"]


def test_goes_back_to_the_policy_that_it_began_with(
    serve: Serve, session: Session, monitor: Monitor
) -> None:
    page, begun = serve(), session.policy
    assert set_point(page, {"point": "fast"}).status == 200
    state = ask(page, "/api/state").json
    assert state["own_policy"] == begun.to_json()["name"]
    assert set_point(page, {"point": None}).json == {"point": None}
    assert session.policy is begun and ask(page, "/api/state").json["point"] is None
    assert "the policy it began with" in monitor.snapshot()["events"][-1]["text"]


def test_a_frame_rate_takes_over_again(session: Session) -> None:
    session.policy = TargetRate(5.0)
    page = Page(Monitor(session, {"gate": "demo"}), session, port=0)
    page._change("fast")
    page._change(None)
    assert isinstance(session.policy, TargetRate) and session.policy.pace.levels > 1


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (400, {}, {}),
        (400, {"point": ""}, {}),
        (403, {"point": "sure"}, {"Origin": ""}),
        (403, {"point": "sure"}, {"Origin": "null"}),
        (403, {"point": "sure"}, {"Origin": "http://evil.example"}),
        (403, {"point": "sure"}, {"Origin": "http://127.0.0.1:1"}),
        (403, {"point": "sure"}, {"Sec_Fetch_Site": "cross-site"}),
        (415, {"point": "sure"}, {"Content_Type": "text/plain"}),
        (415, {"point": "sure"}, {"Content_Type": ""}),
        (400, {"point": "none"}, {}),
        (400, {"point": ["sure"]}, {}),
        (400, ["sure"], {}),
        (400, "{", {}),
        (400, "[" * 1000, {}),
        (400, b"\xff", {}),
    ],
)
def test_changes_nothing_otherwise(
    status: int, body: Any, headers: dict[str, str], page: Page, session: Session
) -> None:
    session.point = "fast"
    reply = set_point(page, body, **headers)
    assert reply.status == status and reply.json["error"]
    assert session.point == "fast"


def test_a_program_with_the_token_needs_no_origin_but_no_other_sites(
    serve: Serve, session: Session
) -> None:
    page, bearer = serve(token=TOKEN), f"Bearer {TOKEN}"
    assert set_point(page, {"point": "sure"}, Origin="", Authorization=bearer).status == 200
    assert session.point == "sure"
    foreign = set_point(page, {"point": "fast"}, Origin="http://evil.example", Authorization=bearer)
    assert foreign.status == 403 and session.point == "sure"


def test_a_point_that_cannot_be_used_is_told(
    serve: Serve, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(point: str) -> None:
        raise BackendError(f"{point} cannot be loaded")

    page = serve()
    monkeypatch.setattr(page, "_change", fail)
    reply = set_point(page, {"point": "sure"})
    assert reply.status == 409 and "cannot be loaded" in reply.json["error"]
    assert "cannot be used" in monitor.snapshot()["events"][-1]["text"]


# Beginning and end


def test_stops_soon_whoever_looks(serve: Serve, shooting: None, capfd: Any) -> None:
    page = serve()
    with contextlib.ExitStack() as stack:
        paths = ("/api/events", "/api/pictures?camera=0", "/camera/7.mjpeg")
        viewers = [stack.enter_context(watch(page, path)) for path in paths]
        idle = stack.enter_context(socket.create_connection(("127.0.0.1", connect(page).port)))
        wait_for(lambda: page._room.taken == 3)
        begun = time.monotonic()
        page.stop()
        assert time.monotonic() - begun < 2.0 and not page._thread.is_alive()
        for viewer in viewers:
            with contextlib.suppress(ConnectionError, http.client.IncompleteRead):
                while viewer.read1(65536):
                    pass
        with contextlib.suppress(ConnectionError):
            assert idle.recv(1) == b""
    page.stop()  # again
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not page._monitor.images


def test_stops_before_it_has_begun(monitor: Monitor, session: Session) -> None:
    page = Page(monitor, session, port=0)
    page.open()
    page.stop()
    with socket.create_server(("127.0.0.1", connect(page).port)):
        pass


def test_viewers_may_come_before_it_starts(monitor: Monitor, session: Session) -> None:
    page = Page(monitor, session, port=0)
    page.open()
    with contextlib.closing(connect(page)) as early:
        early.request("GET", "/healthz")
        page.start()
        assert early.getresponse().read() == b"ok\n"
    page.stop()


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_an_address_that_is_none_is_refused(host: str, monitor: Monitor, session: Session) -> None:
    with pytest.raises(UsageError, match="127.0.0.1:8765"):
        Page(monitor, session, host=host, port=8765 if not host else 65536)


def test_a_port_in_use_is_refused(serve: Serve, monitor: Monitor, session: Session) -> None:
    taken = connect(serve()).port
    with pytest.raises(UsageError, match=r"another program listens there.*--page HOST:PORT"):
        Page(monitor, session, port=taken).open()


@pytest.mark.parametrize("host", ["no-such-name.invalid", "192.0.2.7", "a" * 80])
def test_an_address_of_no_or_another_machine_is_refused(
    host: str, monitor: Monitor, session: Session
) -> None:
    with pytest.raises(UsageError, match=r"no address of this machine.*--page HOST:PORT"):
        Page(monitor, session, host=host).open()


def test_says_what_to_install(
    monitor: Monitor, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lgvit-edge\[camera\]'"):
        Page(monitor, session, port=0).open()
