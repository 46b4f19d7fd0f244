"""What measures a bundle measures its passes: bench, tune, profile, compare, device reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small import write_photos

from lgvit_edge.benchmarks import measure_exits, measure_images
from lgvit_edge.benchmarks.device.parity import parity
from lgvit_edge.benchmarks.device.steps import Job
from lgvit_edge.benchmarks.device.summary import summary
from lgvit_edge.benchmarks.experiments import passes_cost
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import UsageError
from lgvit_edge.export import export_bundle
from lgvit_edge.images.labelled import find_images
from lgvit_edge.model import LGViT
from lgvit_edge.policies import FixedExit
from lgvit_edge.runtime import Session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), "abcde", 16)


def test_exits_of_all_passes_against_the_last_networks_baseline(passes_bundle: Path) -> None:
    with Session.open(passes_bundle, backend="onnxruntime") as session:
        record = measure_exits(session, rounds=2, mix=[4, 1, 1, 1, 1])
        manifest = session.manifest
    assert [each["title"] for each in record["bundle"]["passes"]] == [
        "pass 1 (16 px)",
        "pass 2 (32 px)",
    ]
    assert record["bundle"]["image_size"] == 32
    places = [(row["index"], row["pass_number"], row["block"]) for row in record["exits"]]
    assert places == [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (5, 2, 4)]
    assert (
        record["baseline"]["macs"]
        == manifest.passes[1].segments[0].spec.macs
        - (manifest.segments[3].head_macs or 0)
        + manifest.segments[4].spec.macs
    )
    # Blocks 1, 2, 3, 3 + 2 and 3 + 4 in the shares above; the baseline has 4.
    assert record["speedup"]["layers"] == pytest.approx(4 / ((4 * 1 + 2 + 3 + 5 + 7) / 8))


def test_the_answers_of_real_images_are_the_sessions(passes_bundle: Path, photos: Path) -> None:
    images = find_images(photos, num_classes=5)[::5]
    with Session.open(passes_bundle, backend="onnxruntime", policy=FixedExit(4)) as session:
        record = measure_images(session, images)
        logits = session.exit_logits([image.path for image in images])
    labels = np.array([image.class_index for image in images])
    assert record["accuracy"] == (logits[:, 3].argmax(axis=1) == labels).mean()
    assert record["baseline_accuracy"] == (logits[:, 4].argmax(axis=1) == labels).mean()


def test_bench_tune_profile_and_compare_show_passes(
    passes_bundle: Path, photos: Path, tmp_path: Path, command: Callable[..., str]
) -> None:
    engines = shutil.copytree(passes_bundle, tmp_path / "out")
    where = ("--engines", engines, "--backend", "onnxruntime")
    said = command("tune", *where, "--data", photos, "--trials", 2, "--max-drop", 0.5)
    assert "saved in" in said
    (point,) = open_bundle(engines).manifest.points.values()
    assert len(point.shares) == 5
    record, page = tmp_path / "bench.json", tmp_path / "bench.html"
    measured = ("--point", "max-drop-0.5", "--json", record, "--report", page, "--no-energy")
    said = command("bench", *where, "--data", photos, "--samples", 40, *measured)
    assert "1 pass 1 (16 px) 1 lph" in said and "4 pass 2 (32 px) 2 gah" in said
    assert (
        "<td>pass 1 (16 px)</td>" in page.read_text() and "ViT 16, then ViT 32" in page.read_text()
    )
    stored = json.loads(record.read_text())
    assert len(stored["survey"]["points"]["max-drop-0.5"]["shares"]) == 5
    said = command("compare", record, record)
    assert "bench" in said
    said = command("profile", *where, "--runs", 2)
    assert "3 pass 2 (32 px) 1-2 gah" in said


def test_a_device_report_checks_every_pass(passes_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(passes_bundle)
    with Session.open(passes_bundle, backend="onnxruntime") as session:
        found = parity(session, bundle)
    assert np.shape(found["differences"]) == (4, 6) and found["within"]
    job = Job(passes_bundle, bundle.manifest, "onnxruntime", None, 1.0, tmp_path)
    text = summary(job, [])
    assert (
        "| pass 1 (16 px) | vit, 3 blocks, image 16, 5 classes, exits after blocks 1, 2, 3 |"
        in text
    )
    assert "| pass 2 (32 px) | vit, 4 blocks, image 32, 5 classes, exits after blocks 2 |" in text


def test_a_bundle_of_passes_against_networks_opened_one_by_one(
    passes_bundle: Path,
    pass_models: list[LGViT],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    export_bundle([model.with_exits([]) for model in pass_models], out)
    file = tmp_path / "passes.json"
    passes_cost.main(out, "60,40", "onnxruntime", rounds=2, runs=1, json_file=file)
    record = json.loads(file.read_text())
    assert record["shares"] == [0.6, 0.4] and record["overhead"] > 0
    assert np.shape(record["raw_ms"]["apart"]) == (2, 2)
    assert record["opened"].keys() == {"chain", "apart"}
    assert "answered in pass 2 (32 px): chain" in capsys.readouterr().out
    with pytest.raises(UsageError, match="passes without exits inside, found 2 with 5 segments"):
        passes_cost.main(passes_bundle, "60,40", "onnxruntime", rounds=2, runs=1)
    with pytest.raises(UsageError, match="expected 2 shares, one for each pass, found 60"):
        passes_cost.main(out, "60", "onnxruntime", rounds=2, runs=1)
