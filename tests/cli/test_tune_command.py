"""``tune`` from images to the manifest: what is kept, what goes on, what is refused, and how."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import lgvit_edge as run
from pytest import MonkeyPatch
from small import write_photos

from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.bundle.manifest import SegmentSpec
from lgvit_edge.errors import BundleError, DataError, UsageError
from lgvit_edge.images.labelled import LabelledImage, find_images
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.policies import Never, from_json
from lgvit_edge.runtime import Session
from lgvit_edge.tuning import collect
from lgvit_edge.tuning.record import DONE, TO_DO, UNREADABLE, read, record_type

Command = Callable[..., str]
Tuned = SimpleNamespace
Images = list[LabelledImage]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of each class the exported model knows."""
    return write_photos(tmp_path_factory.mktemp("photos"), "abcde", 20)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, bundle: Path, photos: Path) -> Tuned:
    """What one run made of a copy of ``bundle``; do not change it."""
    root = tmp_path_factory.mktemp("tuned")
    engines = Path(shutil.copytree(bundle, root / "bundle"))
    file = root / "found.json"
    done = run("tune", "--engines", engines, "--data", photos, "--trials", 2, "--json", file)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(
        engines=engines,
        said=done.stdout,
        logits=root / "bundle.logits.npy",
        manifest=open_bundle(engines).manifest,
        record=json.loads(file.read_text()),
    )


@pytest.fixture
def session(bundle: Path) -> Any:
    with Session.open(bundle) as opened:
        yield opened


@pytest.fixture
def images(photos: Path) -> list[LabelledImage]:
    return find_images(photos, num_classes=5, names=tuple("abcde"))


def test_points_are_written_and_nothing_else_is_touched(tuned: Tuned, bundle: Path) -> None:
    before, after = contents(bundle), contents(tuned.engines)
    assert [name for name in after if after[name] != before[name]] == ["manifest.json"]
    assert before.keys() == after.keys()
    plain = open_bundle(bundle).manifest
    assert list(tuned.manifest.points) == ["accurate", "balanced", "fast"]
    assert dataclasses.replace(tuned.manifest, points={}) == plain
    point = tuned.manifest.points["fast"]
    assert point.images == 50 and "threads" in point.device
    assert "images: 50 to tune on, 50 to report on" in tuned.said
    for name, saved in tuned.manifest.points.items():
        read = [e for e, r in enumerate(from_json(saved.policy).exits_read(3), 1) if r]
        told = {0: "none", 3: "all"}.get(len(read), ", ".join(map(str, read)))
        assert re.search(rf"^{name} +{saved.policy['name']} +{told} ", tuned.said, re.MULTILINE)
    assert f"next: lgvit-edge bench --engines {tuned.engines} --point accurate" in tuned.said


def test_a_session_runs_at_a_point(tuned: Tuned, bundle: Path, photos: Path) -> None:
    points = {name: from_json(point.policy) for name, point in tuned.manifest.points.items()}
    with Session.open(tuned.engines, point="balanced") as session:
        assert (session.point, session.policy) == ("balanced", points["balanced"])
        session.point = "fast"
        assert (session.point, session.policy) == ("fast", points["fast"])
        with pytest.raises(UsageError, match="'slow'; this bundle has accurate, balanced, fast"):
            session.point = "slow"
        assert session.point == "fast"
        frame = load_rgb(photos / "a" / "00.png")
        exits, classes = session.policy.replay(session.exit_logits([frame]))
        result = session.predict(frame)
        assert (result.exit, result.class_index) == (exits[0], classes[0])
        session.policy = Never()
        assert session.point is None
    with pytest.raises(UsageError, match="a policy or an operating point, not both"):
        Session.open(tuned.engines, point="fast", policy=Never())
    with pytest.raises(UsageError, match="'fast'; this bundle has none; run: lgvit-edge tune"):
        Session.open(bundle, point="fast")


