"""The application as a service of systemd: what it tells systemd, and the unit that starts it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lgvit_edge._support.numbers import whole
from lgvit_edge._support.text import escaped
from lgvit_edge.camera.sources.base import without_secrets
from lgvit_edge.errors import UsageError, in_one_line

_LONGEST = 500  # characters of a status
_PATIENCE = 1.0  # seconds that systemd may take for a message; the application goes on without
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# What a quoted word of a unit cannot hold, or not for all versions of systemd.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Notifier:
    """Tells systemd how the application is, by the protocol of ``sd_notify``; else does nothing.

    No call raises or waits for long, whatever becomes of systemd.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Read where systemd listens from the environment, by default the process's own."""
        environment = os.environ if environment is None else environment
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address[:1] == "@":  # the abstract namespace
            self._address = "\0" + self._address[1:]
        elif self._address[:1] != "/":
            self._address = ""
        self._every = _watchdog(environment) if self._address else None

    def ready(self, status: str = "") -> None:
        """Say that the application runs, after its start or after a reload."""
        self._tell("READY=1", *_status(status))

    def reloading(self) -> None:
        """Say that a reload begins; ``ready`` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """Say that the application ends."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """Say in one line how it is, for ``systemctl status``; passwords are left out."""
        self._tell(*_status(text))

    @contextlib.contextmanager
    def watching(self, alive: Callable[[], bool]) -> Iterator[None]:
        """Feed systemd's watchdog from a thread while the body runs and ``alive`` returns true.

        ``alive`` is asked at once, and twice in the time that systemd allows. When it returns
        false, fails or hangs for longer, systemd ends the application, and starts it again. Without
        a watchdog for this process nothing is asked.
        """
        if self._every is None:
            yield
            return
        done = threading.Event()
        feeder = threading.Thread(
            target=self._feed, args=(alive, self._every, done), name="watchdog", daemon=True
        )
        feeder.start()
        try:
            yield
        finally:
            done.set()
            feeder.join(_PATIENCE)  # one that hangs in ``alive`` is left behind

    def _feed(self, alive: Callable[[], bool], every: float, done: threading.Event) -> None:
        while True:
            try:
                lives = alive()
            except Exception as error:  # a bug of what was asked: systemd starts it anew
                self.status(f"internal error, {in_one_line(error)}")
                lives = False
            if lives:
                self._tell("WATCHDOG=1")
            if done.wait(every):
                return

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_PATIENCE)
                sender.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except OSError:  # nobody listens any more, or the address is none
            pass


def _watchdog(environment: Mapping[str, str]) -> float | None:
    """Return how often to feed the watchdog, in seconds; None if this process need not."""
    text, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID")
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) == 0:
        return None
    if process is not None and process != str(os.getpid()):  # a parent's, which passed it on
        return None
    return int(text) / 2e6


def _status(text: str) -> list[str]:
    line = " ".join(escaped(without_secrets(text)).split())[:_LONGEST]
    return [f"STATUS={line}"] if line else []


def unit(
    command: Sequence[str],
    user: str,
    *,
    folder: Path,
    writes: Sequence[Path] = (),
    reloads: bool = True,
    name: str = "lgvit-edge-camera",
    groups: Sequence[str] = ("video",),
    watchdog: int = 60,
) -> str:
    """Return the text of a unit that runs a command as a service; its comments tell how.

    Args:
        command: the program, as an absolute path, and its arguments.
        user: who runs it.
        folder: where it runs: what relative paths in the command start from.
        writes: folders that it writes to, beside its own ``/var/lib/NAME`` and
            ``/var/cache/NAME``; it can write nowhere else but in ``/tmp``.
        reloads: whether SIGHUP lets the command read its configuration again; otherwise it ends it.
        name: of the service.
        groups: those that open cameras and GPUs, beside the user's own.
        watchdog: seconds after which systemd starts a program anew that does not answer.

    Raises:
        UsageError: a word cannot be written in a unit, the program or a folder is no absolute
            path, or the command holds a password, which everybody could read there.
    """
    for word in (user, name, *groups):
        if not _NAME.fullmatch(word):
            raise UsageError(
                f"{word!r} cannot be the name of a user, a group or a service; expected letters, "
                "digits and . _ - only"
            )
    for word in command:
        if without_secrets(word) != word:
            raise UsageError(
                f"{without_secrets(word)}: everybody on this machine could read this password in "
                "a unit; write the source into a configuration that only the service's user can "
                "read, and give --config"
            )
    for path in (Path(command[0]), folder, *writes):
        if not path.is_absolute():
            raise UsageError(f"expected an absolute path, found {str(path)!r}")
    if re.search(r"""["'\\]""", command[0]):
        raise UsageError(
            f"systemd runs no program with quotes or a backslash in its path: {command[0]}; make "
            "the environment elsewhere"
        )
    return _UNIT.format(
        name=name,
        user=user,
        groups=" ".join(groups),
        folder=_plain(folder),
        writes=" ".join(["/tmp", *(_quoted(f"-{path}") for path in writes)]),
        command=" ".join(map(_quoted, command)),
        how_to_reload=_HOW_TO_RELOAD.format(name=name) if reloads else "",
        reload=_RELOAD if reloads else "",
        watchdog=whole("watchdog", watchdog),
    )


