"""What an application expects of a session: threads, streams, closing, statistics, hooks."""

from __future__ import annotations

import gc
import re
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import Frame, frames

from lgvit_edge.errors import BackendError, DataError, UsageError
from lgvit_edge.runtime import Confidence, FixedExit, Result, Session, StreamError
from lgvit_edge.runtime.stats import WINDOW, Recorder


@pytest.fixture(params=["onnxruntime", "openvino"])
def session(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Session]:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    with Session.open(bundle, backend=request.param, policy=Confidence(0.35)) as opened:
        yield opened


def answers(results: list[Result]) -> list[tuple[int, int]]:
    return [(result.exit, result.class_index) for result in results]


def test_threads_get_the_answers_they_would_get_alone(session: Session) -> None:
    images = frames(24)
    expected = answers([session.predict(frame) for frame in images])
    found: dict[int, list[tuple[int, int]]] = {}
    barrier = threading.Barrier(4)

    def camera(number: int) -> None:
        barrier.wait()
        rows = [session.predict(frame) for frame in images[number::4]]
        rows += session.predict_batch(images[number::4])
        found[number] = answers(rows)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(camera, range(4), timeout=300))
    for number in range(4):
        assert found[number] == expected[number::4] * 2
    assert session.stats.images == 24 * 3


def test_a_closed_session_says_so(session: Session) -> None:
    session.predict(frames(1)[0])
    session.close()
    session.close()
    ready = session.prepare(frames(1))
    calls: list[Any] = [
        lambda: session.predict(frames(1)[0]),
        lambda: session.predict_batch(frames(2)),
        lambda: list(session.stream(frames(2))),
        lambda: session.exit_logits(frames(1)),
        lambda: session.baseline_logits(ready),
        lambda: session.timed_exits(ready),
        session.check_parity,
        session.warm_up,
    ]
    for call in calls:
        with pytest.raises(BackendError, match="the session is closed; open another one"):
            call()
    assert session.stats.images == 1


def test_closing_waits_for_what_runs(session: Session) -> None:
    """And nobody crashes: the prediction ends, or is told that the session is closed."""
    said: list[str] = []

    def camera() -> None:
        try:
            while True:
                session.predict(frame)
        except BackendError as error:
            said.append(str(error))

    frame = frames(1)[0]
    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            threads.submit(camera)
        time.sleep(0.2)
        session.close()
    assert said == ["the session is closed; open another one"] * 3


def test_a_session_that_nobody_holds_is_freed(bundle: Path) -> None:
    opened = Session.open(bundle, backend="onnxruntime")
    opened.predict(frames(1)[0])
    gone = weakref.ref(opened)
    del opened
    gc.collect()
    assert gone() is None


def test_a_stream_answers_in_order(session: Session) -> None:
    images = frames(30)
    expected = answers([session.predict(frame) for frame in images])
    for batch, ahead in ((None, None), (1, 1), (3, 2), (99, 50)):
        assert answers(list(session.stream(iter(images), batch=batch, ahead=ahead))) == expected
    assert list(session.stream([])) == []


def test_a_stream_reads_no_further_than_it_was_told(session: Session) -> None:
    taken = []

    def source() -> Iterator[Frame]:
        for number, frame in enumerate(frames(200)):
            taken.append(number)
            yield frame

    stream = session.stream(source(), batch=2, ahead=3)
    next(stream)
    time.sleep(0.3)
    # Two in the batch that was run, three that wait, one in the reader's hand.
    assert len(taken) <= 2 + 3 + 1
    stream.close()
    before = len(taken)
    time.sleep(0.2)
    assert len(taken) == before
    assert not [t for t in threading.enumerate() if t.name.startswith("lgvit-edge ")]


def unplugged(count: int) -> Iterator[Frame]:
    yield from frames(count, 1)
    raise OSError("the camera was unplugged")


def test_what_a_source_raises_comes_after_its_frames(session: Session) -> None:
    seen = []
    with pytest.raises(OSError, match="the camera was unplugged"):
        for result in session.stream(unplugged(5)):
            seen.append(result)
    assert len(seen) == 5
    bad = [*frames(2), np.zeros((4, 4), np.float32)]
    with pytest.raises(DataError, match="an image must be a uint8 array"):
        list(session.stream(bad))


def test_cameras_keep_their_order_and_their_frames(session: Session) -> None:
    cameras = {"gate": frames(15, 1), "yard": frames(9, 2), "roof": []}
    expected = {
        name: answers([session.predict(frame) for frame in images])
        for name, images in cameras.items()
    }
    found: dict[str, list[Result]] = {name: [] for name in cameras}
    for name, result in session.streams(cameras):
        assert isinstance(result, Result)
        found[name].append(result)
    assert {name: answers(results) for name, results in found.items()} == expected


