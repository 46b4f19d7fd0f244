"""``Camera`` answers frames as the session does, tells what happens, and loses nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lgvit_edge import DataError, Session, UsageError
from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.pipeline import Camera
from lgvit_edge.camera.settings import CameraSettings, Region
from lgvit_edge.camera.shot import Answer, Event, Shot, State
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.camera.sources import base
from lgvit_edge.camera.sources.base import Source, SourceKind
from lgvit_edge.errors import SinkError, SourceError

Frames = list[NDArray[np.uint8]]


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    with Session.open(bundle) as opened:
        yield opened


@pytest.fixture
def frames() -> Frames:
    return list(np.random.default_rng(3).integers(0, 256, (7, 48, 64, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path, frames: Frames) -> Path:
    """The frames as a folder of images, in their order."""
    place = tmp_path / "frames"
    place.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(place / f"{number}.png")
    return place


class Played(Source):
    """A source that plays a script: pictures, exceptions to raise, numbers of seconds to wait."""

    def __init__(self, script: Iterator[Any]) -> None:
        self._script = script

    def read(self) -> NDArray[np.uint8] | None:
        for item in self._script:
            if isinstance(item, Exception):
                raise item
            if not isinstance(item, float):
                return item  # type: ignore[no-any-return]
            time.sleep(item)
        return None


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make sources of scripts, one for each time that the source is opened."""
    number = itertools.count()
    base.source_kinds()
    monkeypatch.setattr(base, "_KINDS", dict(base._KINDS))

    def script(*scripts: Any, live: bool = True) -> str:
        name, plays = f"played{next(number)}", iter(scripts)

        def open(address: str, timeout: float) -> Source:
            if (items := next(plays, None)) is None:
                raise SourceError("it does not come back")
            return Played(iter(items))

        kind = SourceKind(name, name, "a script", live, name.__eq__, open)
        # Before the kinds that take whatever is left.
        monkeypatch.setattr(base, "_KINDS", {name: kind} | base._KINDS)
        return name

    return script


def test_every_picture_of_a_folder_gets_the_sessions_answer(
    session: Session, folder: Path, frames: Frames
) -> None:
    answers = list(Camera(str(folder), session, pace="fast"))
    expected = [session.predict(frame) for frame in frames]
    assert [a.frame for a in answers] == list(range(7))
    assert [a.label for a in answers] == [r.label for r in expected]
    assert [a.result.exit for a in answers] == [r.exit for r in expected]
    assert np.allclose([a.confidence for a in answers], [r.confidence for r in expected], atol=1e-5)
    row = answers[0].to_json()
    assert row["camera"] == "camera" and row["box"] == [0, 0, 64, 48] and row["dropped"] == 0
    assert row["class"] == row["guess"] == expected[0].label and not row["unsure"]


@pytest.mark.parametrize("smooth", [None, "average:4", "majority:4"])
def test_the_session_gets_another_bundle_meanwhile(
    bundle: Path, other_bundle: Path, folder: Path, frames: Frames, smooth: str | None
) -> None:
    """One with more exits; every answer is of one bundle, and as if it had begun with that."""
    names, expected = [], []
    with Session.open(bundle) as alone:
        for answer in Camera(str(folder), alone, pace="fast", smooth=smooth):
            expected.append(answer.class_index)
    with Session.open(other_bundle) as session:
        camera = Camera(str(folder), session, pace="fast", smooth=smooth, loop=True)
        found: list[Answer] = []
        for answer in camera:
            names.append(answer.to_json()["bundle"])
            if len(names) == 3:
                session.reload(bundle)
            if names[-1] != names[0]:
                found.append(answer)
            if len(found) == len(frames):
                break
        counted = camera.monitor.snapshot()["cameras"]["camera"]
    assert len(set(names)) == 2 and names == sorted(names, key=names.index)
    assert sum(counted["exits"]) == counted["answers"] and len(counted["exits"]) == 4
    if smooth is None:
        assert [a.class_index for a in found] == [expected[a.frame % 7] for a in found]


