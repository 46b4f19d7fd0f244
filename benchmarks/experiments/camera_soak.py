"""Runs ``lgvit-edge camera`` for long, with cameras that break and all sinks, and counts.

``python -m lgvit_edge.benchmarks.experiments.camera_soak --engines out/ --data DIR --minutes 30``
needs mosquitto, GStreamer's RTSP server and the extra ``camera``. Three cameras: a film of real
images at 15 frames/s, an RTSP camera that is killed and started again, and an MJPEG camera that
stalls. Three viewers watch the live page.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from lgvit_edge._support.optional import require
from lgvit_edge._support.terminal import console, progress_bar, say, table
from lgvit_edge.benchmarks.experiments.film import load_pictures, write_film
from lgvit_edge.benchmarks.experiments.frame import JsonFile, Record, run_command
from lgvit_edge.benchmarks.experiments.sources_served import MjpegServer, RtspServer, paced
from lgvit_edge.cli.options import Engines
from lgvit_edge.errors import UsageError
from lgvit_edge.runtime import Session

_CONFIG = """
engines = "{engines}"
timeout = 3
smooth = "majority:5"
unsure_below = 0.5
jsonl = "{folder}/answers.jsonl"
mqtt = "mqtt://127.0.0.1:{mqtt}"
webhook = "http://127.0.0.1:{webhook}/answers"
video = "{folder}/videos"
keep_unsure = "{folder}/unsure"
keep_every = 1
keep_mb = 20
page = "127.0.0.1:{page}"
log = "{folder}/events.log"
quiet = true

[camera.film]
source = "{folder}/film.mp4"
loop = true

[camera.rtsp]
source = "{rtsp}"

[camera.mjpeg]
source = "{mjpeg}"
"""
_STALL, _EVERY = 8.0, 60.0  # seconds that the MJPEG camera stalls, and between two stalls
_SAMPLE = 10.0  # seconds between two looks at the process


def main(
    engines: Engines,
    data: Annotated[Path, typer.Option(help="Folder of JPEG images that are shown.")],
    minutes: Annotated[float, typer.Option(min=0.5, help="How long it runs.")] = 30.0,
    kills: Annotated[int, typer.Option(min=0, help="Times that the RTSP camera is killed.")] = 10,
    viewers: Annotated[int, typer.Option(min=0, help="Viewers of the live page.")] = 3,
    json_file: JsonFile = None,
) -> None:
    """Runs the camera application, and checks that nothing is lost and nothing grows."""
    record = Record(json_file)
    if missing := RtspServer.missing():
        raise UsageError(missing)
    mosquitto = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if mosquitto is None:
        raise UsageError("needs a broker; run: apt install mosquitto")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        pictures = load_pictures(data, 150, 640, 480)
        write_film(pictures, folder / "film.mp4", 15, repeat=5)
        alone = session_alone(engines, pictures)
        mjpeg = stack.enter_context(MjpegServer(stalling(pictures)))
        rtsp_port, mqtt_port, page_port = (free_port() for _ in range(3))
        broker = stack.enter_context(running([mosquitto, "-p", str(mqtt_port)]))
        hook = stack.enter_context(Webhook())
        heard = subscribe(mqtt_port)
        stack.callback(heard.stop)
        config = _CONFIG.format(
            engines=engines.resolve(),
            folder=folder,
            mqtt=mqtt_port,
            webhook=hook.port,
            page=page_port,
            rtsp=f"rtsp://127.0.0.1:{rtsp_port}/camera",
            mjpeg=mjpeg.address,
        )
        (folder / "camera.toml").write_text(config)
        rtsp = RtspServer(port=rtsp_port, fps=15)
        stack.callback(lambda: rtsp.close())
        command = [sys.executable, "-m", "lgvit_edge", "camera", "--config", "camera.toml"]
        with (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(command, cwd=folder, stdout=stderr, stderr=stderr)
        stack.callback(process.kill)
        wait_for(page_port, process, folder)
        watching = [Viewer(page_port) for _ in range(viewers)]
        samples: list[dict[str, float]] = []
        begun, killed = time.monotonic(), 0
        with progress_bar("running") as progress:
            while (past := time.monotonic() - begun) < minutes * 60:
                samples.append(look(process.pid) | {"s": past})
                progress(int(past), int(minutes * 60), f"{killed} kills")
                if killed < kills and past > (killed + 0.5) * minutes * 60 / kills:
                    rtsp.close()
                    time.sleep(3.0)
                    rtsp = RtspServer(port=rtsp_port, fps=15)
                    killed += 1
                time.sleep(_SAMPLE)
                if process.poll() is not None:
                    raise UsageError((folder / "stderr").read_text())
        metrics = fetch(page_port, "/metrics")
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        for viewer in watching:
            viewer.stop()
        after = session_alone(engines, pictures)
        found = judge(folder, heard, hook, metrics)
        found |= {
            "exit_status": status,
            "kills": killed,
            "viewers": [viewer.bytes for viewer in watching],
            "memory_mb": samples,
            "session_alone_ms": [alone, after],
            "log": (folder / "events.log").read_text().splitlines(),
        }
        del broker
    show(found, samples)
    record.write(minutes=minutes, **found)


def session_alone(engines: Path, pictures: list[NDArray[np.uint8]]) -> dict[str, float]:
    """Returns p50 and p99 of the session's own latency on the same pictures, in ms."""
    with Session.open(engines, warm_up=True) as session:
        times = [session.predict(picture).latency_ms for picture in pictures * 2]
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


