"""The same job on a Ray cluster on this machine: the same file, also when workers are killed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import lgvit_edge
from small import write_photos

from lgvit_edge.benchmarks.experiments.folders import workers
from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BackendError, BundleError, DataError, MissingDependency, UsageError
from lgvit_edge.offline import answer_images, cluster
from lgvit_edge.offline.listing import Listed
from lgvit_edge.offline.opening import Opening


def with_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Real Ray, which takes seconds to start."""
    missing = importlib.util.find_spec("ray") is None
    why = "needs Ray, which is large: pip install 'lgvit-edge[ray]'"
    return pytest.mark.slow(pytest.mark.skipif(missing, reason=why)(test))


LINE = "predict --engines engines --data photos --out answers.jsonl"


@pytest.fixture
def here(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with photos, one of which is broken, and a link to the bundle."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", "abcde", 20)
    (tmp_path / "photos" / "b" / "03.png").write_bytes(b"no image")
    (tmp_path / "engines").symlink_to(bundle)
    return tmp_path


@contextlib.contextmanager
def started(*options: str) -> Iterator[subprocess.Popen[str]]:
    """The command on a cluster that it starts on this machine; what a kill leaves goes too."""
    command = [sys.executable, "-m", "lgvit_edge", *LINE.split(), "--ray", "local", *options]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short:  # for Ray's sockets
        process = subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": short},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not done():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


def below(process: int) -> Iterator[int]:
    """A process and all that it started."""
    yield process
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from below(int(child))


def name_of(process: int) -> str:
    """What a process calls itself; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().strip(b"\0").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@with_ray
def test_a_killed_workers_shard_is_done_again(here: Path) -> None:
    answer_images("engines", "photos", "undisturbed.jsonl")
    home = Path(os.environ["HOME"], ".ray")
    known = home.exists()
    with started("--batch", "2") as process:
        until(lambda: bool(workers(process.pid)), process)
        os.kill(workers(process.pid)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    for end in ("", ".unreadable.jsonl"):
        assert Path(f"answers.jsonl{end}").read_bytes() == (
            Path(f"undisturbed.jsonl{end}").read_bytes()
        )
    assert home.exists() == known  # its token was for this run
    # Other sizes than the machine has are told, not waited for.
    done = lgvit_edge(*LINE.split(), "--ray", "local", "--restart", "--threads", "999", cwd=here)
    assert done.returncode == 2
    assert "no machine of the cluster has 999 CPU, which a task needs; --threads" in done.stderr


@with_ray
def test_a_killed_run_goes_on_by_shard_without_ray(here: Path) -> None:
    answer_images("engines", "photos", "undisturbed.jsonl")
    shards = Path("answers.jsonl.parts")
    with started() as process:
        until(lambda: len(list(shards.glob("*.jsonl"))) > 3, process)
        family = list(below(process.pid))
        assert len(family) > 3
        process.kill()
        process.communicate()
        whole = len(list(shards.glob("[0-9]*.jsonl")))
        outcome = answer_images("engines", "photos", "answers.jsonl")
        assert outcome.earlier == 2 * whole < 100
        assert Path("answers.jsonl").read_bytes() == Path("undisturbed.jsonl").read_bytes()
        # What Ray started ends with the run, but for agents that look for it every other minute.
        end = time.monotonic() + 60
        while not all(name_of(each).endswith("Agent") for each in family if name_of(each)):
            assert time.monotonic() < end
            time.sleep(0.05)
        for each in filter(name_of, family):
            os.kill(each, signal.SIGKILL)


@with_ray
def test_what_listens_but_is_not_ray_is_not_waited_for(here: Path) -> None:
    code = "from lgvit_edge.offline import answer_images, cluster; cluster._CONNECTED = 1.0\n"
    code += "answer_images('engines', 'photos', 'answers.jsonl', ray='127.0.0.1:%d')"
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = subprocess.run(
            [sys.executable, "-c", code % server.getsockname()[1]],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert "nothing that is Ray answered within 1 s; start one with: ray start" in done.stderr


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("here", "expected HOST:PORT of a cluster that this machine belongs to"),
        ("ray://127.0.0.1:10001", "expected HOST:PORT"),
        ("127.0.0.1:one", "expected HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_refused(address: str, why: str, here: Path) -> None:
    with pytest.raises(BackendError, match=f"no Ray cluster answers at {address}: .*{why}"):
        answer_images("engines", "photos", "answers.jsonl", ray=address)


def test_a_missing_ray_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lgvit-edge\[ray\]'"):
        answer_images("engines", "photos", "answers.jsonl", ray="local")


@pytest.fixture
def task(here: Path) -> Iterator[cluster.Task]:
    """What a worker is told; the session that it keeps goes at the end."""
    manifest = open_bundle("engines", verify=False).manifest
    opening = Opening(str(here / "engines"), options={"backend": "onnxruntime"})
    yield cluster.Task(
        opening, manifest.identity, manifest.policy, str(here / "photos"), 2, times=False
    )
    if cluster._open is not None:
        cluster._open[1].close()
        cluster._open = None


def test_a_worker_keeps_its_session_for_the_next_shard(task: cluster.Task, here: Path) -> None:
    images = [Listed("x", f"photos/a/0{i}.png") for i in range(5)]
    described, lines = cluster._answer(task, images)
    assert described["backend"] == "onnxruntime" and len(lines) == 5
    assert cluster._open is not None
    session = cluster._open[1]
    assert cluster._answer(task, images)[1] == lines
    assert cluster._open[1] is session
    cluster._answer(task.with_options(thread_pool="global"), images)
    assert cluster._open[1] is not session and session._closed


@pytest.mark.parametrize(
    ("changes", "kind", "cure"),
    [
        ({"version": "0.0"}, UsageError, "install the same version on every machine"),
        ({"root": "/none"}, DataError, "mount the images at the same path on every machine"),
        ({"identity": "0" * 64}, BundleError, "another bundle than the job's: expected 00000"),
        ({"opening": Opening("/none")}, BundleError, "the bundle must be at the same path on ever"),
        ({"policy": {"name": "never"}}, BundleError, "has another policy there; copy the job's"),
    ],
)
def test_a_machine_that_lacks_what_it_needs_is_named(
    changes: dict[str, object], kind: type[Exception], cure: str, task: cluster.Task
) -> None:
    with pytest.raises(kind, match=f"^worker .+: .*{cure}"):
        cluster._answer(dataclasses.replace(task, **changes), [])  # type: ignore[arg-type]


def test_a_gpu_is_asked_for_where_one_was_typed(task: cluster.Task) -> None:
    assert not task.on_gpu
    assert task.with_options(device="cuda:1").on_gpu
    assert task.with_options(backend="tensorrt").on_gpu
