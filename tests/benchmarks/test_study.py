"""The study: thresholds from one half of the images, figures from the other, tables of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import write_photos

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.benchmarks.experiments import study, study_rows
from lgvit_edge.benchmarks.experiments.study import draw, tables
from lgvit_edge.benchmarks.experiments.study_rows import Case, Measured, choose, curve
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.model import save_checkpoint
from lgvit_edge.policies import Confidence, Never, Patience
from lgvit_edge.policies.evaluate import ExitCosts, Images
from lgvit_edge.training.start import seeded


def logits_of(answers: list[list[tuple[int, float]]]) -> np.ndarray:
    """``[n, M + 1, 3]`` from the class and the confidence of every exit."""
    logits = np.zeros((len(answers), len(answers[0]), 3), np.float32)
    for i, exits in enumerate(answers):
        for m, (label, confidence) in enumerate(exits):
            logits[i, m] = np.log((1 - confidence) / 2)
            logits[i, m, label] = np.log(confidence)
    return logits


def measured(answers: list[list[tuple[int, float]]], labels: list[int]) -> Measured:
    """One exit, half-way; its head costs nothing."""
    costs = ExitCosts(blocks=(6, 12), baseline_blocks=12, macs=(50, 100), baseline_macs=100)
    return Measured(Images(logits_of(answers), np.array(labels)), costs)


# The exit is right where it is sure; image 2 is the one that only the end gets right.
SIMPLE = measured(
    [[(0, 0.9), (0, 0.9)], [(1, 0.8), (1, 0.9)], [(0, 0.6), (2, 0.9)], [(1, 0.5), (0, 0.9)]],
    [0, 1, 2, 1],
)


def test_the_best_setting_for_a_speed_up_and_for_a_loss() -> None:
    fast = choose("confidence", SIMPLE, speed_up=1.6)
    assert fast is not None
    outcome = SIMPLE.gives(fast)
    assert (outcome.macs_speedup, outcome.accuracy) == (2.0, 0.75)
    sure = choose("confidence", SIMPLE, drop=0.0)
    assert sure is not None
    assert SIMPLE.gives(sure).accuracy >= 0.75
    assert SIMPLE.gives(sure).macs_speedup == 2.0
    assert choose("patience", SIMPLE, speed_up=2.5) is None
    assert choose("patience", SIMPLE, drop=0.0) in (Never(), Patience(1))


def test_halves_share_no_image() -> None:
    tuning, reporting = SIMPLE.half(0), SIMPLE.half(1)
    assert tuning.images.labels.tolist() == [0, 2]
    assert reporting.images.labels.tolist() == [1, 1]
    assert tuning.images.accuracies == [0.5, 1.0]
    assert reporting.images.accuracies == [1.0, 0.5]
    assert np.array_equal(reporting.images.logits, SIMPLE.images.logits[[1, 3]])


def test_rows_that_differ_in_policy_or_frozen_scheme_share_a_training() -> None:
    names = {
        Case("a", "mlp", "uniform:8", scheme, policy).training
        for scheme in ("normal", "alternating")
        for policy in ("confidence", "patience")
    }
    assert names == {"mlp-uniform8-normal"}
    assert Case("a", "mlp", "6", "weighted", "confidence").training == "mlp-6-weighted"


def record(at_speedup: dict[str, Any] | None) -> dict[str, Any]:
    sure = SIMPLE.gives(Confidence(0.85)).to_json()
    row = {"name": "LGViT", "parameters": 5_600_000, "blocks": [6, 12], "accuracies": [0.5, 0.75]}
    return {
        "baseline": {"accuracy": 0.75, "accuracy_all": 0.7, "macs": 100, "parameters": 5_500_000},
        "conditions": {"reporting": 4, "speed_up": 1.6, "drop": 0.02},
        "tables": {"Methods": [row | {"at_speedup": at_speedup, "at_accuracy": sure}]},
        "curves": {"LGViT": curve("confidence", SIMPLE), "PABEE": curve("patience", SIMPLE)},
    }


def test_the_table() -> None:
    fast = SIMPLE.gives(Confidence(0.1)).to_json() | {"wall_clock": 1.55}
    text = tables(record(fast))
    assert "Baseline without exits: 75.00% on the 4 reporting images (70.00% on all)" in text
    *_, header, rule, row, end = text.split("\n")
    assert end == ""
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row.startswith("| LGViT | 5.60 | 75.00% | 0.000 | 2.00 | 2.00 | 1.55 |")
    assert row.endswith("| 6: 50.0, 12: 75.0 |")
    assert "| not reached | - | - | - | - |" in tables(record(None))


def test_the_picture(tmp_path: Path) -> None:
    draw(record(None), tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def folder(tmp_path: Path, small_config: LGViTConfig) -> Path:
    """Images of two classes, and a backbone of three blocks."""
    for part, count in (("train", 8), ("val", 6)):
        write_photos(tmp_path / part, "ab", count)
    save_checkpoint(seeded(small_config.replace(exits=()), 0).eval(), tmp_path / "start.pt")
    return tmp_path


def test_the_whole_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**options: Any) -> None:
        settings = {"data": folder, "out": folder / "out", "backbone": str(folder / "start.pt")}
        study.main(**{**settings, "epochs": 1, "only": "kl", "precision": "fp32", **options})

    cases = tuple(
        Case(kl, "mlp", "2", "lgvit", policy, kl)
        for kl, policy in (("image", "confidence"), ("class", "patience"))
    )
    monkeypatch.setattr(study, "TABLES", {"kl": ("KL", cases)})
    monkeypatch.setattr(study_rows, "_MEASURED", 4)
    run()
    written = json.loads((folder / "out" / "study.json").read_text())
    assert written["conditions"]["reporting"] == written["conditions"]["tuning"] == 6
    assert written["conditions"]["training_images"] == 16
    assert [row["name"] for row in written["tables"]["KL"]] == ["image", "class"]
    assert all(len(row["accuracies"]) == 2 for row in written["tables"]["KL"])
    assert set(written["curves"]) == {"image", "class"}
    assert "## KL" in (folder / "out" / "study.md").read_text()
    assert (folder / "out" / "study.png").exists()
    checkpoints = {p: p.stat().st_mtime_ns for p in (folder / "out").glob("*.pt")}
    assert {path.name for path in checkpoints} == {"mlp-2-lgvit.pt", "mlp-2-lgvit-class.pt"}
    run()
    assert all(path.stat().st_mtime_ns == then for path, then in checkpoints.items())
    for options, message in (
        ({"epochs": 2}, r"is of other settings \(epochs\); give another folder: --out"),
        ({"backbone": "vit-tiny"}, "a trained backbone: expected --weights or a checkpoint"),
        ({"only": "9"}, "--only: expected some of kl; found '9'"),
    ):
        with pytest.raises(UsageError, match=message):
            run(**options)
    (folder / "val" / "a" / "00.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="val: 1 images cannot be read; remove them"):
        run(out=folder / "other")
