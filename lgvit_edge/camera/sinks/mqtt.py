"""Answers to an MQTT broker, a topic for each camera."""

from __future__ import annotations

import os
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lgvit_edge._support.finite_json import dumps
from lgvit_edge._support.optional import require
from lgvit_edge.camera.shot import Answer, Event, Shot
from lgvit_edge.camera.sinks.addresses import split_address
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.camera.sinks.names import IN_TOPICS, as_name
from lgvit_edge.camera.sinks.tls import tls_context
from lgvit_edge.camera.sources.base import without_secrets
from lgvit_edge.errors import SinkError, UsageError, in_one_line

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo

USERNAME, PASSWORD = "LGVIT_EDGE_MQTT_USERNAME", "LGVIT_EDGE_MQTT_PASSWORD"
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_FIRST = 3.0  # seconds that opening waits for the broker
_ACKNOWLEDGED = 5.0  # seconds that the broker may take to acknowledge
_KEEPALIVE = 30  # seconds
_QUEUED = 1000  # messages without acknowledgement
_RETRY = (1, 10)  # seconds between attempts to connect: at first, at most
_RETRY_REFUSED = 60  # once the broker has refused us: others may count attempts
_NOT_YET = "it is not connected yet"
_REFUSALS = ("Bad user name or password", "Not authorized")


