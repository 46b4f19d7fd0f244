"""Defines what every backend provides: a chain of segments, and a description of itself.

Importing this module loads neither a backend nor NumPy.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from lgvit_edge._support.numbers import whole
from lgvit_edge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lgvit_edge.bundle.directory import Bundle
    from lgvit_edge.bundle.manifest import GraphSpec, TensorSpec
    from lgvit_edge.machine.jetson import Jetson

T = TypeVar("T")
# Ranks of candidates: only those on the fastest kind of hardware are measured.
ON_CPU, ON_GPU, ON_ENGINES = 0, 1, 2
WAITS = ("hybrid", "spin", "block")


class Chain(Protocol):
    """Runs segments one after the other on one batch.

    Only logits are returned to the host. Arrays returned by ``step`` are the chain's own buffers:
    read them before the next ``start`` of segment 0.

    A chain that can run ahead may also have ``follow(rule)``: it is told the policy's ``Rule``, or
    None for a policy without one, whenever a session gets another policy. It may also have a
    ``tolerance``: how far its logits may be from PyTorch's, if that is not the bundle's.
    """

    @property
    def max_batch(self) -> int:
        """The largest batch that ``start`` takes."""

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        """Begin with network inputs ``[B, ...]``, B <= ``max_batch``, at the start of a pass.

        ``segment`` is the segment that begins the pass; those of the pass before it need not have
        run. The rows are those that go on, so no ``keep`` comes before.
        """

    def step(self) -> NDArray[np.float32]:
        """Run the next segment and return its logits ``[B, C]``."""

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Drop all rows but these (ascending) before the next step."""

    def describe(self) -> dict[str, Any]:
        """Return backend, version, device and threads, for records."""

    def close(self) -> None:
        """Free the backend's memory."""


@runtime_checkable
class ChainInParts(Chain, Protocol):
    """A chain that can leave heads out: an exit that nobody reads then costs nothing.

    Attributes:
        apart: of each segment, whether its head can be left out.
    """

    apart: Sequence[bool]

    def step_blocks(self) -> None:
        """Run the next segment without its head, and so without logits, where it is ``apart``."""

    def load_blocks(self, segments: Sequence[int]) -> None:
        """Make ready for ``step_blocks`` of these segments, so that the first takes no longer."""


@runtime_checkable
class SplitChain(Chain, Protocol):
    """A chain whose hidden state can leave it, and come into another chain of the same bundle."""

    def hidden(self) -> NDArray[Any]:
        """Return a copy of what the next segment reads, ``[B, ...]``: after a ``step``."""

    def resume(self, hidden: NDArray[Any], segment: int) -> None:
        """Begin at a segment inside a pass, with what ``hidden`` returned."""


@dataclass(frozen=True)
class GpuImages:
    """Images of any size in the memory of a GPU, and the order of their channels."""

    images: Sequence[Any]
    color: str

    def __len__(self) -> int:
        """Return how many they are."""
        return len(self.images)

    def at(self, rows: NDArray[np.intp]) -> GpuImages:
        """Return those at these places."""
        return GpuImages([self.images[row] for row in rows], self.color)


@runtime_checkable
class GpuChain(Chain, Protocol):
    """A chain that also takes images in the memory of its GPU, and resizes them there."""

    def start_on_gpu(self, images: GpuImages, segment: int = 0) -> None:
        """Do what ``start`` does; the images must stay as they are until ``give_back``.

        Raises ``DataError`` where one is no image, or is not on this GPU.
        """

    def give_back(self) -> None:
        """Let the images of ``start_on_gpu`` go, once they have been read; it may have failed."""

    def to_host(self, images: GpuImages) -> list[NDArray[Any]]:
        """Return what ``start`` would take of them in each pass; raises as ``start_on_gpu``."""


class LayerTime(NamedTuple):
    """Tells how long one layer took in one run, all in the backend's own words.

    Attributes:
        name: of the layer; fused ones have the name that the backend gave them.
        kind: the operator, such as ``MatMul``.
        ms: its time in milliseconds.
        how: what computed it, such as a kernel or tactic and a format; empty where not told.
        origin: names of the graph's nodes in it, where the backend tells them beside its own name.
    """

    name: str
    kind: str
    ms: float
    how: str = ""
    origin: str = ""