def test_bench_and_predict_run_at_a_point(
    tuned: Tuned, photos: Path, tmp_path: Path, command: Command
) -> None:
    at = ("--engines", tuned.engines, "--point", "fast")
    file = tmp_path / "record.json"
    command("bench", *at, "--data", photos, "--samples", 5, "--json", file)
    record = json.loads(file.read_text())
    assert record["point"] == "fast" and record["policy"] == tuned.manifest.points["fast"].policy
    said = command("predict", *at, photos / "a" / "00.png", "--json")
    assert 1 <= json.loads(said)[0]["exit"] <= 4
    for name in ("bench", "predict"):
        more = () if name == "bench" else (photos / "a",)
        said = command(name, *at, *more, "--policy", "never", status=2)
        assert "give a policy or an operating point, not both" in said
        said = command(name, "--engines", tuned.engines, "--point", "slow", *more, status=2)
        assert "no operating point 'slow'; this bundle has accurate," in said


def test_the_record_holds_what_was_found(tuned: Tuned) -> None:
    keys = "points front sweep gain_over_sweep costs never_pay calibration images evidence notes"
    assert set(keys.split()) | {"baseline_accuracy", "search_seconds"} == set(tuned.record)
    written = json.loads((tuned.engines / "manifest.json").read_text())["points"]
    assert tuned.record["points"] == written
    costs = tuned.record["costs"]
    assert len(costs["segment_ms"]) == 4 and min(costs["segment_ms"]) > 0 < costs["baseline_ms"]
    assert tuned.record["front"][-1]["policy"] == tuned.record["sweep"][-1]["policy"]
    assert len(tuned.record["calibration"]["temperature"]) == 3


def test_a_picture_is_drawn(
    tuned: Tuned, bundle_copy: Path, tmp_path: Path, command: Command
) -> None:
    pytest.importorskip("matplotlib")
    arguments = ("--logits", tuned.logits, "--trials", 1, "--plot", tmp_path / "found.png")
    assert "picture: " in command("tune", "--engines", bundle_copy, *arguments)
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.format == "PNG" and picture.width > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "found.png"]