def test_cameras_share_batches_and_keep_their_order(
    session: Session, folder: Path, frames: Frames
) -> None:
    cameras = Camera({"gate": str(folder), "yard": str(folder)}, session, pace="fast")
    answers = list(cameras)
    for name in ("gate", "yard"):
        assert [a.frame for a in answers if a.camera == name] == list(range(7))
    counted = cameras.monitor.snapshot()["cameras"]
    assert counted["gate"]["answers"] == counted["yard"]["answers"] == 7
    assert counted["gate"]["state"] == "ended"
    assert session.stats.streams["gate"].images == 7


def test_regions_are_answered_as_pictures_of_their_own(
    session: Session, folder: Path, frames: Frames
) -> None:
    regions = {"left": Region(0, 0, 32, 48), "corner": Region(0.5, 0.5, 0.5, 0.5, share=True)}
    settings = CameraSettings(str(folder), regions=regions, pace="fast")
    shots = list(Camera({"gate": settings}, session).shots())
    assert [len(shot.answers) for shot in shots] == [2] * 7
    for shot, frame in zip(shots, frames, strict=True):
        left, corner = shot.answers
        assert (left.region, left.box) == ("left", (0, 0, 32, 48))
        assert (corner.region, corner.box) == ("corner", (32, 24, 32, 24))
        for answer, part in ((left, frame[:, :32]), (corner, frame[24:, 32:])):
            expected = session.predict(np.ascontiguousarray(part))
            assert answer.guess == expected.label
            assert answer.confidence == pytest.approx(expected.confidence, abs=1e-5)


def test_more_regions_than_a_batch_takes(session: Session, folder: Path) -> None:
    regions = {f"r{i}": Region(i, i, 32, 32) for i in range(6)}  # batches are of 4 at most
    shots = list(Camera(CameraSettings(str(folder), regions=regions, pace="fast"), session).shots())
    assert [a.region for a in shots[0].answers] == [f"r{i}" for i in range(6)]


def test_a_region_outside_the_picture_is_told_once_and_stops_nothing(
    session: Session, folder: Path
) -> None:
    beyond = CameraSettings(str(folder), regions={"door": Region(0, 0, 99, 10)}, pace="fast")
    cameras = Camera({"gate": beyond, "yard": CameraSettings(str(folder), pace="fast")}, session)
    answers = list(cameras)
    assert {a.camera for a in answers} == {"yard"} and len(answers) == 7
    told = [e for e in cameras.monitor.snapshot()["events"] if e["level"] == "error"]
    assert [e["camera"] for e in told] == ["gate"]
    assert "region door must lie within the picture: expected at most 64 x 48" in told[0]["text"]
    assert cameras.monitor.snapshot()["cameras"]["gate"]["errors"] == 7
    assert session.stats.streams["gate"].errors == 7


def test_a_live_source_is_answered_by_its_newest_frame(
    session: Session, play: Callable[..., str], frames: Frames
) -> None:
    busy, released = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        busy.set()
        released.wait(20)

    session.hooks.append(hold)

    def film() -> Iterator[Any]:
        yield frames[0]
        busy.wait(20)
        yield from frames[1:]
        released.set()
        yield 0.5

    camera = Camera(play(film()), session)
    answers = []
    for answer in camera:
        answers.append(answer)
        if answer.frame == 6:
            camera.stop()
    assert answers[0].frame == 0 and answers[-1].frame == 6
    dropped = camera.monitor.snapshot()["cameras"]["camera"]["dropped"]
    assert dropped == 7 - len(answers) == sum(a.dropped for a in answers)
    assert session.stats.streams["camera"].dropped == dropped > 0


def test_a_camera_that_dies_comes_back_and_disturbs_no_other(
    session: Session, play: Callable[..., str], folder: Path, frames: Frames
) -> None:
    dying = play([frames[0], SourceError("the cable is out")], [frames[1], 0.2])
    camera = Camera({"gate": dying, "yard": CameraSettings(str(folder), pace="fast")}, session)
    seen: list[Answer] = []
    for answer in camera:
        seen.append(answer)
        if sum(a.camera == "gate" for a in seen) == 2:
            camera.stop()
    assert [a.frame for a in seen if a.camera == "yard"] == list(range(7))
    assert [a.frame for a in seen if a.camera == "gate"] == [0, 1]
    told = [e["text"] for e in camera.monitor.snapshot()["events"] if e["camera"] == "gate"]
    assert any("the cable is out" in text for text in told)
    assert camera.monitor.snapshot()["cameras"]["gate"]["reconnects"] == 1


