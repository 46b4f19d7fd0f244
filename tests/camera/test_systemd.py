"""What systemd would hear and read: datagrams on real sockets, and units that it parses itself."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import python

from lgvit_edge.camera.systemd import Notifier, unit
from lgvit_edge.errors import UsageError

SYSTEMD = Path("/lib/systemd/systemd")


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that listens as systemd does."""
    address = str(tmp_path / "notify") if request.param == "path" else f"\0lgvit {os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(10)
        yield listening


def address(manager: socket.socket) -> str:
    name = manager.getsockname()
    return name if isinstance(name, str) else "@" + name[1:].decode()


def heard(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


def test_systemd_hears_what_happens(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address(manager)})
    notifier.ready("2 cameras")
    assert heard(manager) == ["READY=1", "STATUS=2 cameras"]
    notifier.ready()
    assert heard(manager) == ["READY=1"]
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    what, when = heard(manager)
    assert what == "RELOADING=1"
    assert before <= int(when.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.stopping()
    assert heard(manager) == ["STOPPING=1"]


def test_a_status_is_one_harmless_line(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address(manager)})
    notifier.status("door\nREADY=1 \x1b[2J rtsp://eve:pw@host/ " + 1000 * "x")
    (line,) = heard(manager)
    assert line.startswith(r"STATUS=door READY=1 \x1b[2J rtsp://***@host/ xxx")
    assert len(line) < 550
    notifier.status("\ud800")  # is escaped
    assert heard(manager) == [r"STATUS=\ud800"]


def watchdogs() -> int:
    return sum(thread.name == "watchdog" for thread in threading.enumerate())


def test_the_watchdog_is_fed_twice_in_its_time_while_alive(manager: socket.socket) -> None:
    lives = threading.Event()
    lives.set()
    notifier = Notifier({"NOTIFY_SOCKET": address(manager), "WATCHDOG_USEC": "200000"})
    with notifier.watching(lives.is_set):
        began = time.monotonic()
        for _ in range(4):
            assert heard(manager) == ["WATCHDOG=1"]
        assert 0.25 < time.monotonic() - began < 5  # at once, then every 0.1 s
        lives.clear()
        manager.settimeout(0.5)
        with pytest.raises(TimeoutError):
            while True:  # one may be under way
                heard(manager)
        lives.set()
        manager.settimeout(10)
        assert heard(manager) == ["WATCHDOG=1"]
    assert not watchdogs()
    with notifier.watching(lives.is_set):  # again, after a reload
        assert heard(manager) == ["WATCHDOG=1"]


def test_what_fails_when_asked_is_not_alive(manager: socket.socket) -> None:
    def alive() -> bool:
        raise ValueError("broken")

    notifier = Notifier({"NOTIFY_SOCKET": address(manager), "WATCHDOG_USEC": "100000"})
    with notifier.watching(alive):
        assert heard(manager) == ["STATUS=internal error, ValueError: broken"]
        assert heard(manager) == ["STATUS=internal error, ValueError: broken"]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "me"},
    ],
)
def test_without_a_watchdog_for_us_nobody_is_asked(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), **variables})
    with notifier.watching(lambda: pytest.fail("was asked")):
        assert not watchdogs()


def test_the_watchdog_is_ours_by_its_process(manager: socket.socket) -> None:
    variables = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    with Notifier({"NOTIFY_SOCKET": address(manager), **variables}).watching(lambda: True):
        assert heard(manager) == ["WATCHDOG=1"]


@pytest.mark.parametrize("where", ["", "relative", "/no/such/socket", "/" + 200 * "x", "vsock:2:1"])
def test_without_systemd_nothing_happens(where: str) -> None:
    for environment in ({"NOTIFY_SOCKET": where, "WATCHDOG_USEC": "1000000"}, {}):
        notifier = Notifier(environment)
        notifier.ready("text")
        notifier.reloading()
        notifier.status("text")
        with notifier.watching(lambda: True):
            notifier.stopping()


def test_a_systemd_that_reads_nothing_holds_nobody_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "full"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "full")})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
            filling.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    filling.sendto(b"x", str(tmp_path / "full"))
        began = time.monotonic()
        notifier.status("text")
        assert time.monotonic() - began < 5


def test_the_environment_of_the_process_is_read(manager: socket.socket) -> None:
    code = "from lgvit_edge.camera.systemd import Notifier; Notifier().ready()"
    python(code, NOTIFY_SOCKET=address(manager))
    assert heard(manager) == ["READY=1"]


# Units