def stalling(pictures: list[NDArray[np.uint8]]) -> Callable[[], Iterator[bytes]]:
    """Returns what the MJPEG camera sends: 10 pictures a second, and now and then nothing."""
    from PIL import Image

    jpegs = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG")
        jpegs.append(buffer.getvalue())

    def send() -> Iterator[bytes]:
        while True:
            yield from itertools.islice(paced(10, itertools.cycle(jpegs)), int(10 * _EVERY))
            time.sleep(_STALL)

    return send


def free_port() -> int:
    """Returns a port of this machine that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server while the body runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


class Webhook:
    """A server that counts the answers it is sent, by camera."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        answers = self.answers

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for row in rows if isinstance(rows, list) else rows["answers"]:
                    answers[row["camera"], row["frame"]] += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> Webhook:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Heard:
    """A subscriber that counts the answers it receives, by camera and frame."""

    def __init__(self, port: int) -> None:
        mqtt = require("paho.mqtt.client", extra="camera")
        self.answers: Counter[tuple[str, int]] = Counter()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id="soak", clean_session=False
        )
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_message = self._on_message
        while True:
            with contextlib.suppress(OSError):
                self._client.connect("127.0.0.1", port)
                break
            time.sleep(0.05)
        self._client.loop_start()

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        if message.topic.endswith("/answer"):
            row = json.loads(message.payload)
            self.answers[row["camera"], row["frame"]] += 1

    def stop(self) -> None:
        """Ends it."""
        self._client.disconnect()
        self._client.loop_stop()


def subscribe(port: int) -> Heard:
    """Returns a subscriber of a broker that is about to start."""
    return Heard(port)


def fetch(port: int, path: str) -> str:
    """Returns what the live page answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits until the live page answers."""
    for _ in range(600):
        if process.poll() is not None:
            raise UsageError((folder / "stderr").read_text())
        with contextlib.suppress(OSError):
            fetch(port, "/healthz")
            return
        time.sleep(0.1)
    raise UsageError("the live page did not come up within a minute")


class Viewer:
    """Reads the page's figures and pictures, as a browser does."""

    def __init__(self, port: int) -> None:
        self.bytes: Counter[str] = Counter()
        self._ends = threading.Event()
        fetch(port, "/")
        paths = ["/api/events", "/camera/film.mjpeg", "/camera/rtsp.mjpeg"]
        for path in paths:
            threading.Thread(target=self._read, args=(port, path), daemon=True).start()

    def _read(self, port: int, path: str) -> None:
        while not self._ends.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", path)
                answer = connection.getresponse()
                while chunk := answer.read1(1 << 16):
                    self.bytes[path] += len(chunk)
                    if self._ends.is_set():
                        return
            self._ends.wait(1.0)

    def stop(self) -> None:
        """Leaves."""
        self._ends.set()


