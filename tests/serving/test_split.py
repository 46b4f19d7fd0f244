"""A device and a real Triton that share a chain: every answer is compared with one session's."""

from __future__ import annotations

import datetime
import io
import ipaddress
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image
from small import frames, point

from lgvit_edge import Session
from lgvit_edge.benchmarks.experiments.triton_server import TritonServer, missing
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.bundle.points import Guarantee
from lgvit_edge.errors import UpstreamError, UsageError
from lgvit_edge.export import ExportOptions, export_bundle
from lgvit_edge.images.inputs import Inputs
from lgvit_edge.images.pixels import decode_bytes
from lgvit_edge.images.preprocess import network_input
from lgvit_edge.model import LGViT
from lgvit_edge.policies import Confidence, Ensemble, Entropy, FixedExit, Never, Patience
from lgvit_edge.runtime import TargetRate
from lgvit_edge.runtime.backends.ort import OrtChain
from lgvit_edge.runtime.result import Result
from lgvit_edge.serving import SplitSession, Upstream
from lgvit_edge.serving import split as split_module
from lgvit_edge.serving.breaker import Breaker
from lgvit_edge.serving.options import RunParameters
from lgvit_edge.serving.repository import ServingOptions, write_repository
from lgvit_edge.serving.split import half, jpeg
from lgvit_edge.serving.upstream import Rest

pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

POLICY = "confidence:0.6"
COUNT = 24


@pytest.fixture(scope="module")
def roots(bundle: Path, passes_bundle: Path, other_bundle: Path) -> dict[str, Path]:
    return {"tiny": bundle, "passes": passes_bundle, "other": other_bundle}


