"""Relevance maps: which patches of an image make an exit answer as it does.

Three methods, of the class logit y of one exit. Each ends in one number per patch.

``gradient`` is the method of Chefer, Gur and Wolf, "Generic Attention-model Explainability" (ICCV
2021), for self-attention. Their earlier one (CVPR 2021), which the paper cites, has layer-wise
relevance propagation in the place of the attention weights A themselves. From the exit's block back
to the first one::

    P = mean over attention heads of (A * dy/dA)+          [T, T]
    r = r + r P                                            (their R = R + P R, for one row)

r begins with 1 at each token that the head reads, and the map is what r has gained at the patches.
For a class token that is the method as published. What else heads read is not in it, so here the
map also holds what each patch gives to the head itself, in logits as A * dy/dA is:

- where the head has attention of its own (``gah``, ``attention``, SigLIP's pooling): the sum over
  queries of its P;
- where patches are averaged (``lph``, ``conv``, Swin's and other mean classifiers): Grad-CAM.

An ``encoder`` head is one more block. In a Swin, A acts inside its windows; when a merged token is
taken apart, its relevance is split evenly among the four that it was merged from.

``rollout`` (Abnar and Zuidema 2020) knows no class and no gradient: P is the mean of A over heads,
r = (r + r P) / 2, and r begins evenly on what the head reads, through its own attention if it has
one. All relevance, that of prefix tokens included, adds up to 1 (less what a Swin's windows give to
padding).

``gradcam`` (Selvaraju et al. 2017) stays at the exit: with f_t the features that are averaged and
a the mean of dy/df_t over t, the map is (a . f_t)+. Where nothing but a linear layer follows the
mean, the numbers before ( )+ add up to the logit, less its bias and the class token's share.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.errors import ConfigError, DataError, UsageError
from lgvit_edge.model.backbones.block import Attention
from lgvit_edge.model.backbones.classifier import LatentAttention, MeanClassifier
from lgvit_edge.model.backbones.swin import PatchMerging
from lgvit_edge.model.heads import ExitHead
from lgvit_edge.model.heads.gah import GlobalAggregation
from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.probing.attention import (
    Weights,
    before,
    copied,
    is_known,
    recording,
    unmerged,
)
from lgvit_edge.probing.ways import Way, batch_size, check_images, evaluating, way_to


def relevance(
    model: LGViT,
    images: Tensor,
    *,
    exit: int,
    classes: Sequence[int] | Tensor | None = None,
    method: str = "gradient",
) -> Tensor:
    """Returns how relevant each patch is to the answer of an exit, ``[B, Hp, Wp] float32``.

    Nothing is random. The model and its gradients stay as they are; it is computed in eval mode, on
    its device, some images at a time. The result is on the CPU, never negative, and a map may be
    zero everywhere. Hp = Wp is the side of the map of patches, ``config.grid``.

    Args:
        model: the model.
        images: normalised ``[B, 3, H, W] float32``.
        exit: 1..M; M + 1 is the final classifier.
        classes: one class for each image ``[B]``; None: the one that this exit answers.
        method: of ``METHODS``.

    Raises:
        UsageError: there is no such exit, class or method, or images have another shape.
        ConfigError: the method does not suit the exit, or does not know a part of the model.
        DataError: the relevance is not finite, as of images or weights with NaN.
    """
    way = way_to(model, exit)
    _check(model, images, classes, method)
    if METHODS[method].through_blocks:
        _refuse_unknown(way)
    chosen = None if classes is None else torch.as_tensor(classes, device="cpu")
    grid, size = model.config.grid, batch_size(model, way)
    maps = [torch.zeros(0, grid, grid)]
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        for first in range(0, len(images), size):
            part = slice(first, first + size)
            batch = _run(model, way, images[part], None if chosen is None else chosen[part])
            maps.append(_as_map(METHODS[method].compute(way, batch), grid).float().cpu())
    joined = torch.cat(maps)
    if not bool(joined.isfinite().all()):
        raise DataError(
            f"the relevance at exit {exit} is not finite: images or weights hold NaN, or the "
            "gradient of what the exit answers is zero"
        )
    return joined


def usual_method(model: LGViT, exit: int) -> str:
    """Returns the method that suits an exit: ``gradcam`` for a head of convolutions.

    Raises:
        UsageError: there is no such exit.
    """
    head = way_to(model, exit).head
    convolves = any(isinstance(part, nn.Conv2d) for part in head.modules())
    return "gradcam" if convolves and _own_attention(head) is None else "gradient"


def _check(model: LGViT, images: Tensor, classes: Any, method: str) -> None:
    if method not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, found {method!r}")
    check_images(model, images)
    if classes is None:
        return
    chosen = torch.as_tensor(classes)
    whole = not chosen.is_floating_point() and chosen.dtype != torch.bool
    if not whole or tuple(chosen.shape) != (len(images),):
        raise UsageError(
            f"expected one class for each of {len(images)} images, found {list(chosen.shape)} "
            f"{chosen.dtype}".replace("torch.", "")
        )
    wrong = chosen[(chosen < 0) | (chosen >= model.config.num_classes)]
    if len(wrong):
        raise UsageError(
            f"classes must be 0..{model.config.num_classes - 1}, found {int(wrong[0])}"
        )


def _refuse_unknown(way: Way) -> None:
    """Refuses what attention does not tell: tokens may be mixed elsewhere."""
    for number, block in enumerate(way.blocks, 1):
        if not is_known(block):
            raise ConfigError(
                f"expected blocks that mix tokens in their attention, found {type(block).__name__} "
                f"as block {number}; use the method gradcam"
            )
    own = [part for part in way.head.modules() if isinstance(part, Attention)]
    body = getattr(way.head, "body", None)
    alone = len(own) == 1 and (
        isinstance(own[0], LatentAttention) or (own[0] is body and not body.residual)
    )
    if own and not alone:  # what it returns may be added to something
        raise ConfigError(
            f"the head of exit {way.exit}, {type(way.head).__name__}, has attention of a kind that "
            "is not known; use the method gradcam"
        )


def _own_attention(head: nn.Module) -> Attention | None:
    return next((part for part in head.modules() if isinstance(part, Attention)), None)


@dataclass(frozen=True)
class _Batch:
    """What a run to an exit leaves: tensors, and the gradients of the class logits for them."""

    read: Tensor  # [B, T] bool: which tokens the head reads
    pooled: Tensor  # [B, N', D]: what is averaged
    pooled_gradient: Tensor  # [B, N', D]
    weights: Weights
    gradients: Weights


def _run(model: LGViT, way: Way, images: Tensor, classes: Tensor | None) -> _Batch:
    like = next(model.parameters())
    pixels = images.to(like.device, like.dtype, copy=True).requires_grad_()
    with (
        recording([*way.blocks, way.head]) as weights,
        _averaged(way.head) as averaged,
        _contiguous_norms(way.head),
    ):
        hidden = model.backbone.embedding(pixels)
        for block in way.blocks:
            hidden = block(hidden)
        if isinstance(way.head, ExitHead):
            features = way.head.features(hidden)
            logits = way.head.classify(hidden, features)
        else:
            features, logits = hidden, way.head(hidden)
    pooled = averaged[0] if averaged else features
    chosen = logits.argmax(-1) if classes is None else classes.to(logits.device)
    total = logits.gather(1, chosen[:, None].long()).sum()
    wanted = (hidden, pooled, *weights.values())
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    hidden_gradient, pooled_gradient, *rest = (
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(wanted, found, strict=True)
    )
    if pooled.shape[1] == way.prefix + way.patches:
        pooled, pooled_gradient = pooled[:, way.prefix :], pooled_gradient[:, way.prefix :]
    return _Batch(
        read=(hidden_gradient != 0).any(-1),
        pooled=pooled.detach(),
        pooled_gradient=pooled_gradient,
        weights={attention: tensor.detach() for attention, tensor in weights.items()},
        gradients=dict(zip(weights, rest, strict=True)),
    )


@contextlib.contextmanager
def _averaged(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what a mean classifier in the head averages, ``[B, T, D]``; nothing without one.

    Tokens are taken behind the norm where there is one: the gradient of a norm is at right angles
    to what it norms, so that before it all shares would be 0.
    """
    averaged: list[Tensor] = []
    with contextlib.ExitStack() as hooks:
        for part in head.modules():
            if isinstance(part, MeanClassifier) and part.final_norm == "tokens":
                handle = part.norm.register_forward_hook(lambda *a: averaged.append(a[2]))
                hooks.callback(handle.remove)
            elif isinstance(part, MeanClassifier):
                handle = part.register_forward_pre_hook(lambda *a: averaged.append(a[1][0]))
                hooks.callback(handle.remove)
        yield averaged


