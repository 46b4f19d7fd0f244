"""Every kind of source reads what it should, and refuses the rest in words, without passwords."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from camera_scenes import jpeg, scene, write_video
from PIL import Image

from lgvit_edge.benchmarks.experiments.sources_served import MjpegServer, RtspServer
from lgvit_edge.camera.sources import base, opencv, pipes
from lgvit_edge.camera.sources.base import Source, kind_of, source_kinds, without_secrets
from lgvit_edge.errors import DataError, SourceError, StalledError, UsageError

pytest.importorskip("av", reason="needs PyAV: pip install 'lgvit-edge[camera]'")

needs_gstreamer = pytest.mark.skipif(
    shutil.which("gst-launch-1.0") is None, reason="needs gst-launch-1.0"
)
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


@contextlib.contextmanager
def opened(address: object, timeout: float = 5.0) -> Iterator[Source]:
    kind = kind_of(str(address))
    kind.check(str(address))
    source = kind.open(str(address), timeout)
    try:
        yield source
    finally:
        source.close()
        source.close()  # may be called twice


def pictures(source: Source, count: int = 1000) -> list[np.ndarray[Any, Any] | str]:
    """What it delivers, at most to its end; of what cannot be decoded, the message."""
    found: list[np.ndarray[Any, Any] | str] = []
    while len(found) < count:
        try:
            if (image := source.read()) is None:
                return found
            assert image.dtype == np.uint8 and image.ndim == 3 and image.flags.c_contiguous
            found.append(image)
        except DataError as error:
            found.append(str(error))
    return found


def greys(found: list[np.ndarray[Any, Any] | str]) -> list[int]:
    return [round(float(image.mean())) for image in found if not isinstance(image, str)]


def refused(address: object, match: str) -> str:
    """What is said of an address that no check lets through."""
    with pytest.raises(UsageError, match=match) as caught:
        kind_of(str(address)).check(str(address))
    return str(caught.value)


def unopened(address: str, match: str, timeout: float = 5.0) -> SourceError:
    with pytest.raises(SourceError, match=match) as caught, opened(address, timeout):
        pass
    assert "secret" not in str(caught.value) and "me:" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("address", "kind", "live"),
    [
        ("0", "usb", True),
        ("/dev/video2", "usb", True),
        ("/dev/v4l/by-id/usb-cam-video-index0", "usb", True),
        ("csi:1", "csi", True),
        ("gst:videotestsrc", "gstreamer", True),
        ("v4l2src ! jpegdec", "gstreamer", True),
        ("rtsp://host/path", "rtsp", True),
        ("RTSPS://host/path", "rtsp", True),
        ("http://host/a.mjpg", "http", True),
        ("https://host/", "http", True),
        ("-", "stdin", False),
        ("photos/", "pictures", False),
        ("a.JPG", "pictures", False),
        (".", "pictures", False),
        ("a.mp4", "file", False),
        ("a:b.mkv", "file", False),
    ],
)
def test_an_address_is_of_one_kind(address: str, kind: str, live: bool) -> None:
    assert (kind_of(address).name, kind_of(address).live) == (kind, live)


def test_kinds_are_known_and_imported_without_what_they_need() -> None:
    code = (
        "import sys; sys.modules.update(av=None, cv2=None); "
        "from lgvit_edge.camera.sources.base import source_kinds; "
        "print([kind.name for kind in source_kinds()])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str([kind.name for kind in source_kinds()])
    assert all(kind.help and kind.example for kind in source_kinds())


def test_a_scheme_that_is_none_of_them_is_refused_with_a_list() -> None:
    with pytest.raises(UsageError, match="rtsp://HOST/PATH") as caught:
        kind_of("ftp://me:secret@host/video")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://me:secret@host:554/a?x=1", "rtsp://***@host:554/a?x=1"),
        ("rtsp://me:se@cret@host/a", "rtsp://***@host/a"),
        ("rtsp://me:se/cret@host/a", "rtsp://***@host/a"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("http://host/a?user=me&pwd=secret&x=1", "http://host/a?user=***&pwd=***&x=1"),
        ("rtsp://host/user=me_password=secret_channel=1", "rtsp://host/user=***"),
        ("rtspsrc user-id=me user-pw=secret ! x", "rtspsrc user-id=*** user-pw=*** ! x"),
        ('rtspsrc user-pw="my secret" ! x', "rtspsrc user-pw=*** ! x"),
        ("csi:0", "csi:0"),
    ],
)
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


# Files and folders


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_a_video_is_read_to_its_end(tmp_path: Path, codec: str) -> None:
    write_video(tmp_path / "a.mkv", frames=20, fps=10, codec=codec)
    with opened(tmp_path / "a.mkv") as source:
        positions, found = [], []
        while (image := source.read()) is not None:
            found.append(image)
            positions.append(source.position)
    assert np.abs(np.array(greys(found)) - [n * 10 % 250 for n in range(20)]).max() <= 3
    assert positions == pytest.approx([n / 10 for n in range(20)], abs=0.002)
    assert source.fps == 10


def test_colours_are_those_that_the_file_says(tmp_path: Path) -> None:
    """High-definition video has other coefficients than standard."""
    import av

    colour = np.full((48, 64, 3), (200, 60, 30), np.uint8)
    for space in (1, 5):  # BT.709, BT.601
        path = tmp_path / f"{space}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10, options={"qscale": "1"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.colorspace = space
            frame = av.VideoFrame.from_ndarray(colour, format="rgb24")
            target = "itu709" if space == 1 else "itu601"
            frame = frame.reformat(format="yuv420p", dst_colorspace=target)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with opened(path) as source:
            image = source.read()
        assert image is not None
        assert np.abs(image.mean(axis=(0, 1)) - colour[0, 0]).max() < 6, space


@needs_ffmpeg
@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_video_of_a_telephone_stands_upright(tmp_path: Path, turn: int) -> None:
    write_video(tmp_path / "a.mp4", frames=1, fps=10)
    ffmpeg = ["ffmpeg", "-v", "error", "-y"]
    source = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=1:duration=1"]
    subprocess.run([*ffmpeg, *source, "-c:v", "mpeg4", "-q:v", "1", tmp_path / "b.mp4"], check=True)
    for options in (  # of FFmpeg 6 and of older ones
        ["-display_rotation", str(turn), "-i", tmp_path / "b.mp4", "-c", "copy"],
        ["-i", tmp_path / "b.mp4", "-c", "copy", "-metadata:s:v", f"rotate={turn}"],
    ):
        if not subprocess.run([*ffmpeg, *options, tmp_path / "c.mp4"]).returncode:
            break
    subprocess.run([*ffmpeg, "-i", tmp_path / "c.mp4", tmp_path / "c.png"], check=True)
    with opened(tmp_path / "c.mp4") as video:
        image = video.read()
    assert image is not None
    expected = np.asarray(Image.open(tmp_path / "c.png").convert("RGB"), int)
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 4


def test_what_can_be_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    (tmp_path / "b.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "c.mp4")
    refused(tmp_path / "a.mp4", "expected a video file, found text")
    refused(tmp_path / "b.mp4", "found an empty file")
    refused(tmp_path / "c.mp4", "found a device or a pipe")
    refused(tmp_path / "d.mp4", "no such file or folder")


def test_a_broken_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    unopened(str(tmp_path / "a.mp4"), "no video that can be read")


def test_a_recording_without_pictures_is_an_error(tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    unopened(str(tmp_path / "a.wav"), "holds no pictures, only other data")


def test_a_file_opens_no_other(tmp_path: Path) -> None:
    """A list that FFmpeg would follow, on the network too."""
    with MjpegServer(lambda: [jpeg(64, 48)]) as server:
        (tmp_path / "a.bin").write_bytes(b"\0" + b"#EXTM3U\n#EXTINF:1,\n" + server.address.encode())
        (tmp_path / "b.bin").write_text(f"#EXTM3U\n#EXTINF:1,\n{server.address}\n")
        unopened(str(tmp_path / "a.bin"), "cannot be opened")
        refused(tmp_path / "b.bin", "found text")


def test_a_folder_is_read_as_people_count(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name, number in (("10.png", 3), ("9.png", 2), ("1.jpg", 1), ("more/2.png", 4)):
        Image.fromarray(scene(number)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    with opened(f"{tmp_path}/") as source:
        assert greys(pictures(source)) == [10, 20, 30, 40]
        assert source.position == 0.3 and source.fps == 10
    with opened(tmp_path / "9.png") as source:
        assert greys(pictures(source)) == [20]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path, "holds no images")
    refused(f"{tmp_path}/none/", "no such file or folder")
    refused(tmp_path / "none.png", "no such file or folder")


# The network


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_network_that_does_not_answer(scheme: str) -> None:
    unopened(f"{scheme}://me:secret@127.0.0.1:{free_port()}/x", "connection is refused")
    unopened(
        f"{scheme}://me:secret@no-such-host.invalid/x", "there is no host no-such-host.invalid"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the call and stays silent
        port = server.getsockname()[1]
        unopened(f"{scheme}://me:secret@127.0.0.1:{port}/x", "no answer within 0.", timeout=0.3)


@pytest.mark.parametrize(
    "address",
    ["rtsp://", "http:///x", "rtsp://me:se/cret@host/x", "http://host/a b", "http://h:x/"],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    assert "cret" not in refused(address, "is no address").partition("; expected")[0]


def test_an_mjpeg_camera() -> None:
    jpegs = [jpeg(64, 48, 3), jpeg(64, 48, 8), jpeg(64, 48)[:300], jpeg(32, 16), jpeg(64, 48)]
    with MjpegServer(lambda: jpegs, login="me:se cret") as server:
        address = server.address.replace("://", "://me:se%20cret@")
        with opened(address) as source:
            found = pictures(source, 5)
        assert ["bad" if isinstance(f, str) else f.shape for f in found] == [
            *[(48, 64, 3)] * 2,
            "bad",
            (16, 32, 3),
            (48, 64, 3),
        ]
        assert source.fps is None  # it says none
        assert unopened(server.address, "it wants a login").denied
        wrong = server.address.replace("://", "://me:secret@")
        assert unopened(wrong, "user name or the password is wrong").denied
        assert not unopened(address.replace("/camera", "/none"), r"not found \(404\)").denied


def test_a_page_is_no_video() -> None:
    import http.server

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if self.path == "/length":
                self.send_header("Content-Length", "35")
            self.end_headers()
            self.wfile.write(b"<html>Welcome to your camera</html>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        unopened(f"{address}/length", "no video that can be read")
        unopened(f"{address}/", "cannot be opened: it ended early")
        server.shutdown()
        thread.join()


def test_an_mjpeg_camera_that_falls_silent() -> None:
    def frames() -> Iterator[bytes]:
        yield from [jpeg(64, 48)] * 3
        over.wait(20)

    over = threading.Event()
    with MjpegServer(frames) as server, opened(server.address, 0.3) as source:
        begun = time.monotonic()
        with pytest.raises(StalledError, match="nothing for 0.3 s"):
            while True:
                assert source.read() is not None
        assert time.monotonic() - begun < 5
        over.set()


def test_an_rtsp_camera() -> None:
    if reason := RtspServer.missing():
        pytest.skip(reason)
    from lgvit_edge.benchmarks.experiments.sources_served import shown

    with RtspServer(login="me:secret") as server:
        address = server.address.replace("://", "://me:secret@")
        with opened(address) as source:
            seen = [shown(source.read()) for _ in range(10)]  # type: ignore[arg-type]
            assert [number for number, _ in seen] == list(range(10))
            assert seen[-1][1] < 1  # seconds
            assert source.fps == 30
            server.close()
            with pytest.raises((SourceError, StalledError)) as caught:
                while True:
                    with contextlib.suppress(DataError):  # half of a picture was on its way
                        if source.read() is None:
                            raise SourceError("the stream ended")
            assert "secret" not in str(caught.value)
    with RtspServer(login="me:secret") as server:
        assert unopened(server.address.replace("://", "://me:secret1@"), "password is wrong").denied
        assert unopened(server.address, "it wants a login").denied
        address = server.address.replace("://", "://me:secret@").replace("/camera", "/none")
        unopened(address, "not found")


# GStreamer


@needs_gstreamer
def test_a_pipeline() -> None:
    address = "gst:videotestsrc num-buffers=20 is-live=true pattern=white ! video/x-raw, width=33, "
    with opened(f"{address} height=21, framerate=50/1") as source:
        found = pictures(source)
    assert len(found) > 10 and {image.shape for image in found} == {(21, 33, 3)}  # type: ignore[union-attr]
    assert set(greys(found)) == {255}


@needs_gstreamer
def test_a_pipeline_may_change_its_size() -> None:
    source = "videotestsrc num-buffers=4 is-live=true ! video/x-raw,framerate=50/1,height=20"
    parts = " ".join(f"{source},width={width} ! c." for width in (40, 24))
    with opened(f"gst:concat name=c {parts} c. ") as source:
        shapes = {image.shape for image in pictures(source)}  # type: ignore[union-attr]
    assert shapes == {(20, 40, 3), (20, 24, 3)}


@needs_gstreamer
@pytest.mark.parametrize(
    ("pipeline", "match"),
    [
        ("nosuchelement ! videoconvert", 'no element "nosuchelement"'),
        ("videotestsrc nosuch=1", 'no property "nosuch"'),
        ("filesrc location=/none.mp4 ! decodebin", "filesrc0: Resource not found: No such file"),
        ("videotestsrc num-buffers=0", "it delivered no picture"),
        ("rtspsrc location=rtsp://me:secret@127.0.0.1:1/x ! decodebin", "Could not open resource"),
    ],
)
def test_a_pipeline_that_fails_says_why(pipeline: str, match: str) -> None:
    with opened(f"gst:{pipeline}") as source, pytest.raises(SourceError, match=match) as caught:
        source.read()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("gst:", "expected a GStreamer pipeline"),
        ("gst:! videotestsrc", "expected a GStreamer pipeline"),
        ("gst:videotestsrc !", "expected a GStreamer pipeline"),
        ("videotestsrc ! appsink drop=true", "leave appsink out"),
        ("gst:filesrc location='a ! decodebin", "cannot be read: No closing quotation"),
        ("csi:front", "such as csi:0"),
    ],
)
def test_a_pipeline_that_is_none_is_refused(address: str, match: str) -> None:
    refused(address, match)


def test_gstreamer_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    refused("gst:videotestsrc", "run: sudo apt install")
    refused("csi:0", "run: sudo apt install")


@needs_gstreamer
def test_a_pipeline_that_hangs_is_killed() -> None:
    address = "gst:fdsrc fd=0 ! fakesink videotestsrc is-live=true ! valve drop=true"
    with opened(address, 0.3) as source, pytest.raises(StalledError, match="no picture"):
        source.read()
    assert not running("valve drop=true")


@needs_gstreamer
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_no_pipeline_outlives_us(by: signal.Signals) -> None:
    mark = f"name=orphan{os.getpid()}"
    code = (
        "import sys, time; from lgvit_edge.camera.sources.base import kind_of; "
        f"source = kind_of('gst:').open('gst:videotestsrc {mark} is-live=true', 5.0); "
        "source.read(); print('reads', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None and process.stdout.readline() == "reads\n"
        assert running(mark)
        process.send_signal(by)
    end = time.monotonic() + 10
    while running(mark):
        assert time.monotonic() < end
        time.sleep(0.01)


def running(mark: str) -> list[str]:
    """Processes of gst-launch-1.0 with this in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if line.startswith("gst-launch") and mark in line:
                found.append(line)
    return found