class ProfiledChain(Chain, Protocol):
    """A chain whose layers are timed one by one, which may make it slower.

    ``describe`` names what times them under ``profiler``, such as "ONNX Runtime's profiler".
    """

    def forget(self) -> None:
        """Leave out what ran so far, to warm up."""

    def layer_times(self) -> list[list[list[LayerTime]]]:
        """Return, of each graph, the layers that ran, in their order, in every ``step``.

        A backend that only adds times up returns them once, as means over the steps. The chain
        cannot run any more. Raises ``BackendError`` where the times are not complete.
        """


@dataclass(frozen=True)
class TensorRTOptions:
    """Holds the options of the TensorRT backend.

    Attributes:
        wait: how to wait for a segment's logits: ``spin`` is fastest and occupies a core, ``block``
            sleeps until the driver wakes it, ``hybrid`` sleeps for most of the time that the
            segment usually takes and then spins.
        cuda_graphs: replay recorded segments instead of launching kernel by kernel.
        speculate: start the next segment before the exit decision. That saves the decision's time
            where an image goes on; where it leaves, the GPU's work is wasted.
        device_exit: (experimental) run all segments as one CUDA graph in which the device decides
            where to stop, while the host reads what it computed. Needs CUDA 12.6 and a bundle for
            batches of one image. Answers are the same, but a deadline does not stop the device.
        zero_copy: let the engines use images and logits where the CPU has them, instead of copies;
            None for where CPU and GPU share memory, as on a Jetson.
        binding: ``pycuda`` or ``cuda-python``; None for pycuda where it works.
        engines: tag of the build to run; None for the first that fits this GPU.
    """

    wait: str = "hybrid"
    cuda_graphs: bool = True
    speculate: bool = False
    device_exit: bool = False
    zero_copy: bool | None = None
    binding: str | None = None
    engines: str | None = None

    def __post_init__(self) -> None:
        """Refuse unknown waits, and options that exclude each other."""
        if self.wait not in WAITS:
            raise UsageError(f"wait must be one of {', '.join(WAITS)}, found {self.wait!r}")
        if self.device_exit and (self.speculate or not self.cuda_graphs):
            found = "speculate" if self.speculate else "cuda_graphs=False"
            raise UsageError(
                "device_exit runs one CUDA graph and leaves nothing to speculate on, found "
                f"{found} too; leave out one of them"
            )


@dataclass(frozen=True)
class ChainOptions:
    """Holds the options of a backend, as for ``Session.open``; None where one was not given."""

    threads: int | None = None
    thread_pool: str | None = None
    device: str | None = None
    precision: str | None = None
    tensorrt: TensorRTOptions | None = None

    def __post_init__(self) -> None:
        """Refuse values that no backend takes."""
        if self.threads is not None:
            object.__setattr__(self, "threads", whole("threads", self.threads))
        if not isinstance(self.tensorrt, (TensorRTOptions, type(None))):
            raise UsageError(f"tensorrt must be TensorRTOptions(...), found {self.tensorrt!r}")

    @property
    def gpu(self) -> int:
        """Number of the GPU in ``device``, as in ``cuda:1``; 0 where there is none."""
        return int((self.device or "").partition(":")[2] or 0)

    @property
    def given(self) -> list[str]:
        """Names of the options that are set."""
        return [option for option, value in vars(self).items() if value is not None]


def input_buffers(
    graphs: Sequence[GraphSpec],
    make_image: Callable[[TensorSpec], T],
    make_hidden: Callable[[TensorSpec], T],
) -> list[T]:
    """Make the buffer that each graph reads: images where a pass begins, else a hidden state.

    A hidden state takes the buffer of the last but one where shapes allow.
    """
    buffers: list[T] = []
    for i, graph in enumerate(graphs):
        spec, before = graph.inputs[0], graphs[i - 2].inputs[0] if i >= 2 else None
        if i == 0 or graphs[i - 1].hidden is None:
            buffers.append(make_image(spec))
        elif before is not None and (before.dtype, before.shape) == (spec.dtype, spec.shape):
            buffers.append(buffers[i - 2])
        else:
            buffers.append(make_hidden(spec))
    return buffers


class Package(NamedTuple):
    """Names a Python package, the extra of lgvit-edge that installs it, and its purpose."""

    name: str
    extra: str
    purpose: str


