"""Several bundles in turn: which is the fastest at its accuracy, and who says so later."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small import write_photos

from lgvit_edge.benchmarks import contenders
from lgvit_edge.benchmarks.compare import compare_records
from lgvit_edge.benchmarks.contenders import Way
from lgvit_edge.benchmarks.report.contenders import print_contenders, verdict
from lgvit_edge.bundle import directory
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.bundle.plain_models import PlainModel, better
from lgvit_edge.errors import BundleError, UsageError
from lgvit_edge.export.bundle import export_bundle
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.images.preprocess import load_rgb
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
def plain(tmp_path: Path, made_once: Callable[..., Path], exported_model: LGViT) -> Path:
    made = made_once("plain", lambda out: export_bundle(exported_model.with_exits([]), out))
    return Path(shutil.copytree(made, tmp_path / "plain"))


def way(name: str, wrong: int, *, plain: bool, bundle: str = "ours", count: int = 100) -> Way:
    """A way that is wrong on the first images."""
    classes = (np.arange(count) < wrong).astype(np.intp)
    policy = None if plain else Confidence(0.5)
    return Way(bundle, name, policy, classes, np.zeros(count, np.int64), 10.0, plain=plain)


def rows(ways: list[Way], *means: float) -> list[dict[str, Any]]:
    """The rows of ways that always take the same time."""
    times = np.repeat(np.array(means)[:, None], 4, axis=1)
    return contenders._rows(ways, times)


LARGE, SMALL = way("large", 20, plain=True), way("small", 45, plain=True)


def test_rows_stand_against_the_fastest_plain_model_as_accurate() -> None:
    found = rows(
        [LARGE, SMALL, way("fast", 21, plain=False), way("slow", 45, plain=False)],
        *(20.0, 5.0, 10.0, 8.0),
    )
    assert [row["name"] for row in found] == ["small", "slow", "fast", "large"]
    # "slow" is no better than the small model.
    assert [row["front"] for row in found] == [True, False, True, True]
    by_name = {row["name"]: row["against"] for row in found}
    assert by_name["small"] is None
    assert (by_name["slow"]["name"], by_name["slow"]["speedup"]) == ("small", 5 / 8)
    assert (by_name["fast"]["name"], by_name["fast"]["speedup"]) == ("large", 2.0)
    assert by_name["fast"]["change"] == pytest.approx(-0.01)
    # 1 of 100 images differs: the error of the difference, not of two accuracies.
    assert by_name["fast"]["change_error"] == pytest.approx((0.01 * 0.99 / 100) ** 0.5)
    chain = [row for row in found if not row["plain"]]
    pays, text = verdict("ours", chain)
    assert pays and text == (
        "ours pays: 'fast' is 2.00x as fast (95 %: 2.00 to 2.00) as 'ours, large', the fastest "
        "plain model as accurate, at -1.00 +- 0.99 points"
    )
    pays, text = verdict("ours", [row for row in chain if row["name"] == "slow"])
    assert not pays and text.startswith("ours does not pay: 'slow' is 0.62x as fast")


def test_a_model_that_is_not_clearly_less_accurate_is_as_accurate() -> None:
    """One image of 100 more proves nothing against a model three times as fast."""
    (row,) = [
        row
        for row in rows([LARGE, SMALL, way("ours", 44, plain=False)], 20.0, 5.0, 15.0)
        if not row["plain"]
    ]
    assert row["against"]["name"] == "small" and not verdict("ours", [row])[0]


def test_a_chain_more_accurate_than_all_says_so_and_that_it_is_slower() -> None:
    found = rows([LARGE, SMALL, way("best", 5, plain=False)], 20.0, 5.0, 40.0)
    (row,) = [row for row in found if not row["plain"]]
    assert row["against"]["name"] == "large" and not row["against"]["as_accurate"]
    pays, text = verdict("ours", [row])
    assert pays and "is more accurate than any plain model here, and not faster" in text
    assert "0.50x as fast" in text and "the most accurate one, at +15.00" in text


def test_times_that_scatter_do_not_tell() -> None:
    times = np.array([[10.0, 30.0, 10.0, 30.0], [30.0, 10.0, 30.0, 8.0]])
    found = contenders._rows([LARGE, way("ours", 20, plain=False)], times)
    (row,) = [row for row in found if not row["plain"]]
    low, high = row["against"]["speedup_95"]
    assert low < 1 < high
    pays, text = verdict("ours", [row])
    assert not pays and "may or may not pay, more images would tell" in text


class Timed:
    """A session whose frames take the time that their first pixel says, times a factor."""

    def __init__(self, factor: float) -> None:
        self.factor, self.policy, self.point = factor, Confidence(0.9), None
        self.notes = True

    def predict(self, frame: Any) -> Any:
        ms = self.factor * float(frame[0, 0, 0]) * (1 if self.policy == Confidence(0.5) else 2)
        return SimpleNamespace(class_index=0, latency_ms=ms)

    def timed_baseline(self, frame: Any) -> Any:
        return np.array([1.0, 0.0]), 10 * self.factor * float(frame[0, 0, 0]), 0.0


def test_times_belong_to_their_way_and_image(tmp_path: Path) -> None:
    listed = []
    for value in range(1, 21):
        path = tmp_path / f"{value:02}.png"
        Image.new("RGB", (4, 4), (value, 0, 0)).save(path)
        listed.append(LabelledImage(path, 0))
    listed[3].path.write_bytes(b"no image")
    sessions: Any = {"one": Timed(1.0), "two": Timed(100.0)}
    ways = [
        way("plain", 0, plain=True, bundle="one", count=40),
        way("ours", 1, plain=False, bundle="two", count=40),  # image 0 is answered otherwise
    ]
    places = list(range(0, 40, 2))
    times, other = contenders._in_turn(sessions, ways, listed, places, lambda done: None)
    values = np.array([v for v in range(1, 21) if v != 4])
    assert times.tolist() == [(10.0 * values).tolist(), (100.0 * values).tolist()]
    assert other == 1
    assert all(session.policy == Confidence(0.9) for session in sessions.values())


def test_a_plain_model_warns_only_where_it_is_better_on_this_device() -> None:
    models = {
        "small": PlainModel(
            *(0.5, 0.75),
            latency_ms=3.0,
            baseline_latency_ms=10.0,
            images=500,
            device="here",
        )
    }
    (text,) = better(models, change=-0.3, time_share=0.5, device="here")
    assert "'small' is better" in text and "-25.00 points in 0.30 of the time (500 images)" in text
    assert better(models, change=-0.25, time_share=0.5, device="here")  # as accurate
    assert not better(models, change=-0.2, time_share=0.5, device="here")  # more accurate
    assert not better(models, change=-0.3, time_share=0.25, device="here")  # faster
    assert not better(models, change=-0.3, time_share=0.5, device="there")


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
    singles = {row["bundle"]: row for row in record["rows"] if row["plain"]}
    # The exits' own model without exits is the plain bundle's: it is measured once, by that name.
    assert singles[plain.name]["name"] == ""
    assert singles[plain.name]["baseline_of"] == [plain.name, bundle_copy.name]
    assert "pass 1 (16 px) alone" in {row["name"] for row in record["rows"] if row["plain"]}
    times = [row["latency_ms"]["mean"] for row in record["rows"]]
    assert times == sorted(times) and all(len(row["raw_ms"]) == 30 for row in record["rows"])
    for name in (bundle_copy.name, "passes"):
        assert re.search(rf"{name} (pays|does not pay|may or may not|is more accurate)", said)
    policies = [json.dumps(row["policy"]) for row in record["rows"] if not row["plain"]]
    assert len(policies) > 2 and record["other_answers"] == 0
    # Only bundles with exits keep it, and each under another's names.
    kept = open_bundle(bundle_copy).manifest.plain_models
    ours, own = singles["passes"], singles[plain.name]
    coarse = next(n for n in kept if "pass 1" in n)
    (row,) = [row for row in record["rows"] if row["name"] == "pass 1 (16 px) alone"]
    assert kept[coarse].accuracy == row["accuracy"]
    assert kept[coarse].latency_ms == row["latency_ms"]["mean"]
    assert kept[coarse].baseline_accuracy == own["accuracy"]
    assert kept[coarse].baseline_latency_ms == own["latency_ms"]["mean"]
    assert plain.name not in kept and ours is not own
    assert open_bundle(plain).manifest.plain_models == {}
    # A later comparison takes the place of this one.
    command(*("bench", *given[:4], "--data", photos, "--classes", "sorted"))
    assert open_bundle(bundle_copy).manifest.plain_models == {}
    with pytest.raises(UsageError, match="holds several bundles that bench compared"):
        compare_records([record_file, record_file])


def test_names_of_classes_tell_more_than_an_order_for_bundles_without(
    tmp_path: Path, quick_model: LGViT, photos: Path, command: Command
) -> None:
    """Both bundles hold the same network; the second one's classes have names, in another order."""
    named = copy.deepcopy(quick_model)
    named.config = named.config.replace(labels=tuple("edcba"))
    for name, model in (("bare", quick_model), ("named", named)):
        export_bundle(model, tmp_path / name)
    record_file = tmp_path / "c.json"
    command(
        *("bench", "--engines", tmp_path / "bare", "--engines", tmp_path / "named"),
        *("--data", photos, "--classes", "sorted", "--backend", "onnxruntime"),
        *("--json", record_file),
    )
    record = json.loads(record_file.read_text())
    found = {row["bundle"]: row["accuracy"] for row in record["rows"] if row["plain"]}
    paths = sorted(photos.rglob("*.*"))
    reporting = np.random.default_rng(0).permutation(60)[30:]
    with Session.open(tmp_path / "bare", backend="onnxruntime") as session:
        guesses = [session.timed_baseline(load_rgb(paths[p]))[0].argmax() for p in reporting]
    folders = [paths[place].parent.name for place in reporting]
    for name, order in (("bare", "abcde"), ("named", "edcba")):
        right = [order[guess] == folder for guess, folder in zip(guesses, folders, strict=True)]
        assert found[name] == pytest.approx(np.mean(right))
    assert found["bare"] != found["named"]


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
    one_class = tmp_path / "labels.txt"
    lines = [f"{path.relative_to(photos)} 0" for path in sorted(photos.rglob("*.*"))]
    one_class.write_text("\n".join(lines) + "\n")
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
        ((*both, "--data", photos, "--labels", one_class), 1, "all images of a half are of one"),
        ((*both, "--data", flat), 1, "images without classes tell nothing about accuracy"),
        (few, 1, "expected at least 40 images to compare on, found 12"),
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
        "bundles": {
            name: {"runtime": runtime, "precision": "fp32"} for name in ("ours", "[red]plain")
        },
        "images": {"choosing": 100, "reporting": 100, "timed": 4, "unreadable": 3},
        "env": {"cpu": "a processor", "cores": 2},
        "other_answers": 2,
        "unstable": ["it shook"],
    }
    said = io.StringIO()
    print_contenders(record, Console(file=said, width=150))
    for text in (
        "[red]plain",
        "left out: 3",
        "unstable: it shook",
        "+0.00 +- 0.00",
        "2.00x",
        "2 answers of",
    ):
        assert text in said.getvalue()
