"""The runtime: predictions, batches, policies, and bundles that should not be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from processes import python
from small import frames

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.bundle.plain_files import sha256
from lgvit_edge.errors import BackendError, BundleError, DataError, UsageError
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.policies.scores import ENTROPY, PROBABILITY, confidence, entropy
from lgvit_edge.runtime import (
    Confidence,
    Ensemble,
    Entropy,
    FixedExit,
    Never,
    Patience,
    PatientConfidence,
    Policy,
    Result,
    Session,
)
from lgvit_edge.runtime.backends.base import ChainOptions
from lgvit_edge.runtime.backends.checks import onnxruntime_checks
from lgvit_edge.runtime.backends.ort_pool import can_share
from lgvit_edge.runtime.backends.registry import chain_opener

shares = pytest.mark.skipif(not can_share(onnxruntime), reason="onnxruntime before 1.23")


@pytest.fixture
def session(bundle: Path) -> Any:
    with Session.open(bundle) as opened:
        yield opened


POLICIES: list[Policy] = [
    *(Confidence(0.3), Confidence((0.35, 0.3, 0.25)), Entropy(1.4), Patience(2)),
    *(PatientConfidence(0.25, 2), Ensemble(0.4, 0.5), FixedExit(2), FixedExit(4), Never()),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_chain_stops_where_the_policy_says(session: Session, policy: Policy) -> None:
    images = frames(11)
    logits = session.exit_logits(images)
    session.policy = policy
    expected, classes = policy.replay(logits)
    decided = logits
    if isinstance(policy, Ensemble):
        decided = logits.copy()
        for exit in range(1, logits.shape[1]):
            decided[:, exit] += policy.decay * decided[:, exit - 1]
    one_by_one = [session.predict(frame) for frame in images]
    together = session.predict_batch(images)  # 11 frames in batches of at most 4
    for found in (one_by_one, together):
        assert [r.exit for r in found] == expected.tolist()
        for row, result in enumerate(found):
            at_exit = decided[row, result.exit - 1]
            assert result.class_index == at_exit.argmax() == classes[row]
            odds = np.exp(at_exit - at_exit.max())
            odds /= odds.sum()
            sure = odds.max()
            if isinstance(policy, Entropy):
                sure = -(odds * np.log(odds)).sum()
            assert result.confidence == pytest.approx(sure, abs=1e-5)
            assert (result.measure is ENTROPY) == isinstance(policy, Entropy)
            assert result.block == session.manifest.segments[result.exit - 1].last_block
            assert result.latency_ms >= result.network_ms > 0


@pytest.mark.parametrize(
    "policy",
    [
        Confidence(0.3, temperature=0.5),
        Confidence((0.5, 0.4, 0.3), temperature=(0.5, 0.7, 2.0)),
        PatientConfidence(0.4, 2, temperature=0.5),
        Ensemble(0.5, 0.5, temperature=0.7),
        Entropy(1.0, temperature=0.5),
        Entropy((0.9, 1.0, 1.1)),
    ],
    ids=str,
)
def test_the_confidence_is_the_number_the_policy_compared(session: Session, policy: Any) -> None:
    """At whatever exit it answers: alone, in a batch, and where a deadline ended the chain."""
    session.warm_up(1)
    images = frames(11)
    logits = session.exit_logits(images)
    session.policy = policy
    late = [session.predict(frame, deadline_ms=1e-3) for frame in images]
    assert {result.stopped for result in late} <= {"policy", "deadline"}
    alone = [session.predict(frame) for frame in images]
    of = entropy if isinstance(policy, Entropy) else confidence
    by_exit = policy.temperature
    if not isinstance(by_exit, tuple):
        by_exit = (by_exit,) * 3
    last = 1.0 if isinstance(policy.temperature, tuple) else policy.temperature
    for results in (alone, session.predict_batch(images), late):
        for row, result in enumerate(results):
            tracker = policy.start(3)
            for exit in range(result.exit):
                seen = tracker.combine(logits[row, exit][None])
            compared = of(seen / np.float32((*by_exit, last)[result.exit - 1]))
            assert result.confidence == pytest.approx(float(compared[0]), abs=1e-5)
            if result.exit <= 3 and not isinstance(policy, PatientConfidence):
                threshold = policy.threshold
                if isinstance(threshold, tuple):
                    threshold = threshold[result.exit - 1]
                surer = result.sureness > result.measure.sureness(threshold)
                assert surer == (result.stopped == "policy")
            written = json.loads(json.dumps(result.to_json()))
            assert written["confidence"] == result.confidence
            assert written["measure"] == ("entropy" if of is entropy else "probability")
            assert result.confidence_text.endswith(" nats" if of is entropy else "%")


def test_policies_that_compare_no_score_tell_the_plain_probability(session: Session) -> None:
    images = frames(3)
    logits = session.exit_logits(images)
    for policy in (FixedExit(2), Never(), Patience(1)):
        session.policy = policy
        for results in ([session.predict(f) for f in images], session.predict_batch(images)):
            for row, result in enumerate(results):
                expected = confidence(logits[row, result.exit - 1][None])[0]
                assert result.confidence == pytest.approx(float(expected), abs=1e-5)
                assert result.measure is PROBABILITY


def test_rows_that_exit_leave_the_batch(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    images = frames(4)
    chain = session.chain
    sizes = []
    step = chain.step

    def counting() -> NDArray[np.float32]:
        logits = step()
        sizes.append(len(logits))
        return logits

    monkeypatch.setattr(chain, "step", counting)
    confidences = np.sort(confidence(session.exit_logits(images)[:, 0]))
    sizes.clear()
    session.policy = Confidence((float(confidences[1]), 1.0, 1.0))
    results = session.predict_batch(images)
    assert [r.exit for r in results].count(1) == 2
    assert sizes == [4, 2]  # heads of the others are left out


def test_labels_and_the_default_policy_come_from_the_bundle(session: Session) -> None:
    assert session.policy == Confidence(0.8)
    session.policy = Never()
    result = session.predict(frames(1)[0])
    assert result.label == session.manifest.labels[result.class_index]


@pytest.mark.parametrize("thread_pool", [pytest.param("global", marks=shares), "private"])
def test_threads_and_pools_do_not_change_answers(bundle: Path, thread_pool: str) -> None:
    """In processes of their own: ONNX Runtime's pool is one per process."""
    code = (
        "import sys, numpy as np; from lgvit_edge.runtime import Session;"
        f"s = Session.open({str(bundle)!r}, threads=1, thread_pool={thread_pool!r});"
        "f = [np.full((32, 32, 3), v, np.uint8) for v in (0, 90, 255)];"
        "print(s.describe()['thread_pool'], s.exit_logits(f).sum())"
    )
    pool, total = python(code).split()
    with Session.open(bundle) as session:
        images = [np.full((32, 32, 3), v, np.uint8) for v in (0, 90, 255)]
        assert float(total) == pytest.approx(float(session.exit_logits(images).sum()), abs=1e-3)
    assert pool == thread_pool


