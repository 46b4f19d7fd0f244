"""The losses of stage 2, Eqs. 9 to 15 of the paper, and the module that aligns features.

Shapes: B images, M exits, C classes, N' tokens (they differ between exits), D hidden size. Every
loss is a scalar, and 0 where an LGViT is too small to have anything to compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.heads import HEAD_KINDS, ROLES


def kl_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 2, per: str = "image"
) -> Tensor:
    """Returns the Kullback-Leibler divergence of softened predictions, times T^2.

    Eq. 14 leaves T^2 out and the authors' code has it: without it the gradient would shrink by T^2
    and gamma would mean something else for every T.

    ``student`` and ``teacher`` are logits ``[B, C]``. ``per="image"`` averages over images, as a
    divergence is defined; ``"class"`` divides by C as well, as the authors' code does: with many
    classes the term is small.
    """
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    kl = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * kl / (student.shape[-1] if per == "class" else 1)


def kd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    gamma: float = 0.3,
    temperature: float = 2,
    kl: str = "image",
) -> Tensor:
    """Returns the loss of plain knowledge distillation, Eq. 14, of an exit's logits ``[B, C]``.

    ``gamma`` is the share of ``kl_loss``, whose ``per`` is ``kl`` here.
    """
    imitation = kl_loss(student, teacher, temperature=temperature, per=kl)
    return (1 - gamma) * functional.cross_entropy(student, labels) + gamma * imitation


def prediction(
    logits: Sequence[Tensor],
    teacher: Tensor,
    labels: Tensor,
    exits: Sequence[ExitConfig],
    *,
    gamma: float = 0.3,
    temperature: float = 2,
    kl: str = "image",
    which: str = "all",
) -> Tensor:
    """Returns the loss of prediction distillation, Eq. 13: the sum of ``kd_loss`` over exits.

    ``logits`` are those of the M exits. ``which`` is ``all`` exits, or as the ``paper`` writes the
    last LPH and the last GAH. The teacher's logits are taken through the final norm.
    """
    chosen = range(len(exits)) if which == "all" else last_of_each(exits)
    kd = partial(kd_loss, gamma=gamma, temperature=temperature, kl=kl)
    losses = [kd(logits[m], teacher, labels) for m in chosen]
    return torch.stack(losses).sum() if losses else teacher.new_zeros(())


class Align(nn.Module):
    """Maps the last block's tokens to an exit's N' tokens: depthwise convolution, GELU, BatchNorm.

    The aligning module of section 3.4; it is trained with the heads and not exported.
    """

    def __init__(self, config: LGViTConfig, exit: ExitConfig) -> None:
        super().__init__()
        dim, self.grid = config.blocks[-1].dim, config.blocks[-1].grid
        stride = HEAD_KINDS[exit.head].stride(exit.size)
        if stride > 1 and config.gah_average:
            kernel, padding = stride, 0  # floor(H / s) outputs a side, each reads its window
        else:
            kernel, padding = 3, 1  # ceil(H / s) outputs a side, as subsampling gives
        self.conv = nn.Conv2d(dim, dim, kernel, stride=stride, padding=padding, groups=dim)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, patches: Tensor) -> Tensor:
        """Returns the aligned tokens, ``[B, N, D] -> [B, N', D]``."""
        image = patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        aligned: Tensor = self.norm(functional.gelu(self.conv(image)))
        return aligned.flatten(2).transpose(1, 2)


def heterogeneous(features: Sequence[Tensor], aligned: Mapping[int, Tensor]) -> Tensor:
    """Returns the loss of heterogeneous distillation, Eq. 9: every chosen F_m imitates Align(F_L).

    Eq. 9 does not say what KL compares. Here, as in the authors' code, each token is a
    distribution over its D features, by softmax. We average over tokens, where they sum, so that
    alpha does not depend on the image size.

    ``features`` are F_m of all M exits, each ``[B, N', D]``; ``aligned`` is Align(F_L) of the same
    shape by 0-based exit, for ``first_and_last_of_each``.
    """
    if not aligned:
        return features[0].new_zeros(()) if features else torch.zeros(())
    losses = []
    for m, target in aligned.items():
        log_student = functional.log_softmax(features[m], dim=-1)
        log_teacher = functional.log_softmax(target, dim=-1)
        kl = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
        losses.append(kl.sum(dim=-1).mean())
    return torch.stack(losses).mean()


def homogeneous(
    features: Sequence[Tensor], exits: Sequence[ExitConfig], *, gram: str = "mean"
) -> Tensor:
    """Returns the loss of homogeneous distillation: each type's last head teaches the others.

    LPHs are compared feature by feature (Eq. 10), GAHs by ``F^T F [D, D]``, because their N' differ
    (Eq. 11); Eq. 12 adds both. The teacher learns from its own losses only, not from its pupils.

    F^T F sums over tokens: as Eq. 11 is written, a GAH that sees more tokens is told to shrink,
    and on a trained ViT-Tiny the term grows to a hundred times all others and the exits learn
    next to nothing. ``gram="mean"`` divides it by N'; ``"sum"`` is the paper's. ``features`` are
    F_m of all M exits, each ``[B, N', D]``.
    """
    total = features[0].new_zeros(()) if features else torch.zeros(())
    for role in ROLES:
        members = [features[m] for m in _members(exits, role)]
        if len(members) < 2:
            continue
        *pupils, teacher = members if role == "local" else [_gram(f, gram) for f in members]
        losses = [functional.mse_loss(pupil, teacher.detach()) for pupil in pupils]
        total = total + torch.stack(losses).mean()
    return total


def _gram(features: Tensor, gram: str) -> Tensor:
    product = features.transpose(1, 2) @ features
    return product / features.shape[1] if gram == "mean" else product


def total(
    hetero: Tensor, homo: Tensor, pred: Tensor, *, alpha: float = 0.01, beta: float = 0.01
) -> Tensor:
    """Returns the loss of stage 2, Eq. 15."""
    return alpha * hetero + beta * homo + pred


def weighted_exits(losses: Sequence[Tensor], final: Tensor, blocks: Sequence[int]) -> Tensor:
    """Returns the mean of exit and final losses, weighted by depth: stage 1 on odd steps.

    ``blocks`` are those of the M exits, then L.
    """
    weighted = sum((b * loss for b, loss in zip(blocks, losses, strict=False)), blocks[-1] * final)
    return weighted / sum(blocks)


def first_and_last_of_each(exits: Sequence[ExitConfig]) -> list[int]:
    """Returns the exits of Eq. 9, 0-based: the first and last LPH, the first and last GAH."""
    groups = (_members(exits, role) for role in ROLES)
    return sorted({m for members in groups for m in (*members[:1], *members[-1:])})


def last_of_each(exits: Sequence[ExitConfig]) -> list[int]:
    """Returns the exits of Eq. 13, 0-based: the last LPH and the last GAH."""
    return sorted(max(members) for role in ROLES if (members := _members(exits, role)))


def _members(exits: Sequence[ExitConfig], role: str) -> list[int]:
    """The exits, 0-based, whose heads have this role in distillation."""
    return [m for m, exit in enumerate(exits) if HEAD_KINDS[exit.head].role == role]
