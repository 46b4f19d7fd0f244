"""A training that is killed again and again ends as one that is not."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import training

# Figures are given for ten; each costs a start of Python.
KILLS = int(os.environ.get("LGVIT_EDGE_KILLS", "1"))
EPOCHS = 2 * (KILLS + 2)  # of both stages


def options(out: str, features: str) -> str:
    return f"--epochs {EPOCHS // 2} --batch-size 8 --cache-features {features} --out {out}.pt"


def epochs_done(folder: Path) -> int:
    """Rows of the killed run's log, which is replaced after every epoch."""
    log = folder / "killed.log.csv"
    return len(log.read_text().splitlines()) - 1 if log.exists() else 0


@pytest.mark.slow
def test_kill_9_at_random_moments(folder: Path, trained: Callable[[str], str]) -> None:
    trained(options("whole", "whole-features"))
    rng = random.Random(0)
    landed = 0
    for kill in range(KILLS):
        before = epochs_done(folder)
        # With a worker, which a kill must not leave behind.
        process = training(folder, f"{options('killed', 'features')} --workers 1")
        # Somewhere within the run's next epochs, between any two instructions.
        due = (kill + 1) * EPOCHS // (KILLS + 1)
        while process.poll() is None and epochs_done(folder) < due:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        said, _ = process.communicate(timeout=300)
        landed += process.returncode == -9
        # At most the epoch that was running is lost.
        resume = torch.load(folder / "killed.pt.resume", weights_only=True)
        assert len(resume["history"]) >= epochs_done(folder) - 1, said
        assert epochs_done(folder) >= max(before, due), said
        assert not (folder / "killed.pt").exists()
    assert landed == KILLS
    assert "continuing after epoch" in trained(options("killed", "features"))
    names = ("whole", "killed")
    results = [json.loads((folder / f"{name}.eval.json").read_text()) for name in names]
    assert results[0] == results[1]
    states = [torch.load(folder / f"{name}.pt", weights_only=True)["state"] for name in names]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name
    left = {path.name for path in folder.iterdir() if path.name.startswith((".", "killed"))}
    kinds = ("pt", "log.csv", "log.png", "eval.json", "eval.png")
    assert left == {f"killed.{kind}" for kind in kinds}
