"""Runs segments with OpenVINO.

Each segment has one compiled model and one request. Its tensors lie on the chain's own buffers:
what one segment writes, the next one reads, and nothing is copied. Where a head is left out, a
second model without it runs: blocks and heads as models apart took up to 5 % longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge._support.cache import keep, key_of, ours
from lgvit_edge._support.forks import CURE, Birthplace
from lgvit_edge._support.optional import require
from lgvit_edge.bundle.builds import graphs_of, parts_of
from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.bundle.manifest import GraphPart, GraphSpec, TensorSpec
from lgvit_edge.errors import BackendError, BundleError
from lgvit_edge.machine.cpu import available_cores, instructions
from lgvit_edge.machine.openvino import devices, shared_core
from lgvit_edge.runtime.backends.base import Candidate, Chain, ChainOptions, input_buffers

_birthplace: Birthplace | None = None  # where OpenVINO was first used
DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
# Precisions, with OpenVINO's names. (Devices list theirs as "FP32" and so on.)
PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def available_precisions(device: str | None = None) -> list[str]:
    """Return the precisions that a device computes in, fp32 first.

    Raises:
        MissingDependency: openvino is not installed.
        BackendError: the device is not there.
    """
    core, name = _open_core(device)
    able = core.get_property(name, "OPTIMIZATION_CAPABILITIES")
    return [precision for precision in PRECISIONS if precision.upper() in able]


def hardware(options: ChainOptions) -> str:
    """Name the device and OpenVINO's version; see ``Backend.hardware``.

    A processor's instructions belong to it: OpenVINO has other kernels for AMX than for
    AVX512-BF16, which add in another order and fuse other layers.
    """
    core, device = _open_core(options.device)
    name = core.get_property(device, "FULL_DEVICE_NAME").strip()
    if device == "CPU" and (able := instructions()):
        name += f" ({' '.join(able)})"
    return f"{name}, openvino {_version()}"


def _version() -> str:
    version: str = require("openvino", extra="openvino").__version__
    return version.split("-")[0]


def open_chain(bundle: Bundle, names: list[str], options: ChainOptions) -> Chain:
    """Open a chain of a bundle's graphs; see ``Backend.open_chain``."""
    return OpenVINOChain(bundle.root, **arguments(bundle, names, options), cache=bundle.cache)


def arguments(bundle: Bundle, names: list[str], options: ChainOptions) -> dict[str, Any]:
    """Return what ``OpenVINOChain`` takes beside the folder and the cache."""
    graphs, parts = graphs_of(bundle), parts_of(bundle)
    return {
        "graphs": [graphs[name] for name in names],
        "blocks": [parts[name][0] if name in parts else None for name in names],
        "max_batch": bundle.manifest.batch[2],
        "threads": options.threads,
        "device": options.device,
        "precision": options.precision or "fp32",
    }


def candidates(bundle: Bundle, options: ChainOptions) -> list[Candidate]:
    """List the precision asked for, or each that the device computes in."""
    wanted = options.precision
    precisions = available_precisions(options.device) if wanted is None else [wanted]
    return [Candidate("openvino", precision) for precision in precisions]


def settings_for(device: str, precision: str, threads: int) -> dict[str, Any]:
    """Return OpenVINO's settings for one image at a time, given its own name of the device."""
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        # By default, processors with bfloat16 compute float32 graphs in it.
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
    }
    if device == "CPU":
        settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": "1"}
        # With pinning, every compiled model would pin its threads to the same cores.
        settings |= {"ENABLE_CPU_PINNING": False}
    return settings