def test_a_stall_that_ends_is_no_reconnection(session: Session) -> None:
    monitor = Monitor(session, {"gate": "0"})
    reconnects = []
    for state in ("live", "stalled", "live", "lost", "opening", "live"):
        monitor.event(Event(0.0, "gate", state, state=cast(State, state)))
        reconnects.append(monitor.snapshot()["cameras"]["gate"]["reconnects"])
    assert reconnects == [0, 0, 0, 0, 0, 1]


def test_a_deadline_is_kept_for_each_camera(session: Session, folder: Path) -> None:
    soon = CameraSettings(str(folder), deadline_ms=1e-3, pace="fast")
    cameras = Camera({"gate": soon, "yard": CameraSettings(str(folder), pace="fast")}, session)
    answers = list(cameras)
    late = [a.result.late for a in answers if a.camera == "gate"]
    assert late == [True] * 7
    assert {a.result.exit for a in answers if a.camera == "gate"} == {1}
    assert not any(a.result.late for a in answers if a.camera == "yard")
    assert cameras.monitor.snapshot()["cameras"]["gate"]["late"] == 7


def test_answers_below_a_threshold_are_unsure(session: Session, folder: Path) -> None:
    answers = list(Camera(str(folder), session, pace="fast", unsure_below=0.99999))
    assert all(a.unsure == (a.confidence < 0.99999) for a in answers)
    unsure = next(a for a in answers if a.unsure)
    assert unsure.label is None and unsure.guess in "abcde"
    assert unsure.to_json()["class"] is None and unsure.to_json()["guess"] == unsure.guess


def test_a_probability_is_no_threshold_for_an_entropy(session: Session, folder: Path) -> None:
    session.policy = "entropy:0.5"
    with pytest.raises(UsageError, match="decides by entropy: leave it out"):
        Camera(str(folder), session, unsure_below=0.5)


def test_one_frame_of_three(session: Session, folder: Path) -> None:
    camera = Camera(str(folder), session, pace="fast", every=3)
    assert [a.frame for a in camera] == [0, 3, 6]
    assert camera.monitor.snapshot()["cameras"]["camera"]["skipped"] == 4


def test_a_majority_of_frames_answers(session: Session, folder: Path, frames: Frames) -> None:
    answers = list(Camera(str(folder), session, pace="fast", smooth="majority:7"))
    labels = [session.predict(frame).label for frame in frames]
    most = max(set(labels), key=labels.count)
    assert labels.count(most) > 1 and answers[-1].guess == most
    assert [a.result.label for a in answers] == labels  # what the session said is there, too


def test_averaged_logits_are_kept_for_each_region(
    session: Session, folder: Path, frames: Frames
) -> None:
    regions = {"left": Region(0, 0, 32, 48), "right": Region(32, 0, 32, 48)}
    settings = CameraSettings(str(folder), regions=regions, pace="fast", smooth="average:4")
    together = list(Camera(settings, session).shots())
    for place, name in enumerate(regions):
        alone = CameraSettings(
            str(folder), regions={name: regions[name]}, pace="fast", smooth="average:4"
        )
        for shot, answer in zip(together, Camera(alone, session), strict=True):
            assert shot.answers[place].guess == answer.guess
            assert shot.answers[place].confidence == pytest.approx(answer.confidence, abs=1e-5)


