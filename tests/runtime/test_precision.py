"""Which precision ``auto`` takes: one below float32 only where it was shown to decide alike.

The backend offers bfloat16 whatever the processor does; the last tests ask the real one.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from half_backend import Half
from small import write_photos

from lgvit_edge import tuning
from lgvit_edge.benchmarks import measure_exits
from lgvit_edge.benchmarks.device import report
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.bundle.evidence import Evidence
from lgvit_edge.bundle.points import Guarantee, OperatingPoint
from lgvit_edge.errors import BundleError, DataError, ParityError, UsageError
from lgvit_edge.images.labelled import LabelledImage, find_images, unlabelled_images
from lgvit_edge.images.preprocess import load_rgb
from lgvit_edge.policies import Confidence, Ensemble, FixedExit, Never, Patience, parse, typed
from lgvit_edge.runtime import ChainOptions, Session, TargetRate, register_backend
from lgvit_edge.runtime.backends import openvino, registry
from lgvit_edge.runtime.selection import known_choices, lower_precisions
from lgvit_edge.runtime.session import open_in_float32
from lgvit_edge.runtime.verification import verify
from lgvit_edge.tuning import collect, compare_precisions

Command = Callable[..., str]
FRAME = np.zeros((32, 32, 3), np.uint8)
GOOD = Evidence(
    backend="half",
    precision="bf16",
    hardware="a processor, half 1.0",
    policy=Confidence(0.8).to_json(),
    images=1000,
    sha256="0" * 64,
    same_exit=0.995,
    same_label=0.997,
    accuracy=0.701,
    reference_accuracy=0.702,
)


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Half:
    """The backend that ``auto`` takes here; it is measured in this process."""
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    monkeypatch.setenv("LGVIT_EDGE_BACKEND", "half")
    monkeypatch.setenv("LGVIT_EDGE_CACHE", str(tmp_path / "cache"))
    register_backend((made := Half()).backend())
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 images, as many as evidence takes."""
    return write_photos(tmp_path_factory.mktemp("photos"), "abcde", 60)


def keep(root: Path, *evidence: Evidence) -> None:
    add_to_manifest(root, open_bundle(root, verify=False).manifest.identity, evidence=evidence)


def precision_of(root: Path, **options: object) -> str:
    with Session.open(root, **options) as session:  # type: ignore[arg-type]
        session.predict(FRAME)
        return str(session.describe()["precision"])


def test_float32_stays_until_something_shows_more(bundle_copy: Path, half: Half) -> None:
    with Session.open(bundle_copy) as session:
        about = session.describe()
    assert about["precision"] == "fp32" and "evidence" not in about
    assert about["hint"] == (
        "half bf16 would be available, but nothing shows yet that it decides as float32 does here "
        "at this policy (--precision fp32 silences this); "
        f"run: lgvit-edge doctor --engines {bundle_copy} --data DIR"
    )
    keep(bundle_copy, GOOD)
    with Session.open(bundle_copy) as session:
        about = session.describe()
    assert about["precision"] == "bf16" and "hint" not in about
    assert about["evidence"]["text"] == (
        "on 1000 images 99.50% leave where they do in float32, 99.70% get the same answer, "
        "top-1 70.10% (70.20% in float32)"
    )
    assert [choice.precision for choice in known_choices()] == ["bf16"]  # its speed was measured


def test_the_slower_precision_is_not_taken(bundle_copy: Path, half: Half) -> None:
    """Where a processor only imitates bfloat16 it takes longer, however well it decides."""
    keep(bundle_copy, GOOD)
    half.slow = "bf16"
    assert precision_of(bundle_copy) == "fp32"
    (choice,) = known_choices()
    assert choice.measured["half fp32"] < choice.measured["half bf16"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"same_exit": 0.985}, "1.50% of the images leave at another exit (allowed: 1.00%)"),
        ({"same_label": 0.985}, "1.50% of the answers differ (allowed: 1.00%)"),
        ({"accuracy": 0.695}, "top-1 fell from 70.20% to 69.50% (allowed: 0.20%)"),
        (
            {"accuracy": None, "reference_accuracy": None},
            "0.30% of the answers differ, and without labels all of them may be wrong "
            "(allowed: 0.20%)",
        ),
        ({"images": 299}, "299 images are too few (expected at least 300)"),
    ],
)
def test_evidence_that_misses_a_gate_does_not_count(
    change: dict[str, float], fault: str, bundle_copy: Path, half: Half, command: Command
) -> None:
    weak = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    assert weak.faults == [fault]
    keep(bundle_copy, weak)
    with Session.open(bundle_copy) as session:
        about = session.describe()
    assert about["precision"] == "fp32"
    assert ("hint" in about) == ("images" in change)  # more images may help, others not
    assert f"half bf16, default: {fault}" in command("info", bundle_copy)