def test_kept_logits_give_the_same_points_and_no_image_is_run(
    tuned: Tuned, bundle_copy: Path, command: Command, photos: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "bundle.logits.npy"  # where a run with --data looks for them
    for name in ("", ".json"):
        shutil.copy(f"{tuned.logits}{name}", f"{kept}{name}")
    before = kept.read_bytes()
    for source in (("--logits", kept), ("--data", photos)):
        command("tune", "--engines", bundle_copy, *source, "--trials", 2)
        assert open_bundle(bundle_copy).manifest.points == tuned.manifest.points
        assert kept.read_bytes() == before
    # A certified point beside them.
    arguments = ("--logits", kept, "--trials", 2, "--risk", 0.9, "--name", "sure")
    said = command("tune", "--engines", bundle_copy, *arguments)
    assert "25 to tune on, 50 to certify on, 25 to report on" in said
    assert "sure is certified: with 95.0% confidence at most 90.00% of images" in said
    points = open_bundle(bundle_copy).manifest.points
    assert list(points) == ["accurate", "balanced", "fast", "sure"]
    assert points["fast"] == tuned.manifest.points["fast"]
    assert points["sure"].guarantee is not None and points["sure"].guarantee.images == 50


def test_points_can_be_reported_on_other_images(
    bundle_copy: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    lines = []
    for path in sorted(photos.rglob("*.png"))[::2]:
        name = f"{path.parent.name}{path.name}"
        shutil.copy(path, others / name)
        lines.append(f"{name} {path.parent.name}")
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    report = ("--report-data", others, "--report-labels", tmp_path / "classes.txt")
    goal = ("--latency-ms", 1000, "--trials", 1, "--name", "door.1")
    said = command("tune", "--engines", bundle_copy, "--data", photos, *report, *goal)
    assert "images: 100 to tune on, 50 to report on" in said
    (point,) = open_bundle(bundle_copy).manifest.points.values()
    kept = json.loads((tmp_path / "bundle.logits.report.npy.json").read_text())
    assert (point.images, point.data_sha256) == (50, kept["images"])
    assert point.goal == "--latency-ms 1000"


def test_logits_are_the_sessions_to_the_bit_and_all_is_timed(
    session: Session, images: Images, tmp_path: Path
) -> None:
    session.policy = Never()
    steps: list[tuple[int, int]] = []
    kept = collect(session, images, tmp_path / "k.npy", progress=lambda *step: steps.append(step))
    expected = [session.exit_logits([load_rgb(image.path)])[0] for image in images]
    assert (kept.rows["logits"] == np.stack(expected)).all()
    assert kept.rows["label"].tolist() == [image.class_index for image in images]
    assert (kept.rows["segment_ms"] > 0).all() and (kept.rows["prepare_ms"] > 0).all()
    measured = kept.rows["baseline_ms"]
    assert np.isfinite(measured).any() and (measured[np.isfinite(measured)] > 0).all()
    assert (kept.rows["state"] == DONE).all() and session.policy == Never()
    assert steps == [(done, 100) for done in range(0, 100, 8)]
    again = read(tmp_path / "k.npy", session.manifest)
    assert (again.rows == kept.rows).all() and again.about == kept.about
    with pytest.raises(DataError, match="images without classes tell nothing about accuracy"):
        collect(session, [LabelledImage(images[0].path, None)], tmp_path / "n.npy")


@pytest.fixture
def file(session: Session, images: Images, tmp_path: Path) -> Path:
    """What is kept of all images."""
    collect(session, images, tmp_path / "k.npy")
    return tmp_path / "k.npy"


def test_only_what_is_missing_is_run(session: Session, images: Images, file: Path) -> None:
    rows = np.lib.format.open_memmap(file, mode="r+")
    right = rows["logits"].copy()
    rows["logits"] = 123.0
    rows["state"][::2] = TO_DO
    rows.flush()
    kept = collect(session, images, file)
    assert (kept.rows["logits"][1::2] == 123).all()
    assert (kept.rows["logits"][::2] == right[::2]).all()
    assert (kept.rows["state"] == DONE).all()


def test_labels_that_were_corrected_are_taken(session: Session, images: Images, file: Path) -> None:
    wrong = [dataclasses.replace(image, class_index=0) for image in images]
    assert (collect(session, wrong, file).rows["label"] == 0).all()
    assert collect(session, images, file).rows["label"].tolist() == [i.class_index for i in images]


def test_a_file_that_was_begun_is_made_again_and_anothers_is_not_touched(
    session: Session, images: Images, file: Path, tmp_path: Path
) -> None:
    right = np.load(file)["logits"]
    Path(f"{file}.json").unlink()  # what is written last
    np.lib.format.open_memmap(file, mode="r+")["state"] = DONE
    np.lib.format.open_memmap(file, mode="r+")["logits"] = 7
    assert (collect(session, images, file).rows["logits"] == right).all()
    np.save(tmp_path / "mine.npy", np.arange(5))
    with pytest.raises(DataError, match="no such file: .*mine.npy.json"):
        collect(session, images, tmp_path / "mine.npy")
    assert np.load(tmp_path / "mine.npy").tolist() == [0, 1, 2, 3, 4]


def test_an_interrupted_command_goes_on(
    bundle_copy: Path, photos: Path, tmp_path: Path, interrupt: Callable[[list[str], str], str]
) -> None:
    lines = [f"{c}/{i:02}.png {c}" for c in "abcde" for i in range(20)] * 8
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    files = ("--data", str(photos), "--labels", "classes.txt", "--logits", "k.npy")
    arguments = ["tune", "--engines", str(bundle_copy), *files, "--trials", "1"]

    def watch() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.002)
            with contextlib.suppress(OSError, ValueError, EOFError):
                if (np.load(tmp_path / "k.npy")["state"] == DONE).any():
                    (tmp_path / "started").touch()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    interrupt(arguments, "started")
    watcher.join(60)
    manifest = open_bundle(bundle_copy).manifest
    first = read(tmp_path / "k.npy", manifest)
    done = first.usable
    assert manifest.points == {} and 0 < len(done) < 800
    before = np.array(first.rows[done])
    again = run(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    kept = read(tmp_path / "k.npy", manifest)
    # The baseline's times are a mean, for which every other block of so many images will do.
    assert 0.3 < np.isfinite(kept.rows["baseline_ms"]).mean() < 0.7
    assert len(kept.usable) == 800 and kept.rows[done].tobytes() == before.tobytes()
    assert set(open_bundle(bundle_copy).manifest.points) == {"accurate", "balanced", "fast"}


def test_files_that_are_no_images_are_left_out_and_counted(
    bundle_copy: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    (data / "a" / "00.png").write_bytes(b"\x89PNG not really")
    (data / "c" / "05.png").write_bytes(b"")
    said = command("tune", "--engines", bundle_copy, "--data", data, "--trials", 1)
    assert "2 of 100 images cannot be read and were left out, such as " in said
    assert f"{data}/a/00.png" in said
    assert "images: 49 to tune on, 49 to report on" in said
    kept = read(tmp_path / "bundle.logits.npy", open_bundle(bundle_copy).manifest)
    assert np.flatnonzero(kept.rows["state"] == UNREADABLE).tolist() == [0, 45]
    for path in data.rglob("*.png"):
        path.write_bytes(b"no image")
    arguments = ("--data", data, "--logits", tmp_path / "none.npy")
    said = command("tune", "--engines", bundle_copy, *arguments, status=1)
    assert "none of 100 images could be decoded" in said


@pytest.fixture
def here(tuned: Tuned, photos: Path, tmp_path: Path, monkeypatch: MonkeyPatch) -> Path:
    """The folder to type in: kept logits, others that cannot be used, images likewise."""
    monkeypatch.chdir(tmp_path)
    about, content = Path(f"{tuned.logits}.json").read_text(), tuned.logits.read_bytes()
    for name, data, text in (
        ("kept", content, about),
        ("other", content, about.replace(tuned.manifest.identity, "0" * 64)),
        ("moved", content, re.sub('"device": ".*"', '"device": "a toaster"', about)),
        ("old", content, about.replace('"version": 2', '"version": 1')),
        ("cut", content[:-100], about),
        ("junk", b"junk", about),
        ("torn", content, about[:100]),
        ("list", content, "[]"),
        ("header", content.replace(b"'descr'", b"'desc\\'", 1), about),
        ("deep", content, "[" * 100_000),
        ("half", content, about),
    ):
        (tmp_path / f"{name}.npy").write_bytes(data)
        (tmp_path / f"{name}.npy.json").write_text(text)
    half = np.lib.format.open_memmap(tmp_path / "half.npy", mode="r+")
    half["state"][::2] = TO_DO
    half.flush()
    np.save(tmp_path / "shape.npy", np.zeros(100, record_type(3, 5)))
    (tmp_path / "shape.npy.json").write_text(about)
    (tmp_path / "bare.npy").write_bytes(content)
    for name in ("folder.npy", "flat"):
        (tmp_path / name).mkdir()
    for path in photos.rglob("*.png"):
        (tmp_path / "flat" / f"{path.parent.name}{path.name}").symlink_to(path)
    names = sorted(path.name for path in (tmp_path / "flat").iterdir())
    (tmp_path / "same.txt").write_text("".join(f"{name} a\n" for name in names))
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "more").mkdir()
    for name in "abcde":
        (tmp_path / "more" / name).symlink_to(photos / name)
    (tmp_path / "more" / "zebra").symlink_to(photos / "a")
    return tmp_path


UNUSABLE = "{}.npy holds no logits that can be used"
MISSING = "no such file: {}.npy.json; run: lgvit-edge tune with --data"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ("--data photos --logits other.npy", 1, r"logits of another run \(other bundle\): name an"),
        ("--logits other.npy", 1, r"other bundle\).* or remove this one"),
        ("--logits shape.npy", 1, r"other bundle\)"),
        ("--data photos --logits kept.npy --samples 50", 1, r"another run \(other images\)"),
        ("--data photos --logits moved.npy", 1, r"another run \(other device\)"),
        ("--logits old.npy", 1, r"no logits that can be used \(of another version"),
        ("--logits cut.npy", 1, "no logits that can be used .*; remove it to run the images again"),
        *[(f"--data photos --logits {n}.npy", 1, UNUSABLE.format(n)) for n in ("cut", "list")],
        *[(f"--logits {n}.npy", 1, UNUSABLE.format(n)) for n in ("junk", "torn", "header", "deep")],
        *[(f"--logits {n}.npy", 1, MISSING.format(n)) for n in ("bare", "new", "nowhere")],
        ("--data photos --logits folder.npy", 2, "--logits: expected a file, found a folder"),
        (f"--data photos --seed {2**32}", 2, "seed"),
        ("--data flat", 1, "images without classes tell nothing about accuracy: .* or --labels"),
        ("--data flat --labels same.txt --logits new.npy", 1, "50 images .* are of one class"),
        ("--data more", 1, "labels do not match the model's: 1 of 6 folders .* such as 'zebra'"),
        ("--data nowhere", 1, "no such folder: nowhere"),
        ("--data photos --logits new.npy --samples 30", 1, "at least 20 .* found 15 to tune on"),
        ("--logits kept.npy --risk 0.01", 1, "50 images to certify on certify nothing .* 299 "),
        ("--logits kept.npy --latency-ms 1e-5", 1, "impossible: --latency-ms 1e-05; .* takes "),
        ("--logits kept.npy --min-speedup 1e4", 1, "impossible: --min-speedup 10000; .*x "),
        ("--logits kept.npy --json no/x.json", 2, "--json: no such folder: .*/no"),
        ("--logits kept.npy --plot no/x.png", 2, "--plot: no such folder: .*/no"),
        ("--data photos --logits no/x.npy", 2, "--logits: no such folder: .*/no"),
        ("--logits kept.npy --plot x.gif", 2, "--plot must end in .png, .svg or .pdf, found 'x.g"),
        ("--logits kept.npy --max-drop 0.1 --latency-ms 3", 2, "give one of --max-drop,"),
        ("--logits kept.npy --max-drop 1", 2, "--max-drop is a share of all images"),
        ("--logits kept.npy --risk 2", 2, "--risk must lie between 0 and 1, found 2"),
        ("--max-drop 0.1", 2, "expected --data DIR, or --logits FILE of an earlier run"),
        ("--logits kept.npy --samples 50", 2, "--labels and --samples need --data"),
        ("--logits kept.npy --labels same.txt", 2, "--labels and --samples need --data"),
        ("--logits kept.npy --delta 0.1", 2, "--delta needs --risk"),
        ("--logits kept.npy --report-labels same.txt", 2, "--report-labels needs --report-data"),
        ("--data photos --logits kept.npy --report-data photos", 2, "holds the same images as --d"),
        ("--logits half.npy", 1, "half.npy holds 50 of 100 images, .* to continue it, add --data"),
        ("--logits kept.npy --name x", 2, "--name names one point: give a goal"),
        ("--logits kept.npy --max-drop 0.1 --name a/b", 2, "--name: .* must be letters, .* 'a/b'"),
        ("--logits kept.npy --trials 0", 2, "Invalid value for '--trials'"),
    ],
)
def test_what_is_refused_leaves_the_bundle_as_it_was(
    arguments: str, status: int, text: str, here: Path, bundle: Path, command: Command
) -> None:
    before = contents(bundle.parent)
    said = command("tune", "--engines", bundle, "--trials", 2, *arguments.split(), status=status)
    assert re.search(text, said), said
    assert contents(bundle.parent) == before


