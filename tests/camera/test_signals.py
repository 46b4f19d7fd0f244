"""Signals stop and reload a loop that waits, at any moment, and nothing stays behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lgvit_edge.camera.signals import asked_to_stop

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Writes lines as fast as it can, and waits now and then in a lock, as a pipeline does.
LOOP = """
import sys, threading
from lgvit_edge.camera.signals import asked_to_stop

changed, woken = threading.Condition(), 0
def wake():
    global woken
    with changed:
        woken += 1
        changed.notify_all()

with asked_to_stop() as asked, open(sys.argv[1], "a", buffering=1) as file:
    asked.wake = wake
    print("ready", flush=True)
    for number in range(10**9):
        if asked.reload:
            asked.reload = False
            print("reloaded", flush=True)
        if asked.stop:
            break
        file.write(f"line {number} ends here\\n")
        if number % 100 == 99:
            with changed:
                changed.wait_for(lambda: woken, timeout=0.002 if sys.argv[2] == "brief" else 60)
                woken = 0
print("stopped", flush=True)
"""


def start(file: Path, pause: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(file), pause], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def test_sigterm_at_random_moments_ends_well(tmp_path: Path) -> None:
    file, moments = tmp_path / "lines", random.Random(21)
    for _ in range(15):
        with start(file, "brief") as child:
            time.sleep(moments.uniform(0, 0.03))  # the moment is what is tested
            child.send_signal(signal.SIGTERM)
            said, _ = child.communicate(timeout=30)
        assert (child.returncode, said) == (0, "stopped\n")
        assert file.read_bytes().endswith(b" ends here\n")


def test_a_loop_that_waits_is_woken_to_reload_and_to_stop(tmp_path: Path) -> None:
    with start(tmp_path / "lines", "long") as child:
        assert child.stdout is not None
        for _ in range(3):
            child.send_signal(signal.SIGHUP)
            assert child.stdout.readline() == "reloaded\n"
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=30)
    assert (child.returncode, said) == (0, "stopped\n")


def test_a_signal_that_reaches_another_thread_ends_the_wait_of_the_main_one() -> None:
    changed, over = threading.Condition(), threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    assert other.ident is not None

    def wake() -> None:
        with changed:
            changed.notify_all()

    with asked_to_stop() as asked:
        asked.wake = wake
        kill = threading.Timer(0.1, signal.pthread_kill, (other.ident, signal.SIGHUP))
        with changed:
            kill.start()
            assert changed.wait(20) and asked.reload
    over.set()
    other.join()


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    command = ["nohup", sys.executable, "-c", LOOP, str(tmp_path / "lines"), "brief"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGHUP)
        child.send_signal(signal.SIGTERM)
        said, _ = child.communicate(timeout=30)
    assert (child.returncode, said) == (0, b"stopped\n")  # and never "reloaded"


@pytest.fixture
def handlers() -> dict[signal.Signals, object]:
    return {number: signal.getsignal(number) for number in NUMBERS}


def test_the_first_ctrl_c_asks_and_the_second_acts(handlers: dict[signal.Signals, object]) -> None:
    woken = threading.Event()
    with pytest.raises(KeyboardInterrupt), asked_to_stop() as asked:
        asked.wake = woken.set
        signal.raise_signal(signal.SIGINT)
        assert asked.stop and asked.interrupted and woken.wait(10)
        signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in NUMBERS} == handlers


def test_a_reload_is_no_stop_and_sigterm_is_no_interrupt() -> None:
    with asked_to_stop() as asked:
        signal.raise_signal(signal.SIGHUP)
        assert asked.reload and not asked.stop
        signal.raise_signal(signal.SIGTERM)
        assert asked.stop and not asked.interrupted


def test_without_reload_a_closed_terminal_stops() -> None:
    with asked_to_stop(reloads=False) as asked:
        signal.raise_signal(signal.SIGHUP)
        assert asked.stop and not asked.reload


def test_everything_is_put_back(handlers: dict[signal.Signals, object]) -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with asked_to_stop():
            assert all(signal.getsignal(number) != handlers[number] for number in NUMBERS)
    assert {number: signal.getsignal(number) for number in NUMBERS} == handlers
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


def test_more_signals_than_the_pipe_holds_block_nobody() -> None:
    held = threading.Event()
    with asked_to_stop() as asked:
        asked.wake = held.wait  # type: ignore[assignment]
        for _ in range(70_000):
            signal.raise_signal(signal.SIGHUP)
        assert asked.reload
        held.set()


def test_another_thread_gets_no_signals_and_no_error() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with asked_to_stop() as asked:
            seen.append((asked.stop, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
