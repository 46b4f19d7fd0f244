"""The ``camera`` command: answers cameras for as long as it runs, and hands the answers on."""

from __future__ import annotations

import functools
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from typer import Exit, Option

from lgvit_edge._support.finite_json import dumps
from lgvit_edge._support.terminal import console, errors, plain, say, table
from lgvit_edge.camera.settings import CameraSettings
from lgvit_edge.cli.options import (
    TRUSTED_KEYS,
    AsJson,
    PointName,
    PolicyText,
    RunOptions,
    with_options,
)
from lgvit_edge.errors import SourceError, UsageError

if TYPE_CHECKING:
    from lgvit_edge.camera.application import Outcome
    from lgvit_edge.camera.plan import Plan
    from lgvit_edge.runtime import Session

_CAMERAS, _ANSWERS, _SINKS = "Cameras", "Answers", "Where answers go"
_DEFAULT = CameraSettings("0")
_DEMO = Path("out-demo")
_TOKEN = "LGVIT_EDGE_PAGE_TOKEN"  # what viewers from other machines must know


@dataclass(frozen=True)
class CameraOptions:
    """What ``lgvit-edge camera`` does; None: not said. The same names are keys of camera.toml."""

    engines: Annotated[
        Path | None,
        Option(help="Bundle folder that `lgvit-edge export` wrote; needed but for --demo."),
    ] = None
    source: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]SOURCE",
            rich_help_panel=_CAMERAS,
            help="A camera, and how it is called; may be repeated. 0 or /dev/video0 (USB), csi:0 "
            "(Jetson), rtsp://..., http://... (MJPEG), a video file, a folder of images, a "
            "GStreamer pipeline with ! in it, - (standard input).",
        ),
    ] = None
    every: Annotated[
        int | None,
        Option(
            rich_help_panel=_CAMERAS,
            help="Answer one frame of so many. Default: 1, every frame.",
        ),
    ] = None
    motion: Annotated[
        float | None,
        Option(
            rich_help_panel=_CAMERAS,
            metavar="SHARE",
            help="Answer only frames in which at least this share of the pixels moves, such as "
            "0.01. Default: all frames.",
        ),
    ] = None
    roi: Annotated[
        list[str] | None,
        Option(
            metavar="[CAMERA:]NAME=X,Y,W,H",
            rich_help_panel=_CAMERAS,
            help="Part of the picture to classify by itself: left, top, width and height, all in "
            "pixels of the frame or, as in 10%,0%,50%,50%, all in parts of it; may be repeated. "
            "Default: the whole picture.",
        ),
    ] = None
    loop: Annotated[
        bool | None,
        Option(
            "--loop/--no-loop",
            rich_help_panel=_CAMERAS,
            help="Begin files and folders again at their end. Default: --no-loop.",
        ),
    ] = None
    pace: Annotated[
        str | None,
        Option(
            rich_help_panel=_CAMERAS,
            help="Of files and folders: real (their own frame rate) or fast (as fast as possible). "
            f"Default: {_DEFAULT.pace}.",
        ),
    ] = None
    timeout: Annotated[
        float | None,
        Option(
            rich_help_panel=_CAMERAS,
            help="Seconds without a frame after which a camera has stalled and is opened again. "
            f"Default: {_DEFAULT.timeout:g}.",
        ),
    ] = None
    policy: PolicyText = None
    point: PointName = None
    fps: Annotated[
        float | None,
        Option(
            rich_help_panel=_ANSWERS,
            help="Frames per second to keep for every camera and region, instead of --policy and "
            "--point: images leave earlier while the machine is busy. Default: no rate is kept.",
        ),
    ] = None
    deadline_ms: Annotated[
        float | None,
        Option(
            rich_help_panel=_ANSWERS,
            help="Milliseconds from the delivery of a frame to its answer; what is not sure by "
            "then is answered by the exit reached. Default: none.",
        ),
    ] = None
    smooth: Annotated[
        str | None,
        Option(
            metavar="KIND:FRAMES[:SECONDS]",
            rich_help_panel=_ANSWERS,
            help="Smooth answers over frames: average:8 averages their log-probabilities, older "
            "frames counting less, and lets a steady scene leave earlier; majority:8 takes the "
            "most frequent answer. After 5 seconds without a frame, or SECONDS, it begins anew. "
            "Default: not at all.",
        ),
    ] = None
    unsure_below: Annotated[
        float | None,
        Option(
            metavar="PROBABILITY",
            rich_help_panel=_ANSWERS,
            help="Answers below this probability are called unsure; not with policies and points "
            "that decide by entropy. Default: none.",
        ),
    ] = None
    jsonl: Annotated[
        str | None,
        Option(
            metavar="FILE|-",
            rich_help_panel=_SINKS,
            help="Append every answer as a line of JSON; - is standard output.",
        ),
    ] = None
    jsonl_mb: Annotated[
        float | None,
        Option(
            rich_help_panel=_SINKS,
            help="Megabytes after which --jsonl begins a new file; three older ones stay. Default: "
            "never.",
        ),
    ] = None
    mqtt: Annotated[
        str | None,
        Option(
            metavar="URL",
            rich_help_panel=_SINKS,
            help="Publish every answer to an MQTT broker: mqtt://host or mqtts://host; user and "
            "password from LGVIT_EDGE_MQTT_USERNAME and LGVIT_EDGE_MQTT_PASSWORD.",
        ),
    ] = None
    mqtt_topic: Annotated[
        str | None,
        Option(
            rich_help_panel=_SINKS, help="Topic that all others begin with. Default: lgvit-edge."
        ),
    ] = None
    webhook: Annotated[
        str | None,
        Option(
            metavar="URL",
            rich_help_panel=_SINKS,
            help="Post every answer to this address; a bearer token from LGVIT_EDGE_WEBHOOK_TOKEN.",
        ),
    ] = None
    webhook_changes: Annotated[
        bool | None,
        Option(
            "--webhook-changes/--webhook-all",
            rich_help_panel=_SINKS,
            help="Post an answer only when it is another than the one before. Default: "
            "--webhook-all.",
        ),
    ] = None
    cafile: Annotated[
        Path | None,
        Option(
            rich_help_panel=_SINKS,
            help="Certificates (PEM) that vouch for the broker and the webhook's server. Default: "
            "the system's.",
        ),
    ] = None
    video: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            rich_help_panel=_SINKS,
            help="Write videos of each camera, with its answers, into this folder. Of each camera "
            "the newest 24 files of at most 1 GB or an hour stay; older ones are deleted.",
        ),
    ] = None
    keep_unsure: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            rich_help_panel=_SINKS,
            help="Store pictures, of regions where there are any, that are unsure or reach the "
            "final classifier, to label and train on.",
        ),
    ] = None
    keep_mb: Annotated[
        int | None,
        Option(
            rich_help_panel=_SINKS,
            help="Megabytes that kept frames may take; the oldest go first. Default: 1000.",
        ),
    ] = None
    keep_every: Annotated[
        float | None,
        Option(
            rich_help_panel=_SINKS,
            help="Seconds between two kept pictures of a camera, or of a region. Default: 10.",
        ),
    ] = None
    page: Annotated[
        str | None,
        Option(
            metavar="[HOST:PORT]",
            rich_help_panel=_SINKS,
            help="Serve a live page, and Prometheus' /metrics. Default address: 127.0.0.1:8765. At "
            f"any other host viewers need a token: {_TOKEN}, or one that is made and printed.",
        ),
    ] = None
    page_name: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            rich_help_panel=_SINKS,
            help="Another name under which the page may be asked for, such as a reverse proxy's; "
            "may be repeated. Viewers then need the token.",
        ),
    ] = None
    log: Annotated[
        Path | None,
        Option(
            rich_help_panel=_SINKS,
            help="File to log events in: cameras lost and back, sinks that fail. It rotates.",
        ),
    ] = None
    quiet: Annotated[
        bool | None,
        Option("--quiet/--no-quiet", rich_help_panel=_SINKS, help="Show no table of the cameras."),
    ] = None