class Mqtt(Sink):
    """Publishes each answer as JSON to ``TOPIC/CAMERA/answer``.

    ``TOPIC/CAMERA/state`` holds the state of the camera, and ``TOPIC/status`` is ``online`` or
    ``offline``, also where this process ends without a word. Both are retained.
    """

    name = "mqtt"
    batch = 100

    def __init__(
        self,
        url: str,
        *,
        topic: str = "lgvit-edge",
        qos: int = 1,
        cafile: str | os.PathLike[str] | None = None,
    ) -> None:
        """Name the broker.

        The user name and the password are taken from ``LGVIT_EDGE_MQTT_USERNAME`` and
        ``LGVIT_EDGE_MQTT_PASSWORD``.

        Args:
            url: ``mqtt://HOST[:PORT]``, or ``mqtts://HOST[:PORT]`` with TLS.
            topic: what all topics begin with.
            qos: 0: at most once; 1: at least once; 2: exactly once, unless this process restarts.
            cafile: file of certificates that vouch for the broker, in PEM; None: the system's.

        Raises:
            UsageError: one of them cannot be; an address with a password is refused.
        """
        self._tls, self._host, self._port = _parsed(url)
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._shown = f"{'mqtts' if self._tls else 'mqtt'}://{host}:{self._port}"
        if cafile is not None and not self._tls:
            raise UsageError("cafile is for mqtts://; give that address, or leave cafile out")
        topic = topic.strip("/")
        bad = not topic or topic[0] == "$" or len(topic) > 1000 or set(topic) & set(IN_TOPICS)
        if bad or not topic.isprintable():
            raise UsageError(
                f"expected a topic such as site/cameras, without + # $, found {topic!r}"
            )
        if qos not in (0, 1, 2) or isinstance(qos, bool):
            raise UsageError(f"qos must be 0, 1 or 2, found {qos!r}")
        self._topic, self._qos, self._cafile = topic, int(qos), cafile
        self._client: Client | None = None
        self._changed = threading.Condition()
        self._connected = self._refused = False
        self._problem = _NOT_YET
        self._states: dict[str, str] = {}  # of each topic
        self._sent: list[tuple[Answer, MQTTMessageInfo]] = []  # not all of them acknowledged

    def open(self) -> None:
        """Connect; a broker that is not there now is waited for later.

        Raises:
            UsageError: the broker refuses the user name or password, or its certificate is not
                trusted.
            MissingDependency: paho-mqtt is not installed.
        """
        mqtt = require("paho.mqtt.client", extra="camera")
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=f"lgvit-edge-{uuid.uuid4().hex[:12]}"
        )
        if (username := os.environ.get(USERNAME)) is not None:
            client.username_pw_set(username, os.environ.get(PASSWORD))
        elif PASSWORD in os.environ:
            raise UsageError(f"{PASSWORD} is set and {USERNAME} is not; set both")
        if self._tls:
            client.tls_set_context(tls_context(self._cafile))
        client.will_set(f"{self._topic}/status", "offline", qos=1, retain=True)
        client.max_inflight_messages_set(self.batch)
        client.max_queued_messages_set(_QUEUED)
        client.reconnect_delay_set(*_RETRY)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.connect_async(self._host, self._port, keepalive=_KEEPALIVE)
        self._client = client
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._problem != _NOT_YET, _FIRST)
            problem = self._problem if self._refused else ""
        if problem:
            self.close()
            raise UsageError(problem)

    def take(self, shot: Shot) -> None:
        """Publish the answers of a shot."""
        self.take_batch([shot])

    def take_batch(self, shots: Sequence[Shot]) -> None:
        """Publish the answers of shots; return once the broker has acknowledged all of them."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._connected, 0.5):
                raise SinkError(self._problem)
        assert self._client is not None
        known = {id(answer): info for answer, info in self._sent}  # it sends them again by itself
        self._sent = []
        for shot in shots:
            for answer in shot.answers:
                if (info := known.get(id(answer))) is None:
                    payload = dumps(answer.to_json(), indent=None)
                    topic = f"{self._camera(answer.camera)}/answer"
                    info = self._client.publish(topic, payload, self._qos)
                self._sent.append((answer, info))
        end = time.monotonic() + _ACKNOWLEDGED
        if all(_acknowledged(info, end) for _, info in self._sent):
            self._sent = []
            return
        # What could not even be lined up is published again; so is what has no acknowledgement.
        self._sent = [(answer, info) for answer, info in self._sent if self._qos and not info.rc]
        with self._changed:
            raise SinkError(self._problem or f"{self._shown} does not acknowledge what it is sent")

    def event(self, event: Event) -> None:
        """Publish the state of a camera, at once or once the broker is there."""
        if not event.camera or event.state is None:
            return
        topic = f"{self._camera(event.camera)}/state"
        with self._changed:
            self._states[topic] = event.state
            if self._connected and self._client is not None:
                self._client.publish(topic, event.state, 1, retain=True)

    def close(self) -> None:
        """Say ``offline``, and end the connection."""
        client, self._client = self._client, None
        if client is None:
            return
        if self._connected:
            said = client.publish(f"{self._topic}/status", "offline", 1, retain=True)
            _acknowledged(said, time.monotonic() + 1.0)
        client.disconnect()
        # It waits for the connection's thread, which waits for a broker that hangs.
        stopper = threading.Thread(target=client.loop_stop, daemon=True)
        stopper.start()
        stopper.join(2.0)

    def _camera(self, name: str) -> str:
        return f"{self._topic}/{as_name(name, IN_TOPICS)}"

    def _on_connect(self, client: Client, data: Any, flags: Any, reason: Any, more: Any) -> None:
        if reason.is_failure:
            text, cure = str(reason), ""
            refused = text in _REFUSALS
            if refused:
                client.reconnect_delay_set(_RETRY_REFUSED, _RETRY_REFUSED)
                cure = f"; set {USERNAME} and {PASSWORD}, or check them"
            self._is(False, f"{self._shown} refuses the connection: {text}{cure}", refused)
            return
        client.reconnect_delay_set(*_RETRY)
        with self._changed:
            for topic, state in {f"{self._topic}/status": "online", **self._states}.items():
                client.publish(topic, state, 1, retain=True)
            self._is(True, "")

    def _on_connect_fail(self, client: Client, data: Any) -> None:
        error = sys.exc_info()[1]  # it is called where the error is handled
        text = in_one_line(error) if error is not None else "it cannot be reached"
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"its certificate is not trusted ({error.verify_message}); give its CA as cafile"
        elif isinstance(error, OSError) and error.strerror:
            text = error.strerror
        self._is(
            False,
            f"cannot connect to {self._shown}: {text}",
            isinstance(error, ssl.SSLCertVerificationError),
        )

    def _on_disconnect(
        self, client: Client, data: Any, flags: Any, reason: Any, properties: Any
    ) -> None:
        with self._changed:
            if self._connected:
                self._is(False, f"the connection to {self._shown} is lost")
            elif self._problem == _NOT_YET:
                text = "closes the connection at once: it may want TLS, mqtts://"
                self._is(False, f"{self._shown} {text}")

    def _is(self, connected: bool, problem: str, refused: bool = False) -> None:
        with self._changed:
            self._connected, self._problem, self._refused = connected, problem, refused
            self._changed.notify_all()


def _acknowledged(info: MQTTMessageInfo, end: float) -> bool:
    try:
        info.wait_for_publish(max(0.0, end - time.monotonic()))
        return info.is_published()
    except (RuntimeError, ValueError):  # it was never lined up
        return False


def _parsed(url: str) -> tuple[bool, str, int]:
    """Return whether an address is one with TLS, its host and its port."""
    expected = "expected mqtt://HOST[:PORT] or mqtts://HOST[:PORT]"
    parts = split_address(url, _PORTS, expected, f"{USERNAME} and {PASSWORD}")
    if parts.path.strip("/") or parts.query:
        raise UsageError(f"{expected}, found {without_secrets(url)!r}")
    return parts.scheme == "mqtts", str(parts.hostname), parts.port or _PORTS[parts.scheme]
