"""Video files: right speed, readable however they end, bounded in number and size."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shots import START, answer, picture, shot, until

from lgvit_edge.camera.drawing import draw, jpeg
from lgvit_edge.camera.sinks.video import VideoFiles
from lgvit_edge.errors import MissingDependency, SinkError, UsageError

av = pytest.importorskip("av")


def seen(path: Path, *, cut: bool = False) -> tuple[list[float], tuple[int, int], str]:
    """When each frame of a file is shown, in seconds, the size of the last one, and the codec.

    ``cut``: whether the last one may be cut off.
    """
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        frames = []
        with contextlib.suppress(av.error.InvalidDataError) if cut else contextlib.nullcontext():
            for frame in file.decode(video):
                frames.append(frame)
        times = [round(float(frame.pts * video.time_base), 3) for frame in frames]
        return times, (frames[-1].width, frames[-1].height), video.codec_context.name


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[VideoFiles]:
    made = VideoFiles(tmp_path / "videos")
    made.open()
    yield made
    made.close()


def test_a_file_for_each_camera_with_the_answers_drawn(tmp_path: Path, sink: VideoFiles) -> None:
    image = np.full((120, 160, 3), 90, np.uint8)
    for frame in range(20):
        for camera in ("gate", "a/b"):
            sink.take(shot(camera, frame, image=image))
    assert (image == 90).all()  # it is everybody's
    sink.close()
    first, second = files(tmp_path / "videos")
    assert [first.name, second.name] == ["a%2Fb-20270115T080000Z.mp4", "gate-20270115T080000Z.mp4"]
    times, size, codec = seen(second)
    assert times == [i / 10 for i in range(20)] and size == (160, 120)
    assert codec in ("h264", "mpeg4")
    with av.open(str(second)) as file:
        pixels = next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert abs(pixels[60:, 80:] - 90).max() < 12  # untouched
    assert pixels[3:12, 2:40, 1].mean() > 120  # the green bar


def test_what_was_dropped_takes_its_time(tmp_path: Path, sink: VideoFiles) -> None:
    for frame in (0, 1, 2, 30, 31):  # a live camera: three seconds without an answered frame
        sink.take(shot(frame=frame, image=picture(), fps=99.0))
    sink.close()
    assert seen(files(tmp_path / "videos")[0])[0] == [0.0, 0.1, 0.2, 3.0, 3.1]


def test_a_recording_plays_at_its_own_speed(tmp_path: Path) -> None:
    sink = VideoFiles(tmp_path, recorded=["clip", "photos"])
    for frame in range(0, 10, 2):  # every second frame, much faster than they play
        sink.take(shot("clip", frame, image=picture(), fps=5.0, at=START + frame / 1000))
        sink.take(shot("photos", frame, image=picture(), at=START))
    sink.close()
    clip, photos = files(tmp_path)
    assert seen(clip)[0] == [0.0, 0.4, 0.8, 1.2, 1.6]
    assert seen(photos)[0] == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_another_size_a_gap_and_a_clock_set_back_begin_another_file(
    tmp_path: Path, sink: VideoFiles
) -> None:
    moments = [(0.0, 64), (0.1, 64), (0.2, 33), (0.3, 33), (100.0, 33), (40.0, 33), (39.5, 33)]
    for number, (moment, width) in enumerate(moments):
        sink.take(shot(frame=number, image=picture(width, 31), at=START + moment))
    sink.close()
    found = sorted((seen(path)[:2] for path in files(tmp_path / "videos")), key=str)
    assert found == [
        ([0.0, 0.001], (34, 32)),  # half a second back: shown at once, in order
        ([0.0, 0.1], (34, 32)),
        ([0.0, 0.1], (64, 32)),
        ([0.0], (34, 32)),
    ]


def test_files_are_bounded_in_length_size_and_number(tmp_path: Path) -> None:
    (tmp_path / "gate-notes.mp4").touch()
    (tmp_path / "gate2-20200101T000000Z.mp4").touch()  # another camera's
    (tmp_path / "gate-20200101T000000Z.mp4").touch()  # of an earlier run
    sink = VideoFiles(tmp_path, max_minutes=0.01, keep=3)
    for frame in range(60):
        sink.take(shot(frame=frame, image=picture()))
    sink.close()
    ours = [p for p in files(tmp_path) if p.name.startswith("gate-2")]
    assert len(ours) == 3 and "gate-20200101T000000Z.mp4" not in [p.name for p in ours]
    assert all(len(seen(path)[0]) <= 7 for path in ours)
    assert (tmp_path / "gate-notes.mp4").exists()
    assert (tmp_path / "gate2-20200101T000000Z.mp4").exists()
    small = VideoFiles(tmp_path / "small", max_mb=0.01)
    small.open()
    rng = np.random.default_rng(0)
    for frame in range(60):
        noise = rng.integers(0, 255, (48, 64, 3), np.uint8)
        small.take(shot(frame=frame, image=noise))
    small.close()
    assert len(files(tmp_path / "small")) > 2
    assert sum(len(seen(path)[0]) for path in files(tmp_path / "small")) == 60


def test_a_name_with_a_suffix_begins_the_names(tmp_path: Path) -> None:
    sink = VideoFiles(tmp_path / "night.mp4")
    sink.open()
    sink.take(shot(image=picture()))
    sink.close()
    assert [path.name for path in files(tmp_path)] == ["night-gate-20270115T080000Z.mp4"]


def test_a_file_that_is_removed_meanwhile_begins_anew(tmp_path: Path, sink: VideoFiles) -> None:
    sink.take(shot(frame=0, image=picture()))
    files(tmp_path / "videos")[0].unlink()
    sink.take(shot(frame=1, image=picture()))
    sink.close()
    assert len(seen(files(tmp_path / "videos")[0])[0]) == 1


def test_a_full_disk_leaves_files_that_can_be_read(tmp_path: Path, sink: VideoFiles) -> None:
    rng = np.random.default_rng(0)

    def noise(frame: int) -> Any:
        image = rng.integers(0, 255, (240, 320, 3), np.uint8)
        return shot(frame=frame, image=image)

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, old[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            for frame in range(200):
                sink.take(noise(frame))
        assert str(raised.value.filename).startswith(str(tmp_path))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
        with pytest.raises(OSError, match="File too large"):  # nothing fits: nothing stays
            for frame in range(200, 220):
                sink.take(noise(frame))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    sink.take(noise(300))
    sink.close()
    full, after = files(tmp_path / "videos")
    assert len(seen(full)[0]) > 5 and len(seen(after)[0]) == 1


ENDLESS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from shots import picture, shot
from lgvit_edge.camera.sinks.video import VideoFiles
sink = VideoFiles(sys.argv[2])
sink.open()
for frame in range(10**9):
    sink.take(shot(frame=frame, image=picture(160, 120, frame % 7)))
    if frame == 5:
        print("begun", flush=True)
    time.sleep(0.002)
"""


