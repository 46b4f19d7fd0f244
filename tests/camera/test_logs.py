"""The log of events: lines that steer nothing, files that rotate, and disks that are full."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import python

from lgvit_edge.camera.logs import EventLog
from lgvit_edge.camera.shot import Event
from lgvit_edge.errors import UsageError

MOMENT = 1_700_000_000.25  # 2023-11-14 22:13:20 UTC


def event(text: str = "back", camera: str = "door", level: str = "info") -> Event:
    return Event(MOMENT, camera, text, level)  # type: ignore[arg-type]


def quiet(file: Path, **options: int) -> EventLog:
    return EventLog(file, stderr=False, utc=True, **options)  # type: ignore[arg-type]


def test_a_line_holds_time_level_camera_and_text(tmp_path: Path) -> None:
    log = quiet(tmp_path / "log")
    log.event(event())
    log.event(event("mqtt fails", camera="", level="error"))
    log.close()
    assert (tmp_path / "log").read_text() == (
        "2023-11-14T22:13:20.250+00:00 info door: back\n"
        "2023-11-14T22:13:20.250+00:00 error mqtt fails\n"
    )


def test_local_times_tell_their_distance_from_utc(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from lgvit_edge.camera.logs import EventLog
from lgvit_edge.camera.shot import Event
log = EventLog(Path({str(tmp_path / "log")!r}))
log.event(Event({MOMENT}, "", "hello"))
log.close()
"""
    python(code, TZ="IST-5:30")
    line = "2023-11-15T03:43:20.250+05:30 info hello\n"
    assert (tmp_path / "log").read_text() == line


def test_text_of_strangers_steers_nothing_and_tells_no_password(tmp_path: Path) -> None:
    log = quiet(tmp_path / "log")
    log.event(event("a\nb\r\t\x1b[2J\u202e\ud800 rtsp://eve:h@nter2@host/?token=hunter2"))
    began = time.monotonic()
    log.event(event("x" * 50_000))
    assert time.monotonic() - began < 5
    log.close()
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first.endswith(r"door: a\nb\r\t\x1b[2J\u202e\ud800 rtsp://***@host/?token=***")
    assert second.endswith("x ...(48000 characters left out)") and len(second) < 2200


