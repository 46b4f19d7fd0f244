"""Makes a float16 copy of a segment in PyTorch, from which the half-precision graph is exported.

The graph's types then say what is computed, and a strongly typed TensorRT builds exactly that.
Rewriting a float32 graph afterwards gave invalid graphs or inconsistent types, and TensorRT's own
FP16 flag broke ViTs.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from lgvit_edge.model.segments import FrameEmbedding


class _Float(nn.Module):
    """A module in float32 between float16 neighbours."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float()

    def forward(self, x: Tensor) -> Tensor:
        computed: Tensor = self.module(x.float())
        return computed.to(x.dtype)


# What may stay in float32 inside a half-precision segment, by the name users type.
ISLANDS: dict[str, type[nn.Module]] = {"layernorm": nn.LayerNorm, "softmax": nn.Softmax}


class _Half(nn.Module):
    """A float16 segment: ``image | hidden float16 -> (hidden float16, logits float32)``."""

    def __init__(self, segment: nn.Module) -> None:
        super().__init__()
        self.segment = segment

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        # uint8 frames are converted only after their patches are gathered, which moves fewer bytes.
        output = self.segment(x.half() if x.is_floating_point() else x)
        if isinstance(output, tuple):
            return output[0], output[1].float()
        logits: Tensor = output.float()
        return logits


def halve(segment: nn.Module, islands: tuple[str, ...] = ()) -> nn.Module:
    """Return a float16 copy of a segment or baseline, in eval mode; logits stay float32.

    What ``islands``, keys of ``ISLANDS``, names is computed in float32.
    """
    half = copy.deepcopy(segment)
    for module in half.modules():
        if isinstance(module, FrameEmbedding):
            # Weights divided by 255 and the deviation would be subnormal in float16.
            module.scale_input(2.0**-8)
    half = half.half()
    for name in islands:
        for parent in list(half.modules()):
            for key, child in parent.named_children():
                if isinstance(child, ISLANDS[name]) and not isinstance(parent, _Float):
                    setattr(parent, key, _Float(child))
    return _Half(half).eval()