@contextlib.contextmanager
def _contiguous_norms(head: nn.Module) -> Iterator[None]:
    """Lets batch norms see contiguous tensors alone.

    With a single image, the backward of PyTorch 2.13 on CPUs takes the layout of tokens for that of
    an image, or the other way round, and returns another gradient.
    """

    def backward(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(torch.Tensor.contiguous)

    with contextlib.ExitStack() as hooks:
        for part in head.modules():
            if isinstance(part, nn.BatchNorm2d):
                before = part.register_forward_pre_hook(lambda norm, inputs: inputs[0].contiguous())
                hooks.callback(before.remove)
                hooks.callback(part.register_forward_hook(backward).remove)
        yield


def _cam(batch: _Batch) -> Tensor:
    """Returns Grad-CAM, ``[B, N']``."""
    mean = batch.pooled_gradient.mean(dim=1, keepdim=True)
    return (mean * batch.pooled).sum(-1).clamp_min(0)


def _by_gradcam(way: Way, batch: _Batch) -> Tensor:
    """Returns the relevance of patches in the method ``gradcam``, ``[B, N]``."""
    if not bool(batch.pooled_gradient.any()):
        raise ConfigError(
            f"gradcam needs an exit that reads patches, found exit {way.exit}, which reads prefix "
            "tokens alone; use the method gradient"
        )
    return _placed(way, _cam(batch))


def _by_gradient(way: Way, batch: _Batch) -> Tensor:
    """Returns the relevance of patches in the method ``gradient``, ``[B, N]``."""
    own = _own_attention(way.head)
    given = _placed(way, _cam(batch) if own is None else _positive(batch, own).sum(dim=1))
    read = batch.read.to(given)  # the 1 of each token that is read, which the map leaves out
    gained = torch.cat([torch.zeros_like(read[:, : way.prefix]), given], dim=1)
    mixed = torch.zeros_like(read)
    for block in reversed(way.blocks):
        assert is_known(block)  # others were refused
        mixed = mixed + before(block, read + mixed, _positive(batch, block.attention))
        if isinstance(block.merge, PatchMerging):
            read = copied(read, block.merge.grid)
            mixed, gained = unmerged(mixed, block.merge.grid), unmerged(gained, block.merge.grid)
    return (mixed + gained)[:, way.prefix :]


def _by_rollout(way: Way, batch: _Batch) -> Tensor:
    """Returns the relevance of patches in the method ``rollout``, ``[B, N]``."""
    relevance = _even_start(way, batch)
    for block in reversed(way.blocks):
        assert is_known(block)  # others were refused
        relevance = (relevance + before(block, relevance, _mean(batch, block.attention))) / 2
        if isinstance(block.merge, PatchMerging):
            relevance = unmerged(relevance, block.merge.grid)
    return relevance[:, way.prefix :]


def _positive(batch: _Batch, attention: nn.Module) -> Tensor:
    """Returns the mean over attention heads of (A * dy/dA)+, ``[B, Q, T]``."""
    product = batch.weights[attention] * batch.gradients[attention]
    return product.clamp_min(0).mean(dim=1)


def _mean(batch: _Batch, attention: nn.Module) -> Tensor:
    """Returns the mean of A over attention heads, ``[B, Q, T]``."""
    return batch.weights[attention].mean(dim=1)


def _even_start(way: Way, batch: _Batch) -> Tensor:
    """Returns the relevance of what the head reads, ``[B, T]``, in the method ``rollout``.

    It adds up to 1. Prefix tokens and patches count the same, where both are read.
    """
    prefix, patches = (part.float() for part in batch.read.split([way.prefix, way.patches], dim=1))
    if (own := _own_attention(way.head)) is not None:
        patches = _placed(way, _mean(batch, own).mean(dim=1))
    prefix, patches = (
        part / part.sum(1, keepdim=True).clamp_min(1e-12) for part in (prefix, patches)
    )
    start = torch.cat([prefix, patches], dim=1)
    return start / start.sum(dim=1, keepdim=True)


def _placed(way: Way, relevance: Tensor) -> Tensor:
    """Returns the relevance of features or keys where they are from, ``[B, N'] -> [B, N]``.

    In a GAH from converged patches: convergence is linear, and its transpose goes back.
    """
    body, count = getattr(way.head, "body", None), way.patches
    if isinstance(body, GlobalAggregation):
        patches = relevance.new_zeros(len(relevance), count, 1).requires_grad_()
        return torch.autograd.grad(body.converge(patches), patches, relevance[..., None])[0][..., 0]
    if relevance.shape[1] == count:
        return relevance
    return _as_map(relevance, way.grid).flatten(1)


def _as_map(relevance: Tensor, grid: int) -> Tensor:
    """Returns the relevance of a square map of places as one of another side."""
    side = math.isqrt(relevance.shape[1])
    if side**2 != relevance.shape[1]:
        raise ConfigError(f"expected features of a square map, found {relevance.shape[1]} of them")
    square = relevance.reshape(-1, side, side)
    if side == grid:
        return square
    return functional.interpolate(square[:, None], size=(grid, grid), mode="nearest-exact")[:, 0]


@dataclass(frozen=True)
class Method:
    """Describes a method of relevance.

    Attributes:
        help: what it is, in a few words.
        compute: returns the relevance of patches.
        through_blocks: whether it goes back to the image, through attention; else it stays at the
            exit.
        knows_class: whether maps differ by class.
    """

    help: str
    compute: Callable[[Way, _Batch], Tensor]
    through_blocks: bool = True
    knows_class: bool = True


METHODS = {
    "gradient": Method(
        "attention times its gradient, block by block (Chefer et al.)", _by_gradient
    ),
    "rollout": Method("attention alone, block by block", _by_rollout, knows_class=False),
    "gradcam": Method("Grad-CAM of what the exit averages", _by_gradcam, through_blocks=False),
}