@pytest.mark.parametrize("smooth", ["majority:7", "average:7"])
@pytest.mark.parametrize("wide", [False, True], ids=["lost", "another size"])
def test_what_was_before_is_forgotten_when_a_camera_comes_back_or_changes_its_size(
    session: Session, play: Callable[..., str], frames: Frames, smooth: str, wide: bool
) -> None:
    last = np.random.default_rng(1).integers(0, 256, (48, 80 if wide else 64, 3), np.uint8)
    before = [frame for frame in frames[:4] for frame in (frame, 0.1)]
    scripts = [[*before, last, 0.1]] if wide else [before, [last, 0.1]]
    camera = Camera(play(*scripts), session, smooth=smooth)
    answers: list[Answer] = []
    for answer in camera:
        answers.append(answer)
        if answer.frame == 4:
            camera.stop()
    alone = session.predict(last)
    assert answers[-1].guess == alone.label
    assert answers[-1].confidence == pytest.approx(alone.confidence, abs=1e-5)
    others = [session.predict(frame) for frame in frames[:4]]
    assert answers[-2].confidence != pytest.approx(others[-1].confidence, abs=1e-5)


def test_async_and_callbacks_give_the_same(session: Session, folder: Path) -> None:
    expected = [a.label for a in Camera(str(folder), session, pace="fast")]

    async def collect() -> list[str | None]:
        return [a.label async for a in Camera(str(folder), session, pace="fast")]

    assert asyncio.run(collect()) == expected
    told: list[str | None] = []
    Camera(str(folder), session, pace="fast").run(lambda answer: told.append(answer.label))
    assert told == expected


def test_a_cancelled_task_ends_its_cameras(
    session: Session, play: Callable[..., str], frames: Frames
) -> None:
    camera = Camera(play(itertools.cycle([frames[0], 0.01])), session)

    async def watch() -> None:
        async for _ in camera:
            pass

    async def cancelled() -> None:
        task = asyncio.create_task(watch())
        while not camera.monitor.snapshot()["cameras"]["camera"]["answers"]:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert not [t for t in threading.enumerate() if t.name.startswith("lgvit-edge")]


def test_any_thread_may_stop_it(session: Session, play: Callable[..., str], frames: Frames) -> None:
    camera = Camera(play([frames[0], *[0.05] * 1000]), session)
    threading.Timer(0.3, camera.stop).start()
    assert len(list(camera)) == 1


def test_it_runs_once(session: Session, folder: Path) -> None:
    camera = Camera(str(folder), session, pace="fast")
    camera.run()
    with pytest.raises(UsageError, match="has run; make another"):
        camera.run()


class Kept(Sink):
    """Keeps what it is given; may be made to fail or to refuse."""

    name = "kept"
    images = True
    room = 2

    def __init__(self, error: Exception | None = None) -> None:
        self.shots: list[Shot] = []
        self.events: list[Event] = []
        self.error, self.closed = error, False

    def take(self, shot: Shot) -> None:
        if self.error:
            raise self.error
        time.sleep(0.01)  # slower than the session
        self.shots.append(shot)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed = True


class Refusing(Kept):
    name = "refusing"


def test_sinks_get_every_frame_of_a_file_in_order(
    session: Session, folder: Path, frames: Frames
) -> None:
    sink, refusing = Kept(), Refusing(SinkError("the door is shut", final=True))
    camera = Camera(str(folder), session, sinks=[refusing, sink], pace="fast")
    camera.run()
    assert [shot.frame for shot in sink.shots] == list(range(7)) and sink.closed
    assert all((s.image == f).all() for s, f in zip(sink.shots, frames, strict=True))
    assert any("ended" in e.text or e.state == "ended" for e in sink.events)
    counts = camera.sinks()
    assert (counts["kept"].taken, counts["kept"].lost) == (7, 0)
    assert (counts["refusing"].refused, counts["refusing"].error) == (7, "the door is shut")
    told = [e["text"] for e in camera.monitor.snapshot()["events"]]
    assert told.count("refusing fails: the door is shut") == 1  # not for every frame


def test_what_is_piped_in_is_not_begun_again(
    session: Session, play: Callable[..., str], frames: Frames
) -> None:
    name = play([frames[0]], live=False)
    base._KINDS[name] = dataclasses.replace(base._KINDS[name], repeats=False)
    assert len(list(Camera(name, session, loop=True, pace="fast"))) == 1