@pytest.fixture(scope="module")
def server(
    roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    for name, root in roots.items():
        run = RunParameters(backend="onnxruntime", threads=1, policy="never")
        write_repository(root, folder / name, ServingOptions(name, run=run))
    first, *others = (folder / name for name in roots)
    arguments = [f"--model-repository={other}" for other in others]
    with TritonServer(first, folder / "log", *arguments) as running:
        yield running


def way(server: TritonServer, model: str, **options: Any) -> Upstream:
    scheme = "tritons" if "certificates" in options else "triton"
    return Upstream(f"{scheme}://{server.url('grpc')}/{model}", timeout_ms=10_000, **options)


def key(result: Result) -> tuple[Any, ...]:
    return result.class_index, result.label, result.exit, result.block, result.pass_number


@pytest.mark.parametrize(
    ("policy", "after"),
    [(Confidence(0.4), 1), (Entropy(1.2), 1), (Confidence(0.9), 3), (Never(), 3)],
)
def test_hidden_states_give_a_sessions_answers(
    server: TritonServer, bundle: Path, policy: Any, after: int
) -> None:
    images = frames(COUNT, seed=1)
    with Session.open(bundle, policy=policy) as session, way(server, "tiny") as upstream:
        split = SplitSession(session, upstream, after=after, send="hidden")
        whole = [session.predict(image) for image in images]
        before = session.stats.images
        found = [split.predict(image) for image in images]
        asked = [result for result in whole if result.exit > after]
        assert asked and [key(r) for r in found] == [key(r) for r in whole]
        for result, expected in zip(found, whole, strict=True):
            assert result.upstream == ("answered" if expected.exit > after else "")
            assert result.confidence == pytest.approx(expected.confidence, abs=2e-3)
            assert (result.measure, result.bundle) == (expected.measure, expected.bundle)
            assert result.stopped == expected.stopped and not result.late
            assert result.latency_ms >= result.network_ms > 0
        stats = split.stats
        assert (stats.images, stats.asked, stats.answered) == (COUNT, len(asked), len(asked))
        tokens = session.hidden_spec(after).for_batch(1)
        assert stats.sent_bytes == len(asked) * 2 * np.prod(tokens) and not stats.alone
        assert session.stats.images - before == COUNT - len(asked)


@pytest.mark.parametrize(("model", "after"), [("tiny", 0), ("tiny", 2), ("passes", None)])
def test_jpegs_are_gone_on_with(
    server: TritonServer,
    roots: dict[str, Path],
    model: str,
    after: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reference sees the JPEG, too, and no exit before the split answers."""
    ask, sent = Upstream.ask, []

    def noted(upstream: Upstream, rest: Rest, *others: Any) -> Any:
        sent.append(rest)
        return ask(upstream, rest, *others)

    monkeypatch.setattr(Upstream, "ask", noted)
    images = frames(COUNT, seed=2)
    with Session.open(roots[model], policy=POLICY) as session, way(server, model) as upstream:
        views = session.manifest.views
        split = SplitSession(session, upstream, after=after, quality=95)
        for image in images:
            expected, result = session.predict(image), split.predict(image)
            if expected.exit <= split.after:
                assert key(result) == key(expected) and not result.upstream and not sent
                continue
            payload = sent.pop().payload
            assert isinstance(payload, bytes) and Image.open(io.BytesIO(payload)).format == "JPEG"
            crop = decode_bytes(payload, "it")
            assert np.abs(crop.astype(int) - seen(session, image)).mean() < 8
            ready = Inputs.of_crops([crop], views, len(views) - 1)
            (reference,) = session.run_from(split.after, ready)
            assert key(result) == key(reference) and result.upstream == "answered"
            assert result.confidence == pytest.approx(reference.confidence, abs=1e-5)
        assert split.stats.answered == split.stats.asked > 0
        if model == "passes":
            assert split.after == 3


def test_a_policy_of_several_exits_may_send_every_image(server: TritonServer, bundle: Path) -> None:
    image = frames(1, seed=2)[0]
    with Session.open(bundle, policy=Ensemble(0.6)) as session, way(server, "tiny") as upstream:
        split = SplitSession(session, upstream, after=0, quality=100)
        result, expected = split.predict(image), session.predict(image)
        assert (result.upstream, key(result)) == ("answered", key(expected))


def seen(session: Session, image: Any) -> Any:
    """What the last pass sees."""
    spec, size, _ = session.manifest.views[-1]
    return network_input([image], spec, size, "uint8")[0]


def test_a_float_bundle_sends_what_it_sees(
    quick_model: LGViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_bundle(quick_model, tmp_path / "float", ExportOptions(input="float32"))
    sent: list[Any] = []

    def keep(upstream: Upstream, rest: Rest, *_: Any) -> Any:
        sent.append(rest.payload)
        raise UpstreamError("kept")

    monkeypatch.setattr(Upstream, "ask", keep)
    image = frames(1)[0]
    with Session.open(tmp_path / "float", policy="never") as session:
        split = SplitSession(session, Upstream("triton://127.0.0.1:1/m"), after=1, quality=95)
        assert split.predict(image).upstream == "kept"
        assert np.abs(decode_bytes(sent[0], "it").astype(int) - seen(session, image)).mean() < 8


def test_many_threads_share_a_split_session(server: TritonServer, bundle: Path) -> None:
    images = frames(COUNT, seed=1)
    with Session.open(bundle, policy=POLICY) as session, way(server, "tiny") as upstream:
        split = SplitSession(session, upstream, after=1, send="hidden")
        whole = [key(session.predict(image)) for image in images]
        found: list[Any] = [None] * COUNT

        def work(first: int) -> None:
            for place in range(first, COUNT, 4):
                found[place] = key(split.predict(images[place]))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == whole and split.stats.images == COUNT


def test_another_bundle_is_refused_and_the_device_goes_on(
    server: TritonServer, bundle: Path
) -> None:
    image = frames(1)[0]
    with Session.open(bundle, policy="never") as session, way(server, "other") as upstream:
        split = SplitSession(session, upstream, after=1)
        result = split.predict(image)
        assert result.upstream.startswith("refused: the device has another bundle: expected ")
        assert key(result) == key(session.predict(image)) and result.stopped == "final"
        for _ in range(3):
            result = split.predict(image)
        assert result.upstream == "not asked after failures"
        assert split.stats.alone == {"refused": 3, "paused": 1} and split.stats.answered == 0


def test_a_server_that_is_killed_and_comes_back(
    roots: dict[str, Path], tmp_path: Path, bundle: Path
) -> None:
    """Over TLS, whose certificate the device must trust."""
    certificate, secret = own_certificate(tmp_path)
    run = RunParameters(backend="onnxruntime", threads=1)
    write_repository(bundle, tmp_path / "models", ServingOptions("tiny", run=run))
    tls = ("--grpc-use-ssl=1", f"--grpc-server-cert={certificate}", f"--grpc-server-key={secret}")
    now = [0.0]
    seen: list[Result] = []
    image = frames(1, seed=4)[0]
    with (
        TritonServer(tmp_path / "models", tmp_path / "log", *tls) as server,
        Session.open(bundle, policy=Confidence(1.0)) as session,
        way(
            server, "tiny", certificates=certificate, breaker=Breaker(clock=lambda: now[0])
        ) as upstream,
        way(server, "tiny", certificates=None) as untrusting,
        way(server, "tiny") as plain,
    ):
        for other in (untrusting, plain):
            split = SplitSession(session, other, after=1, send="hidden")
            assert split.predict(image).upstream.startswith("cannot be reached")
        split = SplitSession(session, upstream, after=1, send="hidden")
        session.hooks.append(seen.append)
        expected = split.predict(image)
        assert expected.upstream == "answered"
        server.kill()
        gone = [split.predict(image) for _ in range(5)]
        assert [r.upstream for r in gone[3:]] == ["not asked after failures"] * 2
        assert all("reached" in r.upstream or "failed" in r.upstream for r in gone[:3])
        assert {key(r) for r in gone} == {key(expected)} and seen == [expected, *gone]
        now[0] = 2.0
        assert split.predict(image).upstream.startswith("cannot be reached")  # the one that tries
        assert split.predict(image).upstream == "not asked after failures"
        server.start()
        now[0] = 2.1
        assert split.predict(image).upstream == "not asked after failures"
        now[0] = 10.0
        assert split.predict(image).upstream == "answered"


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "triton")])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    return folder / "certificate.pem", folder / "key.pem"


def test_deadlines(server: TritonServer, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = frames(1)[0]
    with Session.open(bundle, policy="never") as session, way(server, "tiny") as upstream:
        split = SplitSession(session, upstream, after=2, send="hidden")
        session.warm_up()
        result = split.predict(image, deadline_ms=5000)
        assert (result.upstream, result.late, result.exit) == ("answered", False, 4)
        # The device has no time for its second segment, the server has.
        monkeypatch.setattr(session._walk.clock, "longest", lambda exit: 1e6)
        result = split.predict(image, deadline_ms=5000)
        assert (result.upstream, result.late, result.exit) == ("answered", False, 4)
        upstream._times.append(1e6)
        upstream._times.append(1e6)
        monkeypatch.setattr(Upstream, "expected_ms", 1e6)
        result = split.predict(image, deadline_ms=5000)
        assert (result.upstream, result.stopped) == ("no time left to ask", "deadline")
        assert (result.exit, result.late) == (1, False)
        monkeypatch.setattr(Upstream, "expected_ms", 0.0)
        result = split.predict(image, deadline_ms=1e-6)
        assert (result.upstream, result.late) == ("no time left to ask", True)


def test_a_request_that_takes_too_long(server: TritonServer, bundle: Path) -> None:
    with Session.open(bundle, policy="never") as session:
        url = f"triton://{server.url('grpc')}/tiny"
        with Upstream(url, timeout_ms=0.01) as upstream:
            split = SplitSession(session, upstream, after=1, send="hidden")
            assert split.predict(frames(1)[0]).upstream == "no answer in 0 ms"
            assert split.stats.alone == {"timeout": 1}


def test_a_wrong_address_is_told(server: TritonServer, bundle: Path) -> None:
    image = frames(1)[0]
    with Session.open(bundle, policy="never") as session, way(server, "nobody") as upstream:
        said = SplitSession(session, upstream, after=1).predict(image).upstream
        assert said.startswith("refused: Request for unknown model")
        with Upstream(f"triton://{server.url('http')}/tiny") as other:
            said = SplitSession(session, other, after=1).predict(image).upstream
            assert said.startswith("cannot be reached: ")


def ask(upstream: Upstream, rest: Rest) -> Any:
    return upstream.ask(rest, dict)


def rest(session: Session, state: Any, **changes: Any) -> Rest:
    policy = session.policy.to_json()
    return Rest(1, state, session.manifest.identity, policy)._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment": 9}, "segment must be 1..3, found 9"),
        ({"segment": 0}, "segment must be 1..3, found 0"),
        ({"identity": "0" * 64}, "the device has another bundle"),
        ({"policy": {"name": "maybe"}}, "a policy's name must be one of"),
        ({"policy": Patience(2).to_json()}, "patience does not decide from each exit alone"),
        ({"policy": {"name": "confidence", "threshold": [0.1]}}, "expected one threshold or 3"),
        ({"payload": np.zeros((1, 5), "f2")}, "values goes into segment 1, found 5"),
        ({"payload": b"no image"}, "image 1 of 1"),
    ],
)
def test_the_server_refuses_what_does_not_fit(
    server: TritonServer, bundle: Path, changes: dict[str, Any], message: str
) -> None:
    with Session.open(bundle) as session, way(server, "tiny") as upstream:
        state = np.zeros(session.hidden_spec(1).for_batch(1), np.float16)
        assert ask(upstream, rest(session, state))["exit"] > 1
        with pytest.raises(UpstreamError, match=message) as caught:
            ask(upstream, rest(session, state, **changes))
        assert caught.value.kind == "refused"
        assert ask(upstream, rest(session, state))["exit"] > 1


def test_a_policy_that_is_refused_changes_no_other_ones_answers(
    server: TritonServer, bundle: Path
) -> None:
    """The model's own policy, ``never``, is back for who names none."""
    grpc = pytest.importorskip("tritonclient.grpc")
    with Session.open(bundle) as session, way(server, "tiny") as upstream:
        state = np.zeros(session.hidden_spec(1).for_batch(1), np.float16)
        assert ask(upstream, rest(session, state, policy=FixedExit(2).to_json()))["exit"] == 2
        with pytest.raises(UpstreamError, match="a policy's name must be one of"):
            ask(upstream, rest(session, state, policy={"name": "maybe"}))
        with pytest.raises(UpstreamError, match="must have 10000 characters at most"):
            ask(upstream, rest(session, state, policy={"name": "x" * 20_000}))
    image = grpc.InferInput("image", [1, 40, 40, 3], "UINT8")
    image.set_data_from_numpy(frames(1)[0][None, :40, :40])
    with grpc.InferenceServerClient(server.url("grpc")) as client:
        assert client.infer("tiny", [image]).as_numpy("exit").item() == 4


def test_a_dead_connection_is_left_where_deadlines_are_short(bundle: Path) -> None:
    with Session.open(bundle) as session, Upstream("triton://127.0.0.1:1/tiny") as upstream:
        state = np.zeros(session.hidden_spec(1).for_batch(1), np.float16)
        used = set()

        def late(client: Any, *_: Any) -> Any:
            used.add(client)
            raise UpstreamError("no answer in 5 ms", "timeout")

        upstream._infer = late  # type: ignore[method-assign]
        for _ in range(7):
            with pytest.raises(UpstreamError, match="no answer"):
                upstream.ask(rest(session, state), dict, 5.0)
        assert len(used) == 3 and not upstream.breaker.paused


def test_a_hidden_state_of_infinities_is_refused(server: TritonServer, bundle: Path) -> None:
    with Session.open(bundle) as session, way(server, "tiny") as upstream:
        state = np.full(session.hidden_spec(1).for_batch(1), np.inf, np.float16)
        with pytest.raises(UpstreamError, match="not finite numbers"):
            ask(upstream, rest(session, state))


def test_what_one_device_sends_spoils_no_other_ones_batch(
    server: TritonServer, bundle: Path
) -> None:
    image, ended = frames(1)[0], []
    with Session.open(bundle, policy="never") as session, way(server, "tiny") as upstream:
        good = session.run_until(session.prepare([image]), 1, hidden=True).hidden
        assert good is not None
        expected = ask(upstream, rest(session, half(good, 1)))["class_index"]
        good = half(good, 1)
        bad = np.full_like(good, np.nan)

        def work(state: Any) -> None:
            other = way(server, "tiny", breaker=Breaker(1000))
            for _ in range(15):
                try:
                    ended.append((state is good, ask(other, rest(session, state))["class_index"]))
                except UpstreamError as error:
                    ended.append((state is good, str(error)))
            other.close()

        threads = [threading.Thread(target=work, args=(state,)) for state in (good, bad) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ended) == 120
    for fine, found in ended:
        assert found == expected if fine else "not finite numbers" in str(found)


def test_a_crop_of_another_size_is_refused(server: TritonServer, bundle: Path) -> None:
    with Session.open(bundle) as session, way(server, "tiny") as upstream:
        with pytest.raises(UpstreamError, match=r"expected a crop \[32, 32, 3\], found"):
            ask(upstream, rest(session, jpeg(np.zeros((16, 32, 3), np.uint8), 90)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"class_index": 99}, "a reply of class 99"),
        ({"class_index": -1}, "a reply of class -1"),
        ({"exit": 1}, "at exit 1, which cannot be"),
        ({"exit": 9}, "at exit 9, which cannot be"),
        ({"label": "zebra"}, "the server calls class 0 'zebra'"),
        ({"stopped": "limit"}, "a reply that was stopped by 'limit'"),
        ({"confidence": float("nan")}, "a reply with the confidence nan"),
        ({"latency_ms": -1.0}, "a reply with the latency_ms -1.0"),
    ],
)
def test_an_answer_that_cannot_be_is_not_taken_and_counts_as_a_failure(
    server: TritonServer, bundle: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, message: str
) -> None:
    infer = Upstream._infer
    right = {"class_index": 0, "label": "a"}
    monkeypatch.setattr(Upstream, "_infer", lambda *given: {**infer(*given), **right, **answer})
    with Session.open(bundle, policy="never") as session, way(server, "tiny") as upstream:
        split = SplitSession(session, upstream, after=1)
        for _ in range(3):
            result = split.predict(frames(1)[0])
            assert message in result.upstream
            assert key(result) == key(session.predict(frames(1)[0]))
        assert split.predict(frames(1)[0]).upstream == "not asked after failures"
        assert split.stats.alone == {"failed": 3, "paused": 1} and split.stats.asked == 3


