"""A backend that offers bfloat16 on every machine, and errs there by as much as a test says."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lgvit_edge.bundle.directory import Bundle
from lgvit_edge.runtime import Backend, Candidate, ChainOptions
from lgvit_edge.runtime.backends import registry


@dataclass
class Half:
    """What the backend says and does; tests change it."""

    hardware: str = "a processor, half 1.0"
    error: float = 0.0  # of logits in bfloat16
    slow: str = "fp32"  # the precision that takes longer
    precisions: tuple[str, ...] = ("fp32", "bf16")  # that are offered
    steps: dict[str, int] = field(default_factory=dict)  # run so far, by precision

    def shift(self, classes: int) -> NDArray[np.float32]:
        """What is added to logits in bfloat16, ``[C]``."""
        return np.float32(self.error) * np.arange(1, classes + 1, dtype=np.float32)

    def backend(self) -> Backend:
        """Describe it to ``register_backend``."""
        return Backend(
            "half",
            "for tests",
            lambda bundle, names, options: _Chain(self, bundle, names, options),
            precisions=("fp32", "bf16"),
            options=frozenset({"threads", "device", "precision"}),
            devices=("cpu",),
            candidates=lambda bundle, options: [
                Candidate("half", precision)
                for precision in ([options.precision] if options.precision else self.precisions)
            ],
            hardware=lambda options: self.hardware,
        )


class _Chain:
    """ONNX Runtime's chain, slower in one precision and off by something in bfloat16."""

    def __init__(self, half: Half, bundle: Bundle, names: list[str], options: ChainOptions) -> None:
        self.inner: Any = registry.chain_opener(bundle, "onnxruntime", ChainOptions())(names)
        self.half, self.precision = half, options.precision or "fp32"

    @property
    def max_batch(self) -> int:
        return int(self.inner.max_batch)

    def start(self, images: NDArray[Any], segment: int = 0) -> None:
        self.inner.start(images, segment)

    def step(self) -> NDArray[np.float32]:
        self.half.steps[self.precision] = self.half.steps.get(self.precision, 0) + 1
        logits: NDArray[np.float32] = self.inner.step()
        if self.precision == self.half.slow:
            time.sleep(0.002)
        if self.precision == "fp32":
            return logits
        return logits + self.half.shift(logits.shape[1])

    def keep(self, rows: NDArray[np.intp]) -> None:
        self.inner.keep(rows)

    def describe(self) -> dict[str, Any]:
        return {
            "backend": "half",
            "version": "1.0",
            "device": "cpu",
            "threads": 1,
            "precision": self.precision,
        }

    def close(self) -> None:
        self.inner.close()
