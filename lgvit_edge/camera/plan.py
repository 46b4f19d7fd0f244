"""What one run of the application does, made from options and camera.toml."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lgvit_edge.camera.settings import CameraSettings, Region
from lgvit_edge.camera.sinks.base import Sink
from lgvit_edge.camera.sinks.choice import (
    make_sinks,
    sink_options,
    unused_options,
    written_folders,
)
from lgvit_edge.camera.sources.base import kind_of
from lgvit_edge.errors import UsageError
from lgvit_edge.runtime.session import Session
from lgvit_edge.runtime.target_rate import TargetRate

PAGE = "127.0.0.1:8765"
_NAMED = re.compile(r"([^\s=/:?!]+)=(.*)", re.DOTALL)
_REGION = re.compile(r"(?:([^\s=:]+):)?([^\s=:]+)=(.+)")
# Keys of a camera's own table; ``roi`` becomes ``regions``.
OF_CAMERA = ("roi", *(f.name for f in fields(CameraSettings) if f.name != "regions"))

# Options that say how images stop; of these one is given.
DECIDE = ("policy", "point", "fps")

Where = Callable[[str], str]


@dataclass(frozen=True)
class Plan:
    """Everything that one run does.

    Attributes:
        engines: folder of the bundle.
        open_session: opens it, given this plan.
        cameras: how each camera is read and answered, by name.
        policy, point, fps: how images stop; at most one of them, None for the bundle's policy.
        values: what was said of sinks, by the names of the options.
        page: host and port of the live page; None for no page.
        page_names: further names under which the page may be asked for.
        log: file that events are logged in.
        quiet: whether no table is shown.
    """

    engines: Path
    open_session: Callable[[Plan], Session]
    cameras: Mapping[str, CameraSettings]
    policy: str | None = None
    point: str | None = None
    fps: float | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    page: tuple[str, int] | None = None
    page_names: tuple[str, ...] = ()
    log: Path | None = None
    quiet: bool = False

    def open(self) -> Session:
        """Open the session, warmed up, with the frame rate it is to keep.

        Raises:
            BundleError, BackendError, MissingDependency, UsageError: as ``Session.open``.
        """
        session = self.open_session(self)
        try:
            if self.fps is not None:
                images = sum(max(1, len(camera.regions)) for camera in self.cameras.values())
                session.policy = TargetRate(self.fps * images)
            session.warm_up()
        except BaseException:
            session.close()
            raise
        return session

    def sinks(self, session: Session) -> list[Sink]:
        """Make the sinks, none of them opened; raises ``UsageError`` as they do."""
        recorded = [n for n, c in self.cameras.items() if not kind_of(c.address).live]
        return make_sinks(self.values, labels=session.manifest.labels, recorded=recorded)

    @property
    def written(self) -> list[Path]:
        """Folders that the run writes to."""
        return written_folders(self.values) + ([self.log.parent] if self.log else [])


def make_plan(
    values: Mapping[str, Any],
    cameras: Mapping[str, Mapping[str, Any]],
    where: Where,
    where_of: Callable[[str, str], str],
    *,
    open_session: Callable[[Plan], Session],
    typed: Collection[str] = (),
) -> Plan:
    """Check all values and make a plan of them.

    Args:
        values: by the names of the options; those that were not said are absent.
        cameras: the tables of single cameras, by name; what they do not say is taken from
            ``values``.
        typed: names of the values that go before the tables of single cameras, too.
        where: tells where a value was said, such as ``--fps`` or ``camera.toml, line 3, fps``.
        where_of: the same of a value in a camera's table, given the camera's name first.
        open_session: opens the session of the plan.

    Raises:
        UsageError: names where the value was said, what is expected and what was found.
    """
    if (engines := values.get("engines")) is None:
        raise UsageError("no bundle was given; add --engines out/, the folder of an export")
    sources = parse_sources(values.get("source") or ())
    names = list(dict.fromkeys([*cameras, *sources]))
    if not names:
        raise UsageError(
            "no camera was given; add --source 0 for the first camera of this machine, or see "
            "--source in lgvit-edge camera --help"
        )
    regions = parse_regions(values.get("roi") or (), names, where("roi"))
    for_all = {key: values[key] for key in OF_CAMERA if key in values}
    made = {}
    for name in names:
        # Regions that were typed are of one camera or of all.
        replaced = set(typed) - {"source", *(() if name in regions else ("roi",))}
        if name in sources:
            replaced.add("source")
        own = {key: v for key, v in cameras.get(name, {}).items() if key not in replaced}

        def place(key: str, name: str = name, own: Mapping[str, Any] = own) -> str:
            return where_of(name, key) if key in own else where(key)

        given = {**for_all, **own}
        if name in sources:
            given["source"] = sources[name]
        elif "source" not in own:
            raise UsageError(f"camera {name} has no source; add a line: source = ...")
        given["regions"] = regions.get(name, {})
        given.pop("roi", None)
        if "roi" in own:
            given["regions"] = _own_regions(own["roi"], name, place("roi"))
        made[name] = _camera(given, place)
    said = [key for key in DECIDE if values.get(key) is not None]
    if len(said) > 1:
        raise UsageError(
            f"{where(said[0])} and {where(said[1])} both decide when images stop: give one of them"
        )
    fps = values.get("fps")
    if fps is not None and not 0 < fps < 1e6:
        raise UsageError(f"{where('fps')}: expected a number above 0, found {fps!r}")
    for key, users in unused_options(values).items():
        options = " or ".join(f"--{user.replace('_', '-')}" for user in users)
        raise UsageError(f"{where(key)}: nothing uses it; give {options} as well, or leave it out")
    page, page_names = None, tuple(values.get("page_name") or ())
    if (text := values.get("page")) is not None:
        page = parse_address(text, where("page"))
    elif page_names:
        raise UsageError(f"{where('page_name')}: there is no page; give --page as well")
    return Plan(
        engines=Path(engines),
        open_session=open_session,
        cameras=made,
        policy=values.get("policy"),
        point=values.get("point"),
        fps=fps,
        values={name: values[name] for name in sink_options() if name in values},
        page=page,
        page_names=page_names,
        log=None if (log := values.get("log")) is None else Path(log),
        quiet=bool(values.get("quiet")),
    )


def _camera(given: Mapping[str, Any], where: Where) -> CameraSettings:
    """Make one camera's settings; let errors say where the value stands."""
    try:
        settings = CameraSettings(**given)
    except UsageError as error:
        key = re.split(r"[ :]", str(error))[0]
        raise UsageError(f"{where(key)}: {error}") from None
    try:
        kind_of(settings.address).check(settings.address)
    except UsageError as error:
        raise UsageError(f"{where('source')}: {error}") from None
    return settings


