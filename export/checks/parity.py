"""Checks that the exported chain computes the logits that PyTorch computes.

Each graph is run with ONNX Runtime on the CPU, the reference of every other backend.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lgvit_edge._support.optional import require
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.bundle.manifest import GraphSpec
from lgvit_edge.errors import ParityError
from lgvit_edge.images.preprocess import to_float
from lgvit_edge.model import LGViT
from lgvit_edge.policies.scores import difference
from lgvit_edge.runtime.backends.ort_pool import join_pool, open_session

SAMPLES = 5
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2, "int8": 4.0}  # on logits
# After 8 blocks of a trained ViT-Tiny, PyTorch's own float32 differs from float64 by 6e-4 in the
# hidden state and 1e-5 in the logits after it: rounding, which the norms reduce again. In int8
# hidden states are not compared: a trained ViT's few large channels react to small changes.
_HIDDEN_SLACK = {"fp32": 10.0, "fp16": 1.0, "int8": float("inf")}


def sample_images(config: LGViTConfig, input: str) -> tuple[NDArray[Any], Tensor]:
    """Make seeded random images: network input for the bundle, and normalised for PyTorch.

    That is ``[n, H, W, 3] uint8`` or ``[n, 3, H, W] float32``, and ``[n, 3, H, W] float32``.
    """
    side = config.image_size
    rng = np.random.default_rng(0)
    # Blocks of one colour with noise on top: white noise alone makes all patches alike.
    coarse = rng.integers(0, 200, (SAMPLES, -(-side // 8), -(-side // 8), 3))
    blocks = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side]
    frames = (blocks + rng.integers(0, 56, blocks.shape)).astype(np.uint8)
    pixels = to_float(frames, config.preprocess)
    return (frames if input == "uint8" else pixels), torch.from_numpy(pixels)


class ChainCheck:
    """Compares exported segments with PyTorch's, one after the other.

    Each graph is run twice: on the input of PyTorch's own segment, so that the error names the
    first graph that diverges, and on the output of the graph before it, as a chain does. That
    chain's logits are compared with ``LGViT.exit_logits``, which folds nothing into the weights.
    """

    def __init__(
        self,
        images: NDArray[Any],
        expected: NDArray[np.float32],
        precision: str,
        tolerance: float | None,
    ) -> None:
        # The input of segment 0, and ``exit_logits`` [n, M + 1, C] of it.
        self._expected, self._slack = expected, _HIDDEN_SLACK[precision]
        self.tolerance = tolerance or TOLERANCE[precision]
        self._torch = torch.from_numpy(images)
        self._chain = images

    def segment(self, index: int, path: Path, graph: GraphSpec, module: nn.Module) -> float:
        """Check segment ``index``, return the largest difference in its logits, and move on.

        Raises:
            ParityError: beyond the tolerance; names the segment and the tensor.
        """
        with torch.no_grad():
            output = module(self._torch)
        wanted = output if isinstance(output, tuple) else (output,)
        run = graph_runner(path, graph)
        worst = 0.0
        for spec, got, want in zip(graph.outputs, run(self._torch.numpy()), wanted, strict=True):
            gap = self._check(f"segment {index}", spec.name, got, want.numpy())
            worst = max(worst, gap if spec is graph.logits else 0.0)
        *hidden, logits = run(self._chain)
        expected = self._expected[:, index]
        gap = self._check(f"the chain up to segment {index}", graph.logits.name, logits, expected)
        if hidden:
            self._torch, self._chain = wanted[0], hidden[0]
        return max(worst, gap)

    def baseline(self, path: Path, graph: GraphSpec, images: NDArray[Any]) -> float:
        """Check the baseline against the final classifier's logits.

        Raises:
            ParityError: beyond the tolerance.
        """
        (logits,) = graph_runner(path, graph)(images)
        return self._check("the baseline", graph.logits.name, logits, self._expected[:, -1])

    def _check(self, who: str, tensor: str, got: NDArray[Any], want: NDArray[Any]) -> float:
        hidden = want.ndim == 3
        gap = difference(got, want, by_token=hidden)
        tolerance = self.tolerance * (self._slack if hidden else 1)
        if gap > tolerance:
            raise ParityError(
                f"{who} diverges from PyTorch in {tensor!r}: max |difference| {gap:.3g}, "
                f"tolerance {tolerance:g}; nothing was written"
            )
        return gap


def graph_runner(path: Path, graph: GraphSpec) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
    """Return a function that runs one graph on the CPU, casting its input to the graph's dtype.

    Where the batch is fixed at 1, rows are run one by one. Where it varies, they are run in pairs
    and an odd last one alone, so that both batch sizes are checked.
    """
    ort = require("onnxruntime", extra="cpu")
    threads, providers = join_pool(ort, None), ["CPUExecutionProvider"]
    session, _ = open_session(ort, str(path), threads, shared=True, providers=providers)
    name, size = graph.inputs[0].name, 1 if graph.inputs[0].shape[0] == 1 else 2

    def run(inputs: NDArray[Any]) -> list[NDArray[Any]]:
        inputs = inputs.astype(graph.inputs[0].dtype, copy=False)
        parts = [inputs[i : i + size] for i in range(0, len(inputs), size)]
        rows = [session.run(None, {name: part}) for part in parts]
        return [np.concatenate(part) for part in zip(*rows, strict=True)]

    return run


def reference_logits(model: LGViT, pixels: Tensor) -> NDArray[np.float32]:
    """Return PyTorch's logits at every exit, ``[n, M + 1, C] float32``."""
    with torch.no_grad():
        logits: NDArray[np.float32] = model.exit_logits(pixels).numpy()
    return logits
