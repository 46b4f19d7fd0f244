"""What ``tools/arm64.py`` tells apart without an emulator: mirrors, pip's settings, results."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("emulated")


@pytest.fixture
def arm64(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("arm64")


def test_the_mirror_is_that_of_apt(emulated: ModuleType) -> None:
    targets = "http://a/security trixie-security main\nhttp://b/debian trixie main\n"
    assert emulated.mirror_of(targets, "trixie") == "http://b/debian"
    with pytest.raises(emulated.Problem, match="apt has no archive of noble with main; name one"):
        emulated.mirror_of(targets, "noble")


def test_pip_there_asks_the_index_of_pip_here(emulated: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").touch()
    listed = f"""
:env:.default-timeout='180'
:env:.index-url='https://environment/simple'
global.cert='{tmp_path}/ca.crt'
global.constraint='/etc/constraints.txt'
global.extra-index-url='file:///wheels https://more/simple'
global.find-links='/wheels'
global.index-url='https://file/simple'
""".lstrip()
    assert emulated.pip_settings(listed) == {
        "PIP_TIMEOUT": "180",
        "PIP_INDEX_URL": "https://environment/simple",
        "PIP_EXTRA_INDEX_URL": "https://more/simple",
    }
    assert emulated.certificates(listed, {}) == tmp_path / "ca.crt"
    assert emulated.certificates("", {"SSL_CERT_FILE": str(tmp_path / "gone.crt")}) is None


def test_the_processor_that_is_told_is_the_emulated_one(
    emulated: ModuleType, tmp_path: Path
) -> None:
    from lgvit_edge.machine.cpu import cpu_name, instructions

    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(emulated.cpuinfo("neoverse-n1"))
    assert cpu_name(tmp_path) == "Arm Neoverse-N1"
    assert instructions(tmp_path) == ("asimdhp",)


@pytest.mark.parametrize(
    ("said", "last"),
    [
        (
            "Collecting x\nERROR: No matching distribution found for x\n[notice] new pip\n",
            "ERROR: ",
        ),
        ("Traceback\n  File x\nlgvit_edge.errors.BackendError: no\n", "lgvit_edge.errors.BackendE"),
        ("one\ntwo\n\n", "two"),
        ("", ""),
    ],
)
def test_last_words_name_the_error(emulated: ModuleType, said: str, last: str) -> None:
    assert emulated.last_words(said).startswith(last)
    assert len(emulated.last_words("x" * 1000)) < 400


def test_the_results_of_tests_are_read(arm64: ModuleType) -> None:
    said = """
..s.F
FAILED tests/a/test_b.py::test_c[1-2] - AssertionError: it is so
ERROR tests/a/test_d.py
= 1 failed, 3 passed, 1 skipped, 1 error in 1234.56s (0:20:34) =
"""
    assert arm64.outcomes(said) == {
        "counts": {"failed": 1, "passed": 3, "skipped": 1, "error": 1},
        "failed": [
            {"test": "a/test_b.py::test_c[1-2]", "why": "AssertionError: it is so"},
            {"test": "a/test_d.py", "why": ""},
        ],
    }
    assert arm64.outcomes("killed\n") == {"counts": {}, "failed": []}


def test_the_report_says_what_ran_and_no_times(arm64: ModuleType) -> None:
    row: dict[str, Any] = {"backend": "openvino", "images": 5, "from_host": [1e-6, 2e-6, 0.0]}
    report = arm64.Report(
        made="2026-01-01",
        emulator="qemu 7.2",
        system="Debian",
        bundle="random",
        packages={"numpy": "2.4.0"},
        host_packages={"numpy": "2.3.0"},
        steps=[arm64.Step("build", "failed", "BackendError: a | b")],
        logits=[row | {"from_torch": 3e-6, "parity": 3e-6}],
        tests=[{"test": "t.py::x", "why": "Bad"}],
    )
    page = arm64.in_markdown(report)
    assert "**This is emulation.**" in page and "no time was kept" in page
    assert "| build | failed | BackendError: a / b |" in page
    assert "| backend there | images | exit 1 | final | baseline | all, from PyTorch |" in page
    assert "| openvino | 5 | 1e-06 | 2e-06 | 0 | 3e-06 |" in page
    assert "- `t.py::x`: Bad" in page
    assert "| numpy | 2.4.0 | 2.3.0 |" in page


def test_what_it_needs_is_said_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(TOOLS / "arm64.py")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "run: apt install debootstrap qemu-user-static" in done.stderr


def test_a_test_that_needs_torch_skips_without_it(tmp_path: Path) -> None:
    (tmp_path / "test_file.py").write_text("import torch\n\ndef test_a(): pass\n")
    (tmp_path / "test_one.py").write_text("def test_a():\n    import torch\n\ndef test_b(): pass\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "without_torch",
    ]
    done = subprocess.run(
        [*command, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(TOOLS.parent / "tests" / "fakes")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 2 skipped" in done.stdout, done.stdout