class OpenVINOChain:
    """Runs a ``ChainInParts`` of segments, each compiled by OpenVINO."""

    _settings: dict[str, Any] = {}  # of OpenVINO, beside those that every chain has

    def __init__(
        self,
        root: Path,
        graphs: list[GraphSpec],
        *,
        max_batch: int,
        blocks: Sequence[GraphPart | None] = (),
        threads: int | None = None,
        device: str | None = None,
        precision: str = "fp32",
        cache: Path | None = None,
    ) -> None:
        """Compile every graph (segments in order, or the baseline), or load it from the cache.

        ``blocks`` are, for each segment, the graph without its head, None where it has no other;
        by default none has. Options are those of ``Session.open``; without a ``cache`` folder
        nothing is kept.

        Raises:
            MissingDependency: openvino is not installed.
            BackendError: the device is not there, or does not compute in this precision.
            BundleError: a graph cannot be compiled.
        """
        core, self._device = _open_core(device)
        self._told = device or "cpu"
        able = available_precisions(device)
        if precision not in able:
            raise BackendError(
                f"this {self._told} computes in {', '.join(able)}, not in {precision}; use "
                "precision='fp32'"
            )
        self._ov, self._precision = require("openvino", extra="openvino"), precision
        self._cache = cache
        self._threads = threads or available_cores()
        self.max_batch, self._graphs = max_batch, graphs
        self._parts = list(blocks) or [None] * len(graphs)
        self.apart = [part is not None for part in self._parts]
        self._core, self._root = core, root
        self._allocate()
        # By segment and batch size. OpenVINO holds no reference to the arrays the tensors lie on.
        self._tensors: dict[tuple[int, int], list[Any]] = {}
        self._requests = [_Request(model) for model in self._load_all(graphs)]
        self._blocks: dict[int, _Request] = {}  # of those segments that ran without their heads
        self._batch = self._next = 0

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        """See ``Chain.start``."""
        self._next, self._batch = segment, len(images)
        np.copyto(self._buffers[segment][: self._batch], images)

    def step(self) -> NDArray[np.float32]:
        """See ``Chain.step``."""
        index = self._next
        self._infer(self._requests[index])
        return self._logits[index][: self._batch]

    def step_blocks(self) -> None:
        """See ``ChainInParts.step_blocks``."""
        if self._next not in self._blocks:
            self.load_blocks([self._next])
        self._infer(self._blocks[self._next])

    def load_blocks(self, segments: Sequence[int]) -> None:
        """See ``ChainInParts.load_blocks``.

        Raises:
            BundleError: a graph cannot be compiled.
        """
        new = [index for index in segments if index not in self._blocks]
        graphs = [part for index in new if (part := self._parts[index]) is not None]
        models = self._load_all(graphs) if graphs else []
        self._blocks |= zip(new, map(_Request, models), strict=True)

    def keep(self, rows: NDArray[np.intp]) -> None:
        """See ``Chain.keep``."""
        if len(rows) < self._batch:
            self._batch = len(rows)
            buffer = self._buffers[self._next]
            buffer[: self._batch] = buffer[rows]

    def hidden(self) -> NDArray[Any]:
        """See ``SplitChain.hidden``."""
        return self._buffers[self._next][: self._batch].copy()

    def resume(self, hidden: NDArray[Any], segment: int) -> None:
        """See ``SplitChain.resume``."""
        self.start(hidden, segment)

    def describe(self) -> dict[str, Any]:
        """See ``Chain.describe``."""
        return {
            "backend": "openvino",
            "version": _version(),
            "device": self._told,
            "threads": self._threads,
            "precision": self._precision,
        }

    def close(self) -> None:
        """See ``Chain.close``."""
        self._requests.clear()
        self._blocks.clear()
        self._tensors.clear()

    def _load_all(self, graphs: Sequence[GraphSpec | GraphPart]) -> list[Any]:
        """Compile graphs in parallel, because compiling one uses one core."""
        with ThreadPoolExecutor(min(self._threads, len(graphs))) as pool:
            return list(pool.map(self._load, graphs))

    def _load(self, graph: GraphSpec | GraphPart) -> Any:
        core, root = self._core, self._root
        settings = settings_for(self._device, self._precision, self._threads) | self._settings
        blob = None
        if self._cache is not None:
            machine = core.get_property(self._device, "FULL_DEVICE_NAME")
            key = key_of(self._ov.__version__, machine, settings, graph.graph.sha256)
            blob = self._cache / f"{Path(graph.graph.file).stem}-{key}.blob"
            if ours(blob):
                try:
                    content = np.memmap(blob, np.uint8, "c")
                    return core.import_model(self._ov.Tensor(content), self._device, settings)
                except (RuntimeError, ValueError, OSError):
                    blob.unlink(missing_ok=True)  # damaged: compiled again below
        path = root / graph.graph.file
        try:
            model = core.compile_model(str(path), self._device, settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:300]
            raise BundleError(f"{path} cannot be compiled by OpenVINO: {reason}") from None
        tensors = [_kind(port) for port in (*model.inputs, *model.outputs)]
        expected = [(t.dtype, t.shape) for t in (*graph.inputs, *graph.outputs)]
        if tensors != expected:
            raise BundleError(f"{path}: expected tensors {expected}, found {tensors}")
        if blob is not None:
            keep(blob, lambda partial: partial.write_bytes(_bytes(model.export_model())))
        return model

    def _allocate(self) -> None:
        def zeros(spec: TensorSpec) -> NDArray[Any]:
            return np.zeros(spec.for_batch(self.max_batch), spec.dtype)

        self._buffers = input_buffers(self._graphs, zeros, zeros)
        self._logits = [zeros(graph.logits) for graph in self._graphs]

    def _infer(self, request: _Request) -> None:
        """Run the next segment with one of its models."""
        index, batch = self._next, self._batch
        if request.batch != batch:
            tensors = self._tensors_of(index, batch)
            request.infer_request.set_input_tensor(0, tensors[0])
            for place in range(len(request.infer_request.model_outputs)):
                request.infer_request.set_output_tensor(place, tensors[1 + place])
            request.batch = batch
        # infer computes in this thread; start_async and wait use another one, which took 50 to 80
        # microseconds more. Without share_outputs, infer would copy every output.
        request.infer_request.infer(share_outputs=True)
        self._next = index + 1

    def _tensors_of(self, index: int, batch: int) -> list[Any]:
        """Return the tensors of a segment's input, hidden output, if it has one, and logits."""
        tensors = self._tensors.get((index, batch))
        if tensors is None:
            arrays = [self._buffers[index], self._logits[index]]
            if self._graphs[index].hidden is not None:
                arrays.insert(1, self._buffers[index + 1])
            tensors = [self._ov.Tensor(array[:batch], shared_memory=True) for array in arrays]
            self._tensors[index, batch] = tensors
        return tensors


