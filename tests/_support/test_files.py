"""Files written whole or not at all, and locks, beside other threads, processes and containers."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lgvit_edge._support.files import locked, read_bytes, require_file
from lgvit_edge._support.outputs import leftovers, replacing

# A process number that no process here has, and one that a process here surely has: to another
# container both may mean a writer that lives, or one that is dead.
PROCESSES = (4_194_303, 1)


def test_only_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: None
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("socket")
    cure = "it is a pipe or a device, expected a file; write what it gives to a file"
    for path in (*(tmp_path / name for name in ("pipe", "link", "socket")), Path("/dev/zero")):
        for refused in (require_file, lambda path: read_bytes(path, 9)):
            with pytest.raises(OSError, match=cure):
                refused(path)
    with pytest.raises(IsADirectoryError, match="it is a folder, expected a file"):
        read_bytes(tmp_path, 9)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none", 9)
    require_file(tmp_path / "none")


def test_no_more_is_read_than_is_expected(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123456789")
    assert read_bytes(tmp_path / "x", 9) == b"123456789"
    with pytest.raises(OSError, match="expected at most 8 bytes, found 9"):
        read_bytes(tmp_path / "x", 8)
    with pytest.raises(OSError, match="expected at most 8 bytes, found 9"):
        read_bytes("/proc/self/status", 8)  # of no size, before it is read


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline()
    return process


WRITES = """
import sys
from pathlib import Path
from lgvit_edge._support.outputs import replacing
with replacing(Path(sys.argv[1])) as partial:
    partial.write_text("new")
    print("writing")
    input()
"""
LOCKS = """
import os, sys, time
from pathlib import Path
from lgvit_edge._support.files import locked
with locked(Path(sys.argv[1])):
    if not os.fork():
        os.close(1)
        time.sleep(20)
    print("locked")
    input()
"""


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    path, both = tmp_path / "x.json", threading.Barrier(2, timeout=10)

    def write(text: str) -> None:
        with replacing(path) as partial:
            both.wait()
            partial.write_text(text)
            both.wait()
            assert partial.read_text() == text

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, ("first", "second")))
    assert path.read_text() in ("first", "second")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", PROCESSES)
def test_a_file_somebody_writes_is_left_alone_whatever_its_process_is_called_here(
    number: int, tmp_path: Path, lock_elsewhere: Callable[[Path], Any]
) -> None:
    theirs = tmp_path / f".x.json.{number}.partial"
    with lock_elsewhere(theirs):
        with replacing(tmp_path / "x.json") as partial:
            partial.write_text("ours")
        assert theirs.exists()
    with replacing(tmp_path / "x.json") as partial:  # it is dead now
        partial.write_text("ours")
    assert not theirs.exists()


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    killed, living = run(WRITES, path), run(WRITES, path)
    assert len(list(tmp_path.glob(leftovers("x.json")))) == 2
    killed.kill()
    killed.communicate()
    with replacing(path) as partial:
        partial.write_text("ours")
    assert len(list(tmp_path.iterdir())) == 2  # ours, and the living one's part
    living.communicate("\n")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_makes_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "nowhere" / "x.json"):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_rights_that_others_get(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "x.json") as partial:
        partial.write_text("x")
    assert (tmp_path / "x.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_held_lock_names_its_holder_and_leaves_nothing(tmp_path: Path) -> None:
    holder = run(LOCKS, tmp_path / "lock")
    with pytest.raises(BlockingIOError, match=f"^process {holder.pid} on "):
        locked(tmp_path / "lock").__enter__()
    holder.communicate("\n")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_goes_with_its_process_though_a_forked_one_lives(tmp_path: Path) -> None:
    """As the workers do that load images."""
    holder = run(LOCKS, tmp_path / "lock")
    holder.kill()
    holder.communicate()
    with locked(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_threads_of_one_process_keep_each_other_out(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), ThreadPoolExecutor(1) as thread:
        with pytest.raises(BlockingIOError):
            thread.submit(locked(tmp_path / "lock").__enter__).result()


def test_waiting_says_for_whom_and_what(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    holder = run(LOCKS, tmp_path / "lock")
    timer = threading.Timer(0.2, holder.kill)
    timer.start()
    with locked(tmp_path / "lock", wait="computes features"):
        pass
    said = capfd.readouterr().err
    assert said.startswith(f"waiting for process {holder.pid} on ")
    assert said.endswith(", which computes features\n")
    timer.join()
    holder.communicate()
    with locked(tmp_path / "lock", wait="computes features"):  # free: nothing to say
        pass
    assert capfd.readouterr().err == ""


def test_a_lock_does_not_make_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        locked(tmp_path / "gone" / "lock").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_folder_that_came_in_the_place_of_ours_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with locked(folder / "lock"):
        folder.rename(tmp_path / "aside")
        folder.mkdir()
        (folder / "lock").write_text("another's")
    assert (folder / "lock").read_text() == "another's"


def test_a_full_disk_leaves_no_lock_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"), locked(tmp_path / ".lock"):
            pass
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / ".lock"):
        pass
