"""``lgvit-edge predict`` with a server's help: what is refused, and what is shown without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

NOBODY = "triton://127.0.0.1:1/lgvit"


@pytest.fixture
def line(bundle: Path, tmp_path: Path) -> list[str]:
    image = tmp_path / "it.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(image)
    return ["predict", "--engines", str(bundle), "--backend", "onnxruntime", str(image)]


def test_without_the_server_the_device_answers_and_says_so(
    line: list[str], command: Callable[..., str]
) -> None:
    shown = command(*line, "--policy", "never", "--upstream", NOBODY, "--after", "1")
    assert "answered by" in shown and "device" in shown
    assert "the server gave no answer: cannot be reached: " in shown
    shown = command(*line, "--policy", "never", "--upstream", NOBODY, "--after", "1", "--json")
    (row,), _ = json.JSONDecoder().raw_decode(shown)
    assert (row["upstream"][:17], row["exit"], row["stopped"]) == ("cannot be reached", 4, "final")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--after", "1"), "--after needs --upstream triton://HOST:PORT/MODEL"),
        (("--server-timeout-ms", "9"), "--server-timeout-ms needs --upstream"),
        (("--upstream", "http://a:1/m", "--after", "1"), "expected triton://HOST:PORT/MODEL"),
        (("--upstream", NOBODY), "after which exit does the server go on? after must be 0..3, fou"),
        (("--upstream", NOBODY, "--after", "4"), "expected an exit in 1..3 to split at, found 4"),
        (("--upstream", NOBODY, "--after", "1", "--send", "png"), "send must be one of jpeg, hid"),
        (
            ("--upstream", NOBODY, "--after", "1", "--server-timeout-ms", "0"),
            "--server-timeout-ms must be a positive number",
        ),
        (
            ("--upstream", NOBODY, "--after", "1", "--policy", "patience:2"),
            "patience does not decide from each exit alone",
        ),
    ],
)
def test_what_does_not_go_together(
    options: tuple[str, ...], said: str, line: list[str], command: Callable[..., str]
) -> None:
    assert said in command(*line, *options, status=2)


def test_a_folder_is_answered_here_alone(
    bundle: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    options = ("--data", str(tmp_path), "--out", str(tmp_path / "a.jsonl"), "--upstream", NOBODY)
    said = command("predict", "--engines", str(bundle), *options, status=2)
    assert "--upstream is for images that are named" in said