# Standard input


def piped(data: bytes, timeout: float = 5.0) -> list[np.ndarray[Any, Any] | str]:
    """What is read from a pipe with these bytes in it."""
    into, out = os.pipe()
    pipe = pipes.Pipe(into, timeout)
    writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=out)
    os.close(out)
    try:
        assert writer.stdin is not None

        thread = threading.Thread(target=lambda: writer.communicate(data))
        thread.start()
        reader = pipes.Pictures(pipe)
        found: list[np.ndarray[Any, Any] | str] = []
        while True:
            try:
                if (image := reader.read()) is None:
                    return found
                found.append(image)
            except DataError as error:
                found.append(str(error))
    finally:
        os.close(into)
        pipe.close()
        thread.join()


def y4m(width: int, height: int, *greys: int, tags: str = "F25:1 C420jpeg") -> bytes:
    half = (width + 1) // 2 * ((height + 1) // 2)
    frames = [b"FRAME\n" + bytes([g]) * width * height + b"\x80" * 2 * half for g in greys]
    return f"YUV4MPEG2 W{width} H{height} {tags}\n".encode() + b"".join(frames)


def test_jpegs_come_one_after_the_other() -> None:
    found = piped(b"".join([jpeg(64, 48, 3), jpeg(32, 16, 8)] * 20))
    assert [image.shape for image in found] == [(48, 64, 3), (16, 32, 3)] * 20  # type: ignore[union-attr]