WORDS = ["camera", "--source", "a=0", "x y", "$HOME", "${HOME}", "it's", 'a"b', "50%", "%h", "a\\b"]
WORDS += ["", "{x}", "é", ";", "#", "a\\x41", "--roi", "gate=0,0,10,10", "*", "-", "~", "日本"]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that another user can read, with a name that needs care."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        place = Path(folder) / "a b$c%d{e}"
        place.mkdir(mode=0o755)
        program = place / "lgvit-edge"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        yield place


def write_unit(place: Path, *words: str) -> Path:
    file = place.parent / "lgvit-edge-camera.service"
    text = unit([str(place / "lgvit-edge"), *words], "camera", folder=place, writes=[place])
    file.write_text(text, encoding="utf-8")
    return file


def test_systemd_verifies_the_unit(place: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    file = write_unit(place, *WORDS)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True
    )
    # Before 254 it does not know how pauses grow, and says so.
    said = [line for line in done.stderr.splitlines() if not re.search("Restart(Steps|Max)", line)]
    mine = [line for line in said if file.name in line]
    assert (done.returncode, mine) == (0, [])
    file.write_text(file.read_text().replace("Type=notify", "Type=nonsense"))  # it does look
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True
    )
    assert "nonsense" in done.stderr


def test_systemd_reads_every_word_back(place: Path) -> None:
    if not SYSTEMD.exists() or os.getuid() != 0:
        pytest.skip("needs systemd, and root to run it as another user")
    file = write_unit(place, *WORDS)
    home = place.parent / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    done = subprocess.run(
        [str(SYSTEMD), "--test", "--user", f"--unit={file.name}"],
        user=65534,
        group=65534,
        extra_groups=[],
        env={
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "SYSTEMD_UNIT_PATH": f"{file.parent}:",
            "PATH": os.environ["PATH"],
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    _, _, mine = done.stdout.partition(f"Unit {file.name}:")
    if not (lines := re.findall(r"Command Line: (.*lgvit-edge.*)", mine)):
        pytest.skip("this systemd does not show what it would run")
    shown = re.findall(r'"((?:\\.|[^"\\])*)"|(\S+)', lines[0])
    words = [re.sub(r"\\(.)", r"\1", quoted) or bare for quoted, bare in shown]
    assert words == [str(place / "lgvit-edge"), *WORDS]
    assert f"WorkingDirectory: {place}\n" in mine
    assert re.search(rf"ReadWritePaths: /tmp -?{re.escape(str(place))}\n", mine)


def test_the_unit_restarts_but_not_after_a_mistake() -> None:
    text = unit(["/x/lgvit-edge", "camera"], "camera", folder=Path("/x"), watchdog=30)
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert settings["ExecStart"] == ":/x/lgvit-edge camera"
    assert settings["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (settings["Type"], settings["Restart"]) == ("notify", "on-failure")
    assert settings["RestartPreventExitStatus"] == "2"  # what wrong use ends with
    assert settings["WatchdogSec"] == "30"
    assert settings["SupplementaryGroups"] == "video"
    assert settings["StateDirectory"] == "lgvit-edge-camera"
    # These take cameras and GPUs away.
    assert not settings.keys() & {"PrivateDevices", "DevicePolicy", "DeviceAllow", "PrivateTmp"}
    assert not settings.keys() & {"ProtectClock", "MemoryDenyWriteExecute"}
    assert "systemctl enable --now lgvit-edge-camera" in text


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        (["lgvit-edge"], {}, "absolute path, found 'lgvit-edge'"),
        (['/a"b/lgvit-edge'], {}, "quotes"),
        (["/x", "a\nb"], {}, "line end"),
        (["/x", "\udcff"], {}, "not UTF-8"),
        (["/x", "rtsp://eve:hunter2@host/"], {}, r"rtsp://\*\*\*@host/: everybody"),
        (["/x"], {"folder": Path("here")}, "absolute"),
        (["/x"], {"folder": Path("/here ")}, "choose another"),
        (["/x"], {"writes": [Path("there")]}, "absolute"),
        (["/x"], {"user": "eve; reboot"}, "name of a user"),
        (["/x"], {"name": "a/b"}, "name of a user"),
        (["/x"], {"groups": ["video render"]}, "name of a user"),
        (["/x"], {"watchdog": 0}, "watchdog must be"),
    ],
)
def test_what_no_unit_can_hold_is_refused(
    command: list[str], options: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        unit(command, **{"user": "camera", "folder": Path("/x"), **options})  # type: ignore[arg-type]
    assert "hunter2" not in str(refused.value)
