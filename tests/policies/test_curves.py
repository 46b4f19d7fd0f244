"""What exits are worth, what a training leaves beside its checkpoint."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.errors import TrainingError
from lgvit_edge.images.spec import Preprocess
from lgvit_edge.policies import Confidence
from lgvit_edge.policies.curves import draw, summary, sweep
from lgvit_edge.training import TrainingConfig, train
from lgvit_edge.training.data.datasets import ArrayDataset
from lgvit_edge.training.history import COLUMNS, write_log
from lgvit_edge.training.start import seeded

# Four images of two classes, one exit after block 1 of 4: right and sure, right and unsure, wrong
# and sure, wrong and unsure; the final classifier is right but for the last.
LABELS = np.array([0, 0, 0, 0])
EXIT = np.array([[5, 0], [0.1, 0], [0, 5], [0, 0.1]])
FINAL = np.array([[5, 0], [5, 0], [5, 0], [0, 5]])
LOGITS = np.stack([EXIT, FINAL], axis=1).astype(np.float32)
COSTS = {"macs": [30, 90], "baseline": 100, "blocks": [1, 4]}


def test_points_by_hand() -> None:
    points = sweep(LOGITS, LABELS, **COSTS)  # type: ignore[arg-type]
    (point,) = [p for p in points["confidence"] if p.policy == Confidence(0.9).to_json()]
    # The two sure ones leave at the exit: one is right, and so is one of those that go on.
    assert point.accuracy == 0.5 and point.shares == (0.5, 0.5)
    assert point.layers == pytest.approx(4 / 2.5)  # Eq. 17
    assert point.macs == pytest.approx(100 / (0.5 * 30 + 0.5 * 120))
    careless, careful = points["confidence"][0], points["confidence"][-1]
    assert careless.shares == (1.0, 0.0) and careful.shares == (0.0, 1.0)
    assert careful.macs == pytest.approx(100 / 120)  # the head was paid for
    assert points["entropy"][0].macs > points["entropy"][-1].macs
    assert [p.policy["patience"] for p in points["patience"]] == [1]


def test_an_oracle_is_never_worse_than_any_exit() -> None:
    found = summary(LOGITS, LABELS, **COSTS)  # type: ignore[arg-type]
    assert found["accuracy"] == [0.5, 0.75]
    assert found["oracle"]["accuracy"] == 0.75
    assert found["oracle"]["layers"] == pytest.approx(4 / 2.5)  # blocks 1, 1, 4, 4
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found))
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 4, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 50)
    many = summary(logits, labels, [3, 2, 2, 2], 8, [1, 2, 3, 4])
    assert many["oracle"]["accuracy"] >= max(many["accuracy"])
    best = max(p["accuracy"] for points in many["policies"].values() for p in points)
    assert many["oracle"]["accuracy"] >= best


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(summary(LOGITS, LABELS, **COSTS), tmp_path / "f.png", title="t")  # type: ignore[arg-type]
    from PIL import Image

    with Image.open(tmp_path / "f.png") as image:
        assert image.size == (1050, 675) and len(np.unique(np.asarray(image.convert("L")))) > 20


CONFIG = LGViTConfig(
    family="vit",
    image_size=8,
    patch_size=4,
    hidden_size=16,
    num_blocks=2,
    num_heads=2,
    intermediate_size=16,
    num_classes=2,
    exits=(ExitConfig(1, "mlp"),),
    preprocess=Preprocess(resize=8),
)
FAST = TrainingConfig(epochs=(2, 1), lr=(1e-3, 1e-3), batch_size=4, workers=0, device="cpu")


def images() -> ArrayDataset:
    frames = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    return ArrayDataset(frames, np.arange(12) % 2)


def trained(out: Path) -> str:
    said = io.StringIO()
    console = Console(file=said, width=200)
    train(seeded(CONFIG, 0), images(), images(), FAST, out=out, console=console)
    return " ".join(said.getvalue().split())


def test_training_leaves_its_log_its_worth_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = trained(tmp_path / "model.pt")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        f"model.{end}" for end in ("pt", "log.csv", "log.png", "eval.json", "eval.png")
    }
    with (tmp_path / "model.log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["stage"], r["epoch"]) for r in rows] == [("1", "1"), ("1", "2"), ("2", "1")]
    assert all(0 <= float(r["accuracy"]) <= 1 and float(r["loss"]) > 0 for r in rows)
    found = json.loads((tmp_path / "model.eval.json").read_text())
    assert found["images"] == 12 and len(found["accuracy"]) == 2
    assert "an oracle, leaving at the first exit that is right: " in said
    assert "accuracy against speed-up: " in said


def test_without_matplotlib_there_are_numbers_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = trained(tmp_path / "model.pt")
    assert {p.suffix for p in tmp_path.iterdir()} == {".pt", ".csv", ".json"}
    assert "no picture: " in said and "pip install 'lgvit-edge[train]'" in said


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"cannot write .*nowhere/model\.log\.csv"):
        write_log([], tmp_path / "nowhere" / "model.log.csv")
