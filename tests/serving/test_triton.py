"""A real Triton with models that ``lgvit-edge triton`` wrote, called by NVIDIA's own clients.

Every answer is compared with the local session's: class, exit and confidence.
"""

from __future__ import annotations

import io
import re
import shutil
import struct
import sys
import threading
import venv
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from repositories import engines_for
from shots import until
from small import frames, point

from lgvit_edge import Session
from lgvit_edge.benchmarks.experiments.triton_server import HOME, TritonServer, missing, stand_in
from lgvit_edge.bundle.directory import add_to_manifest, open_bundle
from lgvit_edge.errors import BackendError, LGViTEdgeError
from lgvit_edge.policies import Confidence, FixedExit, Never
from lgvit_edge.runtime.result import Result
from lgvit_edge.serving.options import RunParameters
from lgvit_edge.serving.repository import ServingOptions, write_repository

http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

PAGE = Path(__file__).parents[2] / "docs" / "triton.md"
POINTS = {
    "fast": Confidence(0.3),
    "sure": Confidence(0.9),
    "second": FixedExit(2),
    "whole": Never(),
}
# Of each model: images leave at several exits.
POLICIES = {
    "tiny": "confidence:0.5",
    "parts": "confidence:0.5",
    "passes": "confidence:0.28,0.3,0.43,0.33",
}


@pytest.fixture(scope="module")
def bundles(
    bundle: Path, passes_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Of each model in the server, what it was written from."""
    tiny = tmp_path_factory.mktemp("bundles") / "tiny"
    shutil.copytree(bundle, tiny)
    identity = open_bundle(tiny).manifest.identity
    add_to_manifest(tiny, identity, {name: point(rule) for name, rule in POINTS.items()})
    return {"tiny": tiny, "parts": tiny, "passes": passes_bundle}


@pytest.fixture(scope="module")
def server(
    bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    for name, root in bundles.items():
        layout = "segments" if name == "parts" else "session"
        run = RunParameters(policy=POLICIES[name], threads=None if name == "parts" else 1)
        # So long that requests sent together run together.
        instances = 2 if name == "passes" else 1
        options = ServingOptions(name, layout, run, instances, queue_delay_us=100_000)
        write_repository(root, folder / name, options)
    stand_in(folder / "parts")
    engines = folder / "engines"
    shutil.copytree(bundles["tiny"], engines)
    engines_for(open_bundle(engines))
    run = RunParameters(backend="tensorrt")
    write_repository(engines, folder / "card", ServingOptions("card", run=run))
    first, *others = (folder / name for name in (*bundles, "card"))
    arguments = [f"--model-repository={other}" for other in others]
    arguments += ["--model-control-mode=explicit", "--load-model=*"]
    arguments += ["--exit-on-error=false", "--strict-readiness=false"]  # because of "card"
    with TritonServer(first, folder / "log", *arguments) as running:
        yield running


@pytest.fixture(scope="module")
def sessions(bundles: dict[str, Path]) -> Iterator[dict[str, Session]]:
    """What answers here, for comparison."""
    opened = {name: Session.open(bundles[name], policy=text) for name, text in POLICIES.items()}
    yield opened
    for session in opened.values():
        session.close()


class Client:
    """Calls a server over one protocol."""

    def __init__(self, protocol: str, server: TritonServer) -> None:
        self.kind, many = (http, {"concurrency": 32}) if protocol == "http" else (grpc, {})
        self.client = self.kind.InferenceServerClient(server.url(protocol), **many)

    def ask(self, model: str, given: Any, **parameters: Any) -> Any:
        """Send frames ``[B, H, W, 3]`` or the bytes of one image; returns what waits for it."""
        kind = "BYTES" if isinstance(given, bytes) else "UINT8"
        array = np.array([[given]], object) if kind == "BYTES" else given
        tensor = self.kind.InferInput("encoded" if kind == "BYTES" else "image", array.shape, kind)
        tensor.set_data_from_numpy(array)
        asked = {"parameters": parameters} if parameters else {}
        if self.kind is http:
            return self.client.async_infer(model, [tensor], **asked).get_result
        done: Any = threading.Event()
        found: list[Any] = []

        def keep(result: Any, error: Any) -> None:
            found.append(result if error is None else error)
            done.set()

        self.client.async_infer(model, [tensor], keep, **asked)

        def wait() -> Any:
            assert done.wait(60)
            if isinstance(found[0], Exception):
                raise found[0]
            return found[0]

        return wait

    def error(self, model: str, given: Any, **parameters: Any) -> str:
        with pytest.raises(Exception) as raised:
            self.ask(model, given, **parameters)()
        return str(raised.value)


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    made = Client(request.param, server)
    yield made
    made.client.close()


def jpeg(frame: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95)
    return file.getvalue()


def same(answer: Any, results: Sequence[Result]) -> None:
    """The server's answer is the local one."""
    rows = {name: answer.as_numpy(name)[:, 0] for name in ("class_index", "exit", "confidence")}
    assert rows["class_index"].tolist() == [result.class_index for result in results]
    assert rows["exit"].tolist() == [result.exit for result in results]
    expected = [result.confidence for result in results]
    np.testing.assert_allclose(rows["confidence"], expected, atol=2e-6)
    labels = [label.decode() for label in answer.as_numpy("label")[:, 0]]
    assert labels == [result.label for result in results]
    stopped = [by.decode() for by in answer.as_numpy("stopped")[:, 0]]
    assert stopped == [result.stopped for result in results]
    assert (answer.as_numpy("latency_ms") > 0).all() and not answer.as_numpy("late").any()


@pytest.mark.parametrize("model", ["tiny", "parts", "passes"])
def test_answers_are_those_of_a_session(
    model: str, client: Client, sessions: dict[str, Session], tmp_path: Path
) -> None:
    pictures = frames(12)  # each of another size
    files = [jpeg(picture) for picture in pictures]
    waiting = [client.ask(model, each) for each in [*(p[None] for p in pictures), *files]]
    paths = [tmp_path / f"{i}.jpg" for i in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file)
    session = sessions[model]
    expected = [session.predict(each) for each in [*pictures, *paths]]
    for wait, result in zip(waiting, expected, strict=True):
        same(wait(), [result])
    assert len({result.exit for result in expected}) > 2  # or it compares little


@pytest.mark.parametrize("model", ["tiny", "parts", "passes"])
def test_a_request_may_hold_several_images(
    model: str, client: Client, sessions: dict[str, Session]
) -> None:
    batch = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), np.uint8)
    same(client.ask(model, batch)(), sessions[model].predict_batch(batch))


