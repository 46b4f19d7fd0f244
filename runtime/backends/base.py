"""What every backend provides: a chain of segments, and a description of itself.

Importing this loads no backend, and NumPy only for type checkers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lgvit_edge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lgvit_edge.bundle.directory import Bundle
    from lgvit_edge.machine.jetson import Jetson
    from lgvit_edge.runtime.backends.tensorrt import TensorRTOptions

# Candidates' ranks: a faster kind of hardware is never measured against a slower one.
ON_CPU, ON_GPU, ON_ENGINES = 0, 1, 2


class Chain(Protocol):
    """Segments run one after the other on one batch.

    The host sees logits only. Arrays returned by ``step`` are the chain's own buffers: read them
    before the next ``start``.
    """

    @property
    def max_batch(self) -> int:
        """Largest batch ``start`` takes."""

    def start(self, images: NDArray[Any]) -> None:
        """Begin with network inputs ``[B, ...]``, B <= ``max_batch``."""

    def step(self) -> NDArray[np.float32]:
        """Run the next segment and return its logits ``[B, C]``."""

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Drop all rows but these (ascending) before the next step."""

    def describe(self) -> dict[str, Any]:
        """Backend, version, device and threads, for records."""

    def close(self) -> None:
        """Free what the backend holds."""


@dataclass(frozen=True)
class ChainOptions:
    """How a backend is to run; each field as for ``Session.open``, None where nobody said."""

    threads: int | None = None
    thread_pool: str | None = None
    device: str | None = None
    precision: str | None = None
    tensorrt: TensorRTOptions | None = None

    def __post_init__(self) -> None:
        """Refuse what no backend takes."""
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, found {self.threads}")

    @property
    def given(self) -> list[str]:
        """Names of the options that somebody gave."""
        return [one.name for one in fields(self) if getattr(self, one.name) is not None]


class Package(NamedTuple):
    """A distribution, the extra of lgvit-edge that installs it, and what it is for."""

    name: str
    extra: str
    purpose: str


class Candidate(NamedTuple):
    """A way to run a bundle on this machine.

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
        """For people: ``openvino bf16``."""
        return " ".join(filter(None, (self.backend, self.precision)))


class Check(NamedTuple):
    """What ``doctor`` says of one thing that a backend does: whether it works here, and why not."""

    name: str
    runs: bool
    note: str


@dataclass(frozen=True)
class Backend:
    """A kind of backend, described once.

    Attributes:
        name: what users type.
        help: one sentence for them.
        open_chain: makes a chain of a bundle's graphs, given by name. Raises ``BackendError`` where
            it cannot run here and ``MissingDependency`` where a package is missing.
        modules: any one of them must be there to be imported.
        packages: what installs those, and what goes with them; the first is the usual one.
        devices: values of ``device`` that it takes.
        precisions: values of ``precision`` that it takes.
        options: fields of ``ChainOptions`` that it takes; all others are refused.
        candidates: what ``backend="auto"`` may run a bundle on; none where bundle or machine lack
            something. Called only where a module is there. By default one, on the CPU.
        checks: for ``doctor``: what works here, given whether there is an NVIDIA driver, and the
            Jetson. By default whether a module is there.
    """

    name: str
    help: str
    open_chain: Callable[[Bundle, list[str], ChainOptions], Chain]
    modules: tuple[str, ...] = ()
    packages: tuple[Package, ...] = ()
    devices: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()
    candidates: Callable[[Bundle, ChainOptions], list[Candidate]] | None = field(default=None)
    checks: Callable[[bool, Jetson | None], list[Check]] | None = field(default=None)

    @property
    def installed(self) -> bool:
        """Whether a module is there; none is imported."""
        return not self.modules or any(map(importlib.util.find_spec, self.modules))

    @property
    def to_install(self) -> str:
        """The command that installs it, or what is missing where no extra does."""
        if self.packages:
            return f"run: pip install 'lgvit-edge[{self.packages[0].extra}]'"
        return f"install {' or '.join(self.modules)}"

    def own_candidates(self, bundle: Bundle, options: ChainOptions) -> list[Candidate]:
        """See ``candidates``."""
        if self.candidates is None:
            return [Candidate(self.name, options.precision)]
        return self.candidates(bundle, options)

    def own_checks(self, driver: bool, jetson: Jetson | None) -> list[Check]:
        """See ``checks``."""
        if self.checks is not None:
            return self.checks(driver, jetson)
        note = self.help if self.installed else f"is not installed; {self.to_install}"
        return [Check(self.name, self.installed, note)]
