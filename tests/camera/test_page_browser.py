"""The live page in a real browser."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import PROGRAM, Chromium
from small import point

from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.page.server import Page
from lgvit_edge.camera.shot import Answer, Event, Shot
from lgvit_edge.camera.sinks.base import SinkCounts
from lgvit_edge.policies import Confidence
from lgvit_edge.runtime import Session

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("cv2")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium or Chrome on the PATH")

HOSTILE = "<img src=x onerror=\"document.title='hit'\">\u202egnp.exe a/../b?#%2e"
LABEL = "<script>document.title='hit'</script>"
NAMES = [HOSTILE, "7", "__proto__", *(f"camera {i}" for i in range(6))]


@pytest.fixture(scope="module")
def session(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    root = tmp_path_factory.mktemp("page") / "bundle"
    shutil.copytree(bundle, root)
    points = {name: point(Confidence(t)) for name, t in (("fast", 0.1), ("sure", 0.9))}
    add_to_manifest(root, open_bundle(root).manifest.identity, points)
    with Session.open(root) as session:
        yield session


@pytest.fixture(scope="module")
def monitor(session: Session) -> Iterator[Monitor]:
    """Of nine cameras that deliver all the time, but the last one is lost."""
    monitor = Monitor(session, dict.fromkeys(NAMES, "rtsp://***@camera/"))
    monitor.watch_sinks(lambda: {HOSTILE: SinkCounts(5, 1, 0, 0, LABEL)})
    image = np.zeros((90, 160, 3), np.uint8)
    image[:, :80] = (250, 60, 20)
    result = session.run(session.prepare([image]))[0]
    ended = threading.Event()

    def run() -> None:
        number = 0
        while not ended.wait(0.02):
            for name in NAMES[:-1]:
                now = time.time()
                answers = [
                    Answer(
                        name, region, box, number, now, label, LABEL, 0, 0.5, 5.0, None, 0, result
                    )
                    for region, box, label in (
                        (None, (0, 0, 160, 90), LABEL),
                        (HOSTILE, (16, 9, 80, 45), None),
                    )
                ]
                monitor.shot(Shot(name, number, now, tuple(answers), image, 15.0))
            number += 1

    for name in NAMES[:-1]:
        monitor.event(Event(time.time(), name, LABEL, state="live"))
    monitor.event(Event(time.time(), NAMES[-1], LABEL, "error", "lost"))
    thread = threading.Thread(target=run)
    thread.start()
    yield monitor
    ended.set()
    thread.join()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    chromium = Chromium(tmp_path_factory.mktemp("chromium"), height=2400)
    yield chromium
    chromium.close()


def served(monitor: Monitor, session: Session, port: int = 0) -> Page:
    page = Page(monitor, session, port=port)
    page.open()
    page.start()
    return page


def test_shows_nine_cameras_and_obeys_and_connects_again(
    chromium: Chromium, monitor: Monitor, session: Session
) -> None:
    page = served(monitor, session)
    try:
        chromium.call("Page.navigate", url=page.url)
        # A picture is in a canvas of its own size.
        chromium.wait_for("document.querySelectorAll('.card').length == 9")
        chromium.wait_for(
            "[...document.querySelectorAll('canvas')].slice(0, 8).every(c => c.width == 160)"
        )
        red = "document.querySelector('canvas').getContext('2d').getImageData(20, 20, 1, 1).data[0]"
        assert chromium.see(red) > 200
        states = chromium.see(
            "[...document.querySelectorAll('.title .pill')].map(p => p.innerText)"
        )
        assert [state.split()[-1] for state in states] == ["Live"] * 8 + ["Lost"]

        card = chromium.see("document.querySelector('.card').innerText")
        shown = HOSTILE.replace("\u202e", "\\u202e")
        assert shown in card and LABEL in card and f"unsure, perhaps {LABEL}" in card
        exit = f"of {len(session.manifest.segments)}, after block"
        assert exit in card and "50.0 %" in card and "5.0 ms" in card
        assert chromium.see("document.querySelector('.boxes bdi').textContent").startswith(shown)
        box = "document.querySelector('.boxes div').style"
        assert chromium.see(f"[{box}.left, {box}.top, {box}.width]") == ["10%", "10%", "50%"]
        side = chromium.see("document.querySelector('.side').innerText")
        assert f"{shown} fails: {LABEL}" in side and "error" in side
        assert "power" in side.lower() and "frames per second" in side
        assert chromium.see("document.title") == "Cameras – lgvit-edge"
        assert chromium.see("document.querySelectorAll('main img, main script').length") == 0

        chromium.see(
            "points.value = 'sure', points.dispatchEvent(new Event('change')), apply.click()"
        )
        chromium.wait_for("changed.textContent == 'Changed to sure.'")
        assert session.point == "sure"
        session.point = "fast"  # as another viewer would
        chromium.wait_for("points.value == 'fast'")

        # Below: nothing is asked for that cannot be seen.
        chromium.call(
            "Emulation.setDeviceMetricsOverride",
            width=390,
            height=500,
            deviceScaleFactor=1,
            mobile=True,
        )
        chromium.see("scrollTo(0, 0)")
        assert chromium.see("document.documentElement.scrollWidth") == 390
        deadline = time.monotonic() + 10
        while len(page._pictures._watched) > 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert chromium.complaints == []
    finally:
        page.stop()
    chromium.wait_for("!banner.hidden && banner.textContent.includes('No connection')")
    page = served(monitor, session, int(page.url.rsplit(":", 1)[1][:-1]))
    try:
        chromium.wait_for("banner.hidden && link.textContent == 'Connected'")
    finally:
        page.stop()
