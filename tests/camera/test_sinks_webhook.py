"""Webhooks against a real server that fails, hangs, ends connections and comes back."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import free_port
from shots import answer, shot, until

from lgvit_edge.camera.shot import Event
from lgvit_edge.camera.sinks import base, webhook
from lgvit_edge.camera.sinks.base import Outlet
from lgvit_edge.camera.sinks.webhook import TOKEN, Webhook
from lgvit_edge.errors import SinkError, UsageError

Reply = tuple[int, dict[str, str]]


class Server(http.server.ThreadingHTTPServer):
    """Keeps what is posted to it, and answers as it is told."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.posts: list[tuple[str, Any, dict[str, str]]] = []
        self.connections = 0
        self.reply: Callable[[], Reply] = lambda: (200, {})
        self.ends = False  # whether it ends each connection after its answer, without a word
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/hook"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def frames(self) -> list[int]:
        return [answer["frame"] for _, body, _ in self.posts for answer in body]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, headers = self.server.reply()
        if 200 <= status < 300:
            self.server.posts.append((self.path, body, dict(self.headers)))
        self.send_response(status)
        for name, value in {"Content-Length": "2", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"ok")
        self.close_connection = self.server.ends

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Webhook]]:
    monkeypatch.delenv(TOKEN, raising=False)
    made: list[Webhook] = []

    def make(url: str, **options: Any) -> Webhook:
        made.append(sink := Webhook(url, **options))
        sink.open()
        return sink

    yield make
    for sink in made:
        sink.close()


Hooked = Callable[..., Webhook]


def test_answers_arrive_over_one_connection(server: Server, hooked: Hooked) -> None:
    sink = hooked(server.url + "?site=x y")
    sink.take(shot("gate", 0, answer(region="left"), answer(region="right", label=None)))
    sink.take_batch([shot(frame=1), shot(frame=2)])
    (path, body, headers), (_, batch, _) = server.posts
    assert path == "/hook?site=x%20y" and headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert [(a["region"], a["class"]) for a in body] == [("left", "a"), ("right", None)]
    assert [a["frame"] for a in batch] == [1, 2] and server.connections == 1


def test_the_token_is_sent_and_never_shown(
    server: Server, hooked: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "s3cret")
    sink = Webhook(server.url)
    sink.open()
    sink.take(shot())
    assert server.posts[0][2]["Authorization"] == "Bearer s3cret"
    server.reply = lambda: (401, {})
    with pytest.raises(SinkError, match=f"answers 401 Unauthorized; check {TOKEN}") as raised:
        sink.take(shot())
    assert raised.value.final and "s3cret" not in str(raised.value)
    sink.close()
    for bad in ("a b", "a\nX-Header: b", "ü"):
        monkeypatch.setenv(TOKEN, bad)
        with pytest.raises(UsageError, match=f"{TOKEN} holds what no token has") as refused:
            Webhook(server.url).open()
        assert bad not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "final"),
    [(400, True), (404, True), (413, True), (408, False), (425, False), (429, False)]
    + [(500, False), (503, False), (302, False), (308, False)],
)
def test_what_the_server_says_decides_whether_it_is_tried_again(
    server: Server, hooked: Hooked, status: int, final: bool
) -> None:
    other = Server()
    server.reply = lambda: (status, {"Location": other.url})
    with pytest.raises(SinkError, match=f"http://127.0.0.1 answers {status} ") as raised:
        hooked(server.url).take(shot())
    assert raised.value.final == final
    assert (status < 400) == ("a redirect, which is not followed" in str(raised.value))
    assert not other.connections
    other.close()


@pytest.mark.parametrize(
    ("asked", "waits"),
    [
        ("7", 7),
        ("100000000", 300),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 300),
        ("Fri, 01 Jan 1999 00:00:00 GMT", 0),
        *[(text, 0) for text in ("-5", "soon", "", "1.5", "Fri, 99 Jan 2100 00:00:00 GMT")],
    ],
)
def test_a_server_is_left_in_peace_as_long_as_it_asks_within_bounds(
    server: Server, hooked: Hooked, monkeypatch: pytest.MonkeyPatch, asked: str, waits: float
) -> None:
    sink, now = hooked(server.url), time.monotonic()
    server.reply = lambda: (503, {"Retry-After": asked})
    with pytest.raises(SinkError, match="answers 503"):
        sink.take(shot())
    server.reply = lambda: (200, {})
    monkeypatch.setattr(time, "monotonic", lambda: now + waits - 1.0)
    if waits:
        with pytest.raises(SinkError, match="answers 503"):
            sink.take(shot())
        assert not server.posts
    monkeypatch.setattr(time, "monotonic", lambda: now + waits + 30.0)
    sink.take(shot())
    assert len(server.posts) == 1


def test_a_wrong_token_or_address_is_no_storm(
    server: Server, hooked: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def refuse() -> Reply:
        nonlocal asked
        asked += 1
        return 403, {}

    server.reply = refuse
    sink, now = hooked(server.url), time.monotonic()
    for frame in range(50):
        with pytest.raises(SinkError, match="answers 403") as raised:
            sink.take(shot(frame=frame))
        assert raised.value.final
    assert asked == 1
    monkeypatch.setattr(time, "monotonic", lambda: now + 20)
    with pytest.raises(SinkError, match="answers 403"):
        sink.take(shot())
    assert asked == 2


def test_an_answer_that_the_server_refuses_costs_no_other(server: Server, hooked: Hooked) -> None:
    outlet = Outlet(hooked(server.url), lambda event: None)
    for frame in range(20):
        outlet.put(shot(frame=frame))
    replies = iter([(422, {})] + [(422, {}) if i == 5 else (200, {}) for i in range(20)])
    server.reply = lambda: next(replies)
    outlet.start()
    counts = outlet.close()
    assert (counts.taken, counts.refused) == (19, 1)
    assert server.frames() == [i for i in range(20) if i != 5]


def test_an_idle_connection_that_the_server_ended_is_no_failure(
    server: Server, hooked: Hooked
) -> None:
    server.ends = True
    sink = hooked(server.url)
    for frame in range(3):
        sink.take(shot(frame=frame))
        time.sleep(0.05)  # until the end of the connection is here; sooner or later is both fine
    assert server.frames() == [0, 1, 2] and server.connections == 3


def test_nothing_is_lost_while_the_server_is_gone(
    hooked: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_PAUSES", (0.02,))
    port, events = free_port(), list[Event]()
    sink = hooked(f"http://127.0.0.1:{port}/hook")
    outlet = Outlet(sink, events.append)
    outlet.start()
    for frame in range(250):
        outlet.put(shot(frame=frame))
    until(lambda: outlet.counts.error)
    assert outlet.counts.error == "cannot post to http://127.0.0.1: Connection refused"
    server = Server(port)
    counts = outlet.close()
    assert server.frames() == list(range(250)) and counts.taken == 250
    assert len(server.posts) <= 4  # in batches
    assert [event.text for event in events][-1] == "webhook works again"
    server.close()


def test_a_server_that_hangs_times_out(hooked: Hooked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = hooked(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2)
        for _ in range(2):
            with pytest.raises(SinkError, match="cannot post to .*timed out") as raised:
                sink.take(shot())
            assert not raised.value.final


@pytest.mark.parametrize("reply", [b"\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n" * 2000])
def test_what_is_no_web_server_is_told(hooked: Hooked, reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(reply)

        speaker = threading.Thread(target=speak)
        speaker.start()
        with pytest.raises(SinkError, match="cannot post to http://127.0.0.1: "):
            hooked(f"http://127.0.0.1:{listener.getsockname()[1]}/").take(shot())
        speaker.join()


def test_only_changes_are_posted_where_asked(server: Server, hooked: Hooked) -> None:
    sink = hooked(server.url, changes=True)
    for frame, label in enumerate("aabbba"):
        sink.take(shot("gate", frame, label=label))
        sink.take(shot("yard", frame, label="a"))
    sink.take_batch([shot("gate", 10 + i, label=label) for i, label in enumerate("abba")])
    sink.take(shot("gate", 20, answer("gate", 20, None)))  # unsure is a change too
    sink.take(shot("gate", 21, answer("gate", 21, None)))
    sink.take(shot("gate", 22, answer("gate", 22, "a", region="left")))
    posted = [(a["camera"], a["frame"]) for _, body, _ in server.posts for a in body]
    assert posted == [
        *[("gate", 0), ("yard", 0), ("gate", 2), ("gate", 5)],
        *[("gate", 11), ("gate", 13), ("gate", 20), ("gate", 22)],
    ]


def test_a_change_that_did_not_arrive_is_posted_later(server: Server, hooked: Hooked) -> None:
    sink = hooked(server.url, changes=True)
    sink.take(shot(frame=0, label="a"))
    server.reply = lambda: (500, {})
    with pytest.raises(SinkError):
        sink.take(shot(frame=1, label="b"))
    server.reply = lambda: (200, {})
    sink.take(shot(frame=1, label="b"))
    sink.take(shot(frame=2, label="b"))
    assert server.frames() == [0, 1]


def test_tls_checks_the_certificate(tmp_path: Path, server: Server, hooked: Hooked) -> None:
    if (tool := shutil.which("openssl")) is None:
        pytest.skip("needs openssl")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [tool, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(SinkError, match="cannot post to https://127.0.0.1: .*CERTIFICATE_VERIFY"):
        hooked(url).take(shot())
    hooked(url, cafile=cert).take(shot())
    assert server.frames() == [0]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://me:pa55@host/x", rf"http://\*\*\*@host/x: .*; set {TOKEN} instead"),
        ("ftp://host", "expected http://HOST"),
        ("host/x", "expected http://HOST"),
        ("http:///x", "expected http://HOST"),
        ("http://host:99999", "expected http://HOST"),
    ],
)
def test_addresses_that_are_none(url: str, error: str) -> None:
    with pytest.raises(UsageError, match=error) as raised:
        Webhook(url)
    assert "pa55" not in str(raised.value)


def test_settings_that_are_none() -> None:
    for timeout in (0, -1, float("nan"), "5", 1e9):
        with pytest.raises(UsageError, match="timeout must be 0.1 to 600 seconds"):
            Webhook("http://host", timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cafile is for https://"):
        Webhook("http://host", cafile="x")
    with pytest.raises(UsageError, match="changes must be true or false"):
        Webhook("http://host", changes="no")  # type: ignore[arg-type]


def test_the_path_of_an_address_is_never_shown(hooked: Hooked) -> None:
    with pytest.raises(SinkError) as raised:
        hooked(f"http://127.0.0.1:{free_port()}/services/T0/s3cret?key=pa55").take(shot())
    assert "s3cret" not in str(raised.value) and "pa55" not in str(raised.value)


def test_bounds_are_those_documented() -> None:
    assert webhook._LONGEST_PAUSE == 300
