"""A short run of the fuzzer, everything it once found, and whether it finds what it should."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import bad_targets
import pytest
from fuzzing import SEEDS, Outcome, run
from targets import TARGETS, Target, make

CHEAP, FULL = 1000, 12  # changes of each target


@pytest.fixture(scope="module")
def root(made_once: Callable[..., Path]) -> Path:
    def fill(out: Path) -> None:
        out.mkdir()
        make(out)

    return made_once("fuzzed", fill)


def assert_sound(outcome: Outcome) -> None:
    assert not outcome.findings, "\n".join(f"{f.kind}: {f.details}" for f in outcome.findings)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_changed_files_are_refused_or_read(root: Path, target: Target) -> None:
    kept = [path.read_bytes() for path in sorted(SEEDS.glob(f"{target.name}/*"))]
    if kept:
        assert_sound(run(target, root, given=kept, slow=60))
    count = CHEAP if target.cheap else FULL
    outcome = run(target, root, count=count, seed=0, slow=60)
    assert_sound(outcome)
    assert outcome.tried == count
    if target.name != "choice":  # of which all are passed over
        assert outcome.refused > 0


def test_every_seed_has_its_target() -> None:
    assert {path.name for path in SEEDS.iterdir()} <= {target.name for target in TARGETS}


@pytest.mark.parametrize(
    ("target", "kind", "said"),
    [
        (bad_targets.RAISES, "KeyError", "bad_targets.py"),
        (bad_targets.CRASHES, "crash", "Segmentation fault"),
        (bad_targets.HANGS, "hang", "bad_targets.py"),
        (bad_targets.GROWS, "memory", "MB more"),
        (bad_targets.TALKS, "long message", "xxx"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_it_must_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target, kind: str, said: str
) -> None:
    """The next content is tried after a process died."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    given, slow = [b"true", b"false", b"true"], 5 if kind == "hang" else 60
    outcome = run(target, tmp_path, given=given, slow=slow, out=tmp_path / "out")
    (finding,) = outcome.findings
    assert not list((tmp_path / "temporary").iterdir())
    assert b"false" in [path.read_bytes() for path in (tmp_path / "out").glob("*/*")]
    assert (finding.kind, finding.content, outcome.tried) == (kind, b"false", 3)
    assert said in finding.details


def test_what_is_sound(tmp_path: Path) -> None:
    outcome = run(bad_targets.SOUND, tmp_path, count=50, seed=1)
    assert_sound(outcome)
    assert (outcome.tried, outcome.refused > 30) == (50, True)