@functools.partial(with_options, name="options", make=CameraOptions)
@with_options
def camera(
    options: CameraOptions,
    config: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="File of options, such as camera.toml; what is typed goes before it.",
        ),
    ] = None,
    check: Annotated[
        bool,
        Option("--check", help="Open everything once, tell what would be done, and end."),
    ] = False,
    demo: Annotated[
        bool,
        Option("--demo", help="Show the digits of `lgvit-edge demo` on a belt; needs no camera."),
    ] = False,
    systemd: Annotated[
        bool, Option("--systemd", help="Print a unit that runs this command as a service.")
    ] = False,
    *,
    run: RunOptions,
    as_json: AsJson = False,
) -> None:
    """Answer cameras, live, and hand the answers to files, brokers, a web page."""
    from lgvit_edge.camera.signals import ended_by_sigterm

    with ended_by_sigterm():  # a service may be stopped while it starts
        _act(options, run, config, check=check, demo=demo, systemd=systemd, as_json=as_json)


def _act(
    options: CameraOptions,
    run: RunOptions,
    config: Path | None,
    *,
    check: bool,
    demo: bool,
    systemd: bool,
    as_json: bool,
) -> None:
    from lgvit_edge.camera.application import Application

    typed = _said(options) | _said(run)
    if demo:
        typed = _demo_values() | typed

    def load() -> Plan:
        return _plan(typed, config)

    if systemd:
        _print_unit(load(), reloads=config is not None)
        return
    if check:
        _check(load(), as_json)
        return
    plan = load()
    # What people read stays out of what programs read.
    out = errors if plan.values.get("jsonl") == "-" or as_json else console
    token = os.environ.get(_TOKEN) or secrets.token_urlsafe(24)
    reload = None if config is None else load
    application = Application(reload, screen=out, token=token)
    outcome = application.run(plan)
    if as_json:
        print(dumps(outcome.to_json()))
    else:
        _print_outcome(outcome, out)
    if outcome.failure is not None:
        raise outcome.failure
    if outcome.interrupted:
        raise Exit(130)


