"""The backends, opening their chains, and which of them runs a bundle here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lgvit_edge._support.cache import bundle_cache
from lgvit_edge.bundle.builds import graphs_of
from lgvit_edge.bundle.directory import ENGINES, Bundle
from lgvit_edge.errors import BackendError, BundleError, UsageError
from lgvit_edge.machine.gpu import find_gpu
from lgvit_edge.runtime.backends.base import Chain

if TYPE_CHECKING:
    from lgvit_edge.runtime.backends.tensorrt import TensorRTOptions

BACKENDS = ("tensorrt", "onnxruntime", "openvino")


@dataclass(frozen=True)
class ChainOptions:
    """How a backend is to run; each field as for ``Session.open``."""

    threads: int | None = None
    thread_pool: str = "global"
    device: str | None = None
    hint: str | None = None
    tensorrt: TensorRTOptions | None = None

    def __post_init__(self) -> None:
        """Refuse what no backend takes."""
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, found {self.threads}")


def chain_opener(
    bundle: Bundle, backend: str, options: ChainOptions
) -> Callable[[list[str]], Chain]:
    """What makes a chain of the graphs it is given by name.

    Raises:
        UsageError: a hint for a backend that has none.
    """
    if options.hint is not None and backend != "openvino":
        raise UsageError(f"hint is for the openvino backend, found {backend}")
    if backend == "tensorrt":
        from lgvit_edge.runtime.backends.tensorrt import TensorRTChain

        return lambda names: TensorRTChain(bundle, names, options=options.tensorrt)
    graphs, largest = graphs_of(bundle), bundle.manifest.batch[2]
    if backend == "openvino":
        from lgvit_edge.runtime.backends.openvino import OpenVINOChain

        return lambda names: OpenVINOChain(
            bundle.root,
            [graphs[name] for name in names],
            max_batch=largest,
            threads=options.threads,
            device=options.device,
            hint=options.hint or "f32",
            cache=bundle_cache(bundle.manifest.identity),
        )
    from lgvit_edge.runtime.backends.ort import OrtChain

    return lambda names: OrtChain(
        bundle.root,
        [graphs[name] for name in names],
        max_batch=largest,
        threads=options.threads,
        thread_pool=options.thread_pool,
        device=options.device,
    )


def segment_names(bundle: Bundle) -> list[str]:
    """The chain's graphs, in order."""
    return [name for name in graphs_of(bundle) if name != "baseline"]


def tensorrt_runs(bundle: Bundle) -> bool:
    """Whether there are engines and a GPU; warns when there are and they do not fit."""
    if not (bundle.root / ENGINES).is_dir() or find_gpu() is None:
        return False
    from lgvit_edge.runtime.backends.tensorrt_engine import choose_build

    try:
        choose_build(bundle)
    except (BackendError, BundleError) as error:
        warnings.warn(f"not running on TensorRT, because {error}", stacklevel=3)
        return False
    return True