def test_a_jpeg_holds_a_smaller_one() -> None:
    """As those of cameras do, for a preview."""
    small = jpeg(16, 16)
    head = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    with_preview = jpeg(64, 48)[:2] + head + jpeg(64, 48)[2:]
    assert [image.shape for image in piped(with_preview * 2)] == [(48, 64, 3)] * 2  # type: ignore[union-attr]


def test_damaged_jpegs_cost_no_other() -> None:
    whole = jpeg(64, 48)
    data = [whole, whole[:-200], whole, b"noise between" * 9, whole, whole[:-5]]
    found = piped(b"".join(data))
    kinds = ["bad" if isinstance(image, str) else "good" for image in found]
    assert kinds == ["good", "bad", "good", "bad", "good", "bad"]


def test_yuv4mpeg2() -> None:
    found = piped(y4m(64, 48, 16, 126, 235) + y4m(33, 21, 126))
    assert [image.shape for image in found] == [(48, 64, 3)] * 3 + [(21, 33, 3)]  # type: ignore[union-attr]
    assert greys(found) == pytest.approx([0, 128, 255, 128], abs=1)
    full = piped(y4m(64, 48, 16, 255, tags="C420jpeg XCOLORRANGE=FULL"))
    assert greys(full) == pytest.approx([16, 255], abs=1)