@shares
def test_a_process_has_one_pool_of_one_size(bundle: Path) -> None:
    with Session.open(bundle) as first:
        size = int(first.describe()["threads"])
        with Session.open(bundle, threads=size) as second:
            assert second.describe()["threads"] == size
        with pytest.raises(BackendError, match=f"expected {size + 1} threads.* already has {size}"):
            Session.open(bundle, threads=size + 1)
        with pytest.raises(BackendError, match="open all of them with thread_pool='private'"):
            Session.open(bundle, thread_pool="private")


def test_an_application_that_was_first_keeps_its_sessions(bundle: Path) -> None:
    code = (
        "import onnxruntime as ort, numpy as np;"
        f"own = ort.InferenceSession({str(bundle / 'baseline.onnx')!r});"
        "from lgvit_edge.runtime import Session;"
        f"s = Session.open({str(bundle)!r});"
        "x = np.zeros((1, 32, 32, 3), np.uint8);"
        "answer = s.baseline_logits(s.prepare(x));"
        "assert np.allclose(own.run(None, {'image': x})[0], answer, atol=1e-4)"
    )
    python(code)


def test_a_frame_of_another_kind_is_refused(session: Session) -> None:
    with pytest.raises(DataError, match=r"uint8 array .*found float32 \[8, 8, 3\]"):
        session.predict(np.zeros((8, 8, 3), np.float32))  # type: ignore[arg-type]


def test_everything_people_have_gets_the_same_answer(session: Session, tmp_path: Path) -> None:
    session.policy = Never()
    (frame,) = frames(1)
    expected = session.predict(frame)
    path = tmp_path / "frame.png"
    Image.fromarray(frame).save(path)
    bgr = np.ascontiguousarray(frame[..., ::-1])
    alpha = np.dstack([frame, np.zeros(frame.shape[:2], np.uint8)])
    answers = [session.predict(image) for image in (path, str(path), Image.open(path), alpha)]
    answers.append(session.predict(bgr, color="bgr"))
    answers += session.predict_batch([bgr, bgr], color="bgr")
    answers += session.predict_batch(frame[None])
    answers += session.stream([bgr], color="bgr")
    answers += [r for _, r in session.streams({"a": [bgr]}, color="bgr") if isinstance(r, Result)]
    assert [(a.label, a.confidence) for a in answers] == [
        (expected.label, pytest.approx(expected.confidence, abs=1e-5))
    ] * len(answers) and len(answers) == 10
    logits = session.exit_logits([frame])
    np.testing.assert_array_equal(session.exit_logits([bgr], color="bgr"), logits)
    assert not np.allclose(session.exit_logits([bgr]), logits)  # misread, as it must be


