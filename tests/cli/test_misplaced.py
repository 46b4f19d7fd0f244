"""A bundle that is typed the way another command takes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., str]


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("verify --engines BUNDLE", "verify BUNDLE"),
        ("build --force --engines=BUNDLE", "build --force BUNDLE"),
        ("compare --engines BUNDLE a.json", "compare BUNDLE a.json"),
        ("info --engines BUNDLE", "info BUNDLE"),
    ],
)
def test_the_bundle_is_the_argument(typed: str, right: str, bundle: Path, command: Command) -> None:
    name = typed.split()[0]
    said = command(*typed.replace("BUNDLE", str(bundle)).split(), status=2)
    line = right.replace("BUNDLE", str(bundle))
    assert said == f"error: {name} takes the bundle without --engines; run: lgvit-edge {line}"


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("bench BUNDLE", "bench --engines BUNDLE"),
        ("bench BUNDLE BUNDLE --data x", "bench --engines BUNDLE --engines BUNDLE --data x"),
        ("bench nowhere --rounds 3", "bench --engines nowhere --rounds 3"),
        ("profile --runs 3 BUNDLE", "profile --engines BUNDLE --runs 3"),
        ("predict BUNDLE a.png", "predict --engines BUNDLE a.png"),
        ("tune BUNDLE --data x", "tune --engines BUNDLE --data x"),
        ("doctor BUNDLE", "doctor --engines BUNDLE"),
        ("device-report BUNDLE", "device-report --engines BUNDLE"),
    ],
)
def test_the_bundle_is_an_option(typed: str, right: str, bundle: Path, command: Command) -> None:
    name = typed.split()[0]
    said = command(*typed.replace("BUNDLE", str(bundle)).split(), status=2)
    line = right.replace("BUNDLE", str(bundle))
    assert said == f"error: {name} takes the bundle as --engines; run: lgvit-edge {line}"


def test_what_is_no_bundle_is_left_to_the_command(bundle: Path, command: Command) -> None:
    for typed in ("predict a.png", "bench"):
        assert "Missing option '--engines'" in command(*typed.split(), status=2)
    assert "No such option: --engines" in command("train", "--engines", bundle, status=2)
    assert "unexpected extra argument" in command("export", "--engines", bundle, status=2)
    long = "confidence:" + ",".join(["0.5"] * 100)  # longer than a file's name may be
    said = command("bench", "--policy", long, status=2)
    assert "Missing option '--engines'" in said
