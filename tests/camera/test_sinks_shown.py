"""What people and Prometheus see: the terminal, a log, metrics; and which sinks are made."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import python
from rich.console import Console
from shots import answer, monitor, shot, until

from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.shot import Event
from lgvit_edge.camera.sinks.base import SinkCounts
from lgvit_edge.camera.sinks.choice import make_sinks, sink_options
from lgvit_edge.camera.sinks.metrics import prometheus
from lgvit_edge.camera.sinks.screen import Screen, drawn
from lgvit_edge.errors import UsageError
from lgvit_edge.runtime.session import Session

HOSTILE = 'g[red]ate"\\\n\x1b[2J\udc80'


def busy() -> Monitor:
    """A monitor of three cameras that know a few things, and of two sinks."""
    watched = monitor("gate", HOSTILE, "idle")
    for camera in ("gate", HOSTILE):
        watched.event(Event(0.0, camera, "it delivers", state="live"))
        for frame in range(4):
            watched.shot(shot(camera, frame, label=f"[b]{camera}"))
    watched.shot(
        shot("gate", 4, answer(region="left", label=None), answer(region="right", confidence=0.5))
    )
    watched.missed("gate", dropped=3, skipped=2, errors=1)
    watched.event(Event(0.0, HOSTILE, "the connection\nbroke", "warning", "lost"))
    counts = {
        "jsonl": SinkCounts(5, 0, 0, 0, ""),
        "mqtt": SinkCounts(2, 1, 0, 2, "the broker is gone"),
    }
    watched.watch_sinks(lambda: counts)
    return watched


def text_of(watched: Monitor, width: int = 140) -> str:
    to = Console(file=io.StringIO(), width=width, emoji=False)
    to.print(drawn(watched.snapshot()))
    return str(to.file.getvalue())  # type: ignore[attr-defined]


def test_the_table_shows_each_camera_its_regions_sinks_that_fail_and_events() -> None:
    text = text_of(busy())
    rows = text.splitlines()
    assert "onnxruntime on a CPU, point balanced" in rows[0]
    (gate,) = [row for row in rows if row.startswith("gate")]
    assert re.search(r"live +left: unsure \(a\) +90.0% +2 +3 .* 5.0 +5.0 +3 +1$", gate)
    assert any(re.match(r" +right: a +50.0% +2 +3", row) for row in rows)
    assert any(re.match("idle +opening", row) for row in rows)
    assert "mqtt: the broker is gone; 1 lost; 2 waiting" in text and "jsonl" not in text
    assert re.search(r"\d\d:\d\d:\d\d warning: .*the connection broke", text)
    assert "\x1b" not in text and r"g[red]ate" in text and "[b]" in text


def test_a_narrow_terminal_cuts_names_and_not_lines() -> None:
    watched = monitor("x" * 300)
    watched.shot(shot("x" * 300, label="y" * 300))
    watched.event(Event(0.0, "", "z" * 300))
    for width in (80, 100):
        rows = text_of(watched, width).splitlines()
        assert len(rows) == 4 and all(len(row) <= width for row in rows)
        assert re.match(r"x+… +opening +y+… +90.0% +2 +3 +0.0 +5.0 +5.0 +0 +0$", rows[2])


@pytest.fixture
def terminal() -> Iterator[tuple[Console, list[str]]]:
    """A console on a real terminal, and what appears there."""
    master, slave = os.openpty()
    shown: list[str] = []

    def read() -> None:
        while True:
            try:
                data = os.read(master, 1 << 16)
            except OSError:
                return
            shown.append(data.decode(errors="replace"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with open(slave, "w", encoding="utf-8") as file:
        yield Console(file=file, width=120, height=30, force_terminal=True, _environ={}), shown
    reader.join(10)
    os.close(master)


def test_a_terminal_gets_a_live_table(terminal: tuple[Console, list[str]]) -> None:
    to, shown = terminal
    watched = busy()
    screen = Screen(watched, to=to)
    screen.start()
    until(lambda: "".join(shown).count("gate") > 2)
    watched.event(Event(0.0, "gate", "something new"))
    watched.shot(shot("gate", 9, label="another"))
    screen.close()
    until(lambda: "something new" in "".join(shown))
    assert "another" in "".join(shown)
    assert "\x1b[2J" not in "".join(shown)  # of the camera's name
    until(lambda: "".join(shown).rstrip().endswith("\x1b[?25h"))  # the cursor is back


def test_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, out = monitor("gate", "yard"), io.StringIO()
    screen = Screen(watched, to=Console(file=out, width=10_000, emoji=False), log_every=3600)
    screen.start()
    watched.event(Event(0.0, "gate", "it delivers", state="live"))
    watched.event(Event(0.0, "", "mqtt fails:\n\x1b[2J gone", "error"))
    watched.shot(shot("gate", 0))
    until(lambda: "frames" in out.getvalue())
    for frame in range(1, 5):
        watched.shot(shot("gate", frame, label="b"))
    screen.close()
    lines = [line.partition(" ")[2] for line in out.getvalue().splitlines()]
    assert sorted(lines[:2]) == ["error: mqtt fails: \\x1b[2J gone", "gate: it delivers"]
    assert re.fullmatch(r"gate: live, 1 frames, .*0 dropped, 0 errors; last: a 90.0% .*", lines[2])
    assert re.fullmatch(r"gate: live, 5 frames, .* last: b 90.0% at exit 2", lines[3])
    assert len(lines) == 4  # nothing of the camera at which nothing happens


def test_a_log_is_not_flooded() -> None:
    watched, out = monitor("gate"), io.StringIO()
    screen = Screen(watched, to=Console(file=out, width=10_000), log_every=0)
    watched.shot(shot("gate", 0))
    screen.start()
    until(lambda: out.getvalue())
    watched.event(Event(0.0, "gate", "later"))
    until(lambda: "later" in out.getvalue())
    screen.close()
    assert out.getvalue().count("frames") == 1  # nothing changed since


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    watched = busy()
    screen = Screen(watched, to=Console(file=Gone(), width=80))
    screen.start()
    screen._thread.join(10)
    screen.close()
    Screen(watched).close()  # never started


SAMPLE = re.compile(r'lgvit_edge_[a-z_]+(\{([a-z_]+="(\\.|[^"\\\n])*",?)+\})? -?[0-9.e+-]+')


def samples(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            assert SAMPLE.fullmatch(line), line
            name, _, value = line.rpartition(" ")
            assert name not in found
            found[name] = float(value)
    return found


def test_prometheus_reads_cameras_and_sinks() -> None:
    text = prometheus(busy())
    found = samples(text)
    text.encode()
    one = 'lgvit_edge_camera_{}{{camera="gate"{}}}'.format
    assert found[one("frames_total", "")] == 5 and found[one("unsure_total", "")] == 1
    assert found[one("dropped_total", "")] == 3 and found[one("skipped_total", "")] == 2
    assert found[one("errors_total", "")] == 1 and found[one("reconnects_total", "")] == 0
    assert found[one("answers_total", ',exit="2"')] == 6
    assert found[one("state", ',state="live"')] == 1 and found[one("state", ',state="lost"')] == 0
    assert found[one("latency_seconds", ',quantile="0.99"')] == pytest.approx(0.005)
    assert found[one("latency_seconds_count", "")] == 6
    assert found['lgvit_edge_camera_state{camera="idle",state="opening"}'] == 1
    assert found['lgvit_edge_camera_latency_seconds_count{camera="idle"}'] == 0
    assert found['lgvit_edge_sink_shots_total{sink="mqtt",fate="lost"}'] == 1
    assert found['lgvit_edge_sink_waiting{sink="mqtt"}'] == 2
    assert found['lgvit_edge_sink_failing{sink="mqtt"}'] == 1
    assert found['lgvit_edge_sink_failing{sink="jsonl"}'] == 0
    hostile = r"g[red]ate\"\\\n" + "\x1b[2J?"
    assert found[f'lgvit_edge_camera_frames_total{{camera="{hostile}"}}'] == 4
    assert 'lgvit_edge_images_total{stream="",exit="1",pass="1"}' in found  # the session's own
    kinds_of = dict(re.findall(r"# TYPE (\S+) (\S+)", text))
    assert len(kinds_of) == text.count("# TYPE")
    for name in found:
        base = re.split(r"[{ ]", name)[0]
        assert {base, base.removesuffix("_sum"), base.removesuffix("_count")} & set(kinds_of)
        assert base.endswith("_total") == (kinds_of.get(base) == "counter")


def test_every_sink_is_made_of_its_options(tmp_path: Path) -> None:
    asked = {
        "jsonl": str(tmp_path / "a.jsonl"),
        "jsonl_mb": 2.0,
        "mqtt": "mqtt://host",
        "mqtt_topic": "hall",
        "webhook": "http://host/x",
        "webhook_changes": True,
        "video": tmp_path / "videos",
        "keep_unsure": tmp_path / "unsure",
        "keep_mb": 20,
        "keep_every": 2.0,
        "unsure_below": 0.5,
    }
    assert {*asked, "cafile"} == set(sink_options())
    made = make_sinks(asked, recorded=["clip"], labels=("a",))
    assert [sink.name for sink in made] == ["jsonl", "mqtt", "webhook", "video", "keep-unsure"]
    assert make_sinks({"unsure_below": 0.5}, recorded=[], labels=()) == []


def test_a_value_that_cannot_be_names_the_sink(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^jsonl: max_mb must be a number"):
        make_sinks({"jsonl": "x", "jsonl_mb": 0}, recorded=[], labels=())
    with pytest.raises(UsageError, match="^keep-unsure: "):
        make_sinks({"keep_unsure": tmp_path, "keep_every": -1}, recorded=[], labels=("a",))


def test_prometheus_and_the_table_read_a_real_session(bundle: Path) -> None:
    with Session.open(bundle) as session:
        watched = Monitor(session, {"gate": "rtsp://gate"})
        said = session.predict(np.zeros((48, 64, 3), np.uint8))
        told = dataclasses.replace(answer(), guess=said.label, label=said.label, result=said)
        watched.shot(shot("gate", 0, told))
        assert samples(prometheus(watched))['lgvit_edge_camera_frames_total{camera="gate"}'] == 1
        assert "onnxruntime on " in text_of(watched)


def test_sinks_are_there_without_the_extra() -> None:
    code = """
import importlib, pkgutil, sys
for name in ("cv2", "av", "paho", "paho.mqtt", "paho.mqtt.client"):
    sys.modules[name] = None
import lgvit_edge.camera.drawing, lgvit_edge.camera.sinks as sinks
for module in pkgutil.iter_modules(sinks.__path__):
    importlib.import_module(f"{sinks.__name__}.{module.name}")
from lgvit_edge.camera.sinks.choice import make_sinks
print(make_sinks({"jsonl": "x"}, labels=(), recorded=())[0].name)
"""
    assert python(code).strip() == "jsonl"
