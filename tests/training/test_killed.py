"""A training that is killed again and again ends as one that is not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest
import torch
from processes import training

# Figures are given for ten; each costs a start of Python.
KILLS = int(os.environ.get("LGVIT_EDGE_KILLS", "1"))
EPOCHS = 24  # of both stages


def start(folder: Path, out: str, features: str) -> subprocess.Popen[str]:
    """Both stages; ``workers`` too, which a kill must not leave behind."""
    options = f"--epochs 12 --batch-size 8 --workers 1 --cache-features {features} --out {out}.pt"
    return training(folder, options)


def epochs_done(folder: Path) -> int:
    """Rows of the killed run's log, which is replaced after every epoch."""
    log = folder / "killed.log.csv"
    return len(log.read_text().splitlines()) - 1 if log.exists() else 0


@pytest.mark.slow
def test_kill_9_at_random_moments(folder: Path) -> None:
    whole = start(folder, "whole", "whole-features")
    said, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, said
    rng = random.Random(0)
    landed = 0
    for kill in range(KILLS):
        before = epochs_done(folder)
        process = start(folder, "killed", "features")
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
    process = start(folder, "killed", "features")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "continuing after epoch" in said
    names = ("whole", "killed")
    results = [json.loads((folder / f"{name}.eval.json").read_text()) for name in names]
    assert results[0] == results[1]
    states = [torch.load(folder / f"{name}.pt", weights_only=True)["state"] for name in names]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name
    left = {path.name for path in folder.iterdir() if path.name.startswith((".", "killed"))}
    kinds = ("pt", "log.csv", "log.png", "eval.json", "eval.png")
    assert left == {f"killed.{kind}" for kind in kinds}
