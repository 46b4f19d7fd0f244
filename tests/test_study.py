"""The study: thresholds from one half of the images, figures from the other, tables of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lgvit_edge.benchmarks.study_tables import Case, Measured, choose, curve, draw, on, tables
from lgvit_edge.policy import Confidence, Never, Patience, from_json


def logits_of(answers: list[list[tuple[int, float]]]) -> np.ndarray:
    """``[n, M + 1, 3]`` from the class and the confidence of every exit."""
    made = np.zeros((len(answers), len(answers[0]), 3), np.float32)
    for i, exits in enumerate(answers):
        for m, (label, confidence) in enumerate(exits):
            made[i, m] = np.log((1 - confidence) / 2)
            made[i, m, label] = np.log(confidence)
    return made


def measured(answers: list[list[tuple[int, float]]], labels: list[int]) -> Measured:
    """One exit, half-way; its head costs nothing."""
    return Measured(
        logits_of(answers), np.array(labels), np.array([50, 100]), 100, np.array([6, 12])
    )


# The exit is right where it is sure; image 2 is the one that only the end gets right.
SIMPLE = measured(
    [[(0, 0.9), (0, 0.9)], [(1, 0.8), (1, 0.9)], [(0, 0.6), (2, 0.9)], [(1, 0.5), (0, 0.9)]],
    [0, 1, 2, 1],
)


def test_what_a_policy_does() -> None:
    found = on(Confidence(0.7), SIMPLE)
    assert found["accuracy"] == 0.75
    assert found["macs"] == 75
    assert found["speedup_macs"] == pytest.approx(100 / 75)
    assert found["speedup_layers"] == pytest.approx(12 / 9)
    assert found["shares"] == [0.5, 0.5]
    assert found["correct_shares"] == [0.5, 0.25]
    assert from_json(found["policy"]) == Confidence(0.7)


def test_the_best_setting_for_a_speed_up_and_for_a_loss() -> None:
    fast = choose("confidence", SIMPLE, speed_up=1.6)
    assert fast is not None
    found = on(fast, SIMPLE)
    assert (found["speedup_macs"], found["accuracy"]) == (2.0, 0.75)
    sure = choose("confidence", SIMPLE, drop=0.0)
    assert sure is not None
    assert on(sure, SIMPLE)["accuracy"] >= 0.75
    assert on(sure, SIMPLE)["speedup_macs"] == 2.0
    assert choose("patience", SIMPLE, speed_up=2.5) is None
    assert choose("patience", SIMPLE, drop=0.0) in (Never(), Patience(1))


def test_halves_share_no_image() -> None:
    tuning, reporting = SIMPLE.half(0), SIMPLE.half(1)
    assert tuning.labels.tolist() == [0, 2]
    assert reporting.labels.tolist() == [1, 1]
    assert tuning.accuracies == [0.5, 1.0]
    assert reporting.accuracies == [1.0, 0.5]
    assert np.array_equal(reporting.logits, SIMPLE.logits[[1, 3]])


def test_rows_that_differ_in_policy_or_frozen_scheme_share_a_training() -> None:
    names = {
        Case("a", "mlp", "uniform:8", scheme, policy).training
        for scheme in ("normal", "alternating")
        for policy in ("confidence", "patience")
    }
    assert names == {"mlp-uniform8-normal"}
    assert Case("a", "mlp", "6", "weighted", "confidence").training == "mlp-6-weighted"


def record(at_speedup: dict[str, Any] | None) -> dict[str, Any]:
    sure = on(Confidence(0.85), SIMPLE)
    row = {"name": "LGViT", "parameters": 5_600_000, "blocks": [6, 12], "accuracies": [0.5, 0.75]}
    return {
        "baseline": {"accuracy": 0.75, "accuracy_all": 0.7, "macs": 100, "parameters": 5_500_000},
        "conditions": {"reporting": 4, "speed_up": 1.6, "drop": 0.02},
        "tables": {"Methods": [row | {"at_speedup": at_speedup, "at_accuracy": sure}]},
        "curves": {"LGViT": curve("confidence", SIMPLE), "PABEE": curve("patience", SIMPLE)},
    }


def test_the_table() -> None:
    fast = on(Confidence(0.1), SIMPLE) | {"wall_clock": 1.55}
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