def test_without_labels_equal_answers_are_enough(bundle_copy: Path, half: Half) -> None:
    same = dataclasses.replace(GOOD, accuracy=None, reference_accuracy=None, same_label=0.998)
    keep(bundle_copy, same)
    assert same.faults == [] and same.text.endswith("without labels")
    assert precision_of(bundle_copy) == "bf16"


@pytest.mark.parametrize(
    "hardware", ["another processor, half 1.0", "a processor, half 2.0"], ids=["cpu", "version"]
)
def test_evidence_of_another_machine_does_not_count(
    hardware: str, bundle_copy: Path, half: Half
) -> None:
    keep(bundle_copy, GOOD)
    half.hardware = hardware
    with Session.open(bundle_copy) as session:
        assert session.describe()["precision"] == "fp32"
        assert "bf16 would be available" in session.describe()["hint"]
    # What this machine shows stands beside what the other one did.
    keep(bundle_copy, dataclasses.replace(GOOD, hardware=hardware))
    assert len(open_bundle(bundle_copy).manifest.evidence) == 2
    assert precision_of(bundle_copy) == "bf16"


def test_evidence_of_another_bundle_is_not_kept(bundle_copy: Path) -> None:
    with pytest.raises(BundleError, match="was exported again meanwhile: the figures are not its"):
        add_to_manifest(bundle_copy, "0" * 64, evidence=[GOOD])
    assert open_bundle(bundle_copy).manifest.evidence == ()


