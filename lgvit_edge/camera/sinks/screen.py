"""The terminal: one live table of all cameras, or lines for a log where there is no terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lgvit_edge._support.terminal import console, plain, say, table
from lgvit_edge.camera.monitor import Monitor

_SHOWN_EVERY = 0.25  # seconds
_EVENTS = 6  # lines
_STYLES = {"live": "green", "stalled": "yellow", "lost": "red", "error": "red", "warning": "yellow"}
_LOGGED = ("state", "frames", "answers", "dropped", "errors")


class Screen:
    """Shows what a monitor knows, from ``start`` to ``close``, in a thread of its own.

    Where there is no terminal, it writes each event as a line, and a line for each camera every
    ``log_every`` seconds while something happens there.
    """

    def __init__(self, monitor: Monitor, *, to: Console = console, log_every: float = 60.0) -> None:
        """Take what is shown, and where; standard output is ``to``'s default."""
        self._monitor, self._to, self._log_every = monitor, to, log_every
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
        self._seen = 0  # number of the last event that was logged
        self._logged: dict[str, tuple[float, tuple[Any, ...]]] = {}  # when, and what

    def start(self) -> None:
        """Begin to show."""
        self._thread.start()

    def close(self) -> None:
        """Show the end, and stop; a terminal that hangs is left behind."""
        self._ends.set()
        if self._thread.ident is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        try:
            # A pipe is called a terminal where FORCE_COLOR is set, as in CI.
            shown = self._to.is_terminal and self._to.file.isatty()
            if shown and not self._to.is_dumb_terminal:
                self._show()
            else:
                self._log()
        except OSError:
            return  # the terminal is gone, which is no reason to end

    def _show(self) -> None:
        with Live(console=self._to, auto_refresh=False, redirect_stdout=False) as live:
            while True:
                last = self._ends.wait(_SHOWN_EVERY)
                live.update(drawn(self._monitor.snapshot()), refresh=True)
                if last:
                    return

    def _log(self) -> None:
        while True:
            last = self._ends.wait(_SHOWN_EVERY)
            known = self._monitor.snapshot(events_after=self._seen)
            for event in known["events"]:
                self._seen = event["number"]
                say(f"{_clock(event['time'])} {_event(event)}", self._to)
            now = time.monotonic()
            for name, camera in known["cameras"].items():
                at, what = self._logged.get(name, (now - self._log_every, ()))
                news = tuple(camera[key] for key in _LOGGED)
                if news != what and (last or now - at >= self._log_every) and camera["frames"]:
                    self._logged[name] = now, news
                    say(f"{_clock(known['time'])} {_line(name, camera)}", self._to)
            if last:
                return


def drawn(known: Mapping[str, Any]) -> Group:
    """Return a monitor's snapshot as tables for a terminal."""
    parts: list[Table | Text] = [_on_a_line(_headline(known), "bold"), _cameras(known)]
    for name, counts in known["sinks"].items():
        if counts["error"] or counts["lost"] or counts["refused"]:
            style = "red" if counts["error"] else "yellow"
            parts.append(_on_a_line(f"{name}: {_fate(counts)}", style))
    for event in known["events"][-_EVENTS:]:
        line = f"{_clock(event['time'])} {_event(event)}"
        parts.append(_on_a_line(line, _STYLES.get(event["level"], "dim")))
    return Group(*parts)


def _on_a_line(text: str, style: str = "") -> Text:
    """Return text that stays on one line, cut where it is too long."""
    line = plain(" ".join(text.split()), style)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _headline(known: Mapping[str, Any]) -> str:
    minutes, seconds = divmod(int(known["uptime_s"]), 60)
    runs = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
    point = f", point {known['point']}" if known["point"] else ""
    watts = "".join(f", {value:.1f} W {name}" for name, value in known["watts"].items())
    return f"{known['backend']} on {known['device']}{point}, for {runs}{watts}"


def _cameras(known: Mapping[str, Any]) -> Table:
    numbers = ("confidence", "exit", "block", "fps", "p50 ms", "p99 ms", "dropped", "errors")
    rows = table("camera", "state", "answer", numbers=numbers)
    rows.columns[1].no_wrap = True  # names give way first
    for name, camera in known["cameras"].items():
        latency = camera["latency_ms"]
        measured = [f"{latency[q]:.1f}" if latency else "" for q in ("p50", "p99")]
        numbers_shown = [f"{camera['fps']:.1f}", *measured, camera["dropped"], camera["errors"]]
        state = plain(camera["state"], _STYLES.get(camera["state"], "dim"))
        first, *regions = camera["last"] or [None]
        rows.add_row(_on_a_line(name), state, *_answer(first), *map(plain, map(str, numbers_shown)))
        for answer in regions:
            rows.add_row("", "", *_answer(answer))
    return rows


def _answer(answer: Mapping[str, Any] | None) -> list[Text]:
    if answer is None:
        return [plain("")] * 4
    text = f"unsure ({answer['guess']})" if answer["unsure"] else answer["guess"]
    if answer["region"] is not None:
        text = f"{answer['region']}: {text}"
    style = "yellow" if answer["unsure"] else ""
    sure = _sure(answer)
    return [_on_a_line(text, style), *map(plain, (sure, str(answer["exit"]), str(answer["block"])))]


def _sure(answer: Mapping[str, Any]) -> str:
    sure: float = answer["confidence"]
    return f"{sure:.1%}" if answer["measure"] == "probability" else f"{sure:.3f}"


def _line(name: str, camera: Mapping[str, Any]) -> str:
    latency = camera["latency_ms"]
    measured = f", p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms" if latency else ""
    said = ", ".join(
        f"{_answer(answer)[0].plain} {_sure(answer)} at exit {answer['exit']}"
        for answer in camera["last"]
    )
    return (
        f"{name}: {camera['state']}, {camera['frames']} frames, {camera['fps']:.1f}/s{measured}, "
        f"{camera['dropped']} dropped, {camera['errors']} errors; last: {said}"
    )


def _event(event: Mapping[str, Any]) -> str:
    of = f"{event['camera']}: " if event["camera"] else ""
    level = "" if event["level"] == "info" else f"{event['level']}: "
    return " ".join(f"{level}{of}{event['text']}".split())


def _fate(counts: Mapping[str, Any]) -> str:
    shown = [f"{counts[key]} {key}" for key in ("lost", "refused", "waiting") if counts[key]]
    return "; ".join([*([counts["error"]] if counts["error"] else []), *shown])


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
