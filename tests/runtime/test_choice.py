"""``backend="auto"``: measured once per bundle and machine, kept, shown, and overridden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lgvit_edge._support import cache as _cache
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.cli.app import app
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.runtime import Session
from lgvit_edge.runtime import selection as choice
from lgvit_edge.runtime.backends import openvino as ov_chain
from lgvit_edge.runtime.backends.registry import ChainOptions
from lgvit_edge.runtime.selection import choose, known_choices, measure

pytest.importorskip("openvino", reason="openvino is not installed")

FRAME = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(choice.OVERRIDE)
    monkeypatch.setenv("LGVIT_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=[["f32"], ["f32", "bf16", "f16"]], ids=["f32", "halves_too"])
def hints(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What processors of both kinds say; measuring, in its own process, finds what is true."""
    monkeypatch.setattr(ov_chain, "available_hints", lambda device=None: request.param)
    found: list[str] = request.param
    return found


def test_the_fastest_is_measured_once(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, hints: list[str]
) -> None:
    with Session.open(bundle) as session:
        chosen = session.describe()["backend"]
        session.predict(FRAME)
    (kept,) = known_choices()
    assert kept.backend == chosen == min(kept.measured, key=lambda n: kept.measured[n]).split()[0]
    assert {"onnxruntime", "openvino f32"} <= set(kept.measured)
    asked = {"onnxruntime", *(f"openvino {hint}" for hint in hints)}
    assert sorted([*kept.measured, *kept.refused]) == sorted(asked)
    assert kept.bundle == str(bundle.resolve())

    def again(*_: Any) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr(choice, "_measure_elsewhere", again)
    with Session.open(bundle) as session:
        assert session.describe()["backend"] == chosen


def test_measuring_leaves_nothing_in_this_process(bundle: Path) -> None:
    """ONNX Runtime's pool, once made, makes demands on an application's own sessions."""
    import subprocess
    import sys

    code = (
        "import sys; from lgvit_edge.runtime import Session;"
        "from lgvit_edge.runtime.backends import ort_pool;"
        f"s = Session.open({str(bundle)!r});"
        "used = s.describe()['backend'] == 'onnxruntime';"
        "assert (ort_pool._pool_size is not None) == used"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_user_may_decide(bundle: Path, monkeypatch: pytest.MonkeyPatch, hints: list[str]) -> None:
    monkeypatch.setenv(choice.OVERRIDE, "openvino")
    with Session.open(bundle) as session:
        assert session.describe()["backend"] == "openvino"
    with Session.open(bundle, backend="onnxruntime") as session:
        assert session.describe()["backend"] == "onnxruntime"
    # Where the processor offers a choice of hints, those were measured, and nothing else.
    kept = [name for found in known_choices() for name in (*found.measured, *found.refused)]
    assert kept == ([f"openvino {hint}" for hint in hints] if len(hints) > 1 else [])
    monkeypatch.setenv(choice.OVERRIDE, "abacus")
    with pytest.raises(UsageError, match="backend must be one of auto, .*found 'abacus'"):
        Session.open(bundle)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (ChainOptions(), ["onnxruntime", "openvino"]),
        (ChainOptions(thread_pool="private"), ["onnxruntime"]),
        (ChainOptions(hint="f32"), ["openvino"]),
        (ChainOptions(device="cpu"), ["onnxruntime", "openvino"]),
    ],
)
def test_what_is_asked_for_leaves_less_to_choose(options: ChainOptions, names: list[str]) -> None:
    found = list(choice._candidates("auto", options))
    assert list(dict.fromkeys(name for name, _ in found)) == names


def test_without_openvino_nothing_is_measured(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = choice.importlib.util.find_spec
    monkeypatch.setattr(
        choice.importlib.util, "find_spec", lambda n: None if n == "openvino" else real(n)
    )
    monkeypatch.setattr(choice, "_measure_elsewhere", None)
    assert choose(open_bundle(bundle), "auto", ChainOptions())[0] == "onnxruntime"


def test_who_computes_something_else_is_refused(bundle_copy: Path) -> None:
    """The samples of the bundle are not those PyTorch answered: nobody agrees with them."""
    with np.load(bundle_copy / "parity.npz") as samples:
        arrays = dict(samples)
    arrays["logits"] = arrays["logits"] + 1
    np.savez(bundle_copy / "parity.npz", **arrays)
    pairs: list[tuple[str, str | None]] = [("onnxruntime", None), ("openvino", "f32")]
    opened = open_bundle(bundle_copy, verify=False)
    with pytest.raises(BackendError, match="nothing here runs .*openvino f32: segment 0 diverges"):
        measure(opened, pairs, ChainOptions())
    assert known_choices() == []


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
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
    assert set(found["measured"]) >= {"onnxruntime", "openvino f32"}
    shown = CliRunner().invoke(app, ["doctor"]).output
    assert "auto runs it on" in shown


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _cache.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("LGVIT_EDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _cache.cache_root() == tmp_path / "xdg" / "lgvit-edge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _cache.cache_root() == tmp_path / "home" / ".cache" / "lgvit-edge"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user of a container, with no entry
    assert _cache.cache_root() is None
