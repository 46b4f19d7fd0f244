"""Bench: figures against hand-computed values, and records people can rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small import write_photos

from lgvit_edge.benchmarks import measure_exits, measure_images, print_report
from lgvit_edge.benchmarks.experiments import last_block, overhead
from lgvit_edge.benchmarks.record import Sample, instability, percentiles, summarise
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import DataError, UsageError
from lgvit_edge.export import export_bundle
from lgvit_edge.images.labelled import LabelledImage, find_images
from lgvit_edge.model import LGViT
from lgvit_edge.policies import Confidence
from lgvit_edge.policies.evaluate import ExitCosts
from lgvit_edge.runtime import Session


def sample(exit: int, ms: float, base: float, correct: bool | None = None) -> Sample:
    return Sample(exit, correct, correct, ms + 1, ms, base + 1, base)


def test_speedups_are_those_of_the_paper_and_never_mixed_up(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    samples = [sample(1, 1.0, 9.0, True)] * 3 + [sample(4, 9.0, 9.0, False)]
    record = summarise(samples, manifest, ExitCosts.of(manifest, heads_apart=False))
    assert record["speedup"]["layers"] == pytest.approx(4 * 4 / (3 * 1 + 4))  # Eq. 17
    spent = [manifest.cumulative_macs(e) for e in (1, 1, 1, 4)]
    macs = manifest.baseline.macs / np.mean(spent)
    assert record["speedup"]["macs"] == pytest.approx(macs)
    assert record["speedup"]["wall_clock"] == pytest.approx(10 * 4 / (3 * 2 + 10))
    assert record["speedup"]["network"] == pytest.approx(9 * 4 / (3 * 1 + 9))
    assert record["efficiency"] == pytest.approx(10 * 4 / 16 / macs)
    assert record["accuracy"] == 0.75
    low, high = record["speedup"]["wall_clock_95"]
    assert low < record["speedup"]["wall_clock"] < high
    first, second = record["exits"][:2]
    assert (first["count"], first["share"], first["accuracy"]) == (3, 0.75, 1.0)
    assert (second["count"], second["latency_ms"], second["accuracy"]) == (0, None, None)


def test_percentiles() -> None:
    assert percentiles(np.arange(101.0)) == {"mean": 50, "p50": 50, "p90": 90, "p95": 95, "p99": 99}
    twice = percentiles(np.array([3.0, 1.0]), np.array([0.25, 0.75]))
    assert twice["mean"] == pytest.approx(1.5)


def test_assumed_shares_weigh_the_exits(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    samples = [sample(e, float(e), 10.0) for e in (1, 2, 3, 4) for _ in range(5)]
    record = summarise(
        samples, manifest, ExitCosts.of(manifest, heads_apart=False), np.array([0.5, 0, 0, 0.5])
    )
    assert record["speedup"]["layers"] == pytest.approx(4 * 2 / (1 + 4))
    assert record["speedup"]["network"] == pytest.approx(10 * 2 / (1 + 4))
    assert record["network_ms"]["mean"] == pytest.approx(2.5)
    assert [row["share"] for row in record["exits"]] == [0.5, 0, 0, 0.5]
    low, high = record["speedup"]["wall_clock_95"]
    assert low == pytest.approx(high)  # no spread within an exit, so none in the ratio


def test_instability_says_why() -> None:
    steady = [sample(1, 1, 10.0)] * 40
    assert instability(steady, 0, 2) == []
    assert "only 3 samples" in instability(steady[:3], 0, 2)[0]
    assert "1 other processes were running on 2 cores" in instability(steady, 1, 2)[0]
    drifting = [sample(1, 1, 10.0)] * 20 + [sample(1, 1, 12.0)] * 20
    assert "moved by +20% between the two halves" in instability(drifting, 0, 2)[0]
    jittery = [sample(1, 1, base) for base in (10.0, 20.0) * 20]
    assert any("middle half spreads over" in r for r in instability(jittery, 0, 2))


def test_forced_exits_measure_every_exit(bundle: Path) -> None:
    with Session.open(bundle) as session:
        record = measure_exits(session, rounds=3)
        assert session.policy == Confidence(0.8) and session.point is None
    assert [row["count"] for row in record["exits"]] == [3, 3, 3, 3]
    assert [row["block"] for row in record["exits"]] == [1, 2, 3, 4]
    assert record["accuracy"] is None and record["mix"] == [0.25] * 4
    assert record["samples"] == 12
    assert record["speedup"]["layers"] == pytest.approx(4 * 4 / (1 + 2 + 3 + 4))
    json.dumps(record)


def test_a_mix_weighs_the_exits(bundle: Path) -> None:
    with Session.open(bundle) as session:
        record = measure_exits(session, rounds=2, mix=[1, 0, 0, 1])
        assert record["speedup"]["layers"] == pytest.approx(4 * 2 / (1 + 4))
        assert [row["share"] for row in record["exits"]] == [0.5, 0, 0, 0.5]
        for mix in ([1, 1], [0, 0, 0, 0], [-1, 1, 1, 1], [float("nan"), 1, 1, 1]):
            with pytest.raises(UsageError, match="expected 4 shares"):
                measure_exits(session, rounds=1, mix=mix)


@pytest.fixture
def images(tmp_path: Path) -> list[LabelledImage]:
    return find_images(write_photos(tmp_path / "photos", "abcde", 2), num_classes=5)[::2]


def test_accuracy_is_counted_on_the_exit_taken(bundle: Path, images: list[LabelledImage]) -> None:
    with Session.open(bundle, policy=Confidence(0.25)) as session:
        record = measure_images(session, images)
        right = 0
        for image in images:
            frame = np.asarray(Image.open(image.path))
            right += session.predict(frame).class_index == image.class_index
    assert record["accuracy"] == pytest.approx(right / 5)
    assert sum(row["count"] for row in record["exits"]) == record["samples"] == 5
    assert len(record["raw"]["latency_ms"]) == 5
    assert record["bundle"]["identity"] == open_bundle(bundle).manifest.identity
    assert record["policy"] == Confidence(0.25).to_json()
    needed = "env bundle baseline latency_ms exits speedup efficiency accuracy baseline_accuracy"
    assert set(needed.split()) | {"samples", "command"} <= set(record)
    assert {"mean", "p50", "p90", "p95", "p99"} == set(record["baseline"]["latency_ms"])


def test_files_that_are_no_images_are_left_out_and_named(
    bundle: Path, images: list[LabelledImage], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG not really")
    with Session.open(bundle) as session:
        record = measure_images(session, [LabelledImage(bad, 0), *images])
        assert (record["samples"], record["skipped"]) == (5, [str(bad)])
        with pytest.raises(DataError, match="none of 1 images could be decoded"):
            measure_images(session, [LabelledImage(bad, 0)])


def test_report_shows_the_figures_and_the_doubts(bundle: Path, images: list[LabelledImage]) -> None:
    console = Console(record=True, width=100, file=open("/dev/null", "w", encoding="utf-8"))
    with Session.open(bundle) as session:
        record = measure_images(session, images)
    print_report(record, console)
    console.file.close()
    text = console.export_text()
    assert f"efficiency {record['efficiency']:.3f}" in text
    assert f"baseline {record['baseline_accuracy']:.2%}" in text
    assert "unstable: only 5 samples" in text
    with Session.open(bundle) as session:
        shipped, published = session.manifest.baseline.macs, session.manifest.published_macs
    exported = f"baseline: {shipped / 1e6:,.1f} M MACs as exported"
    assert f"{exported}, {published / 1e6:,.1f} M as published" in text
    assert record["baseline"]["published_macs"] == published > record["baseline"]["macs"] == shipped


def test_overhead_takes_float32_bundles(rtx_bundle: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="takes fp32 bundles"):
        overhead.main(rtx_bundle("fp16"))


def test_overhead_of_cutting_is_measured(bundle: Path) -> None:
    with Session.open(bundle) as session:
        threads = session.describe()["threads"]
        record = overhead.measure(session, open_bundle(bundle), 4, threads)
    assert [row["exit"] for row in record["exits"]] == [1, 2, 3, 4]
    assert all(row["overhead"] > 0 for row in record["exits"])
    assert record["whole"]["macs_ratio"] > 1


def test_a_whole_last_block_is_measured_beside_the_shipped_one(
    quick_model: LGViT, bundle: Path, tmp_path: Path
) -> None:
    ways = {"whole": tmp_path / "whole", "shipped": tmp_path / "shipped"}
    export_bundle(last_block.whole(quick_model), ways["whole"])
    export_bundle(quick_model, ways["shipped"])
    assert open_bundle(ways["shipped"]).manifest.baseline.macs < quick_macs(ways["whole"])
    assert open_bundle(ways["shipped"]).manifest.published_macs == quick_macs(ways["whole"])
    with Session.open(bundle) as session:
        threads = session.describe()["threads"]  # of all sessions in this process
    rows = last_block.measure(ways, "onnxruntime", 4, threads)
    assert [row["graph"] for row in rows] == ["baseline", "chain"]
    for row in rows:
        assert 0 < row["macs"] < 1 and row["difference"] < 1e-5
        assert np.shape(row["raw_ms"]) == np.shape(row["raw_cpu_ms"]) == (2, 4)
        assert row["p25"] <= row["time"] <= row["p75"]


def quick_macs(bundle: Path) -> int:
    return open_bundle(bundle).manifest.baseline.macs


def test_a_last_block_that_is_whole_anyway_is_not_measured(swin_model: LGViT) -> None:
    with pytest.raises(UsageError, match="whole as it is: expected a model that reads its token"):
        last_block.whole(swin_model)
