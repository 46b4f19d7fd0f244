"""``session.reload``: another bundle between two frames, or the one before goes on."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import list_again
from signed import key_pair, own_copy, signed_copy
from small import frames, point

from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.errors import (
    BackendError,
    BundleError,
    LGViTEdgeError,
    ParityError,
    UsageError,
)
from lgvit_edge.policies import Never
from lgvit_edge.runtime import Confidence, FixedExit, Memory, Result, Session, TargetRate

IMAGES = frames(12)
Answer = tuple[int, int, float]


@pytest.fixture(params=["onnxruntime", "openvino"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    return str(request.param)


@pytest.fixture
def session(bundle: Path) -> Iterator[Session]:
    with Session.open(bundle, policy=Confidence(0.35)) as opened:
        yield opened


def name_of(root: Path) -> str:
    return open_bundle(root, verify=False).manifest.digest[:12]


def answer(result: Result) -> Answer:
    return result.exit, result.class_index, round(result.confidence, 4)


def alone(root: Path, backend: str = "onnxruntime", policy: Any = None) -> list[Answer]:
    with Session.open(root, backend=backend, policy=policy or Confidence(0.35)) as session:
        return [answer(session.predict(image)) for image in IMAGES]


def edited(root: Path, place: Path, **changes: Any) -> Path:
    """A copy whose manifest says something else."""
    copy = own_copy(root, place)
    manifest = json.loads((copy / "manifest.json").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        at = manifest
        for part in path:
            at = at[int(part) if part.isdigit() else part]
        at[last] = value
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_four_threads_see_no_failure_and_no_mixture(
    backend: str, bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    """While bundles come and go, bad ones among them."""
    known = {name_of(root): alone(root, backend) for root in (bundle, other_bundle)}
    bad = own_copy(bundle, tmp_path / "bad")
    weights = bad / "segments" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[::-1])
    list_again(bad)  # opens, and answers wrongly
    done = threading.Event()
    seen: list[list[str]] = [[] for _ in range(4)]

    with Session.open(bundle, backend=backend, policy=Confidence(0.35)) as session:

        def camera(number: int) -> None:
            index = number
            while not done.is_set():
                if number % 2:
                    rows = [session.predict(IMAGES[index])]
                else:
                    rows = session.predict_batch(IMAGES[index : index + 3])
                for place, result in enumerate(rows, index):
                    assert answer(result) == known[result.bundle][place]
                    seen[number].append(result.bundle)
                index = (index + 4) % len(IMAGES)

        def until_all_have_answered() -> None:
            counts = [len(each) for each in seen]
            while not all(len(e) > count for e, count in zip(seen, counts, strict=True)):
                assert not any(thread.done() for thread in threads)
                done.wait(0.002)

        with ThreadPoolExecutor(4) as pool:
            threads = [pool.submit(camera, number) for number in range(4)]
            try:
                for _ in range(2):
                    for root in (other_bundle, bundle):
                        until_all_have_answered()
                        session.reload(root)
                        until_all_have_answered()
                        with pytest.raises(ParityError):
                            session.reload(bad)
                until_all_have_answered()
            finally:
                done.set()
            for thread in threads:
                thread.result(60)
    for each in seen:
        assert set(each) == set(known)


def test_statistics_begin_anew(session: Session, other_bundle: Path) -> None:
    for image in IMAGES:
        session.predict(image)
    before = session.reload(other_bundle)
    assert before.images == len(IMAGES) and len(before.exits) == 4
    assert (session.stats.images, len(session.stats.exits)) == (0, 2)
    assert len(session.manifest.segments) == 2
    session.predict(IMAGES[0])
    assert session.stats.images == 1


def test_hooks_stay(session: Session, other_bundle: Path) -> None:
    heard: list[str] = []
    session.hooks.append(lambda result: heard.append(result.bundle))
    session.predict(IMAGES[0])
    session.reload(other_bundle)
    session.predict(IMAGES[0])
    assert len(set(heard)) == len(heard) == 2


def test_it_is_warm_at_once(session: Session, other_bundle: Path) -> None:
    """The first deadline would warm it up, which takes longer than any deadline."""
    session.reload(other_bundle)
    assert session._walk.clock.calibrated


# What the new bundle must be like


def corrupt(root: Path, place: Path) -> Path:
    copy = own_copy(root, place)
    weights = copy / "segments" / "weights.bin"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    return copy


def strict(root: Path, place: Path) -> Path:
    return edited(root, place, parity__tolerance=1e-12)


def renamed(root: Path, place: Path) -> Path:
    return edited(root, place, labels=list("abcdf"))


def larger(root: Path, place: Path) -> Path:
    return edited(root, place, passes__0__preprocess__resize=40)


def fewer_at_once(root: Path, place: Path) -> Path:
    return edited(root, place, batch=[1, 2, 3])


def no_folder(root: Path, place: Path) -> Path:
    return place


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (no_folder, BundleError, "no such directory"),
        (corrupt, BundleError, "its sha256 differs"),
        (strict, ParityError, "diverges from PyTorch on this device"),
        (
            renamed,
            UsageError,
            r"other classes: expected 5 \(a, b, c, d, e\), found .*other_classes",
        ),
        (larger, UsageError, "takes other images .*short side to 32.*found .*short side to 40"),
        (fewer_at_once, UsageError, "at most 3 images together, expected 4,.*--batch 1:4:4"),
    ],
)
def test_what_does_not_fit_leaves_the_one_before(
    session: Session,
    other_bundle: Path,
    tmp_path: Path,
    change: Callable[[Path, Path], Path],
    error: type[LGViTEdgeError],
    said: str,
) -> None:
    before = session.predict(IMAGES[0])
    new = change(other_bundle, tmp_path / "new")
    with pytest.raises(error, match=said):
        session.reload(new)
    after = session.predict(IMAGES[0])
    assert (answer(after), after.bundle) == (answer(before), before.bundle)
    assert session.stats.images == 2 and len(session.stats.exits) == 4


def test_other_classes_where_that_is_meant(
    session: Session, other_bundle: Path, tmp_path: Path
) -> None:
    """A memory of the classes before does not come between."""
    memory = Memory(4)
    session.predict(IMAGES[0], memory=memory)
    session.reload(renamed(other_bundle, tmp_path / "new"), other_classes=True)
    assert session.predict(IMAGES[0], memory=memory).label in "abcdf"


def test_memories_are_forgotten(session: Session, bundle: Path, other_bundle: Path) -> None:
    memories = [Memory(4), Memory(8)]
    for image in IMAGES[:3]:
        session.run(session.prepare([image] * 2), memories=memories)
    session.reload(other_bundle)
    assert [memory.frames for memory in memories] == [0, 0]
    with Session.open(other_bundle, policy=Confidence(0.35)) as fresh:
        expected = answer(fresh.predict(IMAGES[5], memory=Memory(4)))
    assert answer(session.predict(IMAGES[5], memory=memories[0])) == expected


def test_only_what_was_opened_is_reloaded(bundle: Path, session: Session) -> None:
    opened = open_bundle(bundle, verify=False)
    with Session(opened, "never", session._open_chain) as wrapped:
        with pytest.raises(UsageError, match="only a session of Session.open"):
            wrapped.reload(bundle)


def test_a_closed_session(session: Session, other_bundle: Path) -> None:
    session.close()
    with pytest.raises(BackendError, match="the session is closed"):
        session.reload(other_bundle)


def test_a_session_that_is_closed_meanwhile(
    session: Session, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Session] = []
    true = Session.open.__func__  # type: ignore[attr-defined]

    def closes_it(cls: type[Session], *arguments: Any, **options: Any) -> Session:
        session.close()
        opened.append(true(cls, *arguments, **options))
        return opened[0]

    monkeypatch.setattr(Session, "open", classmethod(closes_it))
    with pytest.raises(BackendError, match="the session is closed"):
        session.reload(other_bundle)
    with pytest.raises(BackendError, match="the session is closed"):
        opened[0].predict(IMAGES[0])  # nothing is left open


# What decides


def test_the_bundles_own_policy_follows_the_bundle(
    bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    policy = Confidence(0.41).to_json()
    new = edited(other_bundle, tmp_path / "new", policy=policy)
    with Session.open(bundle) as session:
        session.reload(new)
        assert session.policy == Confidence(0.41)
        session.reload(bundle)
        assert session.policy == Confidence(0.8)


def test_another_policy_stays(session: Session, other_bundle: Path) -> None:
    session.reload(other_bundle)
    assert session.policy == Confidence(0.35) and session.point is None
    session.policy = FixedExit(1)
    session.reload(other_bundle)
    assert session.policy == FixedExit(1)


def test_a_point_is_that_of_the_same_name(bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    roots = [own_copy(root, tmp_path / root.parent.name) for root in (bundle, other_bundle)]
    shares = ((0.25,) * 4, (0.5, 0.5))
    for root, share, threshold in zip(roots, shares, (0.3, 0.6), strict=True):
        points = {"fast": point(Confidence(threshold), shares=share)}
        if root is roots[0]:
            points["sure"] = points["fast"]
        add_to_manifest(root, open_bundle(root).manifest.identity, points)
    with Session.open(roots[0], point="fast") as session:
        session.reload(roots[1])
        assert session.point == "fast" and session.policy == Confidence(0.6)
        session.reload(roots[0])
        session.point = "sure"
        with pytest.raises(UsageError, match="no operating point 'sure'; this bundle has fast"):
            session.reload(roots[1])
        assert session.point == "sure" and session.policy == Confidence(0.3)
        session.reload(roots[1], point="fast")
        assert session.policy == Confidence(0.6)
        session.reload(roots[0], policy="confidence:0.9")
        assert session.point is None and session.policy == Confidence(0.9)
        with pytest.raises(UsageError, match="a policy or an operating point, not both"):
            session.reload(roots[0], policy="never", point="fast")


def test_a_policy_that_does_not_fit_is_refused_first(bundle: Path, other_bundle: Path) -> None:
    with Session.open(bundle, policy=Confidence([0.5, 0.6, 0.7])) as session:
        with pytest.raises(UsageError, match="one threshold or 1, one per exit.*found 3"):
            session.reload(other_bundle)
        assert session.policy == Confidence([0.5, 0.6, 0.7])
        session.reload(other_bundle, policy=Confidence([0.5]))
        assert session.predict(IMAGES[0]).exit in (1, 2)


def test_a_policy_that_is_set_meanwhile_holds(
    session: Session, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Session.open.__func__  # type: ignore[attr-defined]

    def sets_it(cls: type[Session], *arguments: Any, **options: Any) -> Session:
        session.policy = FixedExit(1)
        return true(cls, *arguments, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(Session, "open", classmethod(sets_it))
    session.reload(other_bundle)
    assert session.policy == FixedExit(1) and session.predict(IMAGES[0]).exit == 1


def test_a_frame_rate_goes_on(session: Session, other_bundle: Path) -> None:
    session.policy = rate = TargetRate(5, headroom=0.3)
    assert session.predict(IMAGES[0]).pace is not None
    session.reload(other_bundle)
    kept = session.policy
    assert isinstance(kept, TargetRate) and kept is not rate
    assert (kept.fps, kept.budget_ms) == (rate.fps, rate.budget_ms)
    pace = session.predict(IMAGES[0]).pace
    assert pace is not None and pace.levels == 2
    with Session.open(other_bundle, policy=rate) as another:  # it is free
        another.predict(IMAGES[0])


def test_a_policy_that_never_stops(backend: str, bundle: Path, other_bundle: Path) -> None:
    """The model without exits is exchanged too."""
    expected = alone(other_bundle, backend, Never())
    with Session.open(bundle, backend=backend, policy=Never()) as session:
        session.reload(other_bundle)
        assert [answer(session.predict(image)) for image in IMAGES] == expected


# What is under way


def test_a_stream_goes_on(session: Session, bundle: Path, other_bundle: Path) -> None:
    known = {name_of(root): alone(root) for root in (bundle, other_bundle)}
    names = []
    for place, result in enumerate(session.stream(IMAGES, batch=2)):
        assert answer(result) == known[result.bundle][place]
        names.append(result.bundle)
        if place == 4:
            session.reload(other_bundle)
    assert names[0] == name_of(bundle) and names[-1] == name_of(other_bundle)
    assert len(names) == len(IMAGES)


def test_streams_of_several_cameras_are_counted_on(session: Session, other_bundle: Path) -> None:
    answers = session.streams({"gate": IMAGES, "yard": IMAGES}, batch=1, ahead=1)
    for count, (_, result) in enumerate(answers):
        assert isinstance(result, Result)
        if count == 5:
            session.reload(other_bundle)
            assert session.stats.streams["yard"].images == 0
    assert session.stats.streams["gate"].images + session.stats.streams["yard"].images == 18


def test_images_that_were_prepared_before(session: Session, other_bundle: Path) -> None:
    ready = session.prepare(IMAGES[:4])
    session.reload(other_bundle)
    results = session.run(ready, deadline_ms=None)
    assert [answer(r) for r in results] == alone(other_bundle)[:4]
    one = session.run(ready[:1], deadline_ms=10_000)
    assert answer(one[0]) == alone(other_bundle)[0]


def test_two_at_once_take_turns(session: Session, bundle: Path, other_bundle: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        done = [threads.submit(session.reload, root) for root in (bundle, other_bundle)]
        for each in done:
            each.result(120)
    assert session.predict(IMAGES[0]).bundle in (name_of(bundle), name_of(other_bundle))


def test_logits_of_two_bundles_are_not_mixed(session: Session, other_bundle: Path) -> None:
    class Reloads(list[Any]):
        """Images among which the bundle is exchanged."""

        def __getitem__(self, place: Any) -> Any:
            if isinstance(place, slice) and place.start == 4:
                session.reload(other_bundle)
            return super().__getitem__(place)

    with pytest.raises(BackendError, match="got another bundle meanwhile; call it again"):
        session.exit_logits(Reloads(IMAGES))
    assert session.exit_logits(IMAGES).shape == (12, 2, 5)


def test_a_folder_in_which_another_bundle_lies_now(
    bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    root = own_copy(bundle, tmp_path / "out")
    with Session.open(root, policy=Confidence(0.35)) as session:
        shutil.rmtree(root)
        own_copy(other_bundle, root)
        with pytest.raises(BundleError, match="holds another bundle than when this session was op"):
            session.policy = "never"
        assert answer(session.predict(IMAGES[0])) == alone(bundle)[0]
        session.reload(root)
        session.policy = "never"
        assert answer(session.predict(IMAGES[0])) == alone(other_bundle, policy=Never())[0]


def test_the_next_bundle_must_be_signed_too(
    bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    pair = key_pair(tmp_path / "k")
    first, next_ = (
        signed_copy(root, tmp_path / name, pair)
        for root, name in ((bundle, "first"), (other_bundle, "next"))
    )
    plain = own_copy(other_bundle, tmp_path / "plain")
    with Session.open(first, trusted_keys=[pair.public]) as session:
        pair.public.unlink()  # it was read once
        with pytest.raises(BundleError, match="plain is not signed"):
            session.reload(plain)
        assert session.predict(IMAGES[0]).bundle == name_of(bundle)
        session.reload(next_)
        assert session.predict(IMAGES[0]).bundle == name_of(other_bundle)
        with pytest.raises(BundleError, match="plain is not signed"):
            session.reload(plain)


def test_the_result_says_it_in_json(session: Session, bundle: Path) -> None:
    row = session.predict(IMAGES[0]).to_json()
    assert row["bundle"] == name_of(bundle) and len(row["bundle"]) == 12
    assert np.isfinite(row["confidence"])
