"""Which backend runs a bundle here, and opening its chains."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from lgvit_edge.bundle import ENGINES, Bundle
from lgvit_edge.engines import graphs_of
from lgvit_edge.errors import BackendError, BundleError
from lgvit_edge.gpu import find_gpu
from lgvit_edge.runtime.chain import Chain

if TYPE_CHECKING:
    from lgvit_edge.runtime.trt_chain import TensorRTOptions

BACKENDS = ("tensorrt", "onnxruntime")


def chain_opener(
    bundle: Bundle,
    backend: str,
    *,
    threads: int | None,
    thread_pool: str,
    device: str | None,
    tensorrt: TensorRTOptions | None,
) -> Callable[[list[str]], Chain]:
    """What makes a chain of the graphs it is given by name; arguments as for ``Session.open``."""
    if backend == "tensorrt":
        from lgvit_edge.runtime.trt_chain import TensorRTChain

        return lambda names: TensorRTChain(bundle, names, options=tensorrt)
    from lgvit_edge.runtime.ort_chain import OrtChain

    graphs = graphs_of(bundle)
    return lambda names: OrtChain(
        bundle.root,
        [graphs[name] for name in names],
        max_batch=bundle.manifest.batch[2],
        threads=threads,
        thread_pool=thread_pool,
        device=device,
    )


def best_backend(bundle: Bundle) -> str:
    """TensorRT where there are engines and a GPU; warns when there are and they do not fit."""
    if not (bundle.root / ENGINES).is_dir() or find_gpu() is None:
        return "onnxruntime"
    from lgvit_edge.runtime.trt_engine import choose_build

    try:
        choose_build(bundle)
    except (BackendError, BundleError) as error:
        warnings.warn(f"running on ONNX Runtime, because {error}", stacklevel=3)
        return "onnxruntime"
    return "tensorrt"
