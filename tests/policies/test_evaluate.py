"""What exits are worth, what a training leaves beside its checkpoint."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small import vit

from lgvit_edge.architecture.config import ExitConfig
from lgvit_edge.errors import TrainingError
from lgvit_edge.policies import POLICIES, Confidence, Ensemble, FixedExit, Never, Patience, Policy
from lgvit_edge.policies.evaluate import ExitCosts, Images, evaluate, summary, sweep
from lgvit_edge.policies.picture import by_label, draw
from lgvit_edge.training import TrainingConfig, train
from lgvit_edge.training.data.datasets import ArrayDataset
from lgvit_edge.training.report import COLUMNS, write_log
from lgvit_edge.training.start import seeded

# Four images of two classes, one exit after block 1 of 4: right and sure, right and unsure, wrong
# and sure, wrong and unsure; the final classifier is right but for the last.
LABELS = np.array([0, 0, 0, 0])
EXIT = np.array([[5, 0], [0.1, 0], [0, 5], [0, 0.1]])
FINAL = np.array([[5, 0], [5, 0], [5, 0], [0, 5]])
IMAGES = Images(np.stack([EXIT, FINAL], axis=1).astype(np.float32), LABELS)
COSTS = ExitCosts(blocks=(1, 4), baseline_blocks=4, macs=(30, 120), baseline_macs=100)


def test_points_by_hand() -> None:
    points = sweep(IMAGES, COSTS)
    (point,) = [p for p in points["confidence"] if p.policy == Confidence(0.9)]
    # The two sure ones leave at the exit: one is right, and so is one of those that go on.
    assert point.accuracy == 0.5 and point.shares == (0.5, 0.5)
    assert point.right_shares == (0.25, 0.25)
    assert point.layers_speedup == pytest.approx(4 / 2.5)  # Eq. 17
    assert point.macs == 75 and point.macs_speedup == pytest.approx(100 / 75)
    careless, careful = points["confidence"][0], points["confidence"][-1]
    assert careless.shares == (1.0, 0.0) and careful.shares == (0.0, 1.0)
    assert careful.macs_speedup == pytest.approx(100 / 120)  # the head was paid for
    assert points["entropy"][0].macs < points["entropy"][-1].macs
    assert [p.policy for p in points["patience"]] == [Patience(1)]
    assert not {"fixed", "never"} & points.keys()  # nothing to vary


def test_an_outcome_by_hand() -> None:
    """Leaves rightly; leaves wrongly; goes on; leaves rightly where the baseline is wrong."""
    sure, unsure = [5.0, 0.0], [0.1, 0.0]
    exits = [[sure, sure], [sure, [0.0, 5.0]], [unsure, sure], [sure, [0.0, 5.0]]]
    images = Images(np.array(exits, np.float32), np.array([0, 1, 0, 0]))
    costs = ExitCosts((1, 4), 4, (10, 40), 39, (1.5, 4.5), 4.0)
    found = evaluate(Confidence(0.8), images, costs)
    assert (found.accuracy, images.baseline_accuracy, found.errors) == (0.75, 0.75, 1)
    assert found.drop_error == pytest.approx(np.std([0, 1, 0, -1]) / np.sqrt(4))
    assert found.drop_error == pytest.approx(math.sqrt(0.5) / 2)
    assert found.shares == (0.75, 0.25)
    assert found.latency_ms == 0.75 * 1.5 + 0.25 * 4.5
    assert found.wall_clock_speedup == pytest.approx(4.0 / 2.25)
    assert found.macs == 0.75 * 10 + 0.25 * 40
    whole = evaluate(Never(), images, costs)
    assert (whole.errors, whole.drop_error, whole.shares) == (0, 0, (0.0, 1.0))
    # The model without exits runs, and not the chain.
    assert (whole.macs, whole.latency_ms, whole.layers_speedup) == (39, 4.0, 1.0)
    assert evaluate(Confidence(1.0), images, costs).macs == 39
    assert evaluate(FixedExit(2), images, costs).macs == 40


def test_without_times_none_are_told() -> None:
    untimed = evaluate(Never(), IMAGES, COSTS)
    assert math.isnan(untimed.latency_ms) and math.isnan(untimed.wall_clock_speedup)
    row = json.loads(json.dumps(untimed.to_json(), allow_nan=False))
    assert "latency_ms" not in row and "wall_clock_speedup" not in row
    assert row["policy"] == {"name": "never"} and row["shares"] == [0.0, 1.0]


@pytest.mark.parametrize("policy", [Patience(2), Ensemble(0.9), Confidence(0.6)], ids=repr)
def test_many_images_are_replayed_as_few_are(policy: Policy) -> None:
    logits = np.random.default_rng(1).normal(0, 2, (1100, 4, 5)).astype(np.float32)
    exits, classes = policy.replay(logits)  # in chunks of 512, 512 and 76
    few = [policy.replay(logits[first : first + 100]) for first in range(0, 1100, 100)]
    assert (exits == np.concatenate([part[0] for part in few])).all()
    assert (classes == np.concatenate([part[1] for part in few])).all()


def test_an_oracle_is_never_worse_than_any_exit() -> None:
    found = summary(IMAGES, COSTS)
    assert found["accuracy"] == [0.5, 0.75]
    assert found["oracle"]["accuracy"] == 0.75
    assert found["oracle"]["layers_speedup"] == pytest.approx(4 / 2.5)  # blocks 1, 1, 4, 4
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found))
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 4, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 50)
    many = summary(Images(logits, labels), ExitCosts((1, 2, 3, 4), 4, (3, 5, 7, 9), 8))
    assert many["oracle"]["accuracy"] >= max(many["accuracy"])
    best = max(p["accuracy"] for points in many["policies"].values() for p in points)
    assert many["oracle"]["accuracy"] >= best


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = by_label(summary(IMAGES, COSTS)["policies"])
    assert "patience (PABEE)" in lines
    draw(lines, tmp_path / "f.png", baseline=0.75, title="t")
    with Image.open(tmp_path / "f.png") as image:
        assert image.size == (1050, 675) and len(np.unique(np.asarray(image.convert("L")))) > 20


def test_more_lines_than_markers_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"macs_speedup": 1.0, "accuracy": 0.5}, {"macs_speedup": 2.0, "accuracy": 0.4}]
    lines = {f"line {i}": rows for i in range(3 * len(POLICIES))}
    draw(lines, tmp_path / "f.png", baseline=0.5, title="t", drop=0.1, limits=((1, 2), (0, 99)))
    assert (tmp_path / "f.png").stat().st_size > 1000


CONFIG = vit(
    **dict(image_size=8, patch_size=4, num_blocks=2, intermediate_size=16, num_classes=2),
    exits=(ExitConfig(1, "mlp"),),
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
    ends = ("pt", "log.csv", "log.png", "eval.json", "eval.png")
    assert names == {f"model.{end}" for end in ends}
    with (tmp_path / "model.log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["stage"], r["epoch"]) for r in rows] == [("1", "1"), ("1", "2"), ("2", "1")]
    assert all(0 <= float(r["accuracy"]) <= 1 and float(r["loss"]) > 0 for r in rows)
    found = json.loads((tmp_path / "model.eval.json").read_text())
    assert found["images"] == 12 and len(found["accuracy"]) == 2
    assert "an oracle that leaves at the first correct exit: " in said
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
