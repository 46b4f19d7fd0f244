"""What a backend says of itself is enough: opened, refused, chosen, shown, also from outside."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.runtime import (
    Backend,
    Candidate,
    ChainOptions,
    Session,
    TargetRate,
    TensorRTOptions,
    register_backend,
    selection,
)
from lgvit_edge.runtime.backends import registry
from lgvit_edge.runtime.examination import examine

FRAME = np.zeros((32, 32, 3), np.uint8)


class Borrowed:
    """A chain as an application may write one: here on ONNX Runtime's, and it counts."""

    opened: list[Borrowed] = []

    def __init__(self, bundle: Bundle, names: list[str], options: ChainOptions) -> None:
        self.inner: Any = registry.chain_opener(bundle, "onnxruntime", ChainOptions())(names)
        self.options, self.closed = options, False
        self.opened.append(self)

    @property
    def max_batch(self) -> int:
        return int(self.inner.max_batch)

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        self.inner.start(images, segment)

    def step(self) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.inner.step()
        return logits

    def keep(self, rows: NDArray[np.intp]) -> None:
        self.inner.keep(rows)

    def describe(self) -> dict[str, Any]:
        return {"backend": "borrowed"}

    def close(self) -> None:
        self.closed = True
        self.inner.close()


class Broken(Borrowed):
    def step(self) -> NDArray[np.float32]:
        raise BackendError("the chip is too hot")


class Wrong(Borrowed):
    def step(self) -> NDArray[np.float32]:
        return super().step() + 1


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A registry of its own, and nothing decided for ``auto``."""
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    monkeypatch.delenv(selection.OVERRIDE)
    monkeypatch.setenv("LGVIT_EDGE_CACHE", str(tmp_path / "cache"))
    Borrowed.opened.clear()
    yield
    assert all(chain.closed for chain in Borrowed.opened)


def borrowed(chain: type[Borrowed] = Borrowed, rank: int = 9) -> Backend:
    return Backend(
        name="borrowed",
        help="a backend from outside",
        open_chain=chain,
        options=frozenset({"threads"}),
        candidates=lambda bundle, options: [Candidate("borrowed", rank=rank)],
    )


def test_a_backend_from_outside_runs_a_bundle(bundle: Path) -> None:
    register_backend(borrowed())
    with Session.open(bundle, backend="borrowed", threads=3) as session:
        assert session.check_parity() < 1e-4
        assert session.describe() == {"backend": "borrowed"}
        assert Borrowed.opened[0].options.threads == 3
        with Session.open(bundle, backend="onnxruntime") as other:
            frames = [FRAME, FRAME + 90, FRAME + 200]
            found, expected = (opened.predict_batch(frames) for opened in (session, other))
            assert [r.exit for r in found] == [r.exit for r in expected]
    with pytest.raises(UsageError, match="the borrowed backend takes no device; leave that out"):
        Session.open(bundle, backend="borrowed", device="cpu")


def test_auto_takes_a_backend_from_outside_on_better_hardware(bundle: Path) -> None:
    register_backend(borrowed())
    with Session.open(bundle) as session:
        assert session.describe()["backend"] == "borrowed"


def test_auto_measures_a_backend_from_outside(bundle: Path) -> None:
    """In this process: another one does not know it."""
    register_backend(borrowed(rank=0))
    Session.open(bundle).close()
    (choice,) = selection.known_choices()
    assert {"borrowed", "onnxruntime"} <= set(choice.measured)


def test_auto_refuses_a_backend_that_computes_something_else(bundle: Path) -> None:
    register_backend(borrowed(Wrong, rank=0))
    Session.open(bundle).close()
    (choice,) = selection.known_choices()
    assert "diverges from PyTorch" in choice.refused["borrowed"]
    assert choice.backend != "borrowed"


def test_doctor_shows_a_backend_from_outside() -> None:
    register_backend(borrowed())
    missing = Backend("absent", "needs a module", Borrowed, modules=("no_such_module_anywhere",))
    register_backend(missing)
    told = {row["name"]: (row["runs"], row["note"]) for row in examine()["backends"]}
    assert told["borrowed"] == (True, "a backend from outside")
    assert told["absent"] == (False, "is not installed; install no_such_module_anywhere")


def test_a_name_that_is_taken_is_refused() -> None:
    for name in ("auto", "openvino"):
        with pytest.raises(UsageError, match=f"there is a backend '{name}' already"):
            register_backend(Backend(name, "", Borrowed))
    with pytest.raises(UsageError, match="takes unknown options: .'speed'"):
        register_backend(Backend("fast", "", Borrowed, options=frozenset({"speed"})))


GIVEN: dict[str, Any] = {"threads": 2, "thread_pool": "private", "device": "cpu"}
GIVEN |= {"precision": "fp32", "tensorrt": TensorRTOptions()}


@pytest.mark.parametrize(
    ("backend", "option"),
    [(b.name, option) for b in registry.backends() for option in GIVEN if option not in b.options],
)
def test_what_a_backend_would_ignore_is_refused(bundle: Path, backend: str, option: str) -> None:
    named = "TensorRT options" if option == "tensorrt" else option
    takers = [b.name for b in registry.backends() if option in b.options]
    wanted = f"the {backend} backend takes no {named}.*; leave that out, or use .*'{takers[-1]}'"
    with pytest.raises(UsageError, match=wanted):
        Session.open(bundle, backend=backend, **{option: GIVEN[option]})


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime", "openvino"])
def test_too_few_threads_are_refused_whatever_runs(bundle: Path, backend: str) -> None:
    with pytest.raises(UsageError, match="threads must be a whole number of at least 1, found 0"):
        Session.open(bundle, backend=backend, threads=0)


def test_devices_and_precisions_are_those_the_backends_know() -> None:
    for name, module, attribute, field in (
        ("onnxruntime", "ort", "_PROVIDERS", "devices"),
        ("openvino", "openvino", "DEVICES", "devices"),
        ("openvino", "openvino", "PRECISIONS", "precisions"),
    ):
        known = getattr(importlib.import_module(f"lgvit_edge.runtime.backends.{module}"), attribute)
        described = getattr(registry.backend_of(name), field)
        assert tuple(known) == tuple(value for value in described if not value.endswith(":N"))


@pytest.mark.parametrize(
    ("chain", "arguments", "error"),
    [
        (Broken, {"warm_up": True}, BackendError),
        (Borrowed, {"policy": TargetRate(30, ["nowhere"])}, UsageError),
    ],
)
def test_a_session_that_does_not_open_closes_its_chain(
    bundle: Path, chain: type[Borrowed], arguments: dict[str, Any], error: type[Exception]
) -> None:
    register_backend(borrowed(chain))
    with pytest.raises(error):
        Session.open(bundle, backend="borrowed", **arguments)
    (opened,) = Borrowed.opened
    assert opened.closed
