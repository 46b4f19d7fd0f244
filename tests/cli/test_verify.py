"""``lgvit-edge verify``: a bundle is run in a process with limits, each of which ends it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from bundles import list_again

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.runtime import verification
from lgvit_edge.runtime.backends.base import Candidate, ChainOptions
from lgvit_edge.runtime.selection import _measure_elsewhere
from lgvit_edge.runtime.verification import verify

# Stands in the place of ONNX Runtime, and does what a fault in it would do.
LIBRARY = """
import ctypes, os, signal, sys, time
from types import SimpleNamespace
__version__ = "1.0"
set_global_thread_pool_sizes = OrtMemoryInfo = lambda *_: None
create_and_register_allocator = lambda *_: None
OrtAllocatorType = SimpleNamespace(ORT_ARENA_ALLOCATOR=0)
OrtMemType = SimpleNamespace(DEFAULT=0)
get_available_providers = lambda: ["CPUExecutionProvider"]
SessionOptions = lambda: SimpleNamespace(add_session_config_entry=lambda *_: None)
def busy():
    while True: pass
def write():
    with open(os.environ["TMPDIR"] + "/file", "wb") as file:
        while True: file.write(b"x" * (1 << 20))
def abort():
    sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\\n")
    sys.stderr.flush()
    os.abort()
def said():
    while True: print("x" * (1 << 20))
def InferenceSession(*_, **__):
    @FAULT@
"""
FAULTS = {
    "crash": ("ctypes.string_at(0)", r"crashed onnxruntime \(SIGSEGV\); do not run it"),
    "abort": ("os.abort()", r"crashed onnxruntime \(SIGABRT\); do not run it"),
    "end": ("os._exit(7)", "ended the process with 7: ; do not run it"),
    "memory": (
        "bytearray(1 << 40)",
        r"needed more than 2048 MB of memory .*; allow more: --memory",
    ),
    "bad_alloc": ("abort()", r"needed more than 2048 MB of memory \(SIGABRT .*bad_alloc"),
    "killed": ("os.kill(os.getpid(), 9)", r"needed more than 2048 MB of memory \(SIGKILL"),
    "time": ("time.sleep(99)", "took longer than 4 s; allow more: --seconds"),
    "busy": ("busy()", "took longer than 4 s; allow more: --seconds"),
    "flood": ("said()", "File too large"),
    "files": ("write()", "File too large"),
}


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def put(fault: str) -> None:
        (tmp_path / "onnxruntime.py").write_text(LIBRARY.replace("@FAULT@", fault))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("TMPDIR", str(tmp_path))

    return put


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_clear_error(
    bundle: Path, faulty: Callable[[str], None], fault: str
) -> None:
    code, message = FAULTS[fault]
    faulty(code)
    result = verify(bundle, memory_mb=2048, seconds=4 if fault in ("time", "busy") else 60)
    with pytest.raises(Exception, match=message):
        result.check()
    outcomes = {"abort": "crash", "end": "crash", "bad_alloc": "memory", "killed": "memory"}
    outcomes |= {"busy": "time", "flood": "crash", "files": "refused"}
    assert result.outcome == outcomes.get(fault, fault)
    assert result.max_difference is None and "\n" not in result.message


def test_processor_time_is_limited_too(
    bundle: Path, faulty: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the process where this one was killed first."""
    faulty("busy()")
    monkeypatch.setattr(verification, "_processor_seconds", lambda *_: 1)
    result = verify(bundle, seconds=60)
    assert result.outcome == "time" and "computed for 1 s" in result.message


@pytest.mark.parametrize("name", ["lgvit_edge/__init__", "json", "numpy/__init__", "os"])
def test_nothing_is_imported_from_the_bundle(
    bundle_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    """``python -m`` looks into the current folder first, which may be a stranger's."""
    module = bundle_copy / f"{name}.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')")
    monkeypatch.chdir(bundle_copy)
    assert verify(".").outcome == "good"
    candidates = [Candidate("onnxruntime"), Candidate("openvino")]
    _measure_elsewhere(open_bundle("."), candidates, ChainOptions())
    assert not (tmp_path / "it ran").exists()


def test_a_bundle_does_not_choose_the_verdict(
    bundle_copy: Path, command: Callable[..., str]
) -> None:
    file = bundle_copy / "baseline.onnx"
    model = onnx.load(file, load_external_data=False)
    model.graph.node[-1].op_type, model.graph.node[-1].name = "Loop", "out of memory"
    file.write_bytes(model.SerializeToString())
    list_again(bundle_copy)
    said = command("verify", bundle_copy, "--json", status=1)
    assert '"outcome": "refused"' in said and "node 'out of memory' (Loop)" in said


def test_too_little_memory_is_no_fault_of_the_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise MemoryError

    monkeypatch.setattr("lgvit_edge.bundle.directory.check_graph", full)
    with pytest.raises(BackendError, match="out of memory: cannot check .*segment_0.onnx"):
        open_bundle(bundle)


def test_a_good_bundle(bundle: Path, command: Callable[..., str]) -> None:
    said = command("verify", bundle)
    assert "graphs are such as lgvit-edge exports, and all of them gave PyTorch's logits" in said
    record = json.loads(command("verify", bundle, "--json", "--seconds", "100"))
    assert record["outcome"] == "good" and record["message"] == ""
    assert 0 < record["max_difference"] < record["tolerance"]
    assert record["memory_mb"] == 2048 and record["time_limit"] == 100
    assert 20 < record["peak_mb"] < 2048


def test_onnxruntime_itself_has_too_little_memory(
    bundle: Path, command: Callable[..., str]
) -> None:
    said = command("verify", bundle, "--memory-mb", "1", "--json", status=1)
    assert '"outcome": "memory"' in said
    assert f"error: {bundle} needed more than 1 MB of memory" in said


def test_graphs_and_logits_are_told_apart(bundle_copy: Path, command: Callable[..., str]) -> None:
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parity"]["tolerance"] = 1e-12
    path.write_text(json.dumps(manifest))
    said = command("verify", bundle_copy, "--json", status=1)
    assert '"outcome": "differs"' in said and "diverges from PyTorch" in said
    file = bundle_copy / "baseline.onnx"
    model = onnx.load(file, load_external_data=False)
    model.graph.node[-1].op_type = "Loop"
    file.write_bytes(model.SerializeToString())
    list_again(bundle_copy)
    said = command("verify", bundle_copy, "--json", status=1)
    assert '"outcome": "refused"' in said and "(Loop): no export writes this operator" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "tensorrt"], "expected onnxruntime or openvino, found 'tensorrt'"),
        (["--seconds", "0"], "--seconds: expected a number above 0, at most 1000000, found 0"),
        (["--seconds", "nan"], "--seconds: expected a number above 0, at most 1000000, found nan"),
        (
            ["--seconds", "1e7"],
            "--seconds: expected a number above 0, at most 1000000, found 1e+07",
        ),
        (["--memory-mb", "0"], "--memory-mb"),
        (["--memory-mb", "99999999999999"], "--memory-mb: expected at most 1073741824, found 9999"),
    ],
)
def test_wrong_use(
    bundle: Path, command: Callable[..., str], options: list[str], message: str
) -> None:
    assert message in command("verify", bundle, *options, status=2)


def test_what_cannot_start_python(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BackendError, match="run: lgvit-edge verify"):
        verify(bundle)
    with pytest.raises(UsageError, match="memory_mb must be a whole number"):
        monkeypatch.delattr(sys, "frozen")
        verify(bundle, memory_mb=1.5)  # type: ignore[arg-type]