def test_files_rotate_and_stay_within_their_bound(tmp_path: Path) -> None:
    log = quiet(tmp_path / "log", size=10_000, keep=2)
    for number in range(1000):
        log.event(event(f"event {number} " + 100 * "x"))
    log.close()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["log", "log.1", "log.2"]
    assert all(file.stat().st_size <= 10_000 for file in tmp_path.iterdir())
    lines = [
        line for name in reversed(names) for line in (tmp_path / name).read_text().splitlines()
    ]
    numbers = [int(re.findall(r"event (\d+)", line)[0]) for line in lines]
    assert numbers == list(range(numbers[0], 1000)) and len(numbers) > 100


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    log = quiet(tmp_path / "log", size=100_000, keep=9)

    def tell(name: int) -> None:
        for number in range(100):
            log.event(event(f"{number} ends here", camera=str(name)))

    threads = [threading.Thread(target=tell, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    lines = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
    assert len(set(lines)) == 800 and all(line.endswith(" ends here") for line in lines)


def test_a_line_that_was_cut_off_is_ended(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("2023 info half a li")
    log = quiet(tmp_path / "log")
    log.event(event())
    log.close()
    log.close()
    log.event(event("too late"))
    assert (tmp_path / "log").read_text().splitlines()[1:] == [
        "2023-11-14T22:13:20.250+00:00 info door: back"
    ]


def test_a_full_disk_loses_lines_tells_so_and_works_again(tmp_path: Path) -> None:
    # A limit of the file's size fails as a full disk does, and can be lifted.
    code = f"""
import resource, sys
from pathlib import Path
from lgvit_edge.camera.logs import EventLog
from lgvit_edge.camera.shot import Event
log = EventLog(Path({str(tmp_path / "log")!r}), utc=True)
def tell(text):
    log.event(Event({MOMENT}, "door", text))
tell("first")
resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
for number in range(5):
    tell(f"lost {{number}}")
assert log.missing == 5
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
tell("last")
assert log.missing == 0
log.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert "Traceback" not in done.stderr and len(said) == 9  # seven events, failed, works
    assert f"error log {tmp_path / 'log'} fails: File too large" in said[2]
    assert said[-1].endswith(f"info log {tmp_path / 'log'} works again")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].endswith("door: first")
    assert lines[-2].endswith("warning 5 lines are missing here: File too large")
    assert lines[-1].endswith("door: last")


def test_a_folder_that_vanishes_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = tmp_path / "disk", io.StringIO()
    folder.mkdir()
    log = EventLog(folder / "log", size=10_000, keep=1)
    monkeypatch.setattr(sys, "stderr", told)  # what is there when an event comes counts
    log.event(event("x" * 1990))
    folder.rename(tmp_path / "gone")
    for _ in range(20):  # it fails when it rotates
        log.event(event("x" * 1990))
    assert log.missing > 10
    folder.mkdir()
    log.event(event("again"))
    log.close()
    assert log.missing == 0
    assert told.getvalue().count("fails: No such file or directory") == 1
    assert (folder / "log").read_text().count("lines are missing here") == 1


def test_where_no_log_can_be_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no such folder.*mkdir -p"):
        EventLog(tmp_path / "no" / "log")
    with pytest.raises(OSError, match="expected a file, found a folder"):
        EventLog(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="found a pipe or a device"):
        EventLog(tmp_path / "pipe")
    with pytest.raises(OSError, match="found a pipe or a device"):
        EventLog(Path("/dev/full"))
    for options in ({"size": 9_999}, {"size": 0}, {"keep": 0}, {"keep": True}):
        with pytest.raises(UsageError, match="must be"):
            EventLog(tmp_path / "log", **options)  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("which", ["folder", "file"])
def test_without_permission_it_is_refused_at_once(tmp_path: Path, which: str) -> None:
    code = f"""
import os, sys, tempfile
from pathlib import Path
from lgvit_edge.camera.logs import EventLog
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "log"
    file.touch()
    file.chmod(0o444)
    os.chmod(folder, 0o555 if {which!r} == "folder" else 0o777)
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        EventLog(file)
    except OSError as error:
        print(error.strerror, error.filename == str(file))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        os.chmod(folder, 0o700)
"""
    said = python(code)
    assert "Permission denied" in said and "True" in said


def journal(tmp_path: Path, told: str) -> str:
    """What a process writes to a standard error that may be the journal."""
    code = """
from lgvit_edge.camera.logs import EventLog
from lgvit_edge.camera.shot import Event
log = EventLog()
for level in ("info", "warning", "error"):
    log.event(Event(0.0, "door", "lost\\nand found", level))
"""
    with (tmp_path / "stderr").open("w") as stream:
        about = os.fstat(stream.fileno())
        assert stat.S_ISREG(about.st_mode)
        told = told.format(device=about.st_dev, inode=about.st_ino)
        variables = {**os.environ, "JOURNAL_STREAM": told}
        subprocess.run([sys.executable, "-c", code], stderr=stream, env=variables, check=True)
    return (tmp_path / "stderr").read_text()


def test_the_journal_is_told_priorities_instead_of_times(tmp_path: Path) -> None:
    assert journal(tmp_path, "{device}:{inode}") == (
        r"<6>door: lost\nand found" + "\n"
        r"<4>door: lost\nand found" + "\n"
        r"<3>door: lost\nand found" + "\n"
    )


@pytest.mark.parametrize("told", ["", "{device}:1", "nonsense"])
def test_a_file_beside_the_journal_gets_times(tmp_path: Path, told: str) -> None:
    lines = journal(tmp_path, told).splitlines()
    assert [line.split()[1] for line in lines] == ["info", "warning", "error"]


def test_a_standard_error_that_is_gone_disturbs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        log = EventLog(tmp_path / "log")
        log.event(event())
        with pytest.raises(BrokenPipeError):
            broken.close()  # what waits in it
    log.event(event())  # it is closed
    monkeypatch.setattr(sys, "stderr", None)
    log.event(event())
    log.close()
    assert len((tmp_path / "log").read_text().splitlines()) == 3
