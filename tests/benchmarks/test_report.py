"""The page of ``bench --report``: its figures, its pictures, what a browser makes of it."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Seen, in_browser
from PIL import Image
from pytest import MonkeyPatch
from small import point

from lgvit_edge.benchmarks import measure_exits, measure_images
from lgvit_edge.benchmarks.report.gallery import Gallery, Picture
from lgvit_edge.benchmarks.report.html import check_report
from lgvit_edge.benchmarks.report.page import write_page
from lgvit_edge.benchmarks.report.survey import survey
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.bundle.manifest import Manifest
from lgvit_edge.bundle.points import Guarantee
from lgvit_edge.errors import MissingDependency
from lgvit_edge.images.labelled import LabelledImage
from lgvit_edge.policies import Confidence
from lgvit_edge.policies.scores import ENTROPY
from lgvit_edge.runtime import Session

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

HOSTILE = (
    "<script>console.error('ran')</script>",
    '"><img src=x onerror=console.error(1)>',
    "{{ 7 * 7 }} &amp;",
    "long" * 80,
    "</style><style>body{display:none}",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledImage]:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    images = []
    for i in range(60):
        small = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(small).resize((40, 40)).save(root / f"{i}.png")
        images.append(LabelledImage(root / f"{i}.png", i % 5))
    return images


Run = tuple[dict[str, Any], Manifest, Gallery]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bundle: Path, images: list[LabelledImage]) -> Run:
    """A bench run on images, with two operating points."""
    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("tuned") / "out"))
    sure = point(Confidence(0.7), guarantee=Guarantee(0.02, 0.05, 500, 3, "0" * 64))
    points = {"balanced": point(), "certified": sure}
    add_to_manifest(copy, open_bundle(copy).manifest.identity, points)
    with Session.open(copy, policy=Confidence(0.4)) as session:
        gallery = Gallery(HOSTILE)
        record = measure_images(session, images, watch=gallery)
        record["survey"] = survey(session, images, record)
        return record, dataclasses.replace(session.manifest, labels=HOSTILE), gallery


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    record, manifest, gallery = run
    gallery.seen = [
        (image, dataclasses.replace(result, label=HOSTILE[result.class_index]))
        for image, result in gallery.seen
    ]
    write_page(path, record, manifest, gallery)
    return path


def test_the_figures_are_the_records(page: Path, run: Run) -> None:
    record = run[0]
    seen = " ".join(Seen(page.read_text()).text.split())
    for shown in (
        f"{100 * record['accuracy']:.2f} %",
        f"{record['speedup']['wall_clock']:.2f}x",
        f"{record['efficiency']:.3f}",
        f"{record['latency_ms']['mean']:.2f} ms",
        f"{record['baseline']['macs'] / 1e6:,.1f} M MACs as exported",
        f"{record['baseline']['published_macs'] / 1e6:,.1f} M as published",
        record["command"],
        "ViT 32 with 3 exits, fp32",
        "≤ 2 % (95 % sure)",
    ):
        assert shown in seen
    assert all(reason in seen for reason in record["unstable"])


def test_nothing_is_loaded_and_nothing_runs(page: Path) -> None:
    seen = Seen(page.read_text())
    security = "Content-Security-Policy"
    (policy,) = [m["content"] for m in seen.all("meta") if m.get("http-equiv") == security]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not seen.all("script") and not seen.all("link") and not seen.all("iframe")
    assert not [a for _, a in seen.elements for name in a if name.startswith("on")]
    sources = [str(a["src"]) for _, a in seen.elements if "src" in a]
    assert sources and all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert all(str(a["href"]).startswith("#") for _, a in seen.elements if "href" in a)


def test_hostile_class_names_are_only_text(page: Path) -> None:
    text = page.read_text()
    assert "<script" not in text and "onerror=console.error(1)>" not in text
    assert text.count("<style>") == 1
    seen = Seen(text)
    assert "<script>console.error('ran')</script>" in seen.text
    assert "{{ 7 * 7 }} &amp;" in seen.text and "49" not in re.findall(r"\b49\b &amp;", seen.text)


def test_every_picture_says_what_it_shows_and_has_ids_of_its_own(page: Path, run: Run) -> None:
    seen = Seen(page.read_text())
    told = [str(f["aria-label"]) for f in seen.all("figure")]
    assert len(told) == 4 and all(len(text) > 40 for text in told)
    assert f"This run: {100 * run[0]['accuracy']:.1f} %" in told[0]
    assert all("alt" in image for image in seen.all("img"))
    ids = Counter(a["id"] for _, a in seen.elements if "id" in a)
    assert ids and max(ids.values()) == 1
    used = re.findall(r'(?:href="|url\()#([^")]+)', page.read_text())
    assert used and set(used) <= set(ids)


def test_policies_are_replayed_and_points_marked(run: Run) -> None:
    record, manifest, _ = run
    drawn = record["survey"]
    kinds = {"confidence", "entropy", "ensemble", "patience", "patient_confidence"}
    assert set(drawn["policies"]) == kinds
    assert set(drawn["points"]) == {"balanced", "certified"}
    # The policy of the run, replayed: the accuracy measured is the accuracy drawn.
    rows, policy = drawn["policies"]["confidence"], Confidence(0.4).to_json()
    (same,) = [row for row in rows if row["policy"] == policy]
    assert same["accuracy"] == pytest.approx(record["accuracy"])
    assert same["macs_speedup"] == pytest.approx(record["speedup"]["macs"])
    assert [s["macs"] for s in drawn["segments"]] == [s.spec.macs for s in manifest.segments]
    assert all(s["ms"] > 0 for s in drawn["segments"])


def percent(picture: Picture) -> float:
    return float(picture.confidence.removesuffix("%"))


def test_the_gallery_shows_sure_and_unsure_images_and_mistakes(run: Run) -> None:
    _, _, gallery = run
    for exit, easy, hard in gallery.exits():
        assert {p.exit for p in [*easy, *hard]} == {exit}
        assert not hard or min(map(percent, easy)) >= max(map(percent, hard))
        assert hard == sorted(hard, key=percent)
    mistakes = gallery.mistakes()
    assert mistakes and not any(p.right for p in mistakes)
    assert mistakes == sorted(mistakes, key=percent, reverse=True)


def test_where_less_is_surer_the_gallery_knows(run: Run) -> None:
    watched = Gallery(())
    image, result = run[2].seen[0]
    for nats in (0.5, 0.1, 0.9, 0.2):
        watched(image, dataclasses.replace(result, confidence=nats, measure=ENTROPY))
    ((_, easy, hard),) = watched.exits()
    assert [p.confidence for p in easy] == ["0.100 nats", "0.200 nats"]
    assert [p.confidence for p in hard] == ["0.900 nats", "0.500 nats"]


def test_an_image_that_is_gone_by_then_is_left_out(tmp_path: Path, run: Run) -> None:
    watched = Gallery(())
    image, result = run[2].seen[0]
    watched(LabelledImage(tmp_path / "gone.png", 0), result)
    assert watched.exits() == [(result.exit, [], [])]


def test_without_images_there_are_times_and_no_accuracy(bundle: Path, tmp_path: Path) -> None:
    with Session.open(bundle) as session:
        record = measure_exits(session, rounds=3)
        record["survey"] = survey(session, None, record)
        write_page(tmp_path / "r.html", record, session.manifest, None)
    seen = Seen((tmp_path / "r.html").read_text())
    assert len(seen.all("figure")) == 3 and not seen.all("img")
    assert "Random frames were stopped at every exit" in seen.text
    assert "accuracy;" not in seen.text


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, run: Run) -> None:
    record, manifest, gallery = run
    (tmp_path / "r.html").mkdir()
    with pytest.raises(OSError):
        write_page(tmp_path / "r.html", record, manifest, gallery)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_what_is_missing_is_named_before_measuring(package: str, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=r"pip install 'lgvit-edge\[report\]'"):
        check_report()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_clips_nothing_and_reports_no_error(
    page: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    probe = in_browser(page, tmp_path, width, scheme)
    assert probe["pictures"] == 4 and probe["texts"] > 60
    assert probe["page"][0] <= probe["page"][1]
    assert (probe["overflow"], probe["clipped"], probe["overlaps"]) == ([], [], [])