class Candidate(NamedTuple):
    """Names a way to run a bundle on this machine: a backend and a precision.

    Attributes:
        backend: its name.
        precision: what float32 graphs are computed in; None where the backend has no choice.
        rank: the kind of hardware; of several ranks only the highest is measured.
    """

    backend: str
    precision: str | None = None
    rank: int = ON_CPU

    @property
    def label(self) -> str:
        """The candidate's name for people, such as ``openvino bf16``."""
        return " ".join(filter(None, (self.backend, self.precision)))


class Check(NamedTuple):
    """Says for ``doctor`` whether one use of a backend works here, and if not, why."""

    name: str
    runs: bool
    note: str


@dataclass(frozen=True)
class Backend:
    """Describes a kind of backend: its name, its options, and how it is opened and checked.

    Attributes:
        name: what users type.
        help: one sentence for them.
        open_chain: makes a chain of a bundle's graphs, given by name. Raises ``BackendError`` where
            it cannot run here and ``MissingDependency`` where a package is missing.
        modules: Python modules, one of which must be installed.
        packages: what installs those, and what goes with them; the first is the usual one.
        devices: values of ``device`` that it takes; ``:N`` is any number after the colon.
        precisions: values of ``precision`` that it takes.
        options: fields of ``ChainOptions`` that it takes; all others are refused.
        candidates: lists how ``backend="auto"`` may run a bundle; empty where bundle or machine
            lack something. Called only where a module is installed. By default one, on the CPU.
        checks: lists for ``doctor`` what works here, given whether there is an NVIDIA driver, and
            the Jetson. By default whether a module is installed.
        open_profiled: makes a chain that times its layers, as ``open_chain`` makes one that does
            not; None where the backend cannot.
        unprofiled: tells why a chain that describes itself so cannot time its layers nevertheless;
            None where it can. By default all can.
        hardware: names what computes with these options, and the backend's version. Evidence that a
            lower precision decides as float32 does holds where the name is the same. None where
            ``auto`` may take no lower precision.
        engines: names the compiled engines that it would run; raises ``BackendError`` where none
            run here. None where it runs the bundle's graphs as they are.
        ways: other ways of running, by name, that a device report compares with the default.
    """

    name: str
    help: str
    open_chain: Callable[[Bundle, list[str], ChainOptions], Chain]
    modules: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()
    candidates: Callable[[Bundle, ChainOptions], list[Candidate]] | None = None
    checks: Callable[[bool, Jetson | None], list[Check]] | None = None
    open_profiled: Callable[[Bundle, list[str], ChainOptions], ProfiledChain] | None = None
    unprofiled: Callable[[dict[str, Any]], str | None] | None = None
    hardware: Callable[[ChainOptions], str] | None = None
    engines: Callable[[Bundle, ChainOptions], str] | None = None
    ways: Mapping[str, ChainOptions] = field(default_factory=dict)

    def takes(self, option: str, value: object) -> bool:
        """Return whether it takes this value of ``device`` or ``precision``; None is always one."""
        values = {"device": self.devices, "precision": self.precisions}[option]
        if isinstance(value, str):
            value = re.sub(r":[0-9]{1,3}\Z", ":N", value.replace(":N", ":"))
        return value is None or value in values

    @property
    def installed(self) -> bool:
        """Whether one of the modules is installed; none is imported."""
        return not self.modules or any(map(importlib.util.find_spec, self.modules))

    @property
    def to_install(self) -> str:
        """The command that installs it, or the missing modules where no extra does."""
        if self.packages:
            return f"run: pip install 'lgvit-edge[{self.packages[0].extra}]'"
        return f"install {' or '.join(self.modules)}"

    def own_candidates(self, bundle: Bundle, options: ChainOptions) -> list[Candidate]:
        """List the ways to run a bundle on this backend; see ``candidates``."""
        if self.candidates is None:
            return [Candidate(self.name, options.precision)]
        return self.candidates(bundle, options)

    def own_checks(self, driver: bool, jetson: Jetson | None) -> list[Check]:
        """List what works here with this backend; see ``checks``."""
        if self.checks is not None:
            return self.checks(driver, jetson)
        note = self.help if self.installed else f"is not installed; {self.to_install}"
        return [Check(self.name, self.installed, note)]