def test_one_frame_is_not_several(session: Session) -> None:
    (frame,) = frames(1)
    calls: list[Any] = [
        session.predict_batch,
        session.exit_logits,
        lambda images: list(session.stream(images)),
        lambda images: list(session.streams({"a": images})),
    ]
    for call in calls:
        with pytest.raises(DataError, match="expected several images, such as .image., found an a"):
            call(frame)


def test_no_frames_give_no_results(session: Session) -> None:
    assert session.predict_batch([]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "cuda"}, "one of auto, tensorrt, onnxruntime, openvino, found"),
        ({"threads": 0}, "threads must be a whole number of at least 1, found 0"),
        ({"device": "tpu"}, "device must be one of cpu, cuda"),
        ({"thread_pool": "shared"}, "thread_pool must be global or private"),
        ({"policy": Confidence((0.5,) * 7)}, "one threshold or 3"),
    ],
)
def test_arguments_that_mean_nothing(bundle: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Session.open(bundle, **given)


def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu(bundle: Path) -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendError, match="cuda:0 was asked for, found no NVIDIA GPU"):
        Session.open(bundle, device="cuda")


def test_a_bad_policy_is_refused_and_the_old_one_stays(session: Session) -> None:
    with pytest.raises(UsageError, match="expected an exit in 1..4, found 9"):
        session.policy = FixedExit(9)
    assert session.policy == Confidence(0.8)


def test_a_changed_byte_is_noticed(bundle_copy: Path) -> None:
    path = bundle_copy / "segments" / "weights.bin"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.bin is not the file that was exported"):
        Session.open(bundle_copy)


def _edit(bundle: Path, change: Any) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def shrink(manifest: dict[str, Any]) -> None:
    manifest["passes"][0]["segments"][0]["spec"]["outputs"][0]["shape"][1] = 9
    manifest["passes"][0]["segments"][1]["spec"]["inputs"][0]["shape"][1] = 9