def test_evidence_is_for_one_policy(
    bundle_copy: Path, half: Half, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(bundle_copy, GOOD)
    with Session.open(bundle_copy, policy="confidence:0.7") as session:
        about = session.describe()
        assert about["precision"] == "fp32"
        assert about["hint"].endswith("--data DIR --policy confidence:0.7:1.0")
    worse = dataclasses.replace(GOOD, policy=Confidence(0.6).to_json(), same_exit=0.9)
    keep(bundle_copy, worse)
    with Session.open(bundle_copy) as session:
        capsys.readouterr()
        # Answers may differ even where exits cannot.
        for policy in (Confidence(0.7), FixedExit(2), Never(), TargetRate(5)):
            session.policy = policy
            said = capsys.readouterr().err
            assert "note: this session computes in bf16" in said and "nothing shows" in said
            assert 'open it with precision="fp32"' in said
            assert ("lgvit-edge doctor" in said) == (not isinstance(policy, TargetRate))
            assert session.describe()["evidence"] is None
        session.policy = Confidence(0.6)
        said = capsys.readouterr().err
        assert "10.00% of the images leave at another exit" in said and "nothing shows" not in said
        session.policy = Confidence(0.8)
        assert session.describe()["evidence"]["images"] == 1000
        session.policy = Confidence(0.7)
        assert capsys.readouterr().err == ""  # once for each is enough
        measure_exits(session, rounds=1)
        assert capsys.readouterr().err == ""  # benchmarks force exits
        session.policy = Confidence(0.5)
        assert "note" in capsys.readouterr().err


def test_a_device_that_has_nothing_else_chose_nothing(
    bundle_copy: Path, half: Half, capsys: pytest.CaptureFixture[str]
) -> None:
    half.precisions = ("bf16",)
    with Session.open(bundle_copy) as session:
        session.policy = Confidence(0.7)
        assert session.describe()["precision"] == "bf16"
    assert "note" not in capsys.readouterr().err


def test_certified_points_stay_in_float32(
    bundle_copy: Path, half: Half, command: Command, tmp_path: Path
) -> None:
    certificate = Guarantee(risk=0.05, delta=0.05, images=300, errors=0, data_sha256="0" * 64)
    sure = dataclasses.replace(point(Confidence(0.8)), guarantee=certificate)
    add_to_manifest(bundle_copy, open_bundle(bundle_copy).manifest.identity, {"sure": sure})
    keep(bundle_copy, GOOD)
    with Session.open(bundle_copy, point="sure") as session:
        about = session.describe()
        assert about["precision"] == "fp32"
        assert "the point sure is certified" in about["hint"]
    with Session.open(bundle_copy) as session:
        assert session.describe()["precision"] == "bf16"
        with pytest.raises(UsageError, match='sure is certified.*open it with precision="fp32"'):
            session.point = "sure"
        assert session.point is None
    for precision in ("fp32", "bf16"):  # typed: the user knows
        with Session.open(bundle_copy, precision=precision) as session:
            session.point = "sure"
    assert "half bf16 default yes 1000" in command("info", bundle_copy)  # and nothing of "sure"


def test_few_images_do_not_replace_many(
    bundle_copy: Path, half: Half, photos: Path, tmp_path: Path
) -> None:
    keep(bundle_copy, GOOD)
    notes: list[str] = []
    images = unlabelled(photos)[:3]
    with open_in_float32(bundle_copy) as session:
        reference = collect(session, images, tmp_path / "kept.npy", decisions_only=True)
    compare_precisions(bundle_copy, reference, images, policy=Patience(2), note=notes.append)
    assert [n for n in notes if "3 images do not replace the 1000 that" in n] == notes != []
    evidence = open_bundle(bundle_copy).manifest.evidence
    assert [(e.policy["name"], e.images) for e in evidence] == [
        ("confidence", 1000),
        ("patience", 3),
    ]
    more = dataclasses.replace(GOOD, images=1001, sha256="1" * 64)
    keep(bundle_copy, more)
    assert more in open_bundle(bundle_copy).manifest.evidence
    assert GOOD not in open_bundle(bundle_copy).manifest.evidence


@pytest.mark.parametrize("error", [float("nan"), 1e3], ids=["not finite", "far from PyTorch's"])
def test_nonsense_is_not_taken_whatever_the_evidence(
    error: float, bundle_copy: Path, half: Half
) -> None:
    """As a processor that fails in batches, which decisions are not compared in."""
    keep(bundle_copy, GOOD)
    half.error = error
    assert precision_of(bundle_copy) == "fp32"
    (choice,) = known_choices()
    assert "segment 0 is far from PyTorch on this device" in choice.refused["half bf16"]


def test_bundles_are_compared_in_float32(
    bundle_copy: Path, half: Half, photos: Path, command: Command, tmp_path: Path
) -> None:
    other = shutil.copytree(bundle_copy, tmp_path / "other")
    keep(bundle_copy, GOOD)
    record = tmp_path / "record.json"
    several = ("bench", "--engines", bundle_copy, "--engines", other, "--data", photos)
    command(*several, "--samples", 60, "--json", record)
    found = json.loads(record.read_text())
    assert [b["runtime"]["precision"] for b in found["bundles"].values()] == ["fp32", "fp32"]
    # One and the same plain model, though one bundle has a hint that the other has not.
    assert [row["baseline_of"] for row in found["rows"] if row["plain"]] == [list(found["bundles"])]


def test_the_hint_names_what_the_session_had(bundle_copy: Path, half: Half) -> None:
    with Session.open(bundle_copy, backend="half", threads=1, device="cpu") as session:
        hint = session.describe()["hint"]
    assert hint.endswith("--data DIR --backend half --device cpu --threads 1")


def test_no_hint_where_nothing_could_be_compared(bundle_copy: Path, half: Half) -> None:
    registry._BACKENDS["half"] = dataclasses.replace(half.backend(), hardware=None)
    with Session.open(bundle_copy) as session:
        assert session.describe()["precision"] == "fp32" and "hint" not in session.describe()
    assert lower_precisions(open_bundle(bundle_copy), "half", ChainOptions()) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"policy": {}}, "a policy must have a name"),
        ({"policy": {"name": "luck"}}, r"manifest.evidence\[0\].policy: a policy's name must be"),
        ({"images": 10**400}, "images must be 1..1000000000"),
    ],
)
def test_bad_evidence_is_an_error_at_open(
    change: dict[str, Any], fault: str, bundle_copy: Path, half: Half, command: Command
) -> None:
    keep(bundle_copy, GOOD)
    data = json.loads((bundle_copy / "manifest.json").read_text())
    data["evidence"][0] |= change
    (bundle_copy / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=fault):
        Session.open(bundle_copy)
    status = 0 if change == {"policy": {"name": "luck"}} else 1  # it is shown as it is
    assert "internal error" not in command("info", bundle_copy, status=status)