class _Request:
    """A compiled model's request, and the batch size that it has tensors for, 0 at first.

    A request for every batch size would take more memory.
    """

    def __init__(self, model: Any) -> None:
        self.infer_request, self.batch = model.create_infer_request(), 0


def _open_core(device: str | None) -> tuple[Any, str]:
    """Return OpenVINO's core, and its own name of an available device: ``GPU.1`` for ``gpu:1``."""
    global _birthplace
    # A thread may have held a lock of OpenVINO's at the fork: this one could wait for ever.
    if _birthplace is not None and _birthplace.left:
        raise BackendError(
            "a session was opened before this process was forked, and OpenVINO's threads stayed in "
            f"the other one; {CURE}"
        )
    core, _birthplace = shared_core(), _birthplace or Birthplace()
    kind, _, number = (device or "cpu").partition(":")
    wanted, found = f"{kind}:{int(number or 0)}", devices(core)
    # Several devices of a kind are called GPU.0, GPU.1; one alone is called GPU, and is the first.
    numbered = [each if ":" in each else f"{each}:0" for each in found]
    if wanted not in numbered:
        raise BackendError(
            f"OpenVINO finds no {device} here, only {', '.join(found)}; use one of these, or "
            "install its driver"
        )
    return core, DEVICES[kind] + (f".{int(number)}" if number else "")


def _kind(port: Any) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a model's input or output, without its name, which may change."""
    shape = tuple(d.get_length() if d.is_static else -1 for d in port.get_partial_shape())
    return np.dtype(port.get_element_type().to_dtype()).name, shape


def _bytes(exported: Any) -> bytes:
    return exported if isinstance(exported, bytes) else bytes(exported.read())
