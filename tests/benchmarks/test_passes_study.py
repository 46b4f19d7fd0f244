"""The study of passes: its figures from answers made by hand, and a whole run on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import write_photos

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.benchmarks.experiments import passes
from lgvit_edge.benchmarks.experiments.study_rows import Measured
from lgvit_edge.errors import UsageError
from lgvit_edge.model import save_checkpoint
from lgvit_edge.policies.evaluate import ExitCosts, Images
from lgvit_edge.training.start import seeded

COSTS = ExitCosts((3, 6), 3, macs=(25, 125), baseline_macs=100)


def measured(coarse: list[tuple[int, float]], copies: int = 2) -> Measured:
    """The last pass is always right; each image twice, for the half that chooses and the other."""
    rows = [row for row in coarse for _ in range(copies)]
    logits = np.zeros((len(rows), 2, 3), np.float32)
    logits[:, 1, 0] = 5.0
    for row, (label, gap) in zip(logits[:, 0], rows, strict=True):
        row[label] = gap
    return Measured(Images(logits, np.zeros(len(rows), np.int64)), COSTS)


def test_mean_and_error_over_seeds() -> None:
    # Sure and right of 3 of 4 images, then of 1 of 4; unsure and wrong of the others.
    runs = [
        measured([(0, 6.0)] * 3 + [(1, 0.1)]),
        measured([(0, 6.0)] + [(1, 0.1)] * 3),
    ]
    found = passes.summary(runs)
    (point,) = [p for p in found["points"] if p["policy"] == "confidence" and p.get("drop") == 0.0]
    speed_ups = [100 / (25 + 100 * share) for share in (0.25, 0.75)]
    assert point["macs_speedup_by_seed"] == pytest.approx(speed_ups)
    assert point["macs_speedup"] == pytest.approx(sum(speed_ups) / 2)
    # The standard error of two values is half their distance.
    assert point["macs_speedup_error"] == pytest.approx(abs(speed_ups[0] - speed_ups[1]) / 2)
    assert point["change"] == 0.0 and point["accuracy"] == 1.0
    assert found["exit_accuracies"] == [0.5, 1.0]
    # 1.6x costs the second seed accuracy, 2.3x both.
    (fast,) = [
        p for p in found["points"] if p["policy"] == "confidence" and p.get("speed_up") == 1.6
    ]
    assert fast["change_by_seed"] == pytest.approx([0.0, -0.75])
    record = {"arms": [{"name": "a", **found}], "conditions": {"seeds": [4, 5]}}
    rows = [
        row for row in passes.raw(record) if row["policy"] == "confidence" and row.get("drop") == 0
    ]
    assert [(row["seed"], row["change"]) for row in rows] == [(4, 0.0), (5, 0.0)]
    assert (
        f"| a | confidence | losing <= 0 points | +0.00 +- 0.00 | {sum(speed_ups) / 2:.2f} +- "
        in (passes.table(record))
    )


def test_the_whole_study(tmp_path: Path, small_config: LGViTConfig) -> None:
    for part, count in (("train", 6), ("val", 6)):
        write_photos(tmp_path / "data" / part, "ab", count)
    save_checkpoint(seeded(small_config.replace(exits=()), 0).eval(), tmp_path / "start.pt")
    out = tmp_path / "out"

    def run(**options: Any) -> None:
        given = {"data": tmp_path / "data", "out": out, "backbone": str(tmp_path / "start.pt")}
        given |= {"only": "teacher,shared weights,exits inside", "precision": "fp32"}
        given |= {"epochs": 1, "heads_epochs": 1, "seeds": "0", "workers": 0}
        passes.main(**{**given, "images": 8, "val_images": 10, **options})

    run()
    record = json.loads((out / "passes.json").read_text())
    assert [arm["name"] for arm in record["arms"]] == ["teacher", "shared weights", "exits inside"]
    assert record["conditions"]["training_images"] == 8
    assert (record["conditions"]["choosing"], record["conditions"]["reporting"]) == (5, 5)
    assert [len(arm["exit_accuracies"]) for arm in record["arms"]] == [2, 2, 4]
    with (out / "passes.csv").open() as file:
        assert {row["seed"] for row in csv.DictReader(file)} == {"0"}
    assert (out / "passes.png").read_bytes()[:4] == b"\x89PNG"
    # The last pass is the same for all that keep it.
    finals = [arm["exit_accuracies"][-1] for arm in record["arms"]]
    assert finals[0] == finals[2]
    # What arms have in common is trained once, and what is there is not trained again.
    stored = {path: path.stat().st_mtime_ns for path in out.glob("*.pt")}
    assert len(stored) == 3 * 2  # each with the last pass
    missing = next(path for path in stored if path.name.startswith("shared-"))
    missing.unlink()
    run()
    again = {path: path.stat().st_mtime_ns for path in out.glob("*.pt")}
    assert all(path.name.startswith("shared-") for path in again if again[path] != stored[path])
    repeated = json.loads((out / "passes.json").read_text())
    assert repeated["arms"] == record["arms"]
    for options, message in (
        ({"epochs": 2}, r"is of other settings \(epochs\); give another folder"),
        ({"only": "teachers"}, "--only: expected some of teacher, .* found 'teachers'"),
        ({"lr": "1e-3"}, "--lr: expected two rates"),
        ({"data": tmp_path / "data" / "train"}, "expected val/ beside train/"),
    ):
        with pytest.raises(UsageError, match=message):
            run(**options)