def test_sinks_before_one_that_cannot_work_are_closed(session: Session, folder: Path) -> None:
    closed: list[str] = []

    class Good(Sink):
        name = "good"

        def take(self, shot: Shot) -> None: ...

        def close(self) -> None:
            closed.append("good")

    class Bad(Good):
        name = "bad"

        def open(self) -> None:
            raise UsageError("there is no such place")

        def close(self) -> None:
            closed.append("bad")

    with pytest.raises(UsageError, match="no such place"):
        Camera(str(folder), session, sinks=[Good(), Bad()]).run()
    assert closed == ["good"]


def test_a_sink_that_cannot_work_is_refused_before_any_camera_is_opened(
    session: Session, play: Callable[..., str], frames: Frames
) -> None:
    class Impossible(Kept):
        def open(self) -> None:
            raise UsageError("no such folder")

    opened = []

    def film() -> Iterator[Any]:
        opened.append(1)
        yield frames[0]

    with pytest.raises(UsageError, match="no such folder"):
        Camera(play(film(), live=False), session, sinks=[Impossible()]).run()
    assert not opened


def test_a_recording_that_breaks_off_is_raised_at_the_end(
    session: Session, play: Callable[..., str], folder: Path, frames: Frames
) -> None:
    broken = play([frames[0], SourceError("the file is cut off")], live=False)
    settings = {"film": broken, "yard": CameraSettings(str(folder), pace="fast")}
    camera, answers = Camera(settings, session), []
    with pytest.raises(SourceError, match="the file is cut off"):
        for answer in camera:
            answers.append(answer.camera)
    assert (answers.count("film"), answers.count("yard")) == (1, 7)
    told = [e["text"] for e in camera.monitor.snapshot()["events"] if e["level"] == "error"]
    assert len(told) == 1 and "the file is cut off" in told[0]
    films = {"a": SourceError("one"), "b": SourceError("two")}
    both = Camera({n: play([fault], live=False) for n, fault in films.items()}, session)
    with pytest.raises(SourceError, match="(?s)(a: one.*b: two|b: two.*a: one)"):
        both.run()


def test_two_sinks_of_a_kind_are_counted_apart(session: Session, folder: Path) -> None:
    camera = Camera(str(folder), session, sinks=[Kept(), Kept()], pace="fast")
    camera.run()
    taken = {name: counts.taken for name, counts in camera.sinks().items()}
    assert taken == {"kept": 7, "kept 2": 7}


def test_a_bad_frame_is_counted_and_the_next_follows(
    session: Session, play: Callable[..., str], frames: Frames
) -> None:
    film = [frames[0], DataError("half a picture"), frames[1]]
    camera = Camera(play(film, live=False), session)
    assert len(list(camera)) == 2
    assert camera.monitor.snapshot()["cameras"]["camera"]["errors"] == 1


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"every": 0}, "every must be a whole number of at least 1, found 0"),
        ({"motion": 2.0}, "motion must be a share above 0 and below 1, found 2.0"),
        ({"deadline_ms": -1.0}, "deadline_ms must be a positive number, found -1.0"),
        ({"unsure_below": 1.5}, "unsure_below must be a probability in 0..1, found 1.5"),
        ({"pace": "slow"}, "pace must be one of real, fast, found 'slow'"),
        ({"timeout": float("nan")}, "timeout must be a positive number, found nan"),
        ({"source": ""}, "source must be text such as 0 or rtsp://..., found ''"),
        ({"smooth": "average"}, "smooth"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        CameraSettings(**{"source": "0", **fields})


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,2,3", "expected left, top, width and height in pixels such as"),
        ("1,2,3,4%", "expected left, top, width and height in pixels such as"),
        ("1,2,0,4", "a width and a height above 0"),
        ("60%,0%,50%,50%", "must lie within the picture"),
    ],
)
def test_regions_are_checked(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Region.parse(text)


def test_names_and_sources_are_checked(session: Session) -> None:
    with pytest.raises(UsageError, match="at least one source"):
        Camera({}, session)
    with pytest.raises(UsageError, match="name must be text"):
        Camera({3: "0"}, session)  # type: ignore[dict-item]
