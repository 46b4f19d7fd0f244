"""Cameras of the network to measure with: servers that show in each frame when it was drawn.

Every frame carries two rows of black and white blocks: its number, and the ``time.monotonic()`` at
which it was drawn, which all processes of a machine share.
"""

from __future__ import annotations

import base64
import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 480
_BITS, _BLOCK, _ROWS = 32, 20, 40  # blocks in a row; pixels
_TICKS = 10_000  # of the time in a frame, per second
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's has GStreamer's bindings (gir1.2-gst-rtsp-server-1.0)
ENCODER = "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 bitrate=2000"
# Arguments: the port, 0 for a free one, frames per second, USER:PASSWORD or nothing, the encoder,
# and the numbers above. It prints its port.
_SERVER = """
import sys, threading, time
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

port, fps, login, encoder = sys.argv[1:5]
fps = int(fps)
WIDTH, HEIGHT, BITS, BLOCK, ROWS, TICKS = map(int, sys.argv[5:])
Gst.init(None)
wave = bytes(64 + abs(x % 256 - 128) for x in range(WIDTH + 1024))
chroma = bytes([128]) * (WIDTH * HEIGHT // 2)

def blocks(value):
    row = b"".join((b"\\xeb" if value >> bit & 1 else b"\\x10") * BLOCK for bit in range(BITS))
    return row * ROWS

def draw(number):
    moved = [wave[(3 * y + 5 * number) % 1024:][:WIDTH] for y in range(HEIGHT - 2 * ROWS)]
    moment = int(time.monotonic() * TICKS) % 2**BITS
    return blocks(number) + blocks(moment) + b"".join(moved) + chroma

def push(source, over):
    number, due = 0, time.monotonic()
    while not over.wait(max(0, due - time.monotonic())):
        due += 1 / fps
        # It takes none before it is started, and none in between.
        if source.emit("push-buffer", Gst.Buffer.new_wrapped(draw(number))) == Gst.FlowReturn.OK:
            number += 1

class Factory(GstRtspServer.RTSPMediaFactory):
    def do_create_element(self, url):
        caps = f"video/x-raw,format=I420,width={WIDTH},height={HEIGHT},framerate={fps}/1"
        return Gst.parse_launch(
            f"( appsrc name=source is-live=true do-timestamp=true format=time caps={caps} "
            f"! {encoder} ! rtph264pay name=pay0 pt=96 config-interval=1 )"
        )

    def do_configure(self, media):
        source = media.get_element().get_by_name_recurse_up("source")
        over = threading.Event()
        media.connect("unprepared", lambda media: over.set())
        threading.Thread(target=push, args=(source, over), daemon=True).start()

server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = Factory()  # each client has a stream of its own, which begins with a key frame
if login:
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(*login.split(":")), token)
    server.set_auth(auth)
    role = "viewer,media.factory.access=(boolean)true,media.factory.construct=(boolean)true"
    factory.add_role_from_structure(Gst.Structure.from_string(role)[0])
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


class RtspServer:
    """An RTSP camera, H.264 at ``rtsp://127.0.0.1:PORT/camera``, in a process of its own."""

    def __init__(self, *, port: int = 0, fps: int = 30, login: str = "", encoder: str = ENCODER):
        numbers = (WIDTH, HEIGHT, _BITS, _BLOCK, _ROWS, _TICKS)
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", _SERVER, *map(str, (port, fps, login, encoder, *numbers))],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.address = f"rtsp://127.0.0.1:{self.port}/camera"

    @staticmethod
    def missing() -> str:
        """Return why it cannot run here; empty where it can."""
        code = "import gi; gi.require_version('GstRtspServer', '1.0')"
        with contextlib.suppress(OSError):
            if not subprocess.run(
                [SYSTEM_PYTHON, "-c", code], stderr=subprocess.DEVNULL
            ).returncode:
                return ""
        return "needs GStreamer's RTSP server for Python: apt install gir1.2-gst-rtsp-server-1.0"

    def close(self) -> None:
        """Kill it, as a power cut would."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MjpegServer:
    """An HTTP camera at ``http://127.0.0.1:PORT/camera``, in threads of this process."""

    def __init__(self, jpegs: Callable[[], Iterable[bytes]], *, login: str = "", port: int = 0):
        """Serve to each client what a new ``jpegs()`` yields; ``login`` is USER:PASSWORD."""
        wanted = "Basic " + base64.b64encode(login.encode()).decode() if login else None

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/camera":
                    return self.send_error(404)
                if wanted not in (None, self.headers["Authorization"]):
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    return self.end_headers()
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                with contextlib.suppress(OSError):  # the client left
                    for jpeg in jpegs():
                        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}"
                        self.wfile.write(head.encode() + b"\r\n\r\n" + jpeg + b"\r\n")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.port = int(self._server.server_address[1])
        self.address = f"http://127.0.0.1:{self.port}/camera"

    def close(self) -> None:
        """End it; clients that are served meanwhile are left to their threads."""
        self._server.shutdown()
        self._thread.join()
        self._server.socket.close()

    def __enter__(self) -> MjpegServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def drawn(number: int) -> NDArray[np.uint8]:
    """Draw a frame, ``[HEIGHT, WIDTH, 3] uint8`` RGB, as the RTSP server does."""
    bits = np.arange(_BITS)
    rows, columns = np.mgrid[: HEIGHT - 2 * _ROWS, :WIDTH]
    wave = 64 + abs(((3 * rows + 5 * number) % 1024 + columns) % 256 - 128)
    moment = int(time.monotonic() * _TICKS) % 2**_BITS
    blocks = [
        np.repeat(np.repeat((value >> bits & 1) * 255, _BLOCK)[None], _ROWS, 0)
        for value in (number, moment)
    ]
    grey = np.concatenate([*blocks, wave]).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def shown(image: NDArray[np.uint8]) -> tuple[int, float]:
    """Read a frame: its number, and how many seconds ago it was drawn."""
    now = time.monotonic()
    middles = image[_ROWS // 2 : 2 * _ROWS : _ROWS, _BLOCK // 2 :: _BLOCK, 0]
    number, moment = ((middles > 127) @ (1 << np.arange(_BITS, dtype=np.int64))).tolist()
    return number, (int(now * _TICKS) - moment) % 2**_BITS / _TICKS


def paced(fps: float, frames: Iterable[bytes]) -> Iterator[bytes]:
    """Yield frames at a rate; each is asked for when it is due."""
    due, left = time.monotonic(), iter(frames)
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        due += 1 / fps
        if (frame := next(left, None)) is None:
            return
        yield frame