def test_a_killed_process_leaves_a_file_that_can_be_read(tmp_path: Path) -> None:
    fakes = Path(__file__).parents[1] / "fakes"
    command = [sys.executable, "-c", ENDLESS, str(fakes), str(tmp_path / "videos")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        (path,) = files(tmp_path / "videos")
        until(lambda: path.stat().st_size > 100_000)
        writer.send_signal(signal.SIGKILL)
    times, _, _ = seen(path, cut=True)
    assert len(times) > 10 and times == [round(i / 10, 3) for i in range(len(times))]


def test_without_h264_it_is_mpeg4_and_other_names_are_refused(tmp_path: Path) -> None:
    sink = VideoFiles(tmp_path, codec="mpeg4")
    sink.open()
    for frame in range(30):
        sink.take(shot(frame=frame, image=picture()))
    sink.close()
    times, _, codec = seen(files(tmp_path)[0])
    assert codec == "mpeg4" and times == [i / 10 for i in range(30)]
    with pytest.raises(UsageError, match="PyAV has no encoder called nonsense"):
        VideoFiles(tmp_path / "x", codec="nonsense").open()
    assert files(tmp_path / "x") == []


def test_a_picture_that_no_encoder_takes_is_refused_for_ever(sink: VideoFiles) -> None:
    with pytest.raises(SinkError, match="cannot be encoded") as raised:
        sink.take(shot(image=np.zeros((2, 20_000, 3), np.uint8)))
    assert raised.value.final
    sink.take(shot(frame=1, image=picture(1, 1)))


def test_settings_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"max_mb": 0}, {"max_minutes": float("nan")}, {"max_mb": "5"}):
        with pytest.raises(UsageError, match=r"must be a number of at least 0\.001"):
            VideoFiles(tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="keep must be a whole number of at least 1"):
        VideoFiles(tmp_path, keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to .*file: .*; name another folder"):
        VideoFiles(tmp_path / "file").open()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lgvit-edge\[camera\]'"):
        VideoFiles(tmp_path).open()


NAMES = [
    "a",
    "猫",
    "кошка أسد नमस्ते",
    "\x1b[2J",
    "\udc80",
    "",
    "x" * 1000,
    "\n\t ",
    "😀",
    "\u202eabc",
]


@pytest.mark.parametrize("fonts", ["installed", "none", "of ASCII"])
def test_any_name_can_be_drawn(fonts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFont

    from lgvit_edge.camera import drawing

    real = ImageFont.truetype

    def gone(font: Any, *more: Any, **options: Any) -> Any:
        if isinstance(font, str):
            raise OSError("cannot open resource")
        return real(font, *more, **options)

    if fonts != "installed":
        monkeypatch.setattr(ImageFont, "truetype", gone)
    if fonts == "of ASCII":  # a Pillow without FreeType
        if not hasattr(ImageFont, "load_default_imagefont"):
            pytest.skip("this Pillow does not tell its font of letters of ASCII")
        plain = ImageFont.load_default_imagefont()
        monkeypatch.setattr(ImageFont, "load_default", lambda *_: plain)
    for cache in (drawing._bar, drawing._font, drawing._fonts):
        cache.cache_clear()
    image = picture(160, 120)
    for name in NAMES:
        drawn = draw(image, [answer(label=name), answer(region=name, box=(40, 50, 60, 30))])
        assert drawn.shape == image.shape and (drawn != image).any()
    for cache in (drawing._bar, drawing._font, drawing._fonts):
        cache.cache_clear()


def test_regions_are_framed_wherever_they_lie() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    drawn = draw(image, [answer(region="r", box=(50, 40, 100, 50), label=None)])
    assert drawn[89, 100].any() and drawn[60, 50].any() and drawn[60, 149].any()
    assert not drawn[80, 100].any() and not image.any()
    for box in ((-10, -10, 20, 20), (190, 90, 50, 50), (300, 300, 5, 5), (0, 0, 0, 0)):
        draw(image, [answer(region="r", box=box)])
    for width, height in ((1, 1), (1, 500), (500, 1)):
        draw(picture(width, height), [answer(), answer(region="r", box=(0, 0, 1, 1))])


def test_jpeg_is_small_enough_and_the_right_colours() -> None:
    import io

    from PIL import Image

    pytest.importorskip("cv2")
    image = np.zeros((300, 600, 3), np.uint8)
    image[..., 0] = 200
    read = Image.open(io.BytesIO(jpeg(image, max_side=200, quality=90)))
    assert read.size == (200, 100) and read.format == "JPEG"
    red, green, blue = read.getpixel((100, 50))  # type: ignore[misc]
    assert red > 180 and green < 20 and blue < 20
    assert Image.open(io.BytesIO(jpeg(picture(1, 900), max_side=10))).size == (1, 10)
    assert Image.open(io.BytesIO(jpeg(picture(30, 20)))).size == (30, 20)
    assert re.match(rb"\xff\xd8", jpeg(picture(30, 20)))
    with pytest.raises(ValueError, match="cannot be encoded"):
        jpeg(np.zeros((1, 70_000, 3), np.uint8), max_side=100_000)