def _quoted(word: str) -> str:
    """Return a word as systemd reads it back; ``$`` means nothing after the ``:`` of ExecStart."""
    _check(word)
    if re.fullmatch(r"[\w/.,:=@+-]+", word, re.ASCII):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _plain(path: Path) -> str:
    """Return a path for a setting that takes its whole line as it is, but for ``%``."""
    _check(str(path))
    if str(path) != str(path).strip() or str(path).endswith("\\"):
        raise UsageError(f"systemd takes no such folder to run in: {str(path)!r}; choose another")
    return str(path).replace("%", "%%")


def _check(word: str) -> None:
    if _UNWRITABLE.search(word):
        raise UsageError(
            f"{word!r} cannot be written in a unit: it holds a line end, a control character or "
            "bytes that are not UTF-8; rename the file, or give it in a configuration (--config)"
        )


_HOW_TO_RELOAD = "#   systemctl reload {name}      read its configuration again\n"
_RELOAD = "ExecReload=/bin/kill -HUP $MAINPID\n"
_UNIT = """\
# Runs lgvit-edge's camera application as a service. To install it, as root:
#
#   install -m 644 {name}.service /etc/systemd/system/
#   systemctl daemon-reload
#   systemctl enable --now {name}
#
#   systemctl status {name}      how it is
#   journalctl -u {name} -f      what it says
{how_to_reload}#
# Passwords and tokens come from the environment: write lines NAME=VALUE into
# /etc/lgvit-edge/{name}.env, and: chmod 600 /etc/lgvit-edge/{name}.env

[Unit]
Description=lgvit-edge camera: answers for what cameras see
Wants=network-online.target
After=network-online.target nvargus-daemon.service
# A camera may come back after hours: never give up.
StartLimitIntervalSec=0

[Service]
Type=notify
# The ":" keeps systemd from replacing $.
ExecStart=:{command}
{reload}User={user}
SupplementaryGroups={groups}
WorkingDirectory={folder}
EnvironmentFile=-/etc/lgvit-edge/{name}.env
# A small board may take minutes to load engines.
TimeoutStartSec=300
TimeoutStopSec=30
KillMode=mixed
WatchdogSec={watchdog}
# Status 2 is a mistake in the command or its configuration, which no new start mends.
Restart=on-failure
RestartPreventExitStatus=2
# Pauses grow to a minute from systemd 254 on; older ones say that they do not know the two
# settings, and pause two seconds.
RestartSec=2
RestartSteps=6
RestartMaxDelaySec=60

# Logs and kept frames belong into /var/lib/{name}; all else is read only, but for /tmp,
# which stays the system's own: CSI cameras of a Jetson are reached through it.
StateDirectory={name}
CacheDirectory={name}
Environment=LGVIT_EDGE_CACHE=%C/{name}
ProtectSystem=strict
ReadWritePaths={writes}
UMask=0027

# Not here, because cameras, GPUs or the code that they compile would not work: PrivateDevices,
# DevicePolicy, ProtectClock (it closes all devices but the clock's), MemoryDenyWriteExecute.
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectHome=read-only
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
# A PC with an NVIDIA card and no desktop: the driver's files in /dev must be there before this
# service; "systemctl enable nvidia-persistenced" sees to it, or this line without its "#":
#ExecStartPre=-+/usr/bin/nvidia-modprobe -c=0 -u

[Install]
WantedBy=multi-user.target
"""
