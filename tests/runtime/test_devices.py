"""Which GPU is meant: ``device`` by name and number, and ONNX Runtime on the second GPU.

TensorRT on the second GPU: ``trt_cases.py``.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lgvit_edge.bundle.directory import open_bundle
from lgvit_edge.errors import BackendError, UsageError
from lgvit_edge.machine import gpu
from lgvit_edge.runtime import Session
from lgvit_edge.runtime.backends import ort
from lgvit_edge.runtime.backends.base import ChainOptions
from lgvit_edge.runtime.backends.ort_pool import join_pool
from lgvit_edge.runtime.backends.ort_pool import open_session as open_real
from lgvit_edge.runtime.backends.registry import backend_of, refusal, segment_names


@pytest.mark.parametrize(
    ("backend", "device", "number"),
    [
        ("tensorrt", None, 0),
        ("tensorrt", "cuda", 0),
        ("tensorrt", "cuda:0", 0),
        ("tensorrt", "cuda:12", 12),
        ("onnxruntime", "cpu", 0),
        ("onnxruntime", "cuda:1", 1),
        ("openvino", "gpu", 0),
        ("openvino", "gpu:1", 1),
    ],
)
def test_devices_that_backends_take(backend: str, device: str | None, number: int) -> None:
    options = ChainOptions(device=device)
    assert refusal(backend_of(backend), options) is None
    assert options.gpu == number


@pytest.mark.parametrize(
    ("backend", "device", "known"),
    [
        *(("tensorrt", device, "cuda, cuda:N") for device in ("cpu", "gpu", "cuda:", "cuda:N")),
        *(("onnxruntime", d, "cpu, cuda, cuda:N") for d in ("cuda:-1", "cuda:1.5", "cuda:1 ", 1)),
        *(("onnxruntime", device, "cpu, cuda, cuda:N") for device in ("cpu:0", "cuda:1000", "1")),
        *(("openvino", d, "cpu, gpu, gpu:N, npu") for d in ("cuda:1", "npu:1", "gpu:", "GPU.1")),
    ],
)
def test_other_devices_are_refused(bundle: Path, backend: str, device: Any, known: str) -> None:
    with pytest.raises(UsageError, match=f"device must be one of {known}, found {device!r}"):
        Session.open(bundle, backend=backend, device=device)


class Graph:
    """A session of ONNX Runtime that says it runs on CUDA."""

    def __init__(self, path: str, providers: list[Any], bound: list[tuple[str, int]]) -> None:
        cpu = ["CPUExecutionProvider"]
        threads = join_pool(onnxruntime, None)
        self.real, _ = open_real(onnxruntime, path, threads, shared=True, providers=cpu)
        self.bound = bound
        self.names = [p if isinstance(p, str) else p[0] for p in providers]
        self.get_inputs, self.get_outputs = self.real.get_inputs, self.real.get_outputs

    def get_providers(self) -> list[str]:
        return self.names

    def io_binding(self) -> Any:
        def bind(name: str, device: str, index: int, *_: object) -> None:
            self.bound.append((device, index))

        return SimpleNamespace(bind_input=bind, bind_output=bind)

    def run_with_iobinding(self, binding: Any) -> None:
        pass


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_onnxruntime_on_one_of_several_gpus(
    bundle: Path, device: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No CUDA provider was there to try it: what it would be told."""
    asked: list[Any] = []
    bound: list[tuple[str, int]] = []
    made: list[tuple[str, int]] = []

    def open_session(_: Any, path: str, *rest: Any, providers: list[Any], **how: Any) -> Any:
        asked.append(providers)
        return Graph(path, providers, bound), True

    def allocate(shape: list[int], dtype: Any, device: str, index: int) -> Any:
        made.append((device, index))
        return SimpleNamespace(data_ptr=lambda: 256)

    values = SimpleNamespace(ortvalue_from_shape_and_type=allocate)
    module = SimpleNamespace(OrtValue=values, __version__="1.31.1")
    monkeypatch.setattr(ort, "require", lambda *_, **__: module)
    monkeypatch.setattr(ort, "join_pool", lambda *_: 1)
    monkeypatch.setattr(ort, "has_cuda", lambda: True)
    monkeypatch.setattr(ort, "open_session", open_session)
    monkeypatch.setattr(ort, "find_gpu", lambda index=0: object())
    opened = open_bundle(bundle)
    chain = ort.open_chain(opened, segment_names(opened), ChainOptions(device=device))
    wanted = [("CUDAExecutionProvider", {"device_id": str(index)}), "CPUExecutionProvider"]
    graphs = [graph for s in opened.manifest.segments for graph in s.part_graphs or (s.spec,)]
    assert asked == [wanted] * len(graphs)
    spec = opened.manifest.segments[0].spec.inputs[0]
    chain.start(np.zeros(spec.for_batch(1), spec.dtype))
    for _ in opened.manifest.segments:
        chain.step()
    assert set(made) == {("cuda", index)} and set(bound) == {("cpu", 0), ("cuda", index)}
    assert chain.describe()["device"] == device
    chain.close()


@pytest.mark.parametrize(
    ("gpus", "provider", "device", "text"),
    [
        (0, False, "cuda:7", "cuda:7 was asked for, found no NVIDIA GPU and driver; .*doctor"),
        (0, True, "cuda", "cuda:0 was asked for, found no NVIDIA GPU and driver; .*doctor"),
        (1, False, "cuda", "no CUDA provider; run: pip .*gpu"),
        (1, False, "cuda:7", r"cuda:7 was asked for, found cuda:0 \(Card 0\); name one"),
        (1, True, "cuda:7", r"cuda:7 was asked for, found cuda:0 \(Card 0\); name one"),
        (2, True, "cuda:7", r"found cuda:0 \(Card 0\), cuda:1 \(Card 1\); name one"),
    ],
)
def test_what_lacks_first_is_told(
    gpus: int,
    provider: bool,
    device: str,
    text: str,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No package helps where there is no GPU."""
    cards = [SimpleNamespace(name=f"Card {i}") for i in range(gpus)]

    def found(index: int = 0) -> Any:
        return cards[index] if index < gpus else None

    monkeypatch.setattr(gpu, "find_gpu", found)
    monkeypatch.setattr(ort, "find_gpu", found)
    monkeypatch.setattr(ort, "has_cuda", lambda: provider)
    with pytest.raises(BackendError, match=text):
        Session.open(bundle, backend="onnxruntime", device=device)
