"""The registry of backends: describes each, and opens them by name.

A backend is imported when a chain of it is opened; this module loads none.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from lgvit_edge.errors import BackendError, LGViTEdgeError, UsageError, in_one_line
from lgvit_edge.runtime.backends.base import (
    Backend,
    Chain,
    ChainOptions,
    Package,
    ProfiledChain,
    TensorRTOptions,
)

if TYPE_CHECKING:
    from lgvit_edge.bundle.directory import Bundle

AnyChain = TypeVar("AnyChain", bound=Chain)
AUTO = "auto"
# What error messages call an option; the others go by their own names.
_WORDS = {"tensorrt": "TensorRT options (wait, cuda_graphs, speculate, device_exit, zero_copy)"}


def register_backend(backend: Backend) -> None:
    """Add a kind of backend to ``Session.open``, ``auto`` and ``doctor`` in this process.

    Raises:
        UsageError: the name is in use, or an option of the backend does not exist.
    """
    if backend.name in (AUTO, *_BACKENDS):
        raise UsageError(f"there is a backend {backend.name!r} already; choose another name")
    if unknown := backend.options - set(ChainOptions.__dataclass_fields__):
        raise UsageError(f"backend {backend.name!r} takes unknown options: {sorted(unknown)}")
    _BACKENDS[backend.name] = backend


def backends() -> tuple[Backend, ...]:
    """Return all backends, in the order that ``doctor`` lists them."""
    return tuple(_BACKENDS.values())


def backend_of(name: str) -> Backend:
    """Return a backend by its name.

    Raises:
        UsageError: there is no such backend.
    """
    if name not in list(_BACKENDS):  # of any type
        raise UsageError(f"backend must be one of {AUTO}, {', '.join(_BACKENDS)}, found {name!r}")
    return _BACKENDS[name]


def ships(name: str) -> bool:
    """Return whether a backend comes with lgvit-edge, and so exists in every process."""
    return name in _SHIPPED


def refusal(backend: Backend, options: ChainOptions) -> str | None:
    """Return why a backend does not take these options; None where it does."""
    for name in options.given:
        if name not in backend.options:
            others = " or ".join(repr(b.name) for b in backends() if name in b.options)
            return (
                f"the {backend.name} backend takes no {_WORDS.get(name, name)}; leave that out, or "
                f"use backend {others}"
            )
    for name, values in (("device", backend.devices), ("precision", backend.precisions)):
        value = getattr(options, name)
        if not backend.takes(name, value):
            return f"{name} must be one of {', '.join(values)}, found {value!r} ({backend.name})"
    return None


def chain_opener(bundle: Bundle, name: str, options: ChainOptions) -> Callable[[list[str]], Chain]:
    """Return a function that opens a chain of the graphs named in its argument.

    It raises what the backend raises on purpose, and ``BackendError`` for what it did not foresee.

    Raises:
        UsageError: there is no such backend, or it does not take an option.
    """
    backend = backend_of(name)
    return _opener(bundle, backend, backend.open_chain, options)


def profiled_opener(
    bundle: Bundle, name: str, options: ChainOptions
) -> Callable[[list[str]], ProfiledChain]:
    """Do what ``chain_opener`` does, for a chain that times its layers.

    Raises:
        UsageError: the backend cannot, there is none of this name, or it does not take an option.
    """
    backend = backend_of(name)
    if backend.open_profiled is None:
        able = " or ".join(repr(b.name) for b in backends() if b.open_profiled is not None)
        raise UsageError(f"the {name} backend cannot time its layers; use backend {able}")
    return _opener(bundle, backend, backend.open_profiled, options)


def _opener(
    bundle: Bundle,
    backend: Backend,
    make: Callable[[Bundle, list[str], ChainOptions], AnyChain],
    options: ChainOptions,
) -> Callable[[list[str]], AnyChain]:
    if (fault := refusal(backend, options)) is not None:
        raise UsageError(fault)

    def open_chain(names: list[str]) -> AnyChain:
        try:
            return make(bundle, names, options)
        except LGViTEdgeError:
            raise
        except (OSError, RuntimeError, MemoryError, ValueError, LookupError) as error:
            raise BackendError(
                f"the {backend.name} backend cannot open {bundle.root} ({in_one_line(error)}); "
                "expected memory and files for its largest batch, "
                f"{bundle.manifest.batch[2]}: free some, or export with a smaller --batch"
            ) from error

    return open_chain


def segment_names(bundle: Bundle) -> list[str]:
    """Return the names of a bundle's segments, in order."""
    from lgvit_edge.bundle.builds import graphs_of

    return [name for name in graphs_of(bundle) if name != "baseline"]


