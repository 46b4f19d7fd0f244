"""Exit heads: local perception (LPH, paper Eq. 2) and global aggregation (GAH, Eq. 4).

A head's *body* turns the patch tokens of a block's output into features; their mean, added to each
prefix token, is classified. ``HEADS`` is the registry: a new head is one class and one entry.

Each body has two forms. ``features`` is the paper's, which training and distillation read.
``deployed`` computes only what the classifier needs, the mean of those features: everything after
the last non-linearity is linear, so the mean is taken first and the remaining layers act on one
vector instead of N tokens. The two agree to rounding, and MACs are counted on what is shipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.config import ExitConfig, LGViTConfig
from lgvit_edge.model.backbone import Classifier, merge_heads, split_heads

_GAH_HEADS = 8  # attention heads of every GAH, as the authors chose


class LocalPerception(nn.Module):
    """LPH body: 1x1 -> GELU -> BN -> depthwise k x k -> GELU -> BN -> 1x1 -> BN (Eqs. 1, 2).

    ``k = 0`` skips the depthwise part. ``residual`` adds the input (the authors' code, not Eq. 2).
    """

    def __init__(self, config: LGViTConfig, exit: ExitConfig) -> None:
        super().__init__()
        dim, k = config.hidden_size, exit.kernel
        self.grid = config.grid
        self.residual = config.lph_residual
        self.expand = nn.Conv2d(dim, dim, 1)
        self.expand_norm = nn.BatchNorm2d(dim)
        self.depthwise = nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim) if k else None
        self.depthwise_norm = nn.BatchNorm2d(dim) if k else None
        self.project = nn.Conv2d(dim, dim, 1)
        self.project_norm = nn.BatchNorm2d(dim)

    def features(self, patches: Tensor) -> Tensor:
        """``[B, N, D] -> [B, N, D]``."""
        image = patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x: Tensor = self.expand_norm(functional.gelu(self.expand(image)))
        if self.depthwise is not None and self.depthwise_norm is not None:
            x = self.depthwise_norm(functional.gelu(self.depthwise(x)))
        x = self.project_norm(self.project(x)).flatten(2).transpose(1, 2)
        return x + patches if self.residual else x

    def deployed(self, prefix: int) -> nn.Module:
        """``[B, prefix + N, D] -> [B, 1, D]``: the mean of the features, residual left out."""
        return _PooledLocalPerception(self, prefix)


class _PooledLocalPerception(nn.Module):
    """The LPH with its norms folded and its mean taken early.

    It works on all tokens, prefix included, and leaves the prefix out where the mean is taken, a
    product with a constant row: that is quicker than slicing and reducing.
    """

    mean_row: Tensor
    shift_map: Tensor

    @torch.no_grad()
    def __init__(self, body: LocalPerception, prefix: int) -> None:
        super().__init__()
        dim, self.grid, self.prefix = body.expand.out_channels, body.grid, prefix
        # 1x1 convolutions are linear layers on tokens, which need no transposition.
        self.expand = _linear(body.expand.weight.flatten(1), body.expand.bias)
        self.depthwise: nn.Conv2d | None = None
        scale, shift = _affine(body.expand_norm)
        if body.depthwise is not None and body.depthwise_norm is not None:
            old, k = body.depthwise, body.depthwise.kernel_size[0]
            self.depthwise = nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim, bias=False)
            self.depthwise.weight = nn.Parameter(old.weight * scale[:, None, None, None])
            # The norm's shift meets zero padding at the border, so it becomes a map, not a bias.
            ones = shift[None, :, None, None].expand(1, -1, self.grid, self.grid)
            mapped = functional.conv2d(ones, old.weight, old.bias, padding=k // 2, groups=dim)
            self.register_buffer("shift_map", mapped)
            scale, shift = _affine(body.depthwise_norm)
        else:
            self.register_buffer("mean_row", _mean_row(prefix, self.grid**2))
        out_scale, out_shift = _affine(body.project_norm)
        weight, bias = body.project.weight.flatten(1), body.project.bias
        self.project = _linear(
            out_scale[:, None] * weight * scale,
            out_scale * (weight @ shift + (0 if bias is None else bias)) + out_shift,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        x = functional.gelu(self.expand(hidden))
        if self.depthwise is None:
            mean = self.mean_row @ x
        else:
            image = x[:, self.prefix :].transpose(1, 2).unflatten(2, (self.grid, self.grid))
            x = functional.gelu(self.depthwise(image) + self.shift_map)
            mean = x.mean(dim=(2, 3))[:, None]
        pooled: Tensor = self.project(mean)
        return pooled


class GlobalAggregation(nn.Module):
    """GAH body: feature convergence with window s (Eq. 3), then 8-head self-attention (Eq. 4).

    ``average`` averages each s x s window as the paper writes; the authors' code, the default,
    keeps pixels 0, s, 2s...
    """

    def __init__(self, config: LGViTConfig, exit: ExitConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.grid, self.window, self.average = config.grid, exit.window, config.gah_average
        self.residual = False
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def features(self, patches: Tensor) -> Tensor:
        """``[B, N, D] -> [B, N', D]``, N' = ceil(H/s)^2 subsampled or floor(H/s)^2 averaged."""
        x = self.converge(patches)
        v = split_heads(self.value(x), _GAH_HEADS)
        mixed: Tensor = self.proj(merge_heads(self.attend(x) @ v))
        return mixed

    def converge(self, patches: Tensor) -> Tensor:
        """PFC (Eq. 3), ``[B, N, D] -> [B, N', D]``."""
        side, s, dim = self.grid, self.window, patches.shape[-1]
        if s == 1:
            return patches
        image = patches.reshape(-1, side, side, dim)
        if not self.average:
            return image[:, ::s, ::s].flatten(1, 2)
        kept = side // s
        windows = image[:, : kept * s, : kept * s].reshape(-1, kept, s, kept, s, dim)
        return windows.mean(dim=(2, 4)).flatten(1, 2)

    def attend(self, x: Tensor) -> Tensor:
        """Attention weights, ``[B, N', D] -> [B, 8, N', N']``."""
        scale = (x.shape[-1] // _GAH_HEADS) ** -0.5
        q, k = (split_heads(f(x), _GAH_HEADS) for f in (self.query, self.key))
        scores: Tensor = (q * scale) @ k.transpose(-2, -1)
        return scores.softmax(dim=-1)

    def deployed(self, prefix: int) -> nn.Module:
        """``[B, prefix + N, D] -> [B, 1, D]``: the mean of the features."""
        return _PooledGlobalAggregation(self, prefix)


class _PooledGlobalAggregation(nn.Module):
    """The GAH whose mean over queries is taken on the attention weights.

    With w_h [N'] the mean weights of head h, the mean of the features is the projection of
    ``w_h X W_h`` over heads: the N' tokens X are weighed first, so that the value projection W_h
    sees one row per head. Few tokens are left here and operators cost more than arithmetic, so
    subsampling is one gather and query and key are one product.
    """

    kept: Tensor

    @torch.no_grad()
    def __init__(self, body: GlobalAggregation, prefix: int) -> None:
        super().__init__()
        self.body, self.prefix, dim = body, prefix, body.query.in_features
        places = torch.arange(body.grid**2).reshape(body.grid, body.grid)
        self.register_buffer("kept", prefix + places[:: body.window, :: body.window].flatten())
        scale = (dim // _GAH_HEADS) ** -0.5
        self.query_key = _linear(torch.cat([body.query.weight * scale, body.key.weight]), None)
        values = body.value.weight.reshape(_GAH_HEADS, dim // _GAH_HEADS, dim).transpose(1, 2)
        self.values = nn.Parameter(values.contiguous())  # [8, D, D / 8]
        self.softmax = nn.Softmax(dim=-1)
        self.proj = body.proj

    def forward(self, hidden: Tensor) -> Tensor:
        if self.body.average:
            x = self.body.converge(hidden[:, self.prefix :])
        else:
            x = hidden.index_select(1, self.kept)
        _, tokens, dim = x.shape
        split = self.query_key(x).reshape(-1, tokens, 2, _GAH_HEADS, dim // _GAH_HEADS)
        q, k = split.permute(2, 0, 3, 1, 4).unbind(0)
        weights = self.softmax(q @ k.transpose(-2, -1)).mean(dim=2)  # [B, 8, N']
        heads = (weights @ x)[:, :, None] @ self.values  # [B, 8, 1, D / 8]
        mean: Tensor = self.proj(heads.reshape(-1, 1, dim))
        return mean


HEADS: dict[str, Callable[[LGViTConfig, ExitConfig], LocalPerception | GlobalAggregation]] = {
    "lph": LocalPerception,
    "gah": GlobalAggregation,
}


class ExitHead(nn.Module):
    """Body and classifier of one exit; reads a block's output without the final norm."""

    def __init__(self, config: LGViTConfig, exit: ExitConfig) -> None:
        super().__init__()
        self.prefix_tokens = config.prefix_tokens
        self.body = HEADS[exit.head](config, exit)
        self.classifier = Classifier(config.hidden_size, config.num_classes, config.classifiers)

    def features(self, hidden: Tensor) -> Tensor:
        """F_m of Eqs. 9 to 11, ``[B, T, D] -> [B, N', D]``."""
        return self.body.features(hidden[:, self.prefix_tokens :])

    def classify(self, hidden: Tensor, pooled: Tensor) -> Tensor:
        """``[B, T, D], [B, D] -> logits [B, C]``: the mean feature is added to each token."""
        tokens = hidden[:, : len(self.classifier.linears)]
        logits: Tensor = self.classifier(tokens + pooled[:, None])
        return logits

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, D] -> logits [B, C]``."""
        return self.classify(hidden, self.features(hidden).mean(dim=1))

    def deployed(self) -> nn.Module:
        """The head as it is shipped, ``[B, T, D] -> logits [B, C]``."""
        return _DeployedHead(self)


class _DeployedHead(nn.Module):
    """Classified tokens, the residual's mean and the body's mean in one sum, then the classifier.

    Row j of ``select`` picks prefix token j and, where the body has a residual, adds the mean of
    the patches.
    """

    select: Tensor

    def __init__(self, head: ExitHead) -> None:
        super().__init__()
        self.classifier, prefix = head.classifier, head.prefix_tokens
        count, patches = len(head.classifier.linears), head.body.grid**2
        rows = torch.eye(count, prefix + patches)[None]
        if head.body.residual:
            rows = rows + _mean_row(prefix, patches)
        self.register_buffer("select", rows)
        self.body = head.body.deployed(prefix)

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.select @ hidden + self.body(hidden))
        return logits


def _mean_row(prefix: int, patches: int) -> Tensor:
    """``[1, 1, prefix + patches]``: times the tokens it is the mean of the patches."""
    row = torch.full((1, 1, prefix + patches), 1 / patches)
    row[..., :prefix] = 0
    return row


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The inference-time BatchNorm as ``scale * x + shift``, each ``[D]``."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None  # our norms always track statistics
    scale = norm.weight / torch.sqrt(var + norm.eps)
    return scale, norm.bias - mean * scale


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear
