"""MQTT with a real broker: killed, restarted, with passwords and TLS."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import Broker, Subscriber, free_port
from shots import shot, until

from lgvit_edge.camera.shot import Event
from lgvit_edge.camera.sinks import base, mqtt
from lgvit_edge.camera.sinks.base import Outlet
from lgvit_edge.camera.sinks.mqtt import Mqtt
from lgvit_edge.errors import SinkError, UsageError

pytest.importorskip("paho.mqtt.client")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_PAUSES", (0.05,))
    monkeypatch.setattr(mqtt, "_RETRY", (0.1, 0.2))
    for name in (mqtt.USERNAME, mqtt.PASSWORD):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ending() -> Iterator[Callable[[Any], Any]]:
    """Closes what a test opened, the last first."""
    opened: list[Any] = []

    def end(one: Any) -> Any:
        opened.append(one)
        return one

    yield end
    for one in reversed(opened):
        one.stop() if isinstance(one, Broker) else one.close()


Ending = Callable[[Any], Any]


def frames(subscriber: Subscriber, topic: str) -> list[int]:
    return [json.loads(text)["frame"] for text in subscriber.payloads(topic)]


def test_answers_states_and_the_status_arrive(tmp_path: Path, ending: Ending) -> None:
    broker = ending(Broker(tmp_path))
    broker.start()
    subscriber = ending(Subscriber(broker.port))
    sink = Mqtt(f"mqtt://127.0.0.1:{broker.port}", topic="site/a")
    sink.open()
    for frame in range(3):
        sink.take(shot("gate", frame))
    sink.event(Event(0.0, "gate", "it is live", state="live"))
    sink.event(Event(0.0, "", "of no camera"))
    sink.event(Event(0.0, "gate", "no state"))
    until(lambda: subscriber.payloads("site/a/gate/state") == ["live"])
    assert frames(subscriber, "site/a/gate/answer") == [0, 1, 2]  # acknowledged: they are there
    assert "confidence" in json.loads(subscriber.payloads("site/a/gate/answer")[0])
    assert subscriber.payloads("site/a/status") == ["online"]
    sink.close()
    until(lambda: subscriber.payloads("site/a/status") == ["online", "offline"])
    late = ending(Subscriber(broker.port, "site/+/+/state"))
    subscriber.close()
    until(lambda: ("site/a/gate/state", "live", True) in late.messages)


def test_names_that_are_no_topics(tmp_path: Path, ending: Ending) -> None:
    broker = ending(Broker(tmp_path))
    broker.start()
    subscriber = ending(Subscriber(broker.port))
    names = [
        "a/b",
        "a%2Fb",
        "+",
        "#",
        "a\0b",
        "$SYS",
        "",
        "猫 1",
        "\udc80",
        "x" * 5000,
        "\uffff",
        " ",
    ]
    sink = ending(Mqtt(f"mqtt://127.0.0.1:{broker.port}"))
    sink.open()
    sink.take_batch([shot(name) for name in names])
    until(lambda: len(subscriber.messages) == len(names) + 1)
    found = {json.loads(text)["camera"]: topic for topic, text, _ in subscriber.messages[1:]}
    assert set(found) == set(names) and len(set(found.values())) == len(names)
    assert all(topic.count("/") == 2 for topic in found.values())
    assert found["a/b"] == "lgvit-edge/a%2Fb/answer" and found["猫 1"] == "lgvit-edge/猫 1/answer"


def test_nothing_is_lost_while_the_broker_is_gone(
    tmp_path: Path, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_ACKNOWLEDGED", 0.5)
    broker = ending(Broker(tmp_path))
    broker.start()
    subscriber = ending(Subscriber(broker.port))
    sink, events = Mqtt(f"mqtt://127.0.0.1:{broker.port}"), list[Event]()
    sink.open()
    outlet = ending(Outlet(sink, events.append))
    outlet.start()
    for frame in range(50):
        outlet.put(shot(frame=frame))
        if frame == 20:
            broker.stop()
        if frame == 30:
            outlet.put_event(Event(0.0, "gate", "lost", state="lost"))
            until(lambda: outlet.counts.error)
    assert outlet.counts.waiting >= 29
    broker.start()
    until(lambda: outlet.counts.taken == 50)
    until(lambda: set(frames(subscriber, "lgvit-edge/gate/answer")) == set(range(50)))
    until(lambda: subscriber.payloads("lgvit-edge/gate/state") == ["lost"])
    assert outlet.counts.lost == outlet.counts.refused == 0
    assert re.match("mqtt fails: .* mqtt://127.0.0.1:", events[0].text)
    assert events[-1].text == "mqtt works again"


def test_a_broker_that_comes_later_is_waited_for(tmp_path: Path, ending: Ending) -> None:
    broker = ending(Broker(tmp_path))
    sink = ending(Mqtt(f"mqtt://127.0.0.1:{broker.port}"))
    sink.open()  # no error
    sink.event(Event(0.0, "gate", "live", state="live"))
    with pytest.raises(SinkError, match="cannot connect to .*: Connection refused") as raised:
        sink.take(shot())
    assert not raised.value.final
    broker.start()
    subscriber = ending(Subscriber(broker.port))
    until(lambda: subscriber.payloads("lgvit-edge/gate/state") == ["live"])
    sink.take(shot())
    until(lambda: frames(subscriber, "lgvit-edge/gate/answer") == [0])


def test_a_broker_that_hangs_is_given_the_same_answers_once(
    tmp_path: Path, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_ACKNOWLEDGED", 0.1)
    broker = ending(Broker(tmp_path))
    broker.start()
    subscriber = ending(Subscriber(broker.port))
    sink = ending(Mqtt(f"mqtt://127.0.0.1:{broker.port}"))
    sink.open()
    broker.process.send_signal(signal.SIGSTOP)
    batch = [shot(frame=frame) for frame in range(5)]
    try:
        for _ in range(3):
            with pytest.raises(SinkError, match="does not acknowledge what it is sent"):
                sink.take_batch(batch)
    finally:
        broker.process.send_signal(signal.SIGCONT)
    monkeypatch.setattr(mqtt, "_ACKNOWLEDGED", 20)
    sink.take_batch(batch)
    assert frames(subscriber, "lgvit-edge/gate/answer") == [0, 1, 2, 3, 4]


@pytest.fixture
def guarded(tmp_path: Path, ending: Ending) -> Broker:
    """A broker that wants a password."""
    if (tool := shutil.which("mosquitto_passwd")) is None:
        pytest.skip("needs mosquitto_passwd")
    subprocess.run([tool, "-c", "-b", tmp_path / "passwords", "gate", "right"], check=True)
    broker: Broker = ending(Broker(tmp_path, f"password_file {tmp_path}/passwords"))
    broker.start()
    return broker


def test_credentials_come_from_the_environment(
    guarded: Broker, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"mqtt://127.0.0.1:{guarded.port}"
    for password in (None, "wrong"):
        if password is not None:
            monkeypatch.setenv(mqtt.USERNAME, "gate")
            monkeypatch.setenv(mqtt.PASSWORD, password)
        with pytest.raises(UsageError, match=f"Not authorized; set {mqtt.USERNAME} and") as raised:
            Mqtt(url).open()
        assert "wrong" not in str(raised.value)
    monkeypatch.setenv(mqtt.PASSWORD, "right")
    sink = ending(Mqtt(url))
    sink.open()
    sink.take(shot())
    monkeypatch.delenv(mqtt.USERNAME)
    with pytest.raises(UsageError, match="is set and LGVIT_EDGE_MQTT_USERNAME is not; set both"):
        Mqtt(url).open()


def test_a_password_that_changes_is_one_error_and_no_storm(
    guarded: Broker, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mqtt.USERNAME, "gate")
    monkeypatch.setenv(mqtt.PASSWORD, "right")
    monkeypatch.setattr(base, "_QUIET", 0.0)
    sink, events = Mqtt(f"mqtt://127.0.0.1:{guarded.port}"), list[Event]()
    sink.open()
    outlet = ending(Outlet(sink, events.append))
    outlet.start()
    (guarded.folder / "passwords").write_text("")
    guarded.stop()
    guarded.start()
    outlet.put(shot())
    until(lambda: "refuses the connection" in outlet.counts.error)
    told, attempts = len(events), guarded.log.read_text().count("New client connected")
    until(lambda: not sink._connected and sink._client._reconnect_delay == 60)
    assert told <= 3 and "Not authorized" in events[-1].text and "right" not in str(events)
    assert guarded.log.read_text().count("New client connected") == attempts
    outlet.close(0.0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key, and a certificate for 127.0.0.1 that vouches for itself."""
    if (tool := shutil.which("openssl")) is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [tool, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-days", "2", "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    return folder


# paho leaves the socket of a handshake that failed to the garbage collector.
UNCLOSED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@UNCLOSED
def test_tls_checks_the_certificate(tmp_path: Path, certificate: Path, ending: Ending) -> None:
    settings = [f"certfile {certificate}/cert.pem", f"keyfile {certificate}/key.pem"]
    broker = ending(Broker(tmp_path, *settings))
    broker.start()
    url = f"mqtts://127.0.0.1:{broker.port}"
    with pytest.raises(UsageError, match=r"not trusted \(self.signed certificate\); give its CA"):
        Mqtt(url).open()
    plain = ending(Mqtt(url.replace("mqtts", "mqtt")))
    plain.open()
    with pytest.raises(SinkError, match="closes the connection at once: it may want TLS, mqtts://"):
        plain.take(shot())
    sink = ending(Mqtt(url, cafile=certificate / "cert.pem"))
    sink.open()
    sink.take(shot())


@UNCLOSED
def test_a_certificate_for_another_host_is_refused(
    tmp_path: Path, certificate: Path, ending: Ending
) -> None:
    settings = [f"certfile {certificate}/cert.pem", f"keyfile {certificate}/key.pem"]
    broker = ending(Broker(tmp_path, *settings))
    broker.start()
    with pytest.raises(UsageError, match="not trusted .*ostname mismatch"):
        Mqtt(f"mqtts://localhost:{broker.port}", cafile=certificate / "cert.pem").open()


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from shots import shot
from lgvit_edge.camera.sinks.mqtt import Mqtt
sink = Mqtt(sys.argv[2])
sink.open()
sink.take(shot())
print("taken", flush=True)
sys.stdin.read()
"""


def test_the_last_will_says_offline(tmp_path: Path, ending: Ending) -> None:
    broker = ending(Broker(tmp_path))
    broker.start()
    subscriber = ending(Subscriber(broker.port))
    fakes = Path(__file__).parents[1] / "fakes"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, fakes, f"mqtt://127.0.0.1:{broker.port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        assert subscriber.payloads("lgvit-edge/status") == ["online"]
        process.kill()
        until(lambda: subscriber.payloads("lgvit-edge/status") == ["online", "offline"])


def test_a_server_that_never_speaks_blocks_neither_opening_nor_the_end(
    ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_FIRST", 0.1)
    silent = ending(socket.create_server(("127.0.0.1", 0)))
    sink = Mqtt(f"mqtt://127.0.0.1:{silent.getsockname()[1]}")
    sink.open()
    with pytest.raises(SinkError, match="it is not connected yet"):
        sink.take(shot())
    sink.close()


def test_at_most_once_takes_without_acknowledgement(tmp_path: Path, ending: Ending) -> None:
    broker = ending(Broker(tmp_path))
    broker.start()
    subscriber = ending(Subscriber(broker.port))
    sink = ending(Mqtt(f"mqtt://127.0.0.1:{broker.port}", qos=0))
    sink.open()
    sink.take(shot())
    until(lambda: frames(subscriber, "lgvit-edge/gate/answer") == [0])


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("mqtt://gate:pa55@host", r"mqtt://\*\*\*@host: .*set LGVIT_EDGE_MQTT_USERNAME and"),
        ("mqtts://gate@host:1", r"mqtts://\*\*\*@host:1: .*instead"),
        ("host:1883", "expected mqtt://HOST"),
        ("http://host", "expected mqtt://HOST"),
        ("mqtt://", "expected mqtt://HOST"),
        ("mqtt://host:99999", "expected mqtt://HOST"),
        ("mqtt://host/topic", "expected mqtt://HOST"),
        ("mqtt://host?token=pa55", r"expected mqtt://HOST.*token=\*\*\*"),
    ],
)
def test_addresses_that_are_none(url: str, error: str) -> None:
    with pytest.raises(UsageError, match=error) as raised:
        Mqtt(url)
    assert "pa55" not in str(raised.value)


def test_settings_that_are_none(tmp_path: Path) -> None:
    for topic in ("", "/", "a/#", "a+", "$SYS/x", "a\nb", "\udc80"):
        with pytest.raises(UsageError, match="expected a topic such as"):
            Mqtt("mqtt://host", topic=topic)
    for qos in (3, -1, True):
        with pytest.raises(UsageError, match="qos must be 0, 1 or 2"):
            Mqtt("mqtt://host", qos=qos)
    with pytest.raises(UsageError, match="cafile is for mqtts://"):
        Mqtt("mqtt://host", cafile="x")
    with pytest.raises(UsageError, match="cannot use cafile .*gone.*No such file"):
        Mqtt("mqtts://host", cafile=tmp_path / "gone").open()
    (tmp_path / "x").write_text("no certificate")
    with pytest.raises(UsageError, match="cannot use cafile .*: expected certificates in PEM"):
        Mqtt(f"mqtts://127.0.0.1:{free_port()}", cafile=tmp_path / "x").open()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from lgvit_edge.errors import MissingDependency

    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lgvit-edge\[camera\]'"):
        Mqtt("mqtt://host").open()