def test_a_bad_policy_is_the_same_error_everywhere(
    bundle_copy: Path, half: Half, photos: Path, command: Command
) -> None:
    data = json.loads((bundle_copy / "manifest.json").read_text())
    data["policy"] = {"name": "luck"}
    (bundle_copy / "manifest.json").write_text(json.dumps(data))
    at = ("--engines", bundle_copy)
    for line in (("bench",), ("doctor",), ("doctor", "--data", photos), ("profile",)):
        assert "manifest.policy: a policy's name must be one of" in command(*line, *at, status=1)
    with pytest.raises(BundleError, match="manifest.policy"):
        open_in_float32(bundle_copy)


def point(policy: Confidence) -> OperatingPoint:
    return OperatingPoint(
        policy=policy.to_json(),
        accuracy=0.7,
        baseline_accuracy=0.7,
        macs=1.0,
        macs_speedup=1.0,
        latency_ms=1.0,
        baseline_latency_ms=1.0,
        shares=(0.25,) * 4,
        images=100,
        data_sha256="0" * 64,
        device="a desk",
        goal="",
        guarantee=None,
    )


def test_a_frame_rate_needs_evidence_at_all_its_points(bundle_copy: Path, half: Half) -> None:
    points = {"fast": point(Confidence(0.6)), "slow": point(Confidence(0.9))}
    add_to_manifest(bundle_copy, open_bundle(bundle_copy).manifest.identity, points)
    fast, slow = (dataclasses.replace(GOOD, policy=p.policy) for p in points.values())
    keep(bundle_copy, fast)
    data = json.loads((bundle_copy / "manifest.json").read_text())
    (bundle_copy / "manifest.json").write_text(
        json.dumps(data | {"evidence": 2 * data["evidence"]})
    )
    assert len(open_bundle(bundle_copy).manifest.evidence) == 2  # as nothing of ours writes it
    with pytest.raises(UsageError, match="no operating point"):
        Session.open(bundle_copy, policy=TargetRate(5, [["fast"]]))  # type: ignore[list-item]
    assert precision_of(bundle_copy, policy=TargetRate(5, ["fast"])) == "bf16"
    assert precision_of(bundle_copy, policy=TargetRate(5)) == "fp32"
    keep(bundle_copy, fast, dataclasses.replace(slow, same_exit=0.9))
    assert precision_of(bundle_copy, policy=TargetRate(5)) == "fp32"
    keep(bundle_copy, fast, slow)
    assert precision_of(bundle_copy, policy=TargetRate(5)) == "bf16"
    assert precision_of(bundle_copy, point="slow") == "bf16"