def _own_regions(roi: Any, camera: str, where: str) -> dict[str, Region]:
    """Read the regions of a camera's own table: texts by name, or a list as ``--roi`` takes it."""
    if isinstance(roi, Mapping):
        return {name: _region(str(text), where) for name, text in roi.items()}
    return parse_regions([str(text) for text in roi], [camera], where).get(camera, {})


def parse_sources(texts: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=SOURCE`` or ``SOURCE``, several times; those without a name get one.

    Raises:
        UsageError: a name is used twice, or there is no source behind it.
    """
    sources: dict[str, str] = {}
    for number, text in enumerate(texts, 1):
        found = _NAMED.fullmatch(text)
        name, address = (
            (found[1], found[2])
            if found
            else (
                "camera" if len(texts) == 1 else f"camera{number}",
                text,
            )
        )
        if not address:
            raise UsageError(f"--source {name}=: expected a source behind the name, found nothing")
        if name in sources:
            raise UsageError(f"--source: two cameras are called {name}; give each its own name")
        sources[name] = address
    return sources


def parse_regions(
    texts: Sequence[str], cameras: Sequence[str], where: str
) -> dict[str, dict[str, Region]]:
    """Read ``[CAMERA:]NAME=X,Y,W,H``, several times; return the regions of each camera by name.

    Raises:
        UsageError: one cannot be read, is of no camera, or a name is used twice.
    """
    regions: dict[str, dict[str, Region]] = {}
    for text in texts:
        found = _REGION.fullmatch(text)
        if not found:
            raise UsageError(
                f"{where}: expected NAME=X,Y,W,H such as door=10%,0%,50%,50%; found {text!r}"
            )
        camera, name, box = found.groups()
        if camera is not None and camera not in cameras:
            raise UsageError(
                f"{where}: there is no camera {camera!r}; this run has {', '.join(cameras)}"
            )
        for each in cameras if camera is None else [camera]:
            if name in regions.setdefault(each, {}):
                raise UsageError(f"{where}: two regions of {each} are called {name}")
            regions[each][name] = _region(box, where)
    return regions


def _region(text: str, where: str) -> Region:
    try:
        return Region.parse(text)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def parse_address(text: str, where: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, ``HOST``, ``:PORT`` or nothing, which is ``PAGE``.

    Raises:
        UsageError: it is none of these.
    """
    default_host, default_port = PAGE.rsplit(":", 1)
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, default_port
    host = host.removeprefix("[").removesuffix("]") or default_host
    if not port.isdecimal() or not 0 <= int(port) < 1 << 16 or re.search(r"[\s/?#@]", host):
        raise UsageError(f"{where}: expected HOST:PORT such as {PAGE}, found {text!r}")
    return host, int(port)


def is_this_machine(host: str) -> bool:
    """Return whether only programs of this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