def _later(module: str, name: str) -> Any:
    """Return a function of a module of this folder, which is imported when the function runs."""

    def call(*arguments: Any) -> Any:
        home = importlib.import_module(f"lgvit_edge.runtime.backends.{module}")
        return getattr(home, name)(*arguments)

    return call


_BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="tensorrt",
            help="engines that lgvit-edge build compiled for this NVIDIA GPU",
            open_chain=_later("tensorrt", "open_chain"),
            modules=(),  # a bundle's engines record which of the two libraries they need
            packages=(
                Package("tensorrt", "tensorrt", "build and run engines"),
                Package("tensorrt-rtx", "rtx", "engines for RTX GPUs"),
                Package("pycuda", "pycuda", "run engines"),
                Package("cuda-bindings", "rtx", "run engines (cuda-python)"),
            ),
            devices=("cuda", "cuda:N"),
            options=frozenset({"tensorrt", "device"}),
            candidates=_later("tensorrt_engine", "candidates"),
            checks=_later("checks", "tensorrt_checks"),
            open_profiled=_later("tensorrt_profile", "open_profiled"),
            engines=_later("tensorrt_engine", "chosen_engines"),
            ways={
                "spin": ChainOptions(tensorrt=TensorRTOptions(wait="spin")),
                "block": ChainOptions(tensorrt=TensorRTOptions(wait="block")),
                "no CUDA graphs": ChainOptions(tensorrt=TensorRTOptions(cuda_graphs=False)),
                "speculation": ChainOptions(tensorrt=TensorRTOptions(speculate=True)),
                "exits on the device": ChainOptions(tensorrt=TensorRTOptions(device_exit=True)),
                "zero copy": ChainOptions(tensorrt=TensorRTOptions(zero_copy=True)),
                "copies": ChainOptions(tensorrt=TensorRTOptions(zero_copy=False)),
            },
        ),
        Backend(
            name="onnxruntime",
            help="the bundle's ONNX graphs, run directly on CPUs and NVIDIA GPUs",
            open_chain=_later("ort", "open_chain"),
            modules=("onnxruntime",),
            packages=(
                Package("onnxruntime", "cpu", "run bundles on the CPU"),
                Package("onnxruntime-gpu", "gpu", "run bundles on an NVIDIA GPU"),
            ),
            devices=("cpu", "cuda", "cuda:N"),
            options=frozenset({"threads", "thread_pool", "device"}),
            candidates=_later("ort", "candidates"),
            checks=_later("checks", "onnxruntime_checks"),
            open_profiled=_later("ort_profile", "open_profiled"),
            unprofiled=_later("ort_profile", "unprofiled"),
            # One way of running: its thread pool belongs to the process.
        ),
        Backend(
            name="openvino",
            help="models compiled on first use, on CPUs and Intel's GPUs and NPUs",
            open_chain=_later("openvino", "open_chain"),
            modules=("openvino",),
            packages=(Package("openvino", "openvino", "run bundles"),),
            devices=("cpu", "gpu", "gpu:N", "npu"),
            precisions=("fp32", "bf16", "fp16"),
            options=frozenset({"threads", "device", "precision"}),
            candidates=_later("openvino", "candidates"),
            checks=_later("checks", "openvino_checks"),
            open_profiled=_later("openvino_profile", "open_profiled"),
            hardware=_later("openvino", "hardware"),
            ways={"one thread": ChainOptions(threads=1)},
        ),
    )
}
_SHIPPED = frozenset(_BACKENDS)