LIES: dict[str, tuple[Any, str]] = {
    "version": (lambda m: m.update(schema_version=99), "schema version 9, found 99"),
    "path": (
        lambda m: m["baseline"]["graph"].update(file="../parity.npz"),
        "must be relative and stay in the bundle",
    ),
    "name": (
        lambda m: m["passes"][0]["segments"][0]["spec"]["inputs"][0].update(name="x"),
        "expected input",
    ),
    "shapes": (shrink, "expected output"),
    "batch": (lambda m: m.update(batch=[1, 1, 1]), "must have a fixed batch"),
    "policy": (
        lambda m: m.update(policy={"name": "coin"}),
        r"manifest\.policy: .*must be one of .*found 'coin'",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused(bundle_copy: Path, lie: str) -> None:
    change, message = LIES[lie]
    _edit(bundle_copy, change)
    with pytest.raises(BundleError, match=message):
        Session.open(bundle_copy)


def test_a_link_that_leaves_the_bundle_is_refused(bundle_copy: Path) -> None:
    outside = bundle_copy.parent / "elsewhere.onnx"
    (bundle_copy / "baseline.onnx").rename(outside)
    (bundle_copy / "baseline.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leaves the bundle"):
        Session.open(bundle_copy)


def test_a_missing_file_is_named(bundle_copy: Path) -> None:
    (bundle_copy / "segments" / "segment_1.onnx").unlink()
    with pytest.raises(BundleError, match=r"segment_1\.onnx is missing"):
        Session.open(bundle_copy)
    with pytest.raises(BundleError, match="is not a bundle.*run: lgvit-edge export"):
        Session.open(bundle_copy.parent)


def test_graphs_and_weights_that_cannot_be_loaded_are_refused(bundle_copy: Path) -> None:
    """A graph's own reference to its weights may not leave the bundle either."""

    def refused(content: bytes, message: str) -> None:
        path.write_bytes(content)
        new = {"sha256": sha256(path), "bytes": len(content)}
        _edit(bundle_copy, lambda m: m["passes"][0]["segments"][0]["spec"]["graph"].update(new))
        with pytest.raises(BundleError, match=message):
            Session.open(bundle_copy)

    path, weights = (bundle_copy / "segments" / name for name in ("segment_0.onnx", "weights.bin"))
    (bundle_copy.parent / "weights.bin").write_bytes(weights.read_bytes())
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../weights.bin"
    refused(model.SerializeToString(), "is taken from .*does not list")
    refused(b"not a graph", "is no graph that lgvit-edge exports")
    refused(b"\x08\x0a", "is no graph that lgvit-edge exports")
    head = bundle_copy / "segments" / "head_0.onnx"
    head.write_bytes(bytes(head.stat().st_size))
    open_chain = chain_opener(open_bundle(bundle_copy, verify=False), "onnxruntime", ChainOptions())
    with pytest.raises(BundleError, match="cannot be loaded by ONNX Runtime"):
        open_chain(["segment_0"])


def test_importing_the_runtime_is_light() -> None:
    """Nothing that takes a while to import comes along."""
    code = (
        "import sys; import lgvit_edge.runtime;"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'PIL', 'pandas', 'scipy', 'rich', 'typer'};"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    assert python(code) == "\n"


@pytest.fixture
def old_ort(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime as before 1.23, in a process that has no pool; the code path is the same."""
    monkeypatch.delattr("onnxruntime.set_global_thread_pool_sizes", raising=False)
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")


@pytest.mark.usefixtures("old_ort")
def test_doctor_says_that_an_old_onnxruntime_is_slower() -> None:
    note = onnxruntime_checks(False, None)[0].note
    assert note == "onnxruntime 1.22.1, with private thread pools: 1.23 and newer are faster"


@pytest.mark.usefixtures("old_ort")
def test_an_old_onnxruntime_refuses_a_global_pool(bundle: Path) -> None:
    cure = "global' needs onnxruntime 1.23 or newer, found 1.22.1; leave it out for private pools"
    with pytest.raises(BackendError, match=cure):
        Session.open(bundle, thread_pool="global")


def test_an_old_onnxruntime_runs_with_private_pools(bundle: Path) -> None:
    """In a process of its own; several sessions have as many threads as each asks for."""
    code = (
        "import numpy as np, onnxruntime as ort;"
        "vars(ort).pop('set_global_thread_pool_sizes', None);"
        "from lgvit_edge.runtime import Session;"
        f"one, two = (Session.open({str(bundle)!r}, threads=n) for n in (1, 2));"
        "print(*[s.describe()[k] for s in (one, two) for k in ('thread_pool', 'threads')]);"
        f"print(Session.open({str(bundle)!r}, thread_pool='private').describe()['thread_pool']);"
        "f = [np.full((32, 32, 3), v, np.uint8) for v in (0, 90, 255)];"
        "print(one.exit_logits(f).sum(), two.exit_logits(f).sum())"
    )
    *said, first, second = python(code).split()
    assert said == ["private", "1", "private", "2", "private"]
    with Session.open(bundle) as session:
        images = [np.full((32, 32, 3), v, np.uint8) for v in (0, 90, 255)]
        wanted = float(session.exit_logits(images).sum())
    assert [float(first), float(second)] == pytest.approx([wanted, wanted], abs=1e-3)


@pytest.mark.parametrize("policy", [Never(), Confidence(1.0), Entropy(0.0, 2.0)], ids=str)
@pytest.mark.parametrize("which", ["bundle", "passes_bundle"])
def test_where_nothing_stops_early_the_model_without_exits_runs(
    which: str, policy: Policy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = frames(3)
    with Session.open(request.getfixturevalue(which)) as session:
        last = len(session.manifest.segments)
        session.policy = FixedExit(last)
        through = [session.predict(image) for image in images]
        session.policy = policy
        steps = Steps(session.chain, monkeypatch)
        for found in ([session.predict(i) for i in images], session.predict_batch(images)):
            for result, other in zip(found, through, strict=True):
                assert (result.exit, result.stopped) == (last, "final")
                assert (result.class_index, result.block) == (other.class_index, other.block)
        assert steps.count == 0
        # A deadline may stop it, so exits are there; and so does another policy.
        assert session.predict(images[0], deadline_ms=1e-6).exit == 1
        warm = steps.count
        session.policy = FixedExit(2)
        assert session.predict(images[0]).exit == 2 and steps.count == warm + 2


class Steps:
    """Counts the segments that a chain runs."""

    def __init__(self, chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._step = 0, chain.step
        monkeypatch.setattr(chain, "step", self)

    def __call__(self) -> Any:
        self.count += 1
        return self._step()


def test_warming_up_warms_the_model_without_exits_too(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session.open(bundle, policy=Never()) as session:
        assert session._walk.whole is not None
        steps = Steps(session._walk.whole, monkeypatch)
        session.warm_up(1)
        assert steps.count == 2
