"""``backend="auto"``: measured once per bundle and machine, kept, shown, and overridden.

Precisions below float32 need evidence, which no bundle here has: see ``test_precision``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import python
from pytest import MonkeyPatch
from typer.testing import CliRunner

from lgvit_edge._support import cache as _cache
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.app import app
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.runtime import Session
from lgvit_edge.runtime import selection as choice
from lgvit_edge.runtime.backends import openvino
from lgvit_edge.runtime.backends.base import Candidate, ChainOptions
from lgvit_edge.runtime.selection import choose, known_choices, measure

pytest.importorskip("openvino", reason="openvino is not installed")

FRAME = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: MonkeyPatch) -> Path:
    monkeypatch.delenv(choice.OVERRIDE)
    monkeypatch.setenv("LGVIT_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=[["fp32"], ["fp32", "bf16", "fp16"]], ids=["fp32", "halves_too"])
def precisions(request: pytest.FixtureRequest, monkeypatch: MonkeyPatch) -> list[str]:
    """What processors of both kinds say."""
    monkeypatch.setattr(openvino, "available_precisions", lambda device=None: request.param)
    found: list[str] = request.param
    return found


def test_the_fastest_is_measured_once(
    bundle: Path,
    monkeypatch: MonkeyPatch,
    precisions: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Session.open(bundle) as session:
        chosen = session.describe()["backend"]
        session.predict(FRAME)
    assert "measuring which runs" in capsys.readouterr().err  # it takes seconds
    (kept,) = known_choices()
    assert kept.backend == chosen == min(kept.measured, key=lambda n: kept.measured[n]).split()[0]
    assert set(kept.measured) == {"onnxruntime", "openvino fp32"} and not kept.refused
    assert kept.bundle == str(bundle.resolve())

    def again(*_: Any) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(choice, "_measure_elsewhere", again)
    with Session.open(bundle) as session:
        assert session.describe()["backend"] == chosen
    assert "measuring" not in capsys.readouterr().err


def test_measuring_leaves_nothing_in_this_process(bundle: Path) -> None:
    """ONNX Runtime's pool, once made, makes demands on an application's own sessions."""
    code = (
        "import onnxruntime; from lgvit_edge.runtime import Session;"
        "from lgvit_edge.runtime.backends import ort_pool;"
        f"s = Session.open({str(bundle)!r});"
        "used = s.describe()['backend'] == 'onnxruntime' and ort_pool.can_share(onnxruntime);"
        "assert (ort_pool._pool_size is not None) == used"
    )
    python(code)


def test_a_user_may_decide(bundle: Path, monkeypatch: MonkeyPatch, precisions: list[str]) -> None:
    monkeypatch.setenv(choice.OVERRIDE, "openvino")
    with Session.open(bundle) as session:
        assert session.describe()["backend"] == "openvino"
    with Session.open(bundle, backend="onnxruntime") as session:
        assert session.describe()["backend"] == "onnxruntime"
    assert known_choices() == []  # there was nothing to choose, whatever the processor offers
    monkeypatch.setenv(choice.OVERRIDE, "abacus")
    with pytest.raises(UsageError, match="backend must be one of auto, .*found 'abacus'"):
        Session.open(bundle)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (ChainOptions(), ["onnxruntime", "openvino"]),
        (ChainOptions(thread_pool="private"), ["onnxruntime"]),
        (ChainOptions(precision="fp32"), ["openvino"]),
        (ChainOptions(device="cpu"), ["onnxruntime", "openvino"]),
    ],
)
def test_options_leave_less_to_choose(
    bundle: Path, options: ChainOptions, names: list[str]
) -> None:
    found = choice.candidates(open_bundle(bundle), "auto", options)
    assert list(dict.fromkeys(one.backend for one in found)) == names


def test_options_that_nobody_takes_together_are_refused(bundle: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Session.open(bundle, thread_pool="private", precision="fp32")
    said = str(caught.value)
    assert "the onnxruntime backend takes no precision; leave that out, or use backend" in said
    assert "the openvino backend takes no thread_pool" in said
    with pytest.raises(UsageError, match="device must be one of cpu, gpu, gpu:N, npu, found 'tpu'"):
        Session.open(bundle, device="tpu")


def test_without_openvino_nothing_is_measured(bundle: Path, monkeypatch: MonkeyPatch) -> None:
    lack(monkeypatch, "openvino")
    monkeypatch.setattr(choice, "_measure_elsewhere", None)
    assert choose(open_bundle(bundle), "auto", ChainOptions()).backend == "onnxruntime"


def lack(monkeypatch: MonkeyPatch, *modules: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in modules else real(name)
    )


def test_without_any_backend_all_missing_is_named(bundle: Path, monkeypatch: MonkeyPatch) -> None:
    lack(monkeypatch, "openvino", "onnxruntime")
    with pytest.raises(BackendError) as caught:
        Session.open(bundle)
    for name, extra in (("onnxruntime", "cpu"), ("openvino", "openvino")):
        wanted = f"{name} is not installed; run: pip install 'lgvit-edge[{extra}]'"
        assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("name", "mark", "starts"),
    [
        ("python3", None, True),  # an interpreter is started: the test would see it
        ("python3", "frozen", False),  # PyInstaller, cx_Freeze
        ("camera", None, False),  # Python inside another program
        ("python3", choice._MEASURING, False),  # what was started to measure
    ],
)
def test_a_packed_application_does_not_start_itself_again(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
    name: str,
    mark: str | None,
    starts: bool,
) -> None:
    program, log = tmp_path / name, tmp_path / "log"
    program.write_text(f"#!/bin/sh\necho started >> {log}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    if mark == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif mark:
        monkeypatch.setenv(mark, "1")
    with Session.open(bundle) as session:
        session.predict(FRAME)
    assert len(known_choices()) == 1  # measured all the same, here
    assert log.exists() == starts


def test_who_computes_something_else_is_refused(bundle_copy: Path) -> None:
    """The samples of the bundle are not those PyTorch answered: nobody agrees with them."""
    with np.load(bundle_copy / "parity.npz") as samples:
        arrays = dict(samples)
    arrays["logits"] = arrays["logits"] + 1
    np.savez(bundle_copy / "parity.npz", **arrays)
    pairs = [Candidate("onnxruntime"), Candidate("openvino", "fp32")]
    opened = open_bundle(bundle_copy, verify=False)
    message = "no backend here can run .*openvino fp32: segment 0 diverges"
    with pytest.raises(BackendError, match=message):
        measure(opened, pairs, ChainOptions())
    assert known_choices() == []


def test_timing_ends_when_one_is_clearly_faster(bundle: Path, monkeypatch: MonkeyPatch) -> None:
    """Nobody waits for a decision that is clear; where it is not, it takes its time."""
    monkeypatch.setattr(choice, "_SECONDS", 60.0)
    turns: list[str] = []

    def times(slow: float) -> None:
        def timed(chain: Any, *_: object) -> float:
            turns.append(chain.describe()["backend"])
            return slow if turns[-1] == "openvino" else 1.0

        turns.clear()
        monkeypatch.setattr(choice, "_mean_exit_ms", timed)

    opened = open_bundle(bundle)
    pairs = [Candidate("onnxruntime"), Candidate("openvino", "fp32")]
    times(1.2)
    assert measure(opened, pairs, ChainOptions()).backend == "onnxruntime"
    assert turns == ["onnxruntime"] * 2 + ["openvino"] * 2
    times(1.05)
    assert measure(opened, pairs, ChainOptions()).backend == "onnxruntime"
    assert len(turns) == 2 * (2 + 11 * 3)


def test_a_damaged_memory_is_measured_again(bundle: Path, cache: Path) -> None:
    Session.open(bundle).close()
    (path,) = cache.glob("*/backend-*.json")
    for text in ("{", "[]", json.dumps({"backend": "abacus"})):
        path.write_text(text)
        Session.open(bundle).close()
        assert json.loads(path.read_text())["measured"]
    path.chmod(0o666)  # somebody else may have written it
    assert known_choices() == []


def test_a_cache_that_cannot_be_written_is_done_without(
    bundle: Path, monkeypatch: MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file" / "cache"), ""):
        monkeypatch.setenv("LGVIT_EDGE_CACHE", place)
        with Session.open(bundle) as session:
            session.predict(FRAME)
        assert known_choices() == []


def test_doctor_measures_and_shows(bundle: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--engines", str(bundle), "--json"])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["choices"]
    assert found["backend"] in ("onnxruntime", "openvino")
    assert set(found["measured"]) >= {"onnxruntime", "openvino fp32"}
    shown = CliRunner().invoke(app, ["doctor"]).output
    assert "auto runs it on" in shown


def test_where_the_cache_lies(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    assert _cache.cache_root() == tmp_path / "cache"
    for gone, given, place in (
        ("LGVIT_EDGE_CACHE", "XDG_CACHE_HOME", "lgvit-edge"),
        ("XDG_CACHE_HOME", "HOME", ".cache/lgvit-edge"),
    ):
        monkeypatch.delenv(gone)
        monkeypatch.setenv(given, str(tmp_path / given))
        assert _cache.cache_root() == tmp_path / given / place
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user of a container, with no entry
    assert _cache.cache_root() is None
