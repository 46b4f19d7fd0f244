"""What the application knows of itself, as text for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from lgvit_edge.camera.monitor import Monitor
from lgvit_edge.camera.shot import State
from lgvit_edge.runtime.stats import label_value

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_COUNTED = {
    "frames": "Frames answered.",
    "unsure": "Answers too unsure to be used.",
    "late": "Answers after their deadline.",
    "dropped": "Frames that newer ones replaced.",
    "skipped": "Frames that needed no answer.",
    "errors": "Frames that could not be used.",
    "reconnects": "Times that a camera delivered again, after a loss.",
}
_FATES = ("taken", "lost", "refused")
# Samples of a metric: suffix of its name, labels, value.
_Samples = Iterator[tuple[str, dict[str, Any], Any]]


def prometheus(monitor: Monitor) -> str:
    """Return the counts of the session, cameras and sinks in Prometheus' text format 0.0.4."""
    known = monitor.snapshot()
    lines = [monitor.stats.prometheus()]
    for name, kind, text, samples in _metrics(known):
        lines.append(f"# HELP lgvit_edge_{name} {text}\n# TYPE lgvit_edge_{name} {kind}\n")
        for suffix, labels, value in samples:
            given = ",".join(f'{key}="{label_value(v)}"' for key, v in labels.items())
            shown = f"{{{given}}}" if given else ""
            lines.append(f"lgvit_edge_{name}{suffix}{shown} {value}\n")
    return "".join(lines)


def _metrics(known: Mapping[str, Any]) -> Iterator[tuple[str, str, str, _Samples]]:
    """Yield the name, kind, help and samples of each metric."""
    cameras, sinks = known["cameras"], known["sinks"]

    def of_cameras(key: str) -> _Samples:
        return (("", {"camera": name}, camera[key]) for name, camera in cameras.items())

    about = ("backend", "device", "precision", "policy", "point")
    info = {key: "" if known[key] is None else known[key] for key in about}
    yield "info", "gauge", "What runs.", iter([("", info, 1)])
    uptime = f"{known['uptime_s']:.1f}"
    yield "uptime_seconds", "gauge", "Time since the start.", iter([("", {}, uptime)])
    for key, text in _COUNTED.items():
        yield f"camera_{key}_total", "counter", text, of_cameras(key)
    exits = (
        ("", {"camera": name, "exit": exit}, count)
        for name, camera in cameras.items()
        for exit, count in enumerate(camera["exits"], 1)
    )
    yield "camera_answers_total", "counter", "Answers, by exit.", exits
    states = (
        ("", {"camera": name, "state": state}, int(camera["state"] == state))
        for name, camera in cameras.items()
        for state in get_args(State)
    )
    yield "camera_state", "gauge", "1 for the state that the camera is in.", states
    yield "camera_fps", "gauge", "Frames answered a second, lately.", of_cameras("fps")
    text = "Time from a frame's delivery to its answer; quantiles over the last answers."
    yield "camera_latency_seconds", "summary", text, _latencies(cameras)
    shots = (
        ("", {"sink": name, "fate": fate}, counts[fate])
        for name, counts in sinks.items()
        for fate in _FATES
    )
    yield "sink_shots_total", "counter", "Frames with answers, by what became of them.", shots
    waiting = (("", {"sink": name}, counts["waiting"]) for name, counts in sinks.items())
    yield "sink_waiting", "gauge", "Frames with answers that wait for the sink.", waiting
    failing = (("", {"sink": name}, int(bool(counts["error"]))) for name, counts in sinks.items())
    yield "sink_failing", "gauge", "1 while the sink does not work.", failing
    if known["cpu"] is not None:
        text = "Processor time of this process, in cores."
        yield "cpu_cores", "gauge", text, iter([("", {}, f"{known['cpu']:.3f}")])
    watts = (("", {"meter": name}, f"{value:.3f}") for name, value in known["watts"].items())
    yield "power_watts", "gauge", "Power, by meter.", watts


def _latencies(cameras: Mapping[str, Any]) -> _Samples:
    for name, camera in cameras.items():
        for quantile, ms in camera["latency_ms"].items():
            labels = {"camera": name, "quantile": int(quantile[1:]) / 100}
            yield "", labels, f"{ms / 1e3:.6f}"
        yield "_sum", {"camera": name}, f"{camera['latency_s']:.6f}"
        yield "_count", {"camera": name}, camera["answers"]
