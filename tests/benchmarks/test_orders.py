"""The study of orders: a whole run on a tiny model, and its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small import write_photos

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.benchmarks.experiments import orders
from lgvit_edge.errors import UsageError
from lgvit_edge.model import save_checkpoint
from lgvit_edge.training.start import seeded


def test_table_has_means_errors_and_the_gap_to_training_images() -> None:
    runs = [
        {"val": [0.40, 0.60, 0.70], "train": [0.50, 0.70, 0.90]},
        {"val": [0.42, 0.60, 0.70], "train": [0.50, 0.70, 0.90]},
    ]
    record = {"conditions": {"exits": [4, 8]}, "arms": [{"name": "a", "runs": runs}]}
    *_, row = orders.table(record).splitlines()
    assert row == "| a | 41.0 +- 1.0 | 60.0 +- 0.0 | 70.0 +- 0.0 | 9.0 +- 1.0 | 20.0 +- 0.0 |"


def test_the_whole_study(tmp_path: Path, small_config: LGViTConfig) -> None:
    for part in ("train", "val"):
        write_photos(tmp_path / "data" / part, "ab", 6)
    save_checkpoint(seeded(small_config.replace(exits=()), 0).eval(), tmp_path / "start.pt")
    out = tmp_path / "out"

    def run(**options: Any) -> None:
        given = {"data": tmp_path / "data", "out": out, "backbone": str(tmp_path / "start.pt")}
        given |= {"only": "frozen;joint at 3e-4, teacher;mixed at 3e-4", "precision": "fp32"}
        given |= {"epochs": 1, "heads_epochs": 1, "seeds": "0", "workers": 0, "exits": "uniform:2"}
        orders.main(**{**given, "images": 8, "val_images": 10, **options})

    run()
    record = json.loads((out / "orders.json").read_text())
    assert [arm["name"] for arm in record["arms"]] == [
        *("frozen", "joint at 3e-4, teacher", "mixed at 3e-4")
    ]
    for arm in record["arms"]:
        (only,) = arm["runs"]
        assert [len(only[part]) for part in ("val", "train")] == [3, 3]
    assert "| frozen |" in (out / "orders.md").read_text()
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*.pt")}
    run()
    assert trained == {path: path.stat().st_mtime_ns for path in out.glob("*.pt")}
    assert json.loads((out / "orders.json").read_text())["arms"] == record["arms"]
    for options, message in (
        ({"epochs": 2}, r"is of other settings \(epochs\); give another folder"),
        ({"only": "cold"}, "--only: expected some of frozen; .* found 'cold'"),
        ({"data": tmp_path / "data" / "train"}, "expected val/ beside train/"),
    ):
        with pytest.raises(UsageError, match=message):
            run(**options)
