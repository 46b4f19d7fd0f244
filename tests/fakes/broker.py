"""A real MQTT broker, mosquitto, and a subscriber that misses nothing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from shots import until

# Debian installs it where only root looks.
MOSQUITTO = shutil.which(
    "mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Broker:
    """A mosquitto of its own; ``settings`` are lines of its configuration."""

    def __init__(self, folder: Path, *settings: str) -> None:
        if MOSQUITTO is None:
            pytest.skip("needs mosquitto")
        self.port, self.folder, self.settings = free_port(), folder, settings
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "mosquitto.log"

    def start(self) -> None:
        lines = [f"listener {self.port} 127.0.0.1", *self.settings]
        if not any("password_file" in line for line in lines):
            lines.append("allow_anonymous true")
        lines += ["persistence true", f"persistence_location {self.folder}/", "log_type all"]
        if os.geteuid() == 0:
            lines.append("user root")
        (self.folder / "mosquitto.conf").write_text("\n".join(lines))
        with self.log.open("ab") as log:
            command = [str(MOSQUITTO), "-c", self.folder / "mosquitto.conf"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self.answers, "mosquitto's start")

    def answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


class Subscriber:
    """Keeps all that a broker has, in order: topic, payload, whether it was retained."""

    def __init__(self, port: int, topic: str = "#", **login: Any) -> None:
        import paho.mqtt.client as mqtt

        self.messages: list[tuple[str, str, bool]] = []
        self.ready = threading.Event()
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id="subscriber", clean_session=False
        )
        if login:
            self.client.username_pw_set(**login)
        self.client.reconnect_delay_set(0.1, 0.1)  # type: ignore[arg-type]
        self.client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _, __, message: self.messages.append(
            (message.topic, message.payload.decode(), bool(message.retain))
        )
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(20)

    def payloads(self, topic: str) -> list[str]:
        return [payload for name, payload, _ in list(self.messages) if name == topic]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