def test_a_bundle_that_cannot_be_tuned(
    bundle_copy: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    said = command("tune", "--engines", tmp_path / "no", "--data", photos, status=1)
    assert "is not a bundle: no such directory" in said
    manifest = open_bundle(bundle_copy).manifest
    parity = dataclasses.replace(manifest.parity, max_difference=(0.0,))
    graph = dataclasses.replace(manifest.baseline.graph, file="whole.onnx")
    shutil.copy(bundle_copy / "baseline.onnx", bundle_copy / "whole.onnx")
    only = (SegmentSpec(dataclasses.replace(manifest.baseline, graph=graph), 1, 4, "final"),)
    passes = (dataclasses.replace(manifest.passes[0], segments=only),)
    whole = dataclasses.replace(manifest, passes=passes, parity=parity)
    (bundle_copy / "manifest.json").write_text(whole.dumps())
    said = command("tune", "--engines", bundle_copy, "--data", photos, status=2)
    assert f"{bundle_copy} has no exits: there is nothing to tune" in said


def test_one_run_fills_a_file_at_a_time(
    session: Session,
    images: Images,
    bundle: Path,
    here: Path,
    command: Command,
    lock_elsewhere: Callable[[Path], Any],
) -> None:
    arguments = ("--data", "photos", "--logits", "kept.npy")
    with lock_elsewhere(here / ".kept.npy.lock"):
        said = command("tune", "--engines", bundle, *arguments, status=1)
    assert "another run (another process) is writing kept.npy: wait for it" in said
    assert len(collect(session, images, here / "kept.npy").usable) == 100
    assert not (here / ".kept.npy.lock").exists()


def test_a_folder_that_cannot_be_written(session: Session, images: Images, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match=r"cannot write .*/k\.npy: Permission denied"):
        collect(session, images, tmp_path / "k.npy")


def test_a_full_disk_is_said_before_an_image_is_run(
    bundle_copy: Path,
    photos: Path,
    session: Session,
    images: Images,
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    message = (
        r"cannot keep the logits \(--logits\) in .*\.npy: {}: it needs [\d,]+ bytes, and "
        r"[\d,]+ are free; name a place elsewhere"
    )
    done = run("tune", "--engines", bundle_copy, "--data", photos, before=full)
    assert done.returncode == 1
    assert re.search(message.format("File too large"), done.stderr), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    # A memory map takes no room until it is written to; only asking for it tells.
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: Path("/dev/full").write_text("."))
    with pytest.raises(DataError, match=message.format("No space left on device")):
        collect(session, images, tmp_path / "k.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert open_bundle(bundle_copy).manifest.points == {}


def test_points_are_added_to_the_bundle_they_are_of(tuned: Tuned, bundle_copy: Path) -> None:
    identity, points = tuned.manifest.identity, tuned.manifest.points
    add_to_manifest(bundle_copy, identity, {"mine": points["fast"]})
    add_to_manifest(bundle_copy, identity, {"mine": points["accurate"], "other": points["fast"]})
    manifest = open_bundle(bundle_copy).manifest
    assert manifest.points == {"mine": points["accurate"], "other": points["fast"]}
    # An export whose images are resized otherwise.
    preprocess = dataclasses.replace(manifest.passes[0].preprocess, resize=64)
    passes = (dataclasses.replace(manifest.passes[0], preprocess=preprocess),)
    again = dataclasses.replace(manifest, passes=passes)
    (bundle_copy / "manifest.json").write_text(again.dumps())
    with pytest.raises(BundleError, match="was exported again meanwhile: .* run the command again"):
        add_to_manifest(bundle_copy, identity, points)
    assert open_bundle(bundle_copy).manifest == again