def _said(options: CameraOptions | RunOptions) -> dict[str, Any]:
    """Return the options that were typed, by name."""
    values = {f.name: (getattr(options, f.name), f.default) for f in fields(options)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _types(options: type[CameraOptions] | type[RunOptions]) -> dict[str, tuple[type, ...]]:
    """Return what may stand in camera.toml for each option."""
    kinds: dict[str, tuple[type, ...]] = {}
    for name, hint in get_type_hints(options).items():
        kind = next((k for k in get_args(hint) or (hint,) if k is not type(None)), hint)
        kinds[name] = (str,) if kind is Path else (list,) if get_args(kind) else (kind,)
    return kinds


def _plan(typed: Mapping[str, Any], file: Path | None) -> Plan:
    """Make the plan of what was typed and, behind it, what the file says."""
    from lgvit_edge.camera.config import read_config
    from lgvit_edge.camera.plan import DECIDE, OF_CAMERA, make_plan

    known = _types(CameraOptions) | _types(RunOptions)
    of_camera = {key: known[key] for key in OF_CAMERA if key != "source"}
    of_camera |= {"source": (str, int), "roi": (list, dict)}
    config = None
    if file is not None:
        config = read_config(file, known | {"source": (list, str)}, of_camera)
    values = {**(config.values if config else {}), **typed}
    if any(key in typed for key in DECIDE):  # instead of what the file says
        values = {key: v for key, v in values.items() if key not in DECIDE or key in typed}
    if isinstance(values.get("source"), str):
        values["source"] = [values["source"]]

    def where(key: str) -> str:
        if config is not None and key in config.values and key not in typed:
            return config.where(key)
        return f"--{key.replace('_', '-')}"

    def where_of(camera: str, key: str) -> str:
        assert config is not None
        return config.where_of(camera, key)

    run = RunOptions(**{f.name: values[f.name] for f in fields(RunOptions) if f.name in values})

    def open_session(plan: Plan) -> Session:
        return run.open(plan.engines, plan.policy, plan.point)

    return make_plan(
        values,
        config.cameras if config else {},
        where,
        where_of,
        open_session=open_session,
        typed=typed.keys(),
    )


def _demo_values() -> dict[str, Any]:
    """Return the options of the demo, which typed ones replace."""
    if not (_DEMO / "bundle" / "manifest.json").exists():
        raise UsageError(
            f"--demo: expected the demo's model in {_DEMO}/bundle, found none; run: lgvit-edge demo"
        )
    from lgvit_edge.camera.sources.scene import PREFIX, WINDOW

    box = (WINDOW.left, WINDOW.top, WINDOW.width, WINDOW.height)
    return {
        "engines": _DEMO / "bundle",
        "source": [f"belt={PREFIX}{_DEMO / 'digits'}"],
        "roi": [f"window={','.join(f'{side:g}' for side in box)}"],
        "smooth": "majority:5",
        "unsure_below": 0.7,
        "page": "",
    }


def _print_unit(plan: Plan, *, reloads: bool) -> None:
    import getpass

    from lgvit_edge.camera.systemd import unit

    program = Path(sys.argv[0]).resolve()
    command = (
        [str(program)] if program.name == "lgvit-edge" else [sys.executable, "-m", "lgvit_edge"]
    )
    arguments = [a for a in sys.argv[1:] if a not in ("--systemd", "--debug")]
    trusted = os.environ.get(TRUSTED_KEYS)  # which services do not inherit
    if trusted and not any(a.startswith("--trusted-keys") for a in arguments):
        arguments += ["--trusted-keys", os.path.abspath(trusted)]
    text = unit(
        [*command, *arguments],
        getpass.getuser(),
        folder=Path.cwd(),
        writes=[folder.absolute() for folder in plan.written],
        reloads=reloads,
    )
    print(text, end="")


def _check(plan: Plan, as_json: bool) -> None:
    """Open everything once and show what was found; raise where something cannot be opened."""
    from lgvit_edge.camera.check import check_plan

    record = check_plan(plan)
    if as_json:
        print(dumps(record))
    else:
        bundle = record["session"]
        say(f"bundle {plan.engines}: {bundle['backend']}, policy {bundle['policy']}")
        rows = table("camera", "source", "kind", "picture", "region", "first answer")
        for row in record["cameras"]:
            rows.add_row(*(plain(str(row[key])) for key in row if key != "fault"))
        console.print(rows)
        for row in record["places"]:
            say(f"{row['name']}: {row['fault'] or row['about']}")
    if record["faults"]:
        raise SourceError("; ".join(record["faults"]))


def _print_outcome(outcome: Outcome, to: Any) -> None:
    """Print what the run did, once it is over."""
    numbers = ("frames", "answers", "unsure", "dropped", "skipped", "errors", "reconnects")
    rows = table("camera", numbers=numbers)
    snapshot = outcome.monitor.snapshot()
    for name, row in snapshot["cameras"].items():
        rows.add_row(plain(name), *(f"{row[key]:,}" for key in numbers))
    to.print(rows)
    for name, counts in outcome.sinks.items():
        lost = f", lost {counts.lost:,}" if counts.lost else ""
        refused = f", refused {counts.refused:,}" if counts.refused else ""
        say(f"{name}: {counts.taken:,} frames taken{lost}{refused}", to)
