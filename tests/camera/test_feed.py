"""A feed delivers, and reports what happens to its source: to real ones, wherever that can be."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from camera_scenes import jpeg, write_video
from PIL import Image

from lgvit_edge.benchmarks.experiments.sources_served import MjpegServer, RtspServer, paced
from lgvit_edge.camera.shot import Event, Frame
from lgvit_edge.camera.sources import feed as feeds
from lgvit_edge.camera.sources.base import Source, SourceKind, register_source
from lgvit_edge.camera.sources.feed import Feed
from lgvit_edge.errors import DataError, SourceError, UsageError

pytest.importorskip("av", reason="needs PyAV: pip install 'lgvit-edge[camera]'")


class Watched:
    """A feed that is read in a thread, and what it told."""

    def __init__(self, address: object, **options: object) -> None:
        self.events: list[Event] = []
        self.frames: list[Frame] = []
        self.missed: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self.feed = Feed(
            "door",
            str(address),
            tell=self.events.append,
            missed=lambda **counts: self.missed.update(counts),
            **options,  # type: ignore[arg-type]
        )
        self.thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        try:
            for frame in self.feed:
                self.frames.append(frame)
        except BaseException as error:
            self.failure = error

    def __enter__(self) -> Watched:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.stop()
        self.thread.join(5)
        assert not self.thread.is_alive()

    @property
    def states(self) -> list[str]:
        return [event.state for event in self.events if event.state]

    @property
    def texts(self) -> str:
        return "\n".join(event.text for event in self.events)


def until(condition: Callable[[], object], what: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_FIRST_PAUSE", 0.05)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Register a kind of source whose connections do what each script says; returns its address."""
    from lgvit_edge.camera.sources import base

    kinds = dict(base._KINDS)
    base._KINDS.clear()

    def register(*scripts: Callable[[], Iterator[object]], live: bool = True) -> str:
        left = iter(scripts)

        class Scripted(Source):
            def __init__(self) -> None:
                self._steps = next(left)()

            def read(self) -> np.ndarray | None:
                step = next(self._steps, None)
                if isinstance(step, BaseException):
                    raise step
                return step  # type: ignore[return-value]

        register_source(
            SourceKind("script", "x", "", live, lambda a: True, lambda a, t: Scripted())
        )
        return "script://me:secret@here"

    yield register
    base._KINDS.clear()
    base._KINDS.update(kinds)


def picture(number: int = 0) -> np.ndarray:
    return np.full((4, 6, 3), number % 256, np.uint8)


def ever() -> Iterator[object]:
    for number in itertools.count():
        time.sleep(0.005)
        yield picture(number)


def test_every_frame_of_a_file_comes_as_fast_as_it_is_taken(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=50, fps=10)
    with Watched(tmp_path / "a.mp4", pace="fast") as seen:
        seen.thread.join(4)  # its own time is 5 s
    assert [frame.number for frame in seen.frames] == list(range(50))
    assert seen.states == ["opening", "live", "ended"] and "after 50 frames" in seen.texts
    assert seen.feed.fps == 10 and not seen.feed.live and seen.failure is None
    assert seen.frames[0].image.shape == (48, 64, 3)


def test_a_file_keeps_its_pace_and_catches_up(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=10, fps=5)
    feed = Feed("door", str(tmp_path / "a.mp4"), tell=lambda e: None, missed=lambda **c: None)
    starts = []
    for frame in feed:
        starts.append(frame.start)
        if frame.number == 1:
            time.sleep(1.7)  # all others are late then
    assert len(starts) == 10
    assert starts[1] - starts[0] >= 0.195
    assert starts[-1] - starts[2] < 1.2  # they take 1.4 s at their pace


def test_a_file_loops_and_frames_are_numbered_through(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=5, fps=30)
    with Watched(tmp_path / "a.mp4", pace="fast", loop=True) as seen:
        until(lambda: len(seen.frames) > 12, lambda: seen.texts)
    assert [frame.number for frame in seen.frames[:13]] == list(range(13))
    assert seen.states == ["opening", "live", "ended"] and "stopped" in seen.texts


def test_a_bad_image_is_counted_and_the_next_follows(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (8 + number, 8), (number * 20, 0, 0)).save(tmp_path / f"{number}.png")
    for number in (3, 4):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    with Watched(tmp_path, pace="fast") as seen:
        seen.thread.join(5)
    assert [frame.number for frame in seen.frames] == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert [int(frame.image[0, 0, 0]) for frame in seen.frames] == [
        20 * n for n in (0, 1, 2, 5, 6, 7, 8, 9, 10, 11)
    ]
    assert seen.missed == {"errors": 2}
    [warning] = [event for event in seen.events if event.level == "warning"]  # once a burst
    assert "3.png" in warning.text or "4.png" in warning.text
    assert "now delivers" not in seen.texts  # a folder may hold any sizes


