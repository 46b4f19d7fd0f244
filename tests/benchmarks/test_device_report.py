"""``device-report``: one archive of a device, however its steps end."""

from __future__ import annotations

import json
import socket
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from lgvit_edge.benchmarks.device import Options, device_report, report
from lgvit_edge.benchmarks.device.private import secrets, without
from lgvit_edge.benchmarks.device.steps import Job, Step, steps
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.runtime import Backend, ChainOptions
from lgvit_edge.runtime.backends import registry

QUICK = Options(backend="onnxruntime", soak_minutes=0.01)
STEPS = ["machine", "build", "parity", "bench", "ways", "profile", "soak"]
Held = Callable[[Path], AbstractContextManager[Callable[[], None]]]


def raising(*_: object) -> str:
    raise BackendError("no engines")


def contents(archive: Path) -> dict[str, str]:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        return {name: opened.read(name).decode(errors="replace") for name in names}


@pytest.mark.slow
def test_a_report_holds_every_step_and_nothing_private(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "maria" / "Büro & co"
    home.mkdir(parents=True)
    engines = bundle_copy.rename(home / "secret project")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(socket, "gethostname", lambda: "marias-board")
    outcomes = device_report(engines, home / "report.zip", QUICK)
    assert [(step.name, step.state) for step in outcomes] == [
        (name, "left out" if name in ("build", "ways") else "done") for name in STEPS
    ]
    found = contents(home / "report.zip")
    assert {"summary.md", "steps.json", "bench.html"} <= set(found)
    assert {f"{name}.json" for name in STEPS if name not in ("build", "ways")} <= set(found)
    for name, text in found.items():
        for word in ("maria", "Büro", "B\\u00fcro", "secret project", str(tmp_path)):
            assert word not in text, (name, word)
    assert "choices" not in json.loads(found["machine.json"])
    parity = json.loads(found["parity.json"])
    assert parity["batch_sizes"] == [1, 2, 3, 4] and parity["within"]
    assert len(parity["differences"]) == 4 and len(parity["graphs"]) == 5
    summary = found["summary.md"]
    assert "| max difference from PyTorch |" in summary and "| soak |" in summary
    assert "| ways | left out | 0 | onnxruntime has one way |" in summary
    assert not (home / "report.zip.steps").exists()


@pytest.fixture
def made_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Reports are made of these steps: name, seconds, and code; or why it is left out."""

    def make(*rows: tuple[str, float, str]) -> None:
        made = [
            Step(name, "", seconds, lambda job, code=code: ["-c", code])
            for name, seconds, code in rows
        ]
        monkeypatch.setattr(report, "steps", lambda job: made)

    return make


def test_a_step_that_crashes_or_hangs_ends_alone(
    bundle: Path, tmp_path: Path, made_of: Callable[..., None]
) -> None:
    made_of(
        ("crash", 9, "import os; print('last words', flush=True); os.abort()"),
        ("hang", 0.5, "import time; time.sleep(60)"),
        ("fault", 9, "import sys; print('error: no GPU'); sys.exit(1)"),
        ("fine", 9, "print('all is well')"),
    )
    told: list[str] = []
    out = tmp_path / "report.zip"
    ended = {s.name: s for s in device_report(bundle, out, QUICK, note=told.append)}
    assert [step.state for step in ended.values()] == ["failed"] * 3 + ["done"]
    assert ended["crash"].why == "last words (killed by signal 6)"
    assert ended["hang"].why.startswith("took longer than")
    assert ended["fault"].why == "no GPU (exit status 1)"
    assert "all is well" in contents(out)["fine.txt"]
    assert "| crash | failed |" in contents(out)["summary.md"]
    assert "tries again what failed" in told[-1] and (tmp_path / "report.zip.steps").is_dir()


def test_an_interrupted_report_goes_on_where_it_stopped(
    bundle: Path, tmp_path: Path, made_of: Callable[..., None]
) -> None:
    log = tmp_path / "log"
    write = f"open({str(log)!r}, 'a').write"
    stop = tmp_path / "stop"
    made_of(
        ("one", 9, f"{write}('1')"),
        ("two", 9, f"{write}('2'); import os; os.path.exists({str(stop)!r}) or exit('no')"),
        ("three", 9, f"{write}('3')"),
    )

    def interrupt(done: int, total: int, text: str) -> None:
        if text.startswith("three"):
            raise KeyboardInterrupt

    out = tmp_path / "report.zip"
    with pytest.raises(KeyboardInterrupt):
        device_report(bundle, out, QUICK, progress=interrupt)
    assert log.read_text() == "12" and not out.exists()
    stop.touch()
    told: list[str] = []
    outcomes = device_report(bundle, out, QUICK, note=told.append)
    assert log.read_text() == "1223"  # one is not run again, two had failed
    assert [step.state for step in outcomes] == ["done"] * 3 and "goes on after one" in told[0]
    assert not (tmp_path / "report.zip.steps").exists()


def test_other_options_start_anew(
    bundle: Path, tmp_path: Path, made_of: Callable[..., None]
) -> None:
    made_of(("fault", 9, "exit('no')"), ("fine", 9, "print(1)"))
    device_report(bundle, tmp_path / "r.zip", QUICK)
    told: list[str] = []
    device_report(bundle, tmp_path / "r.zip", Options("onnxruntime"), note=told.append)
    assert not any("goes on" in text for text in told)


@pytest.mark.parametrize(
    ("says", "build", "ways", "profile"),
    [
        ({}, "own runs the bundle's graphs as they are", "own has one way", "own cannot tell"),
        (
            {
                "engines": lambda bundle, options: f"for {options.device}",
                "ways": {"slow": ChainOptions(threads=1)},
                "open_profiled": lambda *_: None,
                "unprofiled": lambda described: f"not on {described['device']}",
            },
            "for cuda:1 runs here",
            None,
            "not on a toy",
        ),
        (
            {"engines": raising, "open_profiled": lambda *_: None, "unprofiled": lambda _: None},
            None,
            "own has one way",
            None,
        ),
    ],
)
def test_steps_ask_the_backend_what_it_can(
    says: dict[str, Any],
    build: str | None,
    ways: str | None,
    profile: str | None,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    registry.register_backend(Backend("own", "from outside", lambda *_: None, **says))  # type: ignore[arg-type,return-value]
    record = {"chain_ms": 1.0, "runtime": {"device": "a toy"}}
    (tmp_path / "parity.json").write_text(json.dumps(record))
    job = Job(bundle, open_bundle(bundle).manifest, "own", "cuda:1", 1.0, tmp_path)
    for name, why in (("build", build), ("ways", ways), ("profile", profile)):
        (found,) = [step.arguments(job) for step in steps(job) if step.name == name]
        if why is None:  # a command
            assert isinstance(found, list) and "cuda:1" in " ".join(found)
        else:
            assert isinstance(found, str) and found.startswith(why)


def test_time_that_is_over_is_said(
    bundle: Path, tmp_path: Path, made_of: Callable[..., None]
) -> None:
    made_of(("fine", 9, "print(1)"))
    options = Options("onnxruntime", minutes=0.01)
    (step,) = device_report(bundle, tmp_path / "r.zip", options)
    assert (step.state, step.why) == ("failed", "too little time was left")


def test_two_at_once(bundle: Path, tmp_path: Path, lock_elsewhere: Held) -> None:
    (tmp_path / "r.zip.steps").mkdir()
    with lock_elsewhere(tmp_path / "r.zip.steps" / ".lock"):
        with pytest.raises(BackendError, match=r"another report .* wait for it"):
            device_report(bundle, tmp_path / "r.zip", QUICK)


@pytest.mark.parametrize("options", [Options(minutes=0), Options(soak_minutes=float("nan"))])
def test_impossible_minutes(bundle: Path, tmp_path: Path, options: Options) -> None:
    with pytest.raises(UsageError, match="minutes must be a positive number"):
        device_report(bundle, tmp_path / "r.zip", options)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_known_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: "board7.example.org")
    found = secrets(BUNDLE=Path("out"))
    text = f"left out: {tmp_path}/out/manifest.json on board7 and board7.example.org"
    assert without(text, found) == "left out: BUNDLE/manifest.json on MACHINE and MACHINE"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/maria/b/x.json", "BUNDLE/x.json"),
        ("/home/maria/other", "HOME/other"),
        ('{"p": "/home/maria/b"}', '{"p": "BUNDLE"}'),
        ("board says; keyboard says", "MACHINE says; keyboard says"),
        ("on board.", "on board."),  # part of a longer name: not a word of its own
        ("run by maria at 12", "run by USER at 12"),
        ("mariachi", "mariachi"),
    ],
)
def test_names_are_taken_out(text: str, told: str) -> None:
    hidden: dict[str, Any] = {
        "/home/maria": "HOME",
        "/home/maria/b": "BUNDLE",
        "board": "MACHINE",
        "maria": "USER",
    }
    expected = told.replace("on board.", "on MACHINE.")
    assert without(text, hidden) == expected