@pytest.mark.parametrize("model", ["tiny", "parts"])
def test_requests_in_one_batch_each_get_their_point(
    model: str, client: Client, server: TritonServer, sessions: dict[str, Session]
) -> None:
    pictures = [each[None] for each in frames(4, seed=5)]
    asked = [*POINTS, None, "none"] * 4
    before = count(server, "nv_inference_exec_count", model)
    waiting = [
        client.ask(model, pictures[i % 4], **({} if name is None else {"point": name}))
        for i, name in enumerate(asked)
    ]
    session = sessions[model]
    for i, (name, wait) in enumerate(zip(asked, waiting, strict=True)):
        if name == "none":
            with pytest.raises(Exception, match="no operating point 'none'; this bundle has fast"):
                wait()
            continue
        session.policy = POLICIES[model] if name is None else POINTS[name]
        same(wait(), session.predict_batch(pictures[i % 4]))
    session.policy = POLICIES[model]
    # Triton ran them in batches, so unlike requests were in them: at most four at once.
    assert count(server, "nv_inference_exec_count", model) - before <= len(asked) // 2


def test_a_deadline_stops_an_image(client: Client, sessions: dict[str, Session]) -> None:
    pictures = frames(6, seed=9)
    hard = next(p for p in pictures if sessions["tiny"].predict(p).exit > 1)
    answer = client.ask("tiny", hard[None], deadline_ms=1)()
    calm = client.ask("tiny", hard[None], deadline_ms=60_000)()
    same(calm, [sessions["tiny"].predict(hard)])
    assert answer.as_numpy("exit")[0, 0] == 1
    assert answer.as_numpy("stopped")[0, 0] == b"deadline"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_pages_example_runs(
    protocol: str,
    server: TritonServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sessions: dict[str, Session],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = frames(1)[0]
    Path("photo.jpg").write_bytes(jpeg(picture))
    (code,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    for old, new in (
        ("tritonclient.http", f"tritonclient.{protocol}"),
        ("127.0.0.1:8000", server.url(protocol)),
        ('"lgvit"', '"tiny"'),
    ):
        assert old in code
        code = code.replace(old, new)
    names: dict[str, Any] = {"frame": picture}
    exec(code, names)
    names["client"].close()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{sessions['tiny'].predict(picture).label} 0.")
    assert re.fullmatch("[a-e] exit [1-4]", second)


def test_what_is_wrong_is_told_to_who_asked(client: Client) -> None:
    picture = frames(1)[0]
    good = client.ask("tiny", picture[None])
    for parameters in ({"deadline_ms": -1}, {"deadline_ms": "soon"}, {"deadline_ms": True}):
        said = client.error("tiny", picture[None], **parameters)
        assert "deadline_ms must be a positive number" in said
    assert "image 1 of 1 is not an image that can be decoded" in client.error("tiny", b"no image")
    assert "Expected [-1,-1,-1,3]" in client.error("tiny", picture[None, ..., :2])
    assert "no operating point 7" in client.error("tiny", picture[None], point=7)
    good()


def test_a_file_that_would_fill_the_memory_is_refused(client: Client) -> None:
    small = io.BytesIO()
    Image.new("L", (1, 1)).save(small, "PNG")
    head = b"IHDR" + struct.pack(">II", 20_000, 20_000) + small.getvalue()[24:29]
    huge = small.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head))
    huge += small.getvalue()[33:]
    assert "20000 x 20000 pixels are too many" in client.error("tiny", huge)


