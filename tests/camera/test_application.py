"""The command runs until it is told to end, reads its settings again, and leaves whole files."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "frames"
    place.mkdir()
    random = np.random.default_rng(0)
    for number in range(9):
        frame = random.integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(frame).save(place / f"{number}.png")
    return place


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command in ``tmp_path``; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "lgvit_edge", "camera", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ignored in what nohup starts, and inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def config(tmp_path: Path, bundle: Path, folder: Path, *more: str) -> Path:
    file = tmp_path / "camera.toml"
    lines = [f'engines = "{bundle}"', 'jsonl = "a.jsonl"', 'log = "events.log"', "loop = true"]
    table = ["[camera.gate]", f'source = "{folder}"']
    file.write_text("\n".join([*lines, "quiet = true", *more, *table]))
    return file


def test_it_reads_its_settings_again_and_keeps_the_old_ones_where_new_ones_cannot_run(
    tmp_path: Path, bundle: Path, folder: Path, start: Start
) -> None:
    lines, log = tmp_path / "a.jsonl", tmp_path / "events.log"
    file = config(tmp_path, bundle, folder)
    process = start("--config", str(file))
    until(lambda: lines.exists() and lines.stat().st_size > 0, process)

    config(tmp_path, bundle, folder, 'policy = "fixed:2"')
    process.send_signal(signal.SIGHUP)
    until(lambda: '"exit": 2' in lines.read_text().rstrip().rpartition("\n")[2], process)

    for wrong, said in (
        ('policy = "fixed:99"', "the new settings cannot be used, the old ones stay: "),
        ('video = "camera.toml"', "the new settings cannot be used, the old ones stay: video"),
        ("every = ", "the new settings cannot be used, the old ones stay: "),
    ):
        config(tmp_path, bundle, folder, wrong)
        before = len(log.read_text())
        process.send_signal(signal.SIGHUP)
        until(lambda: said in log.read_text()[before:], process)  # noqa: B023
        size = lines.stat().st_size
        until(lambda: lines.stat().st_size > size, process)  # noqa: B023
    process.terminate()
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert all(json.loads(line)["camera"] == "gate" for line in lines.read_text().splitlines())


@pytest.mark.slow
def test_killed_softly_at_any_moment_it_leaves_whole_files_and_goes_on(
    tmp_path: Path, bundle: Path, folder: Path, start: Start
) -> None:
    file, lines = config(tmp_path, bundle, folder), tmp_path / "a.jsonl"
    file.write_text(file.read_text().replace("quiet", 'pace = "fast"\nvideo = "v"\nquiet'))
    moments = random.Random(0)
    known = 0
    for _ in range(3):
        process = start("--config", str(file))
        until(lambda: lines.exists() and lines.stat().st_size > known, process)  # noqa: B023
        time.sleep(moments.random() * 0.5)
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        assert len(rows) > 0 and lines.read_text().endswith("\n")
        known = lines.stat().st_size
    av = pytest.importorskip("av")
    files = list((tmp_path / "v").rglob("*.mp4"))
    assert len(files) == 3
    for film in files:
        with av.open(str(film)) as opened:
            assert sum(1 for _ in opened.decode(video=0)) > 0


def test_stopped_while_it_starts_it_ends_with_0(
    tmp_path: Path,
) -> None:
    reads_for_long = (
        "import sys, time\n"
        "from lgvit_edge.camera import config\n"
        "from lgvit_edge.cli.app import main\n"
        "config.read_bytes = lambda *_: (print('reads', flush=True), time.sleep(60))\n"
        "sys.argv = ['lgvit-edge', 'camera', '--config', 'camera.toml']\n"
        "main()\n"
    )
    (tmp_path / "camera.toml").touch()
    with subprocess.Popen(
        [sys.executable, "-c", reads_for_long],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "reads\n"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_ctrl_c_ends_it_with_130_and_tells_what_was_done(
    tmp_path: Path, bundle: Path, folder: Path, start: Start
) -> None:
    process = start(
        "--engines", str(bundle), "--source", str(folder), "--loop", "--jsonl", "a.jsonl"
    )
    lines = tmp_path / "a.jsonl"
    until(lambda: lines.exists() and lines.stat().st_size > 0, process)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "jsonl: " in said and "frames taken" in said


def test_lines_on_standard_output_are_alone_there(bundle: Path, folder: Path, start: Start) -> None:
    process = start(
        "--engines", str(bundle), "--source", str(folder), "--jsonl", "-", "--pace=fast"
    )
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert [json.loads(line)["frame"] for line in said.splitlines()] == list(range(9))
    assert "ended" in errors


def test_under_the_journal_events_have_their_priority_and_there_is_no_table(
    tmp_path: Path, bundle: Path, folder: Path
) -> None:
    said, errors = tmp_path / "out", tmp_path / "err"
    with said.open("w") as out, errors.open("w") as err:
        about = os.fstat(err.fileno())
        journal = {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"}
        command = [sys.executable, "-m", "lgvit_edge", "camera", "--pace", "fast", "--engines"]
        command += [str(bundle), "--source", str(folder)]
        subprocess.run(command, stdout=out, stderr=err, env=os.environ | journal, check=True)
    assert "<6>camera: delivers 64 x 48" in errors.read_text()
    assert "delivers" not in said.read_text()


def test_a_page_behind_a_proxy_wants_the_token_under_its_name(
    bundle: Path, folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "0123456789abcdef"
    monkeypatch.setenv("LGVIT_EDGE_PAGE_TOKEN", token)
    process = start(
        *("--engines", str(bundle), "--source", str(folder), "--loop", "--quiet"),
        *("--page", "127.0.0.1:0", "--page-name", "edge.example"),
    )
    assert process.stdout is not None
    link = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", process.stdout.readline())
    assert link is not None and link[2] == token

    def status(host: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", int(link[1]), timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/api/state", headers={"Host": host, **headers})
            return connection.getresponse().status

    bearer = {"Authorization": f"Bearer {token}"}
    assert (status("edge.example"), status("edge.example", **bearer)) == (401, 200)
    assert status("127.0.0.1") == 401


def test_a_recording_that_breaks_off_fails(tmp_path: Path, bundle: Path, start: Start) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no film" * 100)
    process = start("--engines", str(bundle), "--source", "gate=film.mp4", "--quiet")
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (1, 2) and "Traceback" not in errors
    assert "film.mp4" in errors
