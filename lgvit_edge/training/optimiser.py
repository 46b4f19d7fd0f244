"""AdamW with the usual recipe of ViTs: warm-up, cosine, no decay on norms, biases, embeddings.

Learning rates may differ from layer to layer, as BEiT (2106.08254) and MAE fine-tune them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lgvit_edge.model import LGViT

_EMBEDDINGS = ("embedding.prefix", "embedding.position", "attention.table")
Total = Callable[[Tensor], Tensor]
_SMALLEST = 1e-2  # smallest scale of an input, relative to the layer's mean


def learning_rate(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """Returns the learning rate of a 0-based step: linear up to ``peak``, then a cosine down to 0.

    ``steps`` counts those of the whole stage; ``warmup`` is the share of them that rise.
    """
    rising = int(steps * warmup)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def layer_peaks(
    model: LGViT, *, lr: float, head_lr: float, decay: float
) -> dict[nn.Parameter, float]:
    """Returns the peak learning rate of each parameter, which falls by layer towards the input.

    The final norm and classifier have ``lr``, block b of L has ``lr * decay ** (L + 1 - b)``, and
    the embedding ``lr * decay ** (L + 1)``. Exit heads have ``head_lr``, wherever they are.
    """
    last, peaks = model.config.num_blocks + 1, {}
    for name, parameter in model.backbone.named_parameters():
        part, _, rest = name.partition(".")
        layer = {"embedding": 0, "final": last}.get(part)
        if layer is None:
            layer = 1 + int(rest.partition(".")[0])  # blocks.0 is block 1
        peaks[parameter] = lr * decay ** (last - layer)
    return peaks | dict.fromkeys(model.heads.parameters(), head_lr)


class AdamW(torch.optim.AdamW):
    """AdamW that clips gradients and steps as if every input had a root mean square of 1.

    An exit head reads a block's output as it is, without a norm: some features of a ViT are a
    hundred times larger than others, and single tokens ten times larger again. A step of one size
    for all weights is then too large for some and too small for most. So a weight is updated as its
    product with its input's scale, which changes how fast a head learns and not what it can.
    """

    def __init__(self, groups: list[dict[str, Any]], *, clip: float) -> None:
        super().__init__(groups, lr=0.0)
        self.clip = clip

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates the weights; gradients are changed in place."""
        scaled = [
            (weight, scale.to(weight.device))
            for group in self.param_groups
            for weight, scale in zip(group["params"], group["scales"], strict=True)
            if scale is not None and weight.grad is not None
        ]
        for weight, scale in scaled:
            weight.grad.div_(scale)
            weight.mul_(scale)
        if self.clip:
            everything = [weight for group in self.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(everything, self.clip)
        super().step(closure)
        for weight, scale in scaled:
            weight.div_(scale)


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    clip: float = 0.0,
    scales: Mapping[nn.Parameter, Tensor] | None = None,
    peaks: Mapping[nn.Parameter, float] | None = None,
) -> AdamW:
    """Returns the optimizer; the caller sets the learning rate of its groups before every step.

    Only weights of two or more dimensions that are no embedding decay. ``clip`` is the largest norm
    of all gradients together; 0 leaves them alone. ``scales`` are those of ``input_scales``.
    ``peaks`` are the highest learning rates; a group holds its own as ``peak``.
    """
    scales, groups = scales or {}, dict[tuple[bool, float | None], dict[str, Any]]()
    for name, parameter in parameters:
        flat = parameter.ndim < 2 or name.endswith(_EMBEDDINGS)
        peak = None if peaks is None else peaks[parameter]
        new = {"params": [], "scales": [], "weight_decay": 0.0 if flat else weight_decay}
        group = groups.setdefault((flat, peak), {**new, "peak": peak})
        group["params"].append(parameter)
        group["scales"].append(scales.get(parameter))
    return AdamW([groups[key] for key in sorted(groups, key=lambda key: key[0])], clip=clip)


@torch.no_grad()
def input_scales(
    module: nn.Module, run: Callable[[], object], total: Total = lambda values: values
) -> dict[nn.Parameter, Tensor]:
    """Returns the root mean square of each linear or convolutional layer's inputs, by weight.

    They broadcast against the weight, over its inputs. ``run`` runs the layers of ``module`` once,
    on a batch, and ``total`` sums over all processes that compute parts of it. Depthwise
    convolutions are left out.
    """
    scales: dict[nn.Parameter, Tensor] = {}

    def read(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(layer, (nn.Linear, nn.Conv2d))
        x = inputs[0].float()
        axis = 1 if isinstance(layer, nn.Conv2d) else x.ndim - 1
        squares = x.square().sum([d for d in range(x.ndim) if d != axis])
        sums = total(torch.cat([squares, squares.new_tensor([x.numel() / x.shape[axis]])]))
        scale = (sums[:-1] / sums[-1]).sqrt()
        # A feature that is always 0 would get steps without bounds.
        scale = scale.clamp(min=_SMALLEST * float(scale.mean()) + 1e-12)
        assert isinstance(layer.weight, nn.Parameter)
        scales[layer.weight] = scale.view(1, -1, *[1] * (layer.weight.ndim - 2))

    hooks = [
        layer.register_forward_pre_hook(read)
        for layer in module.modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return scales
