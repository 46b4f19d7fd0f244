"""Several bundles in turn: which is the fastest at its accuracy, and who says so later."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from small import write_photos

from lgvit_edge.benchmarks import contenders
from lgvit_edge.benchmarks.contenders import Way
from lgvit_edge.benchmarks.report.contenders import print_contenders, verdict
from lgvit_edge.bundle import directory
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.bundle.plain_models import PlainModel, better
from lgvit_edge.errors import BundleError
from lgvit_edge.export.bundle import export_bundle
from lgvit_edge.machine.environment import device_of
from lgvit_edge.model import LGViT
from lgvit_edge.policies import Confidence
from lgvit_edge.runtime import Session

Command = Callable[..., str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", "abcde", 12)
    return tmp_path / "photos"


@pytest.fixture
def plain(tmp_path: Path, exported_model: LGViT) -> Path:
    export_bundle(exported_model.with_exits([]), tmp_path / "plain")
    return tmp_path / "plain"


def way(name: str, wrong: int, *, plain: bool, bundle: str = "ours") -> Way:
    """A way that is wrong on the first of 100 images."""
    right = np.arange(100) >= wrong
    return Way(bundle, name, None if plain else Confidence(0.5), right, 10.0, plain=plain)


def rows(ways: list[Way], *means: float) -> list[dict[str, Any]]:
    times = np.repeat(np.array(means)[:, None], 4, axis=1)
    return contenders._rows(ways, times)


def test_rows_stand_against_the_fastest_plain_model_as_accurate() -> None:
    found = rows(
        [
            way("large", 30, plain=True, bundle="plain"),
            way("small", 40, plain=True, bundle="plain"),
            way("fast", 35, plain=False),
            way("slow", 40, plain=False),
            way("best", 28, plain=False),
        ],
        *(20.0, 5.0, 10.0, 8.0, 16.0),
    )
    assert [row["name"] for row in found] == ["small", "slow", "fast", "best", "large"]
    # "slow" is no better than the small model; nothing beats the large one's accuracy but "best".
    assert [row["front"] for row in found] == [True, False, True, True, False]
    by_name = {row["name"]: row["against"] for row in found}
    assert by_name["small"] is None
    assert (by_name["slow"]["name"], by_name["slow"]["speedup"]) == ("small", 5 / 8)
    assert (by_name["fast"]["name"], by_name["fast"]["speedup"]) == ("large", 2.0)
    assert by_name["fast"]["change"] == pytest.approx(-0.05)
    # 5 of 100 images differ: the error of the difference, not of two accuracies.
    assert by_name["fast"]["change_error"] == pytest.approx((0.05 * 0.95 / 100) ** 0.5)
    assert by_name["best"]["name"] == "large" and not by_name["best"]["as_accurate"]
    chain = [row for row in found if not row["plain"]]
    pays, text = verdict("ours", chain)
    assert pays and "'fast' is 2.00x as fast as 'plain, large', the fastest plain model" in text
    pays, text = verdict("ours", [row for row in chain if row["name"] == "slow"])
    assert not pays and "does not pay: at each of its points a plain model is as accurate" in text


def test_a_plain_model_warns_only_where_it_is_better_on_this_device() -> None:
    models = {
        "small": PlainModel(
            *(0.65, 0.70),
            latency_ms=3.0,
            baseline_latency_ms=10.0,
            images=500,
            device="here",
        )
    }
    (text,) = better(models, change=-0.06, time_share=0.5, device="here")
    assert "'small' is better" in text and "-5.00 points in 0.30 of the time (500 images)" in text
    assert not better(models, change=-0.04, time_share=0.5, device="here")  # more accurate
    assert not better(models, change=-0.06, time_share=0.25, device="here")  # faster
    assert not better(models, change=-0.06, time_share=0.5, device="there")


def test_bench_compares_bundles_and_remembers(
    tmp_path: Path, bundle_copy: Path, plain: Path, pass_models: list[LGViT], photos: Path,
    command: Command,
) -> None:  # fmt: skip
    passes, coarse = tmp_path / "passes", pass_models[0].with_exits([])
    export_bundle([coarse, pass_models[1]], passes)
    given = [part for path in (bundle_copy, plain, passes) for part in ("--engines", path)]
    record_file, picture = tmp_path / "c.json", tmp_path / "c.png"
    said = command(
        *("bench", *given, "--data", photos, "--classes", "sorted", "--backend", "onnxruntime"),
        *("--json", record_file, "--plot", picture),
    )
    record = json.loads(record_file.read_text())
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert record["images"] == {
        **record["images"],
        **{"choosing": 30, "reporting": 30, "timed": 30, "unreadable": 0},
    }
    singles = [row for row in record["rows"] if row["plain"]]
    # The exits' own model without exits is the plain bundle's, and is measured once.
    assert [bundle_copy.name, plain.name] in [row["baseline_of"] for row in singles]
    assert "pass 1 (16 px) alone" in {row["name"] for row in singles}
    times = [row["latency_ms"]["mean"] for row in record["rows"]]
    assert times == sorted(times) and all(len(row["raw_ms"]) == 30 for row in record["rows"])
    for name in (bundle_copy.name, "passes"):
        assert f"{name} pays" in said or f"{name} does not pay" in said
    # Only bundles with exits keep it, and each under another's names.
    kept = open_bundle(bundle_copy).manifest.plain_models
    assert kept and plain.name not in kept and any("pass 1" in name for name in kept)
    assert open_bundle(plain).manifest.plain_models == {}


@pytest.mark.parametrize("device", ["here", "elsewhere"])
def test_bench_and_tune_warn_below_a_plain_model(
    tmp_path: Path, bundle_copy: Path, photos: Path, command: Command, device: str
) -> None:
    with Session.open(bundle_copy, backend="onnxruntime") as session:
        here = device_of(session.describe())
        identity = session.manifest.identity
    best = PlainModel(1.0, 0.0, 1e-6, 1.0, 90, here if device == "here" else "a board")
    add_to_manifest(bundle_copy, identity, plain_models={"better one": best})
    given = ("--engines", bundle_copy, "--data", photos, "--classes", "sorted")
    given += ("--backend", "onnxruntime")
    page = tmp_path / "page.html"
    for said in (
        command("bench", *given, "--no-energy", "--report", page),
        page.read_text(),
        command("tune", *given, "--trials", 1),
    ):
        assert ("better one" in said) == (device == "here")


def test_what_cannot_be_compared(
    tmp_path: Path, bundle_copy: Path, plain: Path, photos: Path, command: Command
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(next(photos.rglob("*.*")), flat / "one.jpg")
    both = ("--engines", bundle_copy, "--engines", plain)
    several = (*both, "--data", photos, "--classes", "sorted")
    few = (*several, "--samples", 12)
    for arguments, status, message in (
        (both, 2, "compared on labelled images: add --data DIR"),
        ((*several, "--policy", "never"), 2, "--policy is for one bundle, found 2"),
        ((*several, "--report", tmp_path / "a.html"), 2, "--report is for one bundle, found 2"),
        ((*several, "--plot", tmp_path / "a.gif"), 2, "--plot must end in .png, .svg or .pdf"),
        ((*both[:2], "--plot", tmp_path / "a.png"), 2, "--plot is for several bundles"),
        ((*both[:2], *several), 2, "expected different bundles, found"),
        ((*both, "--data", flat), 1, "images without classes tell nothing about accuracy"),
        (few, 1, "expected at least 40 images that can be read, found 12"),
    ):
        assert message in command("bench", *arguments, status=status)


def test_a_bundle_that_cannot_be_changed_is_compared_all_the_same(
    bundle_copy: Path, plain: Path, photos: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BundleError("cannot write manifest.json: Read-only file system")

    monkeypatch.setattr(directory, "add_to_manifest", refused)
    said = command(
        *("bench", "--engines", bundle_copy, "--engines", plain, "--data", photos),
        *("--classes", "sorted", "--backend", "onnxruntime"),
    )
    assert "is not kept in" in said and "Read-only file system" in said


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(
        [way("", 30, plain=True, bundle="[red]plain"), way("fast", 30, plain=False)], 20.0, 10.0
    )
    runtime = {"backend": "onnxruntime", "version": "1", "device": "cpu", "threads": 2}
    record = {
        "rows": found,
        "bundles": {name: {"runtime": runtime, "precision": "fp32"} for name in ("ours",)},
        "images": {"choosing": 100, "reporting": 100, "timed": 4, "unreadable": 3},
        "env": {"cpu": "a processor", "cores": 2},
        "unstable": ["it shook"],
    }
    said = io.StringIO()
    print_contenders(record, Console(file=said, width=150))
    for text in ("[red]plain", "left out: 3", "unstable: it shook", "+0.00 +- 0.00", "2.00x"):
        assert text in said.getvalue()