def look(pid: int) -> dict[str, float]:
    """Returns memory in MB, threads and open files of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = dict(re.findall(r"(VmRSS|RssAnon|Threads):\s+(\d+)", status))
    return {
        "rss": int(numbers["VmRSS"]) / 1024,
        "anonymous": int(numbers["RssAnon"]) / 1024,
        "threads": int(numbers["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }


def judge(folder: Path, heard: Heard, hook: Webhook, metrics: str) -> dict[str, Any]:
    """Compares what every sink has got."""
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    answered = Counter((row["camera"], row["frame"]) for row in rows)
    time.sleep(2.0)  # of the broker's deliveries
    cameras: dict[str, Any] = {}
    for name in sorted({row["camera"] for row in rows}):
        of = [row for row in rows if row["camera"] == name]
        frames = [row["frame"] for row in of]
        latency = [row["latency_ms"] for row in of]
        network = [row["network_ms"] for row in of]
        cameras[name] = {
            "answers": len(of),
            "missing_frames": frames[-1] - frames[0] + 1 - len(set(frames)),
            "dropped": sum(row["dropped"] for row in of),
            "twice": len(frames) - len(set(frames)),
            "latency_ms": {f"p{q}": float(np.percentile(latency, q)) for q in (50, 99)},
            "network_ms": {f"p{q}": float(np.percentile(network, q)) for q in (50, 99)},
        }
    av = require("av", extra="camera")
    videos = {}
    for file in sorted((folder / "videos").rglob("*.mp4")):
        with av.open(str(file)) as film:
            videos[file.name] = sum(1 for _ in film.decode(video=0))
    return {
        "cameras": cameras,
        "lost": {
            "mqtt": len(answered.keys() - heard.answers.keys()),
            "webhook": len(answered.keys() - hook.answers.keys()),
        },
        "twice": {
            "mqtt": sum(n - 1 for n in heard.answers.values()),
            "webhook": sum(n - 1 for n in hook.answers.values()),
        },
        "video_frames": videos,
        "kept": len(list((folder / "unsure").rglob("*.jpg"))),
        "kept_mb": sum(f.stat().st_size for f in (folder / "unsure").rglob("*.jpg")) / 1e6,
        "sinks": re.findall(r"lgvit_edge_sink_\S+ \S+", metrics),
        "reconnects": re.findall(r"lgvit_edge_camera_reconnects\S* \S+", metrics),
    }


def show(found: dict[str, Any], samples: list[dict[str, float]]) -> None:
    """Prints what was found."""
    rows = table("camera", numbers=("answers", "dropped", "missing", "p50 ms", "p99 ms"))
    for name, row in found["cameras"].items():
        latency = row["latency_ms"]
        rows.add_row(
            name,
            str(row["answers"]),
            str(row["dropped"]),
            str(row["missing_frames"]),
            f"{latency['p50']:.1f}",
            f"{latency['p99']:.1f}",
        )
    console.print(rows)
    alone = found["session_alone_ms"]
    say(f"session alone: p50 {[round(a['p50'], 1) for a in alone]} ms, before and after")
    say(f"lost: {found['lost']}, twice: {found['twice']}, kept: {found['kept']}")
    third = len(samples) // 3
    for what in ("rss", "anonymous", "threads", "files"):
        parts = [
            np.median([s[what] for s in part]) for part in (samples[third:-third], samples[-third:])
        ]
        say(f"{what}: median of the middle third {parts[0]:.1f}, of the last {parts[1]:.1f}")
    say(f"exit status {found['exit_status']}")


if __name__ == "__main__":
    run_command(main)
