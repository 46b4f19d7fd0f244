"""What a session is given by mistake: one clear error, or the answer that was meant."""

from __future__ import annotations

import copy
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import frames

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import DataError, LGViTEdgeError, UsageError
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.spec import Preprocess, View
from lgvit_edge.runtime import ChainOptions, Confidence, Never, Session, TargetRate

IMAGE = np.zeros((32, 32, 3), np.uint8)
NAN, INF = float("nan"), float("inf")
NO_POLICY = r"expected a policy, such as Confidence\(0.8\) or 'confidence:0.8'; found"
NO_DEADLINE = "deadline_ms must be a positive number, found"
NO_IMAGES = r"expected several images, such as \[image\], found"
NO_INPUT = r"expected what session.prepare returns, 1\.\.4 images of 32 px uint8; found"
VIEW = View(Preprocess(resize=32), 32, "uint8")
OTHERS = {
    "16 px uint8": [VIEW._replace(size=16)],
    "32 px float32": [VIEW._replace(dtype="float32")],
    "32 px uint8, 32 px uint8": [VIEW, VIEW],
}
WHOLE = "must be a whole number of at least 1, found"


@pytest.fixture(scope="module")
def session(bundle: Path) -> Iterator[Session]:
    with Session.open(bundle, backend="onnxruntime") as opened:
        yield opened


def opened(**wrong: Any) -> Callable[[Session], Any]:
    """Open the session's bundle with a wrong argument."""
    return lambda s: Session.open(s._bundle.root, **{"backend": "onnxruntime", **wrong})


def put(name: str, value: Any) -> Callable[[Session], None]:
    return lambda s: setattr(s, name, value)


def call(name: str, *values: Any, **named: Any) -> Callable[[Session], Any]:
    """Call a method, to the end if it is a generator."""

    def run(session: Session) -> Any:
        found = getattr(session, name)(*values, **named)
        return list(found) if name.startswith("stream") else found

    return run