@pytest.mark.parametrize("loop", [False, True])
def test_a_folder_of_bad_images_is_an_error(tmp_path: Path, loop: bool) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with Watched(tmp_path, loop=loop) as seen:
        seen.thread.join(5)
    assert isinstance(seen.failure, SourceError) and "no picture" in str(seen.failure)
    assert seen.states[-1] == "ended" and seen.events[-1].level == "error"


def test_every_third_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", frames=10, fps=30)
    with Watched(tmp_path / "a.mp4", pace="fast", every=3) as seen:
        seen.thread.join(5)
    assert [frame.number for frame in seen.frames] == [0, 3, 6, 9]
    assert seen.missed == {"skipped": 6}


def test_a_camera_whose_frames_are_not_wanted_is_not_stalled(scripted: Callable[..., str]) -> None:
    with Watched(scripted(ever), every=200, timeout=0.3) as seen:
        until(lambda: len(seen.frames) == 2, lambda: seen.texts)
    assert seen.states == ["opening", "live", "ended"]


def test_frames_without_motion_are_skipped(scripted: Callable[..., str]) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV")

    def scene() -> Iterator[object]:
        for number in range(120):
            image = np.full((120, 160, 3), 90, np.uint8)
            if 60 <= number < 70:
                image[20:60, 10 * (number - 60) :][:, :40] = 255
            yield image

    with Watched(scripted(scene, live=False), pace="fast", motion=0.02) as seen:
        seen.thread.join(10)
    numbers = [frame.number for frame in seen.frames]
    assert numbers[:10] == list(range(10))  # while the background is learnt
    assert set(range(60, 70)) <= set(numbers)
    assert not set(range(12, 60)) & set(numbers)
    assert seen.missed["skipped"] == 120 - len(numbers)


def test_a_still_scene_is_not_forgotten() -> None:
    motion = pytest.importorskip("lgvit_edge.camera.sources.motion").Motion(0.02)
    passed = [n for n in range(300) if motion.passes(np.full((60, 80, 3), 90, np.uint8), n / 16)]
    assert passed == [*range(10), 89, 169, 249]  # five seconds after the last one


def test_a_live_source_drops_what_nobody_takes_in_time(scripted: Callable[..., str]) -> None:
    missed: Counter[str] = Counter()
    feed = Feed("door", scripted(ever), tell=lambda e: None, missed=lambda **c: missed.update(c))
    numbers = []
    for frame in feed:
        numbers.append(frame.number)
        time.sleep(0.1)
        if len(numbers) == 5:
            feed.stop()
    assert numbers[-1] >= 20  # the newest, never a queue
    assert missed["dropped"] == numbers[-1] + 1 - 5


def test_a_stream_that_breaks_is_opened_again(scripted: Callable[..., str]) -> None:
    def breaks() -> Iterator[object]:
        yield picture()
        time.sleep(0.05)
        yield SourceError("script://me:secret@here broke")

    def refused() -> Iterator[object]:
        raise SourceError("refused by ://me:secret@here")

    with Watched(scripted(refused, breaks, refused, refused, ever)) as seen:
        until(lambda: len(seen.frames) > 3, lambda: seen.texts)
    assert seen.states == ["opening", "lost", "live", "lost", "lost", "live", "ended"]
    assert [frame.number for frame in seen.frames[:3]] == [0, 1, 2]
    assert "is back after" in seen.texts
    assert "secret" not in seen.texts and "me:" not in seen.texts


def test_an_internal_error_ends_no_live_feed(scripted: Callable[..., str]) -> None:
    def buggy() -> Iterator[object]:
        yield KeyError("token=abc")

    with Watched(scripted(buggy, ever)) as seen:
        until(lambda: seen.frames, lambda: seen.texts)
    assert "KeyError" in seen.texts and "abc" not in seen.texts


