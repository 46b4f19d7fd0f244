"""JSON lines: whole at any moment, whatever happens to the disk, the file and the process."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import python
from shots import answer, shot, until

from lgvit_edge.camera.shot import Event
from lgvit_edge.camera.sinks import base
from lgvit_edge.camera.sinks.base import Outlet
from lgvit_edge.camera.sinks.jsonl import JsonLines
from lgvit_edge.errors import SinkError, UsageError

KEYS = (
    "camera region box frame time class guess class_index unsure confidence measure exit block "
    "pass stopped late latency_ms network_ms point dropped bundle"
).split()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, every one of which must be whole."""
    text = path.read_bytes()
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def opened() -> Iterator[Callable[..., JsonLines]]:
    made: list[JsonLines] = []

    def make(*arguments: Any, **options: Any) -> JsonLines:
        made.append(sink := JsonLines(*arguments, **options))
        sink.open()
        return sink

    yield make
    for sink in made:
        sink.close()


def test_each_answer_is_a_line_with_all_its_keys(
    tmp_path: Path, opened: Callable[..., JsonLines]
) -> None:
    path = tmp_path / "answers.jsonl"
    sink = opened(path)
    sink.take(shot("gate", 7, confidence=float("nan")))
    left, right = answer("yard", 1, region="left"), answer("yard", 1, None, region="right")
    sink.take(shot("yard", 1, left, right))
    first, second, third = read(path)  # no close before: what was taken is there
    assert list(first) == KEYS
    assert first["camera"] == "gate" and first["frame"] == 7 and first["confidence"] is None
    assert (second["region"], second["class"], second["unsure"]) == ("left", "a", False)
    assert (third["region"], third["class"], third["guess"]) == ("right", None, "a")
    sink.close()
    again = opened(path)
    again.take(shot(frame=8))
    assert [line["frame"] for line in read(path)] == [7, 1, 1, 8]


def test_names_with_anything_in_them_stay_one_line(
    tmp_path: Path, opened: Callable[..., JsonLines]
) -> None:
    name = 'a"\n\x1b[2J\u2028\udc80猫'
    opened(tmp_path / "x").take(shot(label=name))
    (line,) = read(tmp_path / "x")
    assert line["class"] == name and (tmp_path / "x").read_bytes().count(b"\n") == 1


LINE = b'{"camera":"gate"}'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (LINE + b"\n", LINE + b"\n"),
        (LINE, LINE + b"\n"),
        (LINE + b"\n" + LINE[:9], LINE + b"\n"),
        (LINE + b"\n{", LINE + b"\n"),
        (LINE + b"\n" + bytes(4096), LINE + b"\n"),
        (LINE + b"\n" + LINE[:9] + bytes(100), LINE + b"\n"),
        (LINE[:5], b""),
    ],
)
def test_what_a_crash_left_is_mended(
    tmp_path: Path, opened: Callable[..., JsonLines], before: bytes, after: bytes
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(before)
    opened(path).take(shot())
    assert path.read_bytes().startswith(after + b'{"camera": "gate"')
    assert len(read(path)) == after.count(b"\n") + 1


@pytest.mark.parametrize("content", [b"\xff\xd8\xff", b"a text\nof lines\n", b"x\n" + LINE[1:]])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="expected a file of JSON lines.*photo.jpg; name another"):
        JsonLines(path).open()
    assert path.read_bytes() == content


def test_places_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder: .*gone; run: mkdir -p "):
        JsonLines(tmp_path / "gone" / "x").open()
    with pytest.raises(UsageError, match="cannot write to .*: Is a directory"):
        JsonLines(tmp_path).open()
    for options in ({"max_mb": 0}, {"max_mb": True}, {"keep": -1}, {"keep": 1.5}):
        with pytest.raises(UsageError, match="must be a"):
            JsonLines(tmp_path / "x", **options)
    with pytest.raises(UsageError, match="expected a file for a limit"):
        JsonLines("-", max_mb=1)


