"""Checks that an exported chain computes and decides as the PyTorch model does.

Each graph is run with ONNX Runtime on the CPU, the reference of every other backend. Logits may
differ a little at lower precision. What matters is that images still leave at the same exits with
the same answers, because thresholds are compared with confidences.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lgvit_edge._support.optional import require
from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.bundle.evidence import differences
from lgvit_edge.bundle.manifest import Agreement, GraphPart, GraphSpec, SegmentSpec
from lgvit_edge.errors import ParityError
from lgvit_edge.images.labelled import LabelledImage, content_hash
from lgvit_edge.images.preprocess import load_rgb, network_input, to_float
from lgvit_edge.model import LGViT
from lgvit_edge.policies import Policy
from lgvit_edge.policies.scores import confidence, difference
from lgvit_edge.runtime.backends.ort_pool import join_pool, open_session

SAMPLES = 5
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2, "int8": 4.0}  # on logits
# After 8 blocks of a trained ViT-Tiny, PyTorch's own float32 differs from float64 by 6e-4 in the
# hidden state and 1e-5 in the logits after it: rounding, which the norms reduce again. In int8
# hidden states are not compared: a trained ViT's few large channels react to small changes.
_HIDDEN_SLACK = {"fp32": 10.0, "fp16": 1.0, "int8": float("inf")}
_CURE = {
    "fp32": "report this with the checkpoint's configuration",
    "fp16": "try --keep-fp32 layernorm,softmax, or --precision fp32",
    "int8": "calibrate on more images of the kind the camera sees (--calib), or --precision fp16",
}
_CHUNK = 16  # images at a time

Logits = NDArray[np.float32]  # [images, M + 1, C]


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
    """Compares exported segments with PyTorch's, one after the other, pass by pass.

    Each graph is run on the input of PyTorch's own segment, so that the error names the first one
    that diverges. Then it is run on the output of the graph before it, as a chain does, with blocks
    and head as graphs apart where they are. That chain's logits are compared with
    ``LGViT.exit_logits`` in float64, which folds nothing into the weights.

    Raises:
        ParityError: beyond the tolerance; names the segment and the tensor.
    """

    def __init__(
        self, expected: NDArray[np.float32], precision: str, tolerance: float | None
    ) -> None:
        # ``exit_logits`` of all passes, [n, M + 1, C].
        self._expected, self._slack = expected, _HIDDEN_SLACK[precision]
        self.tolerance = tolerance or TOLERANCE[precision]

    def begin(self, images: NDArray[Any]) -> None:
        """Begin a pass with its network input."""
        self._torch, self._chain = torch.from_numpy(images), images

    def segment(self, index: int, root: Path, segment: SegmentSpec, module: nn.Module) -> float:
        """Check segment ``index``, return the largest difference in its logits, and move on.

        ``root`` is the folder of its graphs.
        """
        graph = segment.spec
        with torch.no_grad():
            output = module(self._torch)
        wanted = output if isinstance(output, tuple) else (output,)
        run = graph_runner(root / graph.graph.file, graph)
        worst = 0.0
        for spec, got, want in zip(graph.outputs, run(self._torch.numpy()), wanted, strict=True):
            gap = self._check(f"segment {index}", spec.name, got, want.numpy())
            worst = max(worst, gap if spec is graph.logits else 0.0)
        parts = [graph_runner(root / part.graph.file, part) for part in segment.part_graphs]
        if parts:
            hidden = parts[0](self._chain)
            (logits,) = parts[1](hidden[0])
        else:
            *hidden, logits = run(self._chain)
        expected = self._expected[:, index]
        gap = self._check(f"the chain up to segment {index}", graph.logits.name, logits, expected)
        if hidden:
            self._torch, self._chain = wanted[0], hidden[0]
        return max(worst, gap)

    def baseline(self, path: Path, graph: GraphSpec, images: NDArray[Any]) -> float:
        """Check the baseline against the final classifier's logits."""
        (logits,) = graph_runner(path, graph)(images)
        return self._check("the baseline", graph.logits.name, logits, self._expected[:, -1])

    def _check(self, who: str, tensor: str, got: NDArray[Any], want: NDArray[Any]) -> float:
        hidden = want.ndim == 3
        gap = difference(got, want, by_token=hidden)
        tolerance = self.tolerance * (self._slack if hidden else 1)
        if not gap <= tolerance:
            raise ParityError(
                f"{who} diverges from PyTorch in {tensor!r}: max |difference| {gap:.3g}, "
                f"tolerance {tolerance:g}; nothing was written. If its answers are right all the "
                "same (--data DIR compares them), take more with --tolerance"
            )
        return gap