def test_a_camera_that_fails_stops_no_other(session: Session) -> None:
    good = frames(20, 2)
    bad: list[Any] = [good[0], np.zeros((4, 4), np.float32), "missing.png", good[1]]
    found: dict[str, list[Any]] = {"gate": [], "yard": [], "roof": []}
    sources: dict[str, Any] = {"gate": unplugged(3), "yard": bad, "roof": good}
    for name, result in session.streams(sources):
        found[name].append(result)
    assert answers(found["roof"]) == answers([session.predict(frame) for frame in good])
    *before, end = found["gate"]
    assert len(answers(before)) == 3
    assert isinstance(end, StreamError) and isinstance(end.error, OSError)
    assert (end.image, end.ended) == (3, True)
    first, float_frame, missing, last = found["yard"]
    assert answers([first, last]) == answers(session.predict_batch(good[:2]))
    assert "float32 [4, 4]" in str(float_frame.error) and float_frame.image == 1
    assert "no such image: missing.png" in str(missing.error) and missing.image == 2
    assert not float_frame.ended and not missing.ended


def test_a_source_that_exits_ends_its_stream(session: Session) -> None:
    def source() -> Iterator[Frame]:
        yield from frames(1)
        raise SystemExit(3)

    (_, first), (_, end) = session.streams({"gate": source()})
    assert isinstance(first, Result) and isinstance(end, StreamError) and end.ended
    with pytest.raises(SystemExit):
        list(session.stream(source()))


def test_a_camera_may_fill_one_array_again_and_again(session: Session) -> None:
    """Frames of the network's own size are not resized, so nothing else would copy them."""
    session.policy = FixedExit(4)
    images = [np.full((32, 32, 3), 10 * number, np.uint8) for number in range(12)]

    def camera() -> Iterator[Frame]:
        buffer = np.empty((32, 32, 3), np.uint8)
        for image in images:
            buffer[:] = image
            yield buffer

    expected = [session.predict(image).confidence for image in images]
    stream = session.stream(camera(), batch=1, ahead=8)
    first = next(stream)
    time.sleep(0.3)  # the camera is far ahead
    found = [first.confidence, *(result.confidence for result in stream)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 6


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("shape", [(32, 32, 3), (32, 32, 4), (32, 32), (1, 32, 32, 3)])
def test_what_is_prepared_stays_when_the_camera_fills_its_array_again(
    session: Session, shape: tuple[int, ...], color: str
) -> None:
    image = np.full(shape, 50, np.uint8)
    ready = session.prepare(image if len(shape) == 4 else [image], color=color)
    image[:] = 200
    assert (ready.of(0) == 50).all()


def test_statistics_count_what_happened(session: Session) -> None:
    assert session.stats.images == 0 and session.stats.latency_ms == {}
    results = [session.predict(frame) for frame in frames(12)]
    results += session.predict_batch(frames(7, 3))
    found = session.stats
    assert found.images == sum(found.exits) == found.window == 19
    assert list(found.exits) == [sum(r.exit == e for r in results) for e in (1, 2, 3, 4)]
    final = found.exits[3]
    assert all(r.stopped == ("final" if r.exit == 4 else "policy") for r in results)
    assert found.stopped == {"policy": 19 - final, "final": final, "deadline": 0}
    assert found.late == 0
    times = [result.latency_ms for result in results]
    assert found.latency_ms["mean"] == pytest.approx(np.mean(times))
    assert found.latency_ms["p99"] == pytest.approx(np.percentile(times, 99))


def test_statistics_are_of_the_last_images(session: Session) -> None:
    result = session.predict(frames(1)[0])
    recorder = Recorder((1, 1, 1, 1))
    for _ in range(WINDOW + 5):
        recorder.add(result)
    assert (recorder.snapshot().images, recorder.snapshot().window) == (WINDOW + 5, WINDOW)


SAMPLE = re.compile(r'lgvit_edge_[a-z_]+(\{([a-z_]+="(\\.|[^"\\\n])*",?)*\})? -?[0-9.e+-]+')


def test_prometheus_reads_the_statistics(session: Session) -> None:
    for frame in frames(6):
        session.predict(frame)
    text = session.stats.prometheus({"camera": 'front "door"\\\n'})
    lines = text.splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.fullmatch(line) for line in samples), samples
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    for line in samples:
        name = re.split(r"[{ ]", line)[0]
        assert {name, name.removesuffix("_sum"), name.removesuffix("_count")} & typed
    by_exit = [line for line in samples if line.startswith("lgvit_edge_images_total")]
    assert sum(int(line.split()[-1]) for line in by_exit) == 6
    assert r'camera="front \"door\"\\\n"' in by_exit[0]
    assert 'lgvit_edge_latency_seconds_count{stream=""} 6' in session.stats.prometheus()
    with pytest.raises(UsageError, match="no Prometheus label: 'my camera'"):
        session.stats.prometheus({"my camera": "x"})


def test_hooks_see_every_result(session: Session) -> None:
    seen: list[Result] = []
    session.hooks.append(seen.append)
    results = [session.predict(frames(1)[0]), *session.predict_batch(frames(6))]
    assert seen == results
    row = seen[0].to_json()
    assert row["exit"] == seen[0].exit and row["pace"] is None

    def full(_: Result) -> None:
        raise OSError("no space left on the log's disk")

    session.hooks.append(full)
    with pytest.raises(OSError, match="no space left"):
        session.predict(frames(1)[0])
    session.hooks.clear()
    session.predict(frames(1)[0])


def test_warming_up_tells_what_the_chain_takes(bundle: Path) -> None:
    with Session.open(bundle, warm_up=True) as session:
        assert session.stats.images == 0  # it is nobody's image
        assert 0 < session.warm_up(3) < 1000