def test_a_second_writer_is_refused_until_the_first_ends(
    tmp_path: Path, opened: Callable[..., JsonLines]
) -> None:
    path = tmp_path / "answers.jsonl"
    sink = opened(path)
    code = """
import sys
from lgvit_edge.camera.sinks.jsonl import JsonLines
JsonLines(sys.argv[1]).open()
"""
    assert "another process writes" in python(code, path, fails=True)
    sink.close()
    python(code, path)


def test_a_moved_and_a_removed_file_are_made_again(
    tmp_path: Path, opened: Callable[..., JsonLines]
) -> None:
    path = tmp_path / "answers.jsonl"
    sink = opened(path)
    sink.take(shot(frame=0))
    path.rename(tmp_path / "answers.jsonl.1")
    sink.take(shot(frame=1))
    path.unlink()
    sink.take(shot(frame=2))
    os.truncate(path, 0)  # logrotate's copytruncate
    sink.take(shot(frame=3))
    assert [line["frame"] for line in read(tmp_path / "answers.jsonl.1")] == [0]
    assert [line["frame"] for line in read(path)] == [3]


def test_a_full_file_begins_another_and_few_older_ones_stay(
    tmp_path: Path, opened: Callable[..., JsonLines]
) -> None:
    path = tmp_path / "answers.jsonl"
    sink = opened(path, max_mb=0.001, keep=2)
    for frame in range(20):
        sink.take(shot(frame=frame))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"answers.jsonl{end}" for end in ("", ".1", ".2")
    ]
    frames = [line["frame"] for end in (".2", ".1", "") for line in read(Path(f"{path}{end}"))]
    assert frames == list(range(20 - len(frames), 20)) and len(frames) >= 6
    assert all(p.stat().st_size <= 1000 for p in tmp_path.iterdir())


def test_without_older_files_the_lines_begin_again(
    tmp_path: Path, opened: Callable[..., JsonLines]
) -> None:
    sink = opened(tmp_path / "x", max_mb=0.001, keep=0)
    for frame in range(7):
        sink.take(shot(frame=frame))
    assert os.listdir(tmp_path) == ["x"] and read(tmp_path / "x")[-1]["frame"] == 6


def test_a_full_disk_leaves_whole_lines_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_PAUSES", (0.01,))
    path, events = tmp_path / "answers.jsonl", list[Event]()
    sink = JsonLines(path)
    sink.open()
    outlet = Outlet(sink, events.append)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, old[1]))
    try:
        outlet.start()
        for frame in range(40):
            outlet.put(shot(frame=frame))
        until(lambda: outlet.counts.error)
        assert outlet.counts.error == f"{path}: File too large"
        read(path)  # raises: a partial line
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    counts = outlet.close()
    assert counts.taken == 40 and counts.lost == 0 and counts.error == ""
    assert [line["frame"] for line in read(path)] == list(range(40))
    assert len(events) == 2 and "works again" in events[1].text


