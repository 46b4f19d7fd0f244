"""Segments on OpenVINO.

One compiled model per segment; each (segment, batch size) has a request whose tensors lie on the
chain's own buffers: what one segment writes, the next one reads, and nothing is copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._optional import require
from lgvit_edge._threads import available_cores
from lgvit_edge.errors import BackendError, BundleError, UsageError
from lgvit_edge.manifest import GraphSpec

_DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}


class OpenVINOChain:
    """A ``Chain`` of OpenVINO models, computed in float32 wherever the graphs are."""

    def __init__(
        self,
        root: Path,
        graphs: list[GraphSpec],
        *,
        max_batch: int,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        """Compile every graph.

        Args:
            root: the bundle's directory.
            graphs: segments in order, or the baseline alone.
            max_batch: largest batch.
            threads: of the CPU; by default one per core this process may use.
            device: ``cpu`` (the default), ``gpu`` or ``npu``.

        Raises:
            MissingDependency: openvino is not installed.
            BackendError: the device is not there.
            BundleError: a graph cannot be compiled.
            UsageError: ``threads`` or ``device`` mean nothing.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, found {threads}")
        if device not in (None, *_DEVICES):
            raise UsageError(f"device must be one of {', '.join(_DEVICES)}, found {device!r}")
        self._ov = require("openvino", extra="openvino")
        core = self._ov.Core()
        self._device = device or "cpu"
        # With several of a kind they are called GPU.0, GPU.1.
        if not any(d.split(".")[0] == _DEVICES[self._device] for d in core.available_devices):
            raise BackendError(
                f"OpenVINO finds no {self._device} here, only "
                f"{', '.join(core.available_devices).lower()}; install its driver, or use "
                "device='cpu'"
            )
        self._threads = threads or available_cores()
        self._max_batch, self._graphs = max_batch, graphs
        self._models = [self._compile(core, root / graph.graph.file) for graph in graphs]
        self._allocate()
        # Per batch size and segment: request, logits. The tensors are kept because OpenVINO does
        # not hold the arrays they lie on.
        self._plans: dict[int, list[tuple[Any, NDArray[np.float32]] | None]] = {}
        self._tensors: list[Any] = []
        self._plan: list[tuple[Any, NDArray[np.float32]] | None] = []
        self._batch = self._next = 0

    @property
    def max_batch(self) -> int:
        """Largest batch ``start`` takes."""
        return self._max_batch

    def start(self, images: NDArray[Any]) -> None:
        """See ``Chain.start``."""
        self._next = 0
        self._resize(len(images))
        np.copyto(self._buffers[0][: self._batch], images)

    def step(self) -> NDArray[np.float32]:
        """See ``Chain.step``."""
        index = self._next
        planned = self._plan[index]
        if planned is None:
            planned = self._plan[index] = self._bind(index, self._batch)
        request, logits = planned
        request.start_async()  # unlike infer, which makes a dictionary of copies of the outputs
        request.wait()
        self._next = index + 1
        return logits

    def keep(self, rows: NDArray[np.intp]) -> None:
        """See ``Chain.keep``."""
        if len(rows) < self._batch:
            self._resize(len(rows))
            buffer = self._buffers[self._next]
            buffer[: self._batch] = buffer[rows]

    def describe(self) -> dict[str, Any]:
        """See ``Chain.describe``."""
        return {
            "backend": "openvino",
            "version": self._ov.__version__.split("-")[0],
            "device": self._device,
            "threads": self._threads,
        }

    def close(self) -> None:
        """See ``Chain.close``."""
        self._plans.clear()
        self._plan = []
        self._tensors.clear()
        self._models.clear()

    def _compile(self, core: Any, path: Path) -> Any:
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if self._device == "cpu":
            # Each compiled model pins threads of its own to the cores: those of the segment before
            # and those of the next then wait for each other (ViT-Tiny, 9 segments: 1.23 times the
            # baseline's time with pinning, 1.15 without).
            settings |= {
                "INFERENCE_NUM_THREADS": self._threads,
                "NUM_STREAMS": "1",
                "ENABLE_CPU_PINNING": False,
                # Left alone, processors with bfloat16 compute float32 graphs in it.
                "INFERENCE_PRECISION_HINT": "f32",
            }
        try:
            return core.compile_model(str(path), _DEVICES[self._device], settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:300]
            raise BundleError(f"{path} cannot be compiled by OpenVINO: {reason}") from None

    def _allocate(self) -> None:
        """Input, hidden buffers in turn where their shapes allow, logits of each segment."""
        specs = [self._graphs[0].inputs[0], *(graph.outputs[0] for graph in self._graphs[:-1])]
        self._buffers: list[NDArray[Any]] = []
        for i, spec in enumerate(specs):
            shape = spec.for_batch(self._max_batch)
            before = self._buffers[i - 2] if i > 2 else None
            fresh = np.zeros(shape, spec.dtype)
            fits = before is not None and (before.shape, before.dtype) == (shape, fresh.dtype)
            self._buffers.append(before if before is not None and fits else fresh)
        self._logits = [np.zeros(g.logits.for_batch(self._max_batch), "f4") for g in self._graphs]

    def _resize(self, batch: int) -> None:
        if batch != self._batch:
            self._batch = batch
            self._plan = self._plans.setdefault(batch, [None] * len(self._graphs))

    def _bind(self, index: int, batch: int) -> tuple[Any, NDArray[np.float32]]:
        request = self._models[index].create_infer_request()
        logits = self._logits[index][:batch]
        request.set_input_tensor(0, self._tensor(self._buffers[index][:batch]))
        last = len(self._graphs[index].outputs) - 1
        if last:
            request.set_output_tensor(0, self._tensor(self._buffers[index + 1][:batch]))
        request.set_output_tensor(last, self._tensor(logits))
        return request, logits

    def _tensor(self, array: NDArray[Any]) -> Any:
        tensor = self._ov.Tensor(array, shared_memory=True)
        self._tensors.append(tensor)
        return tensor