ALL = [
    *[(put("policy", p), UsageError, NO_POLICY) for p in (Never, None, 5, {"name": "never"})],
    *[(opened(policy=p), UsageError, NO_POLICY) for p in (Never, 5, True, NAN)],
    (put("policy", "nonsense"), UsageError, "expected a policy such as .*; found 'nonsense'"),
    (opened(policy="confidence:x"), UsageError, "'x' is not a number"),
    (opened(policy="confidence:-1"), UsageError, "a threshold must be in 0..1, found -1.0"),
    *[(opened(point=p), UsageError, "no operating point") for p in (["a"], 5, True)],
    *[(opened(threads=n), UsageError, f"threads {WHOLE}") for n in ("2", True, 2.0, NAN, -1, [1])],
    (opened(tensorrt={"wait": "spin"}), UsageError, r"must be TensorRTOptions\(...\), found {"),
    (opened(backend=["x"]), UsageError, "backend must be one of auto, .*, found"),
    *[
        (lambda _, path=path: Session.open(path), UsageError, "expected the path of a bundle's")
        for path in (None, 5, b"out")
    ],
    *[
        (call("predict", IMAGE, deadline_ms=ms), UsageError, NO_DEADLINE)
        for ms in ("12", True, NAN, INF, -1, 0, [5], np.array([5.0, 6.0]))
    ],
    *[(call("predict", IMAGE, color=c), UsageError, "color must be one of") for c in (5, "RGB")],
    *[
        (call(name, images), DataError, NO_IMAGES)
        for name in ("predict_batch", "prepare", "exit_logits", "stream")
        for images in (None, 5, NAN, True, "cat.jpg", {"a": IMAGE}, IMAGE)
    ],
    *[
        # A generator may fill one array again and again; only a stream takes each as it comes.
        (lambda s, n=n: getattr(s, n)(x for x in [IMAGE]), DataError, "generator.*Session.stream")
        for n in ("predict_batch", "prepare", "exit_logits")
    ],
    *[
        (call("prepare", none), DataError, "at least one image")
        for none in ([], (), IMAGE[None][:0])
    ],
    (call("predict_batch", [None]), DataError, "an image must be .* found NoneType"),
    *[(call("streams", s), UsageError, "sources must be a dict") for s in (None, 5, [[IMAGE]])],
    *[(call("streams", {"a": s}), DataError, NO_IMAGES) for s in (None, IMAGE, "cat.jpg")],
    (call("streams", {"a": [IMAGE]}, color="RGB"), UsageError, "color must be one of"),
    *[
        (call(name, source, **{option: n}), UsageError, f"{option} {WHOLE}")
        for name, source in (("stream", [IMAGE]), ("streams", {"a": [IMAGE]}))
        for option in ("batch", "ahead")
        for n in ("2", True, 2.5, NAN, -1, 0)
    ],
    (
        call("streams", {5: [IMAGE]}),
        UsageError,
        "a source's name must be text, such as .*, found 5",
    ),
    *[
        (
            call(name, source, **{option: n}),
            UsageError,
            f"{option} must be a positive number, found",
        )
        for name, source in (("stream", [IMAGE]), ("streams", {"a": [IMAGE]}))
        for option in ("timeout", "deadline_ms")
        for n in ("2", True, NAN, INF, -1, 0)
    ],
    *[
        (
            call(name, source, batch=2, deadline_ms=9),
            UsageError,
            "found batch=2; leave out batch, or",
        )
        for name, source in (("stream", [IMAGE]), ("streams", {"a": [IMAGE]}))
    ],
    *[(call("warm_up", n), UsageError, f"runs {WHOLE}") for n in ("3", True, 2.5, 0, None)],
    *[
        (lambda _, fps=fps: TargetRate(fps), UsageError, "fps must be a positive number, found")
        for fps in ("30", True, NAN, None, 0, -1)
    ],
    *[
        (lambda _, h=h: TargetRate(30, headroom=h), UsageError, "headroom must be in 0..1, found")
        for h in ("0.1", False, NAN, None, 1)
    ],
    *[
        (
            lambda _, p=p: TargetRate(30, p),
            UsageError,
            r"a list of names, such as \['fast'\], found",
        )
        for p in ("fast", 5, iter(["fast"]))
    ],
    # Backends trust the shape: one pixel would be repeated, and a frame would crash the process.
    *[
        (call(name, ready), UsageError, NO_INPUT)
        for name in ("run", "baseline_logits")
        for ready in (None, [IMAGE], IMAGE, IMAGE[None])
    ],
    *[
        (
            call("run", Inputs.prepare([IMAGE], tuple(views))),
            UsageError,
            f"{NO_INPUT} 1 of {found}, for another bundle$",
        )
        for found, views in OTHERS.items()
    ],
    (lambda s: s.run(s.prepare([IMAGE] * 5)), UsageError, f"{NO_INPUT} 5 of 32 px"),
    (lambda s: s.run(s.prepare([IMAGE])[:0]), UsageError, f"{NO_INPUT} 0 of 32 px"),
    (
        lambda s: s.timed_exits(s.prepare([IMAGE] * 2)),
        UsageError,
        "returns, 1 image of 32 px uint8; found 2 of 32 px",
    ),
    (
        lambda s: s.run(s.prepare([IMAGE]), starts=[]),
        UsageError,
        "expected 1 starts, one per image, found 0",
    ),
    (
        lambda s: s.run(s.prepare([IMAGE]), streams=["a", "b"]),
        UsageError,
        "expected 1 streams, .* found 2",
    ),
    *[
        (
            lambda s, name=name: s.run(s.prepare([IMAGE]), streams=[name]),
            UsageError,
            "a stream's name must be text, found",
        )
        for name in (5, None, ["a"])
    ],
    (lambda s: s.stats.prometheus(["gate"]), UsageError, "labels must be a dict"),
    (lambda s: s.stats.prometheus({5: "gate"}), UsageError, "no Prometheus label: 5"),
    (lambda s: s.stats.prometheus({"__site": "x"}), UsageError, "no Prometheus label: '__site'"),
    *[
        (lambda s, n=n: s.stats.prometheus({n: "x"}), UsageError, f"label '{n}' is in use here")
        for n in ("stream", "exit", "by", "quantile")
    ],
    *[(how, UsageError, "open one there") for how in (pickle.dumps, copy.copy, copy.deepcopy)],
]


@pytest.mark.parametrize(("wrong", "kind", "says"), ALL)
def test_wrong_use_gives_one_clear_error(
    session: Session, wrong: Callable[[Session], Any], kind: type[LGViTEdgeError], says: str
) -> None:
    policy, count = session.policy, session.stats.images
    with pytest.raises(kind, match=says):
        wrong(session)
    assert session.policy is policy and session.stats.images == count
    assert session.predict(IMAGE).label  # it still works


def test_a_policy_may_be_given_as_text(session: Session, bundle: Path) -> None:
    session.policy = "never"
    assert session.policy == Never() and session.predict(IMAGE).exit == 4
    with Session.open(bundle, policy="confidence:0.9") as other:
        assert other.policy == Confidence(0.9)


def test_images_in_any_container_and_numbers_of_numpy_will_do(session: Session) -> None:
    images = frames(6)
    expected = [result.class_index for result in session.predict_batch(images)]
    for kind in (tuple, deque, lambda images: dict(enumerate(images)).values()):
        assert [r.class_index for r in session.predict_batch(kind(images))] == expected
        assert session.exit_logits(kind(images)).shape == (6, 4, 5)
    assert session.predict_batch([]) == [] and session.exit_logits([]).shape == (0, 4, 5)
    assert session.predict(IMAGE, deadline_ms=np.float32(1e4)).stopped != "deadline"
    assert ChainOptions(threads=np.int64(2)).threads == 2  # type: ignore[arg-type]


def test_a_frame_rate_keeps_the_names_it_was_given(bundle: Path) -> None:
    names = ["fast"]
    rate = TargetRate(30, names)
    names.append("slow")
    assert rate.points == ("fast",)
    with pytest.raises(UsageError, match="no operating point 'fast'"):
        rate.attach(open_bundle(bundle).manifest, np.ones(4), np.zeros(4))