def test_pauses_grow_and_begin_anew_after_a_good_while(
    scripted: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def refused() -> Iterator[object]:
        raise SourceError("refused")

    def denied() -> Iterator[object]:
        raise SourceError("wrong password", denied=True)

    feed = Feed(
        "door",
        scripted(*[refused] * 9, denied),
        tell=lambda e: None,
        missed=lambda **c: None,
    )

    def wait(seconds: float) -> bool:
        if seconds > 0.06:
            waits.append(seconds)
        return len(waits) == 10

    monkeypatch.setattr(feeds, "_FIRST_PAUSE", 0.5)
    monkeypatch.setattr(feed._stopped, "wait", wait)
    monkeypatch.setattr(feed._stopped, "is_set", lambda: len(waits) == 10)
    assert not list(feed)
    expected = [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert waits == pytest.approx(expected, rel=0.21)
    assert waits != pytest.approx(expected, rel=1e-4)  # not all cameras at one moment


def test_damaged_frames_alone_are_a_loss(scripted: Callable[..., str]) -> None:
    def damaged() -> Iterator[object]:
        yield picture()
        while True:
            time.sleep(0.01)
            yield DataError("half a frame")

    with Watched(scripted(damaged, ever), timeout=0.3) as seen:
        until(lambda: len(seen.frames) > 2, lambda: seen.texts)
    assert "nothing that can be decoded came" in seen.texts
    assert seen.states[:2] == ["opening", "live"] and seen.states[-2:] == ["live", "ended"]
    assert seen.missed["errors"] > 3
    assert sum("cannot be used" in event.text for event in seen.events) == 1


def test_a_source_that_hangs_is_left_at_once(scripted: Callable[..., str]) -> None:
    go_on = threading.Event()

    def hangs() -> Iterator[object]:
        yield picture()
        go_on.wait(20)
        yield from ever()

    with Watched(scripted(hangs), timeout=0.1) as seen:
        until(lambda: "stalled" in seen.states, lambda: seen.texts)
        begun = time.monotonic()
        seen.feed.stop()
        seen.thread.join(5)
        assert time.monotonic() - begun < 5
    go_on.set()


def test_a_source_that_comes_round_goes_on(scripted: Callable[..., str]) -> None:
    go_on = threading.Event()

    def hangs() -> Iterator[object]:
        yield picture()
        go_on.wait(20)
        yield from ever()

    with Watched(scripted(hangs), timeout=0.1) as seen:
        until(lambda: "stalled" in seen.states, lambda: seen.texts)
        go_on.set()
        until(lambda: len(seen.frames) > 3, lambda: seen.texts)
    assert seen.states[:4] == ["opening", "live", "stalled", "live"]


def test_stop_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_FIRST_PAUSE", 30.0)
    with Watched("http://127.0.0.1:1/camera") as seen:
        until(lambda: "lost" in seen.states, lambda: seen.texts)
        begun = time.monotonic()
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"motion": 0}, "motion must be a share"),
        ({"motion": 1.5}, "motion must be a share"),
        ({"timeout": 0}, "timeout must be"),
        ({"every": 0}, "every must be"),
        ({"pace": "slow"}, "pace must be"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Watched("rtsp://127.0.0.1/x", **options)


def test_the_address_is_shown_without_secrets() -> None:
    assert Watched("rtsp://me:secret@host/x").feed.shown == "rtsp://***@host/x"


def test_an_mjpeg_camera_that_stalls_changes_size_and_sends_damaged_frames() -> None:
    connections = itertools.count()
    go_on = threading.Event()

    def frames() -> Iterator[bytes]:
        if next(connections) == 0:
            yield from paced(50, [jpeg(64, 48)] * 10)
            damaged = jpeg(64, 48)[:400]
            yield from paced(50, [damaged] * 5)
            yield from paced(50, [jpeg(32, 16)] * 10)
            go_on.wait(20)  # stalls
        else:
            yield from paced(50, itertools.repeat(jpeg(64, 48)))

    with MjpegServer(frames) as server, Watched(server.address, timeout=0.5) as seen:
        until(lambda: seen.states.count("live") == 2, lambda: seen.texts)
        go_on.set()
    assert {frame.image.shape for frame in seen.frames} == {(48, 64, 3), (16, 32, 3)}
    assert "now delivers 32 x 16, before 64 x 48" in seen.texts
    assert seen.states[:4] == ["opening", "live", "stalled", "live"]
    assert seen.missed["errors"] == 5


def test_an_rtsp_camera_is_killed_and_comes_back() -> None:
    if reason := RtspServer.missing():
        pytest.skip(reason)
    with RtspServer(login="me:secret") as server:
        port = server.port
        address = f"rtsp://me:secret@127.0.0.1:{port}/camera"
        with Watched(address) as seen:
            until(lambda: len(seen.frames) > 5, lambda: seen.texts)
            for cycle in (2, 3):
                server.close()
                until(lambda c=cycle: seen.states.count("lost") >= c - 1, lambda: seen.texts)
                server = RtspServer(port=port, login="me:secret")
                until(lambda c=cycle: seen.states.count("live") == c, lambda: seen.texts)
            server.close()
    assert "secret" not in seen.texts
    numbers = [frame.number for frame in seen.frames]
    assert numbers == sorted(set(numbers))
