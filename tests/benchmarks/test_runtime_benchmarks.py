"""The scripts that measure the runtime, each run once on a small bundle."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import write_photos

from lgvit_edge.architecture.placement import default_heads
from lgvit_edge.architecture.published import architecture
from lgvit_edge.benchmarks.experiments import (
    batches,
    deadlines,
    heads,
    int8,
    opening,
    precision,
    rates,
    rivals,
    soak,
)
from lgvit_edge.benchmarks.experiments.host import decision_cost
from lgvit_edge.benchmarks.experiments.if_graph import BoundGraph, IfGraph, VinoGraph, build
from lgvit_edge.benchmarks.experiments.rates import summarise
from lgvit_edge.benchmarks.trend import slope
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.export import ExportOptions, export_bundle
from lgvit_edge.images.preprocess import to_float
from lgvit_edge.model import LGViT, save_checkpoint
from lgvit_edge.runtime import Confidence, Session
from lgvit_edge.runtime.backends.openvino import available_precisions

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Rivals set those of PyTorch, for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), "abcde", 8)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, exported_model: LGViT) -> Path:
    out = tmp_path_factory.mktemp("single") / "out"
    export_bundle(exported_model, out, ExportOptions())
    return out


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_rival_graph_leaves_with_the_chains_logits(backend: str, single: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    bundle = open_bundle(single)
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    with (
        tempfile.TemporaryDirectory() as folder,
        Session.open(single, backend=backend) as session,
    ):
        threads = session.describe()["threads"]
        load = {
            "onnxruntime": lambda path, inputs: BoundGraph(path, inputs, threads),
            "openvino": lambda path, inputs: VinoGraph(path, inputs, threads, "fp32"),
        }[backend]
        graph = IfGraph(build(bundle, Path(folder)), 3, load, images)
        expected = session.timed_exits(session.prepare(list(images)))[0]
        for exit in (1, 3, 4, 2):
            graph(exit)
            np.testing.assert_allclose(graph.logits[0], expected[exit - 1], atol=1e-5)


def test_ways_of_half_precision_are_compared(
    photos: Path, tmp_path: Path, quick_model: LGViT, capsys: Capture
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    save_checkpoint(quick_model, tmp_path / "model.pt")
    out = tmp_path / "out.json"
    precision.main(tmp_path / "model.pt", photos, samples=4, rounds=1, json_file=out)
    assert "--fp32-accumulate" in capsys.readouterr().out
    found = {row["way"]: row for row in json.loads(out.read_text())["ways"]}
    none, usual, sums, _ = (found[way] for way in precision.WAYS)
    assert none["nodes"] < usual["nodes"] < sums["nodes"]
    assert none["weights_mb"] == usual["weights_mb"] == sums["weights_mb"]
    assert all(0 < row["max_difference"] < 0.05 for row in found.values())


def test_int8_is_timed_and_compared(
    photos: Path, tmp_path: Path, quick_model: LGViT, capsys: Capture
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    save_checkpoint(quick_model, tmp_path / "model.pt")
    out = tmp_path / "int8.json"
    int8.main(None, tmp_path / "model.pt", photos, photos, 10, 4, out)
    rows = {row["way"]: row for row in json.loads(out.read_text())["rows"]}
    assert (rows["float32, ONNX Runtime"]["agree"], rows["float32, ONNX Runtime"]["time"]) == (1, 1)
    assert {"int8, ONNX Runtime", "int8 MLPs in float32, OpenVINO"} < set(rows)
    assert all(row["ms"] > 0 and 0 <= row["top1"] <= 1 for row in rows.values())
    assert "scales as it runs" in capsys.readouterr().out
    for wrong in ({"arch": "vit-tiny", "ckpt": out}, {"ckpt": out}, {}):
        with pytest.raises(UsageError, match="expected --arch NAMES, or --ckpt MODEL --data"):
            int8.main(**wrong)


def test_rivals_are_timed_in_turn(
    single: Path, tmp_path: Path, exported_model: LGViT, capsys: Capture
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    save_checkpoint(exported_model, tmp_path / "model.pt")
    narrow = exported_model.config.replace(intermediate_size=64)
    save_checkpoint(LGViT(narrow).eval(), tmp_path / "other.pt")
    options = {"mix": "40,30,20,10", "rounds": 2, "json_file": tmp_path / "r.json"}
    options["compiled"] = False  # takes a minute
    rivals.main(single, None, tmp_path / "model.pt", **options)  # type: ignore[arg-type]
    record = json.loads((tmp_path / "r.json").read_text())
    names = {row["name"] for row in record["rows"]}
    others = [p for p in available_precisions("cpu") if p != "fp32"]
    vino = ["OpenVINO", *(f"OpenVINO {precision}" for precision in others)]
    assert names == {
        f"{way}, {name}"
        for name, ways in (
            ("ONNX Runtime", ("chain", "If graph")),
            *((name, ("chain", "If graph")) for name in vino),
            ("PyTorch", ("eager",)),
            ("PyTorch bf16", ("eager",)),
        )
        for way in (*ways, "baseline")
    }
    chain = next(row for row in record["rows"] if row["name"] == "chain, ONNX Runtime")
    assert chain["efficiency"] == pytest.approx(chain["wall_clock"] / chain["macs"])
    assert "eager, PyTorch" in capsys.readouterr().out
    with pytest.raises(UsageError, match="expected --arch NAME or --ckpt MODEL"):
        rivals.main(single, None, None, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="whose baseline has .* parameters, found one with"):
        rivals.main(single, None, tmp_path / "other.pt", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="and 4 shares, found 2"):
        rivals.main(single, "vit-base", None, "1,2", 2)


def test_a_rival_by_architecture_has_the_bundles_exits(tmp_path: Path) -> None:
    plain = architecture("vit-tiny", num_classes=7, image_size=64)
    blocks = [2, 5, 8, 10]
    exits = default_heads(blocks, heads="mlp", family="vit")
    export_bundle(LGViT(plain.replace(exits=exits)).eval(), tmp_path / "out", ExportOptions())
    bundle = open_bundle(tmp_path / "out")
    model = rivals.model_of(bundle, "vit-tiny", None)
    assert model.config.exits == exits and model.config.image_size == 64
    with pytest.raises(UsageError, match="parameters, found one with"):
        rivals.model_of(bundle, "deit-tiny-distilled", None)
    other = plain.replace(exits=default_heads(blocks, heads="conv", family="vit"))
    save_checkpoint(LGViT(other), tmp_path / "conv.pt")
    with pytest.raises(UsageError, match="whose segments compute something else.*--ckpt"):
        rivals.model_of(bundle, None, tmp_path / "conv.pt")


def test_pytorch_leaves_where_it_is_told(exported_model: LGViT) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    pixels = torch.from_numpy(to_float(images, exported_model.config.preprocess))
    run = rivals.leaving(exported_model, pixels)
    with torch.inference_mode():
        expected = exported_model.exit_logits(pixels)[0].argmax(dim=-1).tolist()
    assert [run(exit) for exit in (1, 2, 3, 4)] == expected


def test_batches_are_compared(bundle: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "b.json"
    batches.main(bundle, photos, ["confidence:0.3", "never"], "1,4", 40, 1, "onnxruntime", path)
    rows = json.loads(path.read_text())["rows"]
    found = [(row["policy"][:10], row["batch"]) for row in rows]
    assert found == [("confidence", 1), ("confidence", 4), ("never", 1), ("never", 4)]
    for row in rows:
        assert row["efficiency"] == pytest.approx(row["wall_clock"] / row["macs"])
    assert rows[0]["macs"] == pytest.approx(rows[1]["macs"])  # the same images leave
    assert rows[2]["macs"] == rows[3]["macs"] == 1  # the model without exits runs
    assert "all rows stay" in capsys.readouterr().out
    with pytest.raises(UsageError, match="batch sizes of 1 to 4, found 8; run: lgvit-edge export"):
        batches.main(bundle, photos, None, "8", 40, 1, "onnxruntime", None)


def test_deadlines_are_counted(bundle: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "d.json"
    deadlines.main(bundle, photos, "3", 100, 1, "never", "onnxruntime", path)
    free, held = json.loads(path.read_text())["rows"]
    assert free["late"] is None and free["mean_exit"] == 4
    assert 0 <= held["late"] <= 1 and 1 <= held["mean_exit"] <= 4
    assert len(held["raw"]["exit"]) == 100
    assert "competing process" in capsys.readouterr().out


def test_a_rate_is_played_and_drawn(
    bundle: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    picture, path = tmp_path / "rate.png", tmp_path / "rate.json"
    rates.main(bundle, photos, 200.0, 180, 1, "onnxruntime", picture, path)
    record = json.loads(path.read_text())
    assert set(record["parts"]) == {"calm", "loaded", "calm again"}
    assert len(record["raw"]["level"]) == 180
    with Image.open(picture) as drawn:
        assert drawn.size == (880, 550)
    assert "loaded: " in capsys.readouterr().out


def test_changes_of_level_are_found() -> None:
    levels = [1] * 60 + [1] * 5 + [3] * 55 + [3] * 12 + [2, 1] + [1] * 46
    rows = {"level": levels, "latency_ms": [10.0] * 180, "correct": [True] * 180}
    parts = summarise(rows, (60, 120), 12.0)
    assert [part["changes"] for part in parts.values()] == [0, 1, 2]
    assert [part["last_change"] for part in parts.values()] == [0, 5, 13]
    assert parts["calm again"]["levels"] == [1]


def test_a_line_through_noise_has_its_slope_and_an_interval() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(200.0)
    flat = slope(x, 5 + rng.normal(size=200))
    assert flat["low"] < 0 < flat["high"]
    steep = slope(x, 0.1 * x + rng.normal(size=200))
    assert 0 < steep["low"] < 0.1 < steep["high"]


def test_heads_are_timed_run_and_left_out(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "heads.json"
    heads.main(bundle, 4, None, path)
    record = json.loads(path.read_text())
    manifest = open_bundle(bundle).manifest
    ways = [["onnxruntime", "fp32"], *(["openvino", p] for p in available_precisions()[:2])]
    rows = [r for r in record["rows"] if [r["backend"], r["precision"]] in ways]
    assert [row["heads"] for row in rows] == [heads.ALL, heads.HALF, heads.NONE] * (len(rows) // 3)
    whole = manifest.cumulative_macs(4)
    spared = manifest.head_macs_apart
    for row, less in zip(rows, (0, spared[0] + spared[2], sum(spared)) * 3, strict=False):
        assert row["macs_ratio"] == pytest.approx((whole - less) / manifest.baseline.macs)
        assert row["ms"] > 0 and row["time_ratio"] > 0
    assert "every second" in capsys.readouterr().out


def test_opening_is_timed_in_processes_of_their_own(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, few = tmp_path / "opening.json", ("onnxruntime", "auto, measures first")
    every = opening._ways()
    monkeypatch.setattr(opening, "_ways", lambda: {name: every[name] for name in few})
    opening.main(bundle, 1, path)
    rows = json.loads(path.read_text())["rows"]
    assert [row["way"] for row in rows] == list(few)
    assert all(row["open_ms"] > 0 and row["first_ms"] > 0 for row in rows)
    assert rows[0]["ran"] == "onnxruntime"
    with pytest.raises(BackendError, match=r"does not open with .*no BackEnd"):
        opening._process(bundle, {"backend": "no BackEnd"}, str(tmp_path))


def test_what_an_exit_decision_costs_is_measured(bundle: Path) -> None:
    assert decision_cost(bundle, Confidence(0.999)) > 0


def test_a_soak_looks_at_memory_and_latency(bundle: Path) -> None:
    with Session.open(bundle, warm_up=True) as session:
        rows = soak.run(session, bundle, 2000)
    assert rows.shape == (2, 3)
    assert (rows[:, 1] > 10).all() and (rows[:, 2] > 0).all()