def test_a_partial_line_that_could_not_be_cut_off_is_mended_later(
    tmp_path: Path, opened: Callable[..., JsonLines], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    sink = opened(path)
    real = os.ftruncate

    def broken(number: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    monkeypatch.setattr(os, "ftruncate", broken)
    try:
        with pytest.raises(OSError, match="File too large"):
            sink.take(shot(frame=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        monkeypatch.setattr(os, "ftruncate", real)
    assert path.stat().st_size == 100
    sink.take(shot(frame=0))
    assert len(read(path)) == 1


def test_a_full_device_fails_and_is_tried_again() -> None:
    sink = JsonLines("/dev/full")
    sink.open()
    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device") as raised:
            sink.take(shot())
        assert raised.value.filename == "/dev/full"
    sink.close()


def test_a_pipe_that_takes_no_more_gets_the_rest_of_the_line_later(
    tmp_path: Path, opened: Callable[..., JsonLines]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="nobody reads from the pipe"):
        JsonLines(pipe).open()
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    sink = opened(pipe)
    assert sink._lines._number is not None
    os.set_blocking(sink._lines._number, False)
    many = shot("gate", 0, *[answer(region=str(i)) for i in range(500)])
    with pytest.raises(BlockingIOError):
        sink.take(many)
    got = b""

    def drain() -> None:
        nonlocal got
        while True:
            try:
                data = os.read(reader, 1 << 20)
            except BlockingIOError:
                return
            got += data
            if not data:
                return

    drain()
    assert not got.endswith(b"\n")
    sink.take(shot(frame=1))
    drain()
    lines = [json.loads(line) for line in got.splitlines()]  # none is broken
    assert lines[-1]["frame"] == 1
    os.close(reader)
    with pytest.raises(OSError, match="who read the pipe ended"):
        sink.take(shot())
    with pytest.raises(OSError, match="nobody reads from the pipe"):
        sink.take(shot())
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    sink.take(shot(frame=2))  # another reader came
    got = b""
    drain()
    os.close(reader)
    assert json.loads(got)["frame"] == 2


STANDARD_OUTPUT = """
import sys
sys.path.insert(0, sys.argv[1])
from shots import shot
from lgvit_edge.camera.sinks.jsonl import JsonLines
from lgvit_edge.errors import SinkError
sink = JsonLines(sys.argv[2])
print('{"first": 1}')
sink.open()
frame = 0
try:
    while frame < int(sys.argv[3]):
        sink.take(shot(frame=frame))
        frame += 1
except SinkError as error:
    print(error, error.final, file=sys.stderr)
sink.close()
"""
FAKES = Path(__file__).parents[1] / "fakes"


@pytest.mark.parametrize("place", ["-", "/dev/stdout"])
def test_standard_output_gets_lines_in_order(tmp_path: Path, place: str) -> None:
    with (tmp_path / "out").open("wb") as out:
        command = [sys.executable, "-c", STANDARD_OUTPUT, FAKES, place, "3"]
        subprocess.run(command, stdout=out, check=True, timeout=60)
    first, *rest = read(tmp_path / "out")
    assert first == {"first": 1} and [line["frame"] for line in rest] == [0, 1, 2]


def test_a_reader_of_standard_output_that_ends_is_told_once_and_for_all() -> None:
    command = [sys.executable, "-c", STANDARD_OUTPUT, FAKES, "-", "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stderr is not None
        writer.stdout.readline()
        writer.stdout.close()
        told = writer.stderr.read().decode()
    assert told == "standard output is closed: who read it ended True\n"


def test_without_standard_output_it_says_so() -> None:
    command = [sys.executable, "-c", STANDARD_OUTPUT, str(FAKES), "-", "1"]
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, timeout=60)
    assert "UsageError: there is no standard output to write to" in done.stderr


ENDLESS = """
import sys
sys.path.insert(0, sys.argv[1])
from shots import answer, shot
from lgvit_edge.camera.sinks.jsonl import JsonLines
sink = JsonLines(sys.argv[2])
sink.open()
many = shot("gate", 0, *[answer(region=str(i)) for i in range(300)])
print("begun", flush=True)
while True:
    sink.take_batch([many] * 10)
"""


def test_a_killed_writer_leaves_a_file_that_the_next_one_continues(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    for _ in range(3):
        command = [sys.executable, "-c", ENDLESS, str(FAKES), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            size = path.stat().st_size
            until(lambda size=size: path.stat().st_size > size + 1_000_000)
            writer.send_signal(signal.SIGKILL)
        sink = JsonLines(path)
        sink.open()  # the lock went with the process
        sink.take(shot(frame=5))
        sink.close()
        assert read(path)[-1]["frame"] == 5


def test_errors_of_the_file_while_it_runs_can_pass(
    tmp_path: Path, opened: Callable[..., JsonLines]
) -> None:
    path = tmp_path / "folder" / "answers.jsonl"
    path.parent.mkdir()
    sink = opened(path)
    path.parent.rename(tmp_path / "away")
    with pytest.raises(OSError, match="No such file or directory"):
        sink.take(shot(frame=0))
    path.parent.mkdir()
    path.write_text("notes\n")
    with pytest.raises(SinkError, match="expected a file of JSON lines") as raised:
        sink.take(shot(frame=0))
    assert not raised.value.final
    path.unlink()
    sink.take(shot(frame=0))
    assert len(read(path)) == 1