def test_a_reply_that_cannot_be_read(
    server: TritonServer, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> Any:
        raise struct.error("unpack requires a buffer of 4 bytes")

    with Session.open(bundle, policy="never") as session, way(server, "tiny") as upstream:
        split = SplitSession(session, upstream, after=1)
        reply = type("InferResult", (), {"as_numpy": wrong})
        client = type("Client", (), {"infer": lambda *_, **__: reply(), "close": lambda _: None})
        monkeypatch.setattr(upstream, "_client", client())
        assert "a reply that cannot be read: error: unpack" in split.predict(frames(1)[0]).upstream


def test_a_hidden_state_too_large_for_float16_stays_here(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OrtChain, "hidden", lambda self: np.full((1, 2), 7e4, np.float32))
    with Session.open(bundle, backend="onnxruntime", policy="never") as session:
        way = Upstream("triton://127.0.0.1:1/tiny")
        result = SplitSession(session, way, after=1, send="hidden").predict(frames(1)[0])
        assert result.upstream == "the hidden state after exit 1 is too large for float16"
        assert result.stopped == "final"


def test_a_reload_while_an_image_is_sent_mixes_nothing(
    server: TritonServer,
    bundle: Path,
    other_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = frames(1)[0]
    with Session.open(bundle, policy="never") as session, way(server, "other") as upstream:
        split = SplitSession(session, upstream, after=1, send="hidden")
        then = split_module.half

        def reloads(*given: Any) -> Any:
            monkeypatch.setattr(split_module, "half", then)
            session.reload(other_bundle)
            return then(*given)

        monkeypatch.setattr(split_module, "half", reloads)
        result = split.predict(image)
        assert result.upstream.startswith("refused: the device has another bundle")
        assert result.bundle == session.manifest.digest[:12]
        assert split.predict(image).upstream == "answered"
        session.reload(bundle)
        session.policy = Patience(2)
        with pytest.raises(UsageError, match="patience does not decide from each exit alone"):
            split.predict(image)


def test_what_a_split_session_refuses(bundle: Path, passes_bundle: Path) -> None:
    upstream = Upstream("triton://127.0.0.1:1/tiny")
    with Session.open(bundle) as session, Session.open(passes_bundle) as passes:
        for options, message in (
            ({}, r"after must be 0..3, found none"),
            ({"after": 4}, r"expected an exit in 1..3"),
            ({"after": 0, "send": "hidden"}, "there is no hidden state after=0"),
            ({"after": 1, "send": "png"}, "send must be one of jpeg, hidden"),
            ({"after": 1, "quality": 101}, "quality must be 1..100"),
        ):
            with pytest.raises(UsageError, match=message):
                SplitSession(session, upstream, **options)
        with pytest.raises(UsageError, match="expected after=3 or later, found 2"):
            SplitSession(passes, upstream, after=2)
        split = SplitSession(session, upstream, after=np.int64(1))  # type: ignore[arg-type]
        session.policy = Patience(2)
        with pytest.raises(UsageError, match="patience does not decide from each exit alone"):
            SplitSession(session, upstream, after=1)
        with pytest.raises(UsageError, match="patience does not decide from each exit alone"):
            split.predict(frames(1)[0])
        for deadline in (0, -1, float("nan"), "200"):
            with pytest.raises(UsageError, match="deadline_ms must be a positive number"):
                split.predict(frames(1)[0], deadline_ms=deadline)  # type: ignore[arg-type]


def test_what_only_this_machine_can_decide_is_not_split(bundle_copy: Path) -> None:
    promise = Guarantee(0.02, 0.05, 500, 3, "0" * 64)
    points = {"sure": point(Confidence(0.7), guarantee=promise), "fast": point()}
    add_to_manifest(bundle_copy, open_bundle(bundle_copy).manifest.identity, points)
    upstream = Upstream("triton://127.0.0.1:1/tiny")
    with Session.open(bundle_copy, backend="onnxruntime", point="sure") as session:
        with pytest.raises(UsageError, match="the point sure is certified, and a certificate does"):
            SplitSession(session, upstream, after=1)
        session.point = "fast"
        split = SplitSession(session, upstream, after=1)
        session.policy = Confidence(0.7)  # that of the certified point, which is set after it
        split.predict(frames(1)[0])
        session.point = "sure"
        with pytest.raises(UsageError, match="the point sure is certified, and a certificate does"):
            split.predict(frames(1)[0])
        session.policy = TargetRate(30)
        with pytest.raises(UsageError, match="the policy TargetRate is known on this"):
            SplitSession(session, upstream, after=0)


@pytest.mark.parametrize(
    "url",
    [
        "http://a:1/m",
        "triton://a/m",
        "triton://a:1",
        "triton://a:1/m/x",
        "triton://a:1/../m",
        "triton://a:70000/m",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="expected triton://HOST:PORT/MODEL"):
        Upstream(url)


def test_other_arguments_of_the_way(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(UsageError, match="expected certificates in PEM, found none in"):
        Upstream("tritons://a:1/m", certificates=tmp_path / "no.pem")
    with pytest.raises(UsageError, match="the server's time in ms must be a positive number"):
        Upstream("triton://a:1/m", timeout_ms=0)
    with pytest.raises(UsageError, match="certificates are for tritons"):
        Upstream("triton://a:1/m", certificates="ca.pem")
    with pytest.raises(FileNotFoundError):
        Upstream("tritons://a:1/m", certificates="ca.pem")