def test_a_typed_precision_is_taken_as_it_is(
    bundle_copy: Path, half: Half, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--engines", bundle_copy, "--precision", "bf16")
    said = command("bench", *at, "--rounds", 1, "--no-energy")
    assert "computed in bf16: at this policy its decisions were never compared" in said
    with Session.open(bundle_copy, precision="bf16") as session:
        session.policy = Confidence(0.7)
    assert "note" not in capsys.readouterr().err  # who typed it knows
    assert known_choices() == []


def test_checks_of_logits_run_in_float32(bundle_copy: Path, half: Half) -> None:
    keep(bundle_copy, GOOD)
    half.error = 0.5
    with open_in_float32(bundle_copy) as session:
        assert session.describe()["precision"] == "fp32" and session.check_parity() < 1e-4
    with Session.open(bundle_copy, precision="bf16") as session:
        with pytest.raises(ParityError, match='computed in bf16: .* open with precision="fp32"'):
            session.check_parity()


def compare(root: Path, file: Path, images: list[LabelledImage], **options: object) -> Evidence:
    with open_in_float32(root) as session:
        reference = collect(session, images, file, decisions_only=True)
    (found,) = compare_precisions(root, reference, images, **options)  # type: ignore[arg-type]
    return found


def test_what_is_compared(bundle_copy: Path, half: Half, photos: Path, tmp_path: Path) -> None:
    """The same replay, by hand, on logits that the backend shifts."""
    half.error = 0.3
    images = find_images(photos, num_classes=5, names=tuple("abcde"))[::10]
    found = compare(bundle_copy, tmp_path / "kept.npy", images)
    with open_in_float32(bundle_copy) as session:
        logits = session.exit_logits([load_rgb(image.path) for image in images])
    shifted = logits + half.shift(5)
    pairs = list(zip(Confidence(0.8).replay(logits), Confidence(0.8).replay(shifted), strict=True))
    same = [float((one == other).mean()) for one, other in pairs]
    labels = np.array([image.class_index for image in images])
    right = [float((answers == labels).mean()) for answers in pairs[1]]
    assert min(same) < 1
    assert [found.same_exit, found.same_label] == pytest.approx(same)
    assert [found.reference_accuracy, found.accuracy] == pytest.approx(right)
    assert found.images == 30 and found.hardware == half.hardware
    assert open_bundle(bundle_copy).manifest.evidence == (found,)


def unlabelled(photos: Path) -> list[LabelledImage]:
    return [LabelledImage(path, None) for path in unlabelled_images(photos)]


def test_images_that_were_run_are_not_run_again(
    bundle_copy: Path, half: Half, photos: Path, tmp_path: Path
) -> None:
    images = unlabelled(photos)[::10]
    found = compare(bundle_copy, tmp_path / "kept.npy", images)
    assert found.accuracy is None and found.same_exit == 1.0
    ran = dict(half.steps)
    assert compare(bundle_copy, tmp_path / "kept.npy", images) == found
    assert half.steps == ran == {"fp32": 30 * 4, "bf16": 30 * 4}


def test_logits_of_two_precisions_do_not_mix(
    bundle_copy: Path, half: Half, photos: Path, tmp_path: Path
) -> None:
    """As if a session had been given another precision before an interrupted run went on."""
    images, file = unlabelled(photos)[:2], tmp_path / "kept.npy"
    with open_in_float32(bundle_copy) as session:
        collect(session, images, file, decisions_only=True)
    with (
        Session.open(bundle_copy, precision="bf16") as session,
        pytest.raises(DataError, match=r"logits of another run \(other device\)"),
    ):
        collect(session, images, file, decisions_only=True)


def test_where_nothing_lower_exists_nothing_is_run(
    bundle_copy: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    with open_in_float32(bundle_copy, backend="onnxruntime") as session:
        images = unlabelled(photos)[:2]
        reference = collect(session, images, tmp_path / "kept.npy", decisions_only=True)
    assert compare_precisions(bundle_copy, reference, images) == []
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["kept.npy"]
    said = command("doctor", "--engines", bundle_copy, "--data", photos)
    assert "no backend here offers a precision below float32" in said


def test_a_precision_that_cannot_compute_it_is_left_out(
    bundle_copy: Path, half: Half, photos: Path, tmp_path: Path
) -> None:
    half.error = float("inf")  # as a logit beyond what float16 holds
    images, notes = unlabelled(photos)[:3], list[str]()
    with open_in_float32(bundle_copy) as session:
        reference = collect(session, images, tmp_path / "kept.npy", decisions_only=True)
    (failed,) = compare_precisions(bundle_copy, reference, images, note=notes.append)
    assert failed.faults == [f"it could not run: {failed.failure}"] and "finite" in failed.failure
    assert notes[0].startswith("half bf16 was not compared: ") and "finite" in notes[0]
    with Session.open(bundle_copy) as session:
        assert "hint" not in session.describe()  # it would fail again
    half.error = 0.0
    compare_precisions(bundle_copy, reference, images)
    assert [e.failure for e in open_bundle(bundle_copy).manifest.evidence] == [""]


def test_logits_of_other_images_are_begun_anew(
    bundle_copy: Path, half: Half, photos: Path, tmp_path: Path
) -> None:
    images, file = unlabelled(photos), tmp_path / "kept.npy"
    compare(bundle_copy, file, images[:3])
    for each in tmp_path.glob("kept.npy*"):
        each.unlink()
    assert compare(bundle_copy, file, images[3:8]).images == 5


def test_doctor_compares_and_bench_and_info_show(
    bundle_copy: Path, half: Half, photos: Path, command: Command, tmp_path: Path
) -> None:
    engines = ("--engines", bundle_copy)
    image = photos / "a" / "00.png"
    hint = "note: half bf16 would be available"
    assert command("predict", *engines, image).count(hint) == 1
    assert command("bench", *engines, "--rounds", 1, "--no-energy").count(hint) == 1
    said = command("doctor", *engines, "--data", photos, "--policy", "patience:2")
    assert "half bf16 default yes 300 100.00% 100.00%" in said and "half bf16 patience" in said
    record = tmp_path / "record.json"
    said = command("bench", *engines, "--rounds", 1, "--no-energy", "--json", record)
    assert "computed in bf16: on 300 images 100.00% leave where they do in float32" in said
    assert hint not in said
    runtime = json.loads(record.read_text())["env"]["runtime"]
    assert (runtime["precision"], runtime["evidence"]["images"]) == ("bf16", 300)
    said = command("info", bundle_copy)
    assert "half bf16 default yes 300 100.00%" in said and "auto last chose half bf16" in said
    assert precision_of(bundle_copy, policy=Patience(2)) == "bf16"


def test_doctor_says_what_it_needs(bundle_copy: Path, photos: Path, command: Command) -> None:
    assert "--data needs --engines" in command("doctor", "--data", photos, status=2)
    said = command("doctor", "--engines", bundle_copy, "--samples", 3, status=2)
    assert "--samples and --policy need --data" in said


def test_few_images_are_told_before_they_run(
    bundle_copy: Path, half: Half, photos: Path, command: Command
) -> None:
    said = command("doctor", "--engines", bundle_copy, "--data", photos, "--samples", 20)
    assert "note: 20 images are too few to rely on, expected at least 300" in said
    assert precision_of(bundle_copy) == "fp32"


def test_tune_compares_at_the_points_it_finds(
    bundle_copy: Path, half: Half, photos: Path, command: Command
) -> None:
    run = ("tune", "--engines", bundle_copy, "--data", photos, "--trials", 1)
    said = command(*run)
    manifest = open_bundle(bundle_copy).manifest
    policies = [manifest.policy, *(point.policy for point in manifest.points.values())]
    assert all(policy in [e.policy for e in manifest.evidence] for policy in policies)
    assert re.search(r"auto may ?take it ?here", said.replace("\n", " "))
    assert precision_of(bundle_copy, point="fast") == "bf16"
    ran = dict(half.steps)
    command(*run)  # in float32 again, which is what was recorded, and nothing is run twice
    assert half.steps == ran
    assert all("bf16" not in point.device for point in manifest.points.values())


def test_tune_writes_its_record_before_it_compares(
    bundle_copy: Path,
    half: Half,
    photos: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("the disk is full")

    monkeypatch.setattr(tuning, "compare_precisions", fail)
    record, plot = tmp_path / "tuned.json", tmp_path / "tuned.svg"
    run = ("tune", "--engines", bundle_copy, "--data", photos, "--trials", 1)
    said = command(*run, "--samples", 60, "--json", record, "--plot", plot, status=1)
    assert "the disk is full" in said and plot.exists()
    assert json.loads(record.read_text())["evidence"] == []


def test_doctor_compares_where_it_is_told_and_tells_what_it_could_not_read(
    bundle_copy: Path, half: Half, photos: Path, command: Command, tmp_path: Path
) -> None:
    images = shutil.copytree(photos / "a", tmp_path / "images")
    (images / "00.png").write_bytes(b"no image")
    at = ("doctor", "--engines", bundle_copy, "--data", images)
    said = command(*at, "--samples", 20, "--device", "cpu", "--threads", 1)
    assert "1 of 20 images cannot be read and were left out" in said and "00.png" in said
    assert [e.images for e in open_bundle(bundle_copy).manifest.evidence] == [19]
    said = command(*at, "--backend", "onnxruntime")
    assert "no backend here offers a precision below float32" in said
    assert "--backend need --engines" in command("doctor", "--threads", 1, status=2)


def test_evidence_of_other_hardware_is_told_as_such(
    bundle_copy: Path, half: Half, command: Command
) -> None:
    other = dataclasses.replace(GOOD, hardware="another processor", images=2000)
    keep(bundle_copy, GOOD, other)
    said = " ".join(command("info", bundle_copy).split())
    assert re.search(r"default yes 1000 .* 1 half bf16 default no 2000 .* 2 on 1:", said)
    assert "on 1: a processor, half 1.0 (here) on 2: another processor (not here)" in said


def test_profile_shows_the_precision_that_runs(
    real: str, bundle_copy: Path, command: Command
) -> None:
    run = ("profile", "--engines", bundle_copy, "--runs", 1)
    assert f"fp32 computed in {real}" in command(*run, "--precision", real)
    assert "computed in" not in command(*run, "--precision", "fp32")


def test_a_device_report_runs_on_what_a_session_would(
    bundle_copy: Path, half: Half, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the lower precision among the candidates, another backend may be the fastest."""
    keep(bundle_copy, GOOD)
    assert report._backend(bundle_copy, report.Options()) == "half"
    (choice,) = known_choices()
    assert set(choice.measured) == {"half fp32", "half bf16"}


def test_a_policy_as_it_is_typed() -> None:
    for policy in (Confidence((0.5, 0.25)), Ensemble(0.9, 0.3), Patience(3), Never()):
        assert parse(typed(policy.to_json())) == policy


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """OpenVINO and the first precision below float32 that this processor computes in."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setenv("LGVIT_EDGE_BACKEND", "openvino")
    monkeypatch.setenv("LGVIT_EDGE_CACHE", str(tmp_path / "cache"))
    if not (lower := openvino.available_precisions()[1:]):
        pytest.skip("this processor computes in float32 only")
    yield lower[0]


def test_openvino_decides_alike_or_is_not_taken(
    real: str, bundle_copy: Path, photos: Path, tmp_path: Path
) -> None:
    images = find_images(photos, num_classes=5, names=tuple("abcde"))
    with open_in_float32(bundle_copy) as session:
        reference = collect(session, images, tmp_path / "kept.npy", decisions_only=True)
    found = compare_precisions(bundle_copy, reference, images)[0]
    assert (found.backend, found.precision, found.images) == ("openvino", real, 300)
    assert 0.9 < found.same_exit <= 1 and "openvino" in found.hardware
    with Session.open(bundle_copy) as session:
        about = session.describe()
    (choice,) = known_choices()
    tried = f"openvino {real}" in {*choice.measured, *choice.refused}
    assert tried == (not found.faults)  # whether it then is faster is the processor's matter
    assert (about["precision"] == "fp32") == ("evidence" not in about)


def test_verify_runs_in_float32(real: str, bundle_copy: Path, tmp_path: Path) -> None:
    """Even where sessions take another precision, here because that was measured as faster."""
    here = openvino.hardware(ChainOptions())
    keep(bundle_copy, dataclasses.replace(GOOD, backend="openvino", precision=real, hardware=here))
    assert precision_of(bundle_copy) in ("fp32", real)
    (stored,) = (tmp_path / "cache").glob("*/backend-*.json")
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"precision": real}))
    with Session.open(bundle_copy) as session, pytest.raises(ParityError):
        session.check_parity()
    assert verify(bundle_copy, backend="openvino").outcome == "good"


def test_openvino_in_a_precision_that_was_typed(real: str, bundle_copy: Path) -> None:
    with Session.open(bundle_copy, precision=real) as session:
        session.predict(FRAME)
        about = session.describe()
    assert (about["precision"], about["evidence"]) == (real, None)