@needs_ffmpeg
@pytest.mark.parametrize(
    "options",
    [
        "-f yuv4mpegpipe",
        "-f yuv4mpegpipe -pix_fmt yuv444p",
        "-f yuv4mpegpipe -pix_fmt yuv422p",
        "-f yuv4mpegpipe -pix_fmt yuvj420p",
        "-f mjpeg -q:v 2",
        "-f image2pipe -c:v ppm",
    ],
)
def test_what_ffmpeg_writes_is_read(tmp_path: Path, options: str) -> None:
    """In a process of its own, from its standard input, with the colours that went in."""
    code = (
        "import sys; from lgvit_edge.camera.sources.base import kind_of; kind = kind_of('-'); "
        "kind.check('-'); source = kind.open('-', 5.0); images = []\n"
        "while (image := source.read()) is not None: images.append(image)\n"
        "print(len(images), images[0].shape, images[-1].mean((0, 1)).round().tolist())"
    )
    made = "ffmpeg -v error -f lavfi -i color=0xC83C1E:size=64x48:rate=10:duration=1"
    ffmpeg = subprocess.Popen([*made.split(), *options.split(), "-"], stdout=subprocess.PIPE)
    with ffmpeg:
        said = subprocess.run(
            [sys.executable, "-c", code], stdin=ffmpeg.stdout, capture_output=True, text=True
        )
    assert said.stdout.startswith("10 (48, 64, 3)"), said
    colour = eval(said.stdout.partition(") ")[2])
    assert colour == pytest.approx([200, 60, 30], abs=6)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"<html>", "expected JPEGs"),
        (b"\xff", "expected pictures, found"),
        (y4m(8, 8, 1, tags="C420p10"), "found C420p10; give ffmpeg: -pix_fmt yuv420p|found 420p10"),
        (b"YUV4MPEG2 W8\nFRAME\n", "says no size"),
        (b"YUV4MPEG2 W99999 H99999\nFRAME\n", "at most 100 million pixels, found 99999 x 99999"),
        (b"YUV4MPEG2 W8 H0\nFRAME\n", "at most 100 million pixels"),
        (b"YUV4MPEG2" + b"x" * 5000, "do not follow each other"),
        (y4m(8, 8, 1) + b"something\n", "do not follow each other"),
        (b"P6\n4 4\n65535\n" + bytes(96), "PPM of 8 bits"),
        (b"P6\n4 4\n255\n" + bytes(48) + b"rest" * 400, "do not follow each other"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(SourceError, match=match):
        piped(data)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_JPEG", 1 << 17)
    start = jpeg(64, 48)[:-2]
    with pytest.raises(SourceError, match="more than 131,072 bytes"):
        piped(start + b"\x01" * (1 << 19))
    with pytest.raises(SourceError, match="more than 131,072 bytes"):
        piped(b"\xff\xd8" + (b"\xff\xe0\xff\xff" + bytes(65533)) * 8)


@pytest.mark.parametrize("data", [y4m(8, 8, 1)[:-5], b"P6\n4 4\n255\n" + bytes(40)])
def test_a_last_picture_that_is_cut_off_is_none(data: bytes) -> None:
    [text] = piped(data)
    assert text == "the last picture is cut off"


def test_a_writer_that_falls_silent_may_go_on() -> None:
    into, out = os.pipe()
    pipe = pipes.Pipe(into, 0.05)
    try:
        reader = pipes.Pictures(pipe)
        data = y4m(8, 8, 126, 126)
        os.write(out, data[:60])
        with pytest.raises(StalledError, match="nothing came"):
            reader.read()
        os.write(out, data[60:])
        assert reader.read() is not None and reader.read() is not None
    finally:
        os.close(into)
        os.close(out)
        pipe.close()


def test_a_terminal_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    refused("-", "pipe them in")


# Cameras of this machine: there is none where tests run, so OpenCV's answers are scripted.


class Capture:
    """What OpenCV would be for a camera."""

    frames: list[Any] = []

    def __init__(self, *_: object) -> None:
        self.left = iter(self.frames)

    def isOpened(self) -> bool:
        return bool(self.frames)

    def set(self, *_: object) -> None:
        pass

    def get(self, *_: object) -> float:
        return 25.0

    def read(self) -> tuple[bool, Any]:
        image = next(self.left, None)
        return image is not None, image

    def release(self) -> None:
        pass


def test_a_usb_camera(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    unopened("0", "no camera /dev/video0; found: none") if not Path(
        "/dev/video0"
    ).exists() else None
    with pytest.raises(SourceError, match="is no camera"):
        opencv._look(tmp_path)
    there = [True]
    monkeypatch.setattr(opencv, "_look", lambda device: None)
    monkeypatch.setattr(opencv.Path, "exists", lambda path: there[0])
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    monkeypatch.setenv("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "5")
    unopened("0", "another program uses it")
    blue = np.zeros((4, 6, 3), np.uint8)
    blue[..., 0] = 255
    monkeypatch.setattr(Capture, "frames", [blue])
    with opened("0") as source:
        image = source.read()
        assert image is not None and image[0, 0].tolist() == [0, 0, 255] and source.fps == 25
        with pytest.raises(StalledError, match="no picture in time"):
            source.read()
        there[0] = False
        with pytest.raises(SourceError, match="was unplugged"):
            source.read()


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(ValueError, match="already"):
        base.register_source(source_kinds()[0])