def test_neither_or_both_inputs_are_refused(server: TritonServer) -> None:
    picture = frames(1)[0]
    image = http.InferInput("image", (1, *picture.shape), "UINT8")
    image.set_data_from_numpy(picture[None])
    file = http.InferInput("encoded", (1, 1), "BYTES")
    file.set_data_from_numpy(np.array([[jpeg(picture)]], object))
    with http.InferenceServerClient(server.url("http")) as client:
        with pytest.raises(Exception, match="expected one of the inputs image, encoded, hidden"):
            client.infer("tiny", [image, file])


def count(server: TritonServer, metric: str, model: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    wanted = {"model": model, **labels}
    total = 0.0
    for line in server.metrics().splitlines():
        if line.startswith(f"{metric}{{"):
            found = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if wanted.items() <= found.items():
                total += float(line.rpartition(" ")[2])
    return total


def test_counts_of_several_instances_are_added_up(server: TritonServer) -> None:
    """Both have answered the noise of the warm-up: one image, and four."""
    client = Client("grpc", server)
    before = count(server, "lgvit_edge_images_total", "passes")
    assert before >= 2 * (1 + 4)
    batch = np.zeros((4, 32, 32, 3), np.uint8)
    for wait in [client.ask("passes", batch) for _ in range(8)]:
        wait()
    client.client.close()
    assert count(server, "lgvit_edge_images_total", "passes") - before == 32


def test_triton_shows_the_sessions_counts(
    server: TritonServer, sessions: dict[str, Session]
) -> None:
    def counts() -> dict[str, float]:
        return {
            "1": count(server, "lgvit_edge_images_total", "tiny", exit="1"),
            "all": count(server, "lgvit_edge_images_total", "tiny"),
            "policy": count(server, "lgvit_edge_stopped_total", "tiny", by="policy"),
            "errors": count(server, "lgvit_edge_errors_total", "tiny"),
            "seconds": count(server, "lgvit_edge_latency_seconds_sum", "tiny"),
            "count": count(server, "lgvit_edge_latency_seconds_count", "tiny"),
        }

    client = Client("grpc", server)
    before = counts()
    batch = np.random.default_rng(4).integers(0, 256, (4, 32, 32, 3), np.uint8)
    client.ask("tiny", batch)()
    client.error("tiny", b"no image")
    client.client.close()
    expected = sessions["tiny"].predict_batch(batch)
    more = {name: value - before[name] for name, value in counts().items()}
    assert more["all"] == more["count"] == 4 and more["errors"] == 1
    assert more["1"] == sum(result.exit == 1 for result in expected)
    assert more["policy"] == sum(result.stopped == "policy" for result in expected)
    assert 0 < more["seconds"] < 60


def test_engines_for_another_machine_are_refused_when_the_model_loads(
    server: TritonServer,
) -> None:
    """And the log says why, as ``Session.open`` does; other models run."""
    with http.InferenceServerClient(server.url("http")) as client:
        assert not client.is_model_ready("card") and client.is_model_ready("tiny")
    with pytest.raises(LGViTEdgeError) as refused:
        Session.open(server.log.parent / "engines", backend="tensorrt")
    assert str(refused.value) in server.said()


def test_a_segment_that_is_gone_is_told_and_may_come_back(
    server: TritonServer, sessions: dict[str, Session]
) -> None:
    session = sessions["parts"]
    pictures = sorted(frames(12), key=lambda picture: session.predict(picture).exit)
    early, late = (session.predict(pictures[place]) for place in (0, -1))
    assert early.exit < late.exit
    gone = f"parts_segment_{late.exit - 1}"  # counted from 0
    client = Client("http", server)
    client.client.unload_model(gone)
    until(lambda: not client.client.is_model_ready(gone))
    same(client.ask("parts", pictures[0][None])(), [early])
    assert f"the model {gone} failed: " in client.error("parts", pictures[-1][None])
    client.client.load_model(gone)
    same(client.ask("parts", pictures[-1][None])(), [late])
    client.client.close()


def test_a_segment_that_was_exchanged_is_noticed(
    server: TritonServer,
) -> None:
    """Other weights of the same shapes are not: nothing tells them apart."""
    client = Client("http", server)
    model = server.log.parent / "parts" / "parts_segment_0" / "1" / "model.py"
    text = model.read_text()
    model.write_text(text.replace("zip(names, arrays)", "zip(names, [a[:, :2] for a in arrays])"))
    client.client.unload_model("parts_segment_0")
    client.client.load_model("parts_segment_0")
    said = client.error("parts", frames(1)[0][None])
    assert "the model parts_segment_0 is another than was written: expected hidden" in said
    model.write_text(text)
    client.client.unload_model("parts_segment_0")
    client.client.load_model("parts_segment_0")
    client.client.close()


def test_a_killed_server_gives_errors_and_no_wrong_answer_and_comes_back(
    server: TritonServer, sessions: dict[str, Session], tmp_path: Path
) -> None:
    pictures = frames(4)
    expected = [sessions["tiny"].predict(picture) for picture in pictures]
    answered = threading.Semaphore(0)

    def load(protocol: str, place: int) -> str:
        """Ask for the same picture until the server is gone; return how that was told."""
        client = Client(protocol, alone)
        try:
            while True:
                same(client.ask("tiny", pictures[place][None])(), [expected[place]])
                answered.release()
        except Exception as error:
            return type(error).__name__
        finally:
            client.client.close()

    with TritonServer(server.repository, tmp_path / "log") as alone:  # with one model
        with ThreadPoolExecutor(4) as pool:
            ends = [pool.submit(load, kind, i) for i, kind in enumerate(("http", "grpc") * 2)]
            for _ in range(20):
                assert answered.acquire(timeout=20)
            alone.kill()
            found = {end.result(timeout=30) for end in ends}
        assert "AssertionError" not in found, found
        alone.start()
        for protocol in ("http", "grpc"):
            client = Client(protocol, alone)
            for picture, result in zip(pictures, expected, strict=True):
                same(client.ask("tiny", picture[None])(), [result])
            client.client.close()


def test_a_backend_for_another_numpy_is_refused(server: TritonServer, tmp_path: Path) -> None:
    """Its answers would be empty."""
    if int(np.__version__.split(".")[0]) < 2:
        pytest.skip("needs NumPy 2 here")
    other = TritonServer(server.repository, tmp_path / "log", python=Path(sys.prefix))
    with pytest.raises(BackendError, match="is not ready"):
        other.start()
    assert re.search("expected numpy below 2.*bin/python -m pip install 'numpy<2'", other.said())


def test_an_environment_without_lgvit_edge_is_told(server: TritonServer, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    folder = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    # A plain path: what is installed there is seen, and what it adds in turn is not.
    (tmp_path / "bare" / folder / "numpy.pth").write_text(f"{HOME / 'python' / folder}\n")
    other = TritonServer(server.repository, tmp_path / "log", python=tmp_path / "bare")
    with pytest.raises(BackendError, match="is not ready"):
        other.start()
    assert f"lgvit-edge cannot be imported in {tmp_path / 'bare'}, " in other.said()
    assert "No module named 'lgvit_edge'" in other.said()