def graph_runner(
    path: Path, graph: GraphSpec | GraphPart
) -> Callable[[NDArray[Any]], list[NDArray[Any]]]:
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
        logits: NDArray[np.float32] = model.exit_logits(pixels).float().numpy()
    return logits


def exact_logits(model: LGViT, pixels: Tensor) -> NDArray[np.float32]:
    """Return what ``reference_logits`` returns, computed in float64.

    In float32 PyTorch's own rounding would count as the graphs' error: in a fine-tuned ViT-Tiny it
    was 7e-5, nearly the whole tolerance.
    """
    return reference_logits(copy.deepcopy(model).double(), pixels.double())


def compare(
    models: Sequence[LGViT],
    root: Path,
    graphs: Sequence[Sequence[GraphSpec]],
    images: Sequence[LabelledImage],
    *,
    input: str,
    policy: Policy,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Agreement:
    """Run every image through the float32 models and the exported chain, and compare decisions.

    ``models`` and the segments under ``root``, ``graphs``, are those of each pass, in order;
    ``input`` and ``policy`` are the bundle's.

    Raises:
        DataError: an image cannot be read.
    """
    runners = [[graph_runner(root / g.graph.file, g) for g in own] for own in graphs]
    expected, exported = [], []
    for first in range(0, len(images), _CHUNK):
        progress(first, len(images))
        frames = [load_rgb(image.path) for image in images[first : first + _CHUNK]]
        wanted, logits = [], []
        for model, runs in zip(models, runners, strict=True):
            spec, size = model.config.preprocess, model.config.image_size
            pixels = network_input(frames, spec, size, "uint8")
            normalised = to_float(pixels, spec)
            wanted.append(reference_logits(model, torch.from_numpy(normalised)))
            hidden: NDArray[Any] = pixels if input == "uint8" else normalised
            for run in runs:
                *rest, answer = run(hidden)
                logits.append(answer)
                hidden = rest[0] if rest else hidden
        expected.append(np.concatenate(wanted, axis=1))
        exported.append(np.stack(logits, axis=1))
    return judge(np.concatenate(expected), np.concatenate(exported), images, policy)


def judge(
    expected: Logits, exported: Logits, images: Sequence[LabelledImage], policy: Policy
) -> Agreement:
    """Compare decisions; ``expected`` and ``exported`` are ``[n, M + 1, C] float32``."""
    exits, answers = policy.replay(expected)
    exported_exits, exported_answers = policy.replay(exported)
    change = np.abs(
        [confidence(exported[:, i]) - confidence(expected[:, i]) for i in range(expected.shape[1])]
    )
    return Agreement(
        images=len(images),
        sha256=content_hash([image.path for image in images]),
        policy=policy.to_json(),
        accuracy=_accuracy(exported, images),
        reference_accuracy=_accuracy(expected, images),
        same_exit=float((exits == exported_exits).mean()),
        same_label=float((answers == exported_answers).mean()),
        confidence_change=tuple(float(c) for c in change.mean(axis=1)),
    )


def _accuracy(logits: Logits, images: Sequence[LabelledImage]) -> float | None:
    """Return top-1 of the final classifier over the images that have a class."""
    pairs = zip(logits[:, -1].argmax(axis=-1), [i.class_index for i in images], strict=True)
    correct = [answer == index for answer, index in pairs if index is not None]
    return float(np.mean(correct)) if correct else None


def gate(agreement: Agreement, precision: str) -> None:
    """Raise ``ParityError`` if decisions differ more often than the precision allows."""
    images = agreement.images
    faults = differences(
        precision,
        images,
        accuracy=agreement.accuracy,
        reference_accuracy=agreement.reference_accuracy,
        same_exit=agreement.same_exit,
    )
    if faults:
        worst = int(np.argmax(agreement.confidence_change))
        raise ParityError(
            f"{precision} on {images} images: {'; '.join(faults)}; the confidence moves most "
            f"at segment {worst}, by {agreement.confidence_change[worst]:.4f} on average; nothing "
            f"was written; {_CURE[precision]}"
        )
