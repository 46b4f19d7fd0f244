"""The paper's ablations with the backbone trained along: a whole run on a tiny model."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small import write_photos

from lgvit_edge._support.files import locked
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.benchmarks.experiments import ablations
from lgvit_edge.benchmarks.experiments.trainings import kept
from lgvit_edge.errors import UsageError
from lgvit_edge.model import load_model, save_checkpoint
from lgvit_edge.policies.evaluate import Images
from lgvit_edge.training.start import seeded


def test_rows_of_table_2_have_every_seed_and_come_first() -> None:
    tables = [cases for _, cases in ablations.TABLES.values()]
    plan = ablations._plan(tables, [0, 1, 2])
    assert len({(ablations._key(case), seed) for case, seed in plan}) == 20 + 1 + 4 + 1 + 10
    assert len({(*ablations._row(case), seed) for case, seed in plan}) == len(plan) == 36 + 6
    assert [seed for _, seed in plan[:21]] == [0] * 7 + [1] * 7 + [2] * 7
    assert {seed for _, seed in plan[21:]} == {0}
    names = {ablations._key(case) for case, _ in plan}
    assert {"mlp-uniform8-alternating", "mlp-uniform8-normal"} < names  # not the same training


def test_the_whole_study(
    tmp_path: Path, small_config: LGViTConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        write_photos(tmp_path / "data" / part, "ab", 6)
    save_checkpoint(seeded(small_config.replace(exits=()), 0).eval(), tmp_path / "start.pt")
    out = tmp_path / "out"

    def run(**options: Any) -> None:
        given = {"data": tmp_path / "data", "out": out, "backbone": str(tmp_path / "start.pt")}
        given |= {"only": "2,4", "precision": "fp32", "exits": "uniform:2", "seeds": "0,1"}
        given |= {"epochs": 1, "heads_epochs": 1, "images": 8, "val_images": 10}
        ablations.main(**{**given, **options})

    run()
    assert "0 of 13 trainings done; about 0.0 hours left" in capsys.readouterr().out
    record = json.loads((out / "ablations-2-4.json").read_text())
    second, fourth = record["tables"].values()
    assert [row["name"] for row in second] == [
        *("MLP, normal", "MLP, two stages", "MLP and GAH, two stages"),
        *("LPH and GAH, normal", "LPH and GAH, two stages"),
    ]
    assert [len(row["runs"]) for row in second] == [2] * 5
    half = load_model(out / "mlp-gah-uniform8-lgvit-0.pt").config.exits
    assert [exit_.head for exit_ in half] == ["mlp", "gah"]
    assert [len(row["runs"]) for row in fourth] == [2, 1, 1, 1, 2]
    assert all(len(run["accuracies"]) == 3 for row in fourth for run in row["runs"])
    stages = json.loads((out / "mlp-uniform8-normal-0.json").read_text())["order"]
    assert (stages, json.loads((out / "mlp-uniform8-lgvit-0.json").read_text())["order"]) == (
        *("whole", "joint"),
    )
    assert {row["exits"] for row in fourth} == {"uniform:2"}
    page = (out / "ablations-2-4.md").read_text()
    assert "## Main components (Table 2)" in page and "| LPH and GAH, alternating |" in page
    trained = {path: path.stat().st_mtime_ns for path in out.glob("*.pt")}
    assert len(trained) == 13
    run()
    assert trained == {path: path.stat().st_mtime_ns for path in out.glob("*.pt")}
    other = str(tmp_path / "other.pt")
    save_checkpoint(seeded(small_config.replace(exits=()), 1).eval(), tmp_path / "other.pt")
    for options, message in (
        ({"epochs": 2}, r"is of other settings \(epochs\); give another folder"),
        ({"backbone": other}, r"is of other settings \(weights\); give another folder"),
        ({"seeds": "0,one"}, "--seeds: expected whole numbers such as 0,1,2; found 'one'"),
        ({"only": "5"}, "--only: expected some of 2, 1, 3, 4, 7, 6; found '5'"),
        ({"data": tmp_path / "data" / "train"}, "expected val/ beside train/"),
    ):
        with pytest.raises(UsageError, match=message):
            run(**options)


def test_methods_have_a_policy_each_and_a_bundle(
    tmp_path: Path, small_config: LGViTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val"):
        write_photos(tmp_path / "data" / part, "ab", 6)
    save_checkpoint(seeded(small_config.replace(exits=()), 0).eval(), tmp_path / "start.pt")
    methods = [case for case in ablations.METHODS if case.name in ("LGViT", "PABEE", "PCEE")]
    monkeypatch.setattr(ablations, "METHODS", methods)
    monkeypatch.setitem(ablations.TABLES, "1", ("Methods (Table 1)", methods))
    out = tmp_path / "out"

    def run() -> None:
        ablations.main(
            data=tmp_path / "data",
            out=out,
            backbone=str(tmp_path / "start.pt"),
            **{"only": "1", "precision": "fp32", "exits": "uniform:2", "seeds": "0"},  # type: ignore[arg-type]
            **{"epochs": 1, "heads_epochs": 1, "images": 8, "val_images": 10},  # type: ignore[arg-type]
        )

    run()
    assert len(list(out.glob("*.pt"))) == 2  # PABEE and PCEE differ in their policy alone
    (rows,) = json.loads((out / "ablations-1.json").read_text())["tables"].values()
    points = {row["name"]: row["runs"][0]["points"]["1.6"] for row in rows}
    expected = {"LGViT": "confidence", "PABEE": "patience", "PCEE": "patient_confidence"}
    reached = {name: point["policy"] for name, point in points.items() if point}
    assert set(points) == set(expected) and len(reached) >= 2
    for name, policy in reached.items():
        assert policy["name"] == expected[name]
        manifest = json.loads((out / "bundles" / f"{name.lower()}-0" / "manifest.json").read_text())
        assert manifest["policy"] == policy
    assert len(list((out / "bundles").iterdir())) == len(reached)
    written = (out / "bundles" / "lgvit-0" / "manifest.json").stat().st_mtime_ns
    run()
    assert (out / "bundles" / "lgvit-0" / "manifest.json").stat().st_mtime_ns == written


def test_logits_of_an_older_checkpoint_are_not_taken(tmp_path: Path) -> None:
    found = [Images(np.full((2, 1, 3), value, np.float32), np.zeros(2, int)) for value in (0, 1)]
    checkpoint, stored = tmp_path / "a.pt", tmp_path / "a.npz"
    checkpoint.touch()
    for expected, images, age in ((0, found[0], 0), (0, found[1], -9), (1, found[1], 9)):
        if stored.is_file():  # the checkpoint is so many seconds younger
            moment = stored.stat().st_mtime + age
            os.utime(checkpoint, (moment, moment))
        assert (kept(stored, checkpoint, lambda images=images: images).logits == expected).all()  # type: ignore[misc]


def test_a_training_that_another_run_has_comes_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ablations._plan([ablations.TABLES["7"][1]], [0])
    shared = SimpleNamespace(
        out=tmp_path, run=lambda case, seed: case.exits, seconds=lambda: 1800.0
    )
    first = f".{ablations._key(plan[0][0])}-0.lock"
    results = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(tmp_path / first))
        for case, _, _ in ablations._results(shared, plan):  # type: ignore[arg-type]
            results.append(case.exits)
            if len(results) == len(plan) - 1:
                stack.close()
    assert results == [case.exits for case, _ in [*plan[1:], plan[0]]]
    assert "0 of 4 trainings done; about 2.0 hours left" in capsys.readouterr().out


def test_means_have_standard_errors() -> None:
    points = [
        {
            "1.4": {"accuracy": accuracy, "macs_speedup": speed_up},
            "1.6": None,
            "2": {"accuracy": 0.5, "macs_speedup": 2.5},
        }
        for accuracy, speed_up in ((0.40, 1.38), (0.42, 1.40))
    ]
    runs = [{"points": p, "blocks": [4, 8], "accuracies": [0.3, 0.5]} for p in points]
    row = {"name": "a", "exits": "uniform:8", "runs": runs}
    *_, line = ablations.tables({"tables": {"T": [row]}}).splitlines()
    assert (
        line
        == "| a | 41.0 ± 1.0 (1.39x) | not reached | 50.0 ± 0.0 (2.50x) | 2 | 4: 30.0, 8: 50.0 |"
    )
