"""Training schemes, the paper's own and its rivals (paper Tables 4 and 6), and orders of stages.

A scheme decides how the losses of exits and final classifier are combined. Stage 1 trains the whole
model that way, stage 2 the heads alone. An order says which stage follows which. Listing both needs
no torch, because ``--help`` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scheme:
    """Describes one way to combine the losses of all classifiers.

    Attributes:
        name: what users type.
        help: what it does, in a few words.
        alternates: every other step of stage 1 trains on the final loss alone (BERxiT).
        by_depth: losses are weighted by block number (SDN), else equally.
        predictions: exits imitate the final classifier's predictions as well.
        features: stage 2 is the paper's, Eq. 15.
    """

    name: str
    help: str
    alternates: bool = False
    by_depth: bool = False
    predictions: bool = False
    features: bool = False

    def loss(
        self,
        exits: Sequence[Tensor],
        final: Tensor,
        labels: Tensor,
        blocks: Sequence[int],
        *,
        joint: bool,
        gamma: float,
        temperature: float,
        kl: str,
        teacher: Tensor | None = None,
    ) -> Tensor:
        """Returns one loss, a scalar, from the logits of all classifiers, each ``[B, C]``.

        ``blocks`` are those of the M exits, then L. If ``joint``, the final classifier learns too,
        else the exits alone. ``gamma`` is the share of the imitation loss, in schemes that have
        one; ``temperature`` and ``kl`` as in ``losses.kd_loss``. With the logits of a ``teacher``
        that is no part of the model, every classifier learns by Eq. 14 from labels and teacher.
        """
        import torch
        from torch.nn import functional

        from lgvit_edge.training import losses

        learning = [*exits, final] if joint else exits
        if teacher is None:
            learnt = [functional.cross_entropy(logits, labels) for logits in learning]
        else:
            kd = partial(losses.kd_loss, gamma=gamma, temperature=temperature, kl=kl)
            learnt = [kd(logits, teacher, labels) for logits in learning]
        *crosses, last = learnt
        weights = list(blocks[: len(learning)]) if self.by_depth else [1] * len(learning)
        cross = losses.weighted_exits(crosses, last, weights)
        if not self.predictions or teacher is not None:
            return cross
        own = final.detach()  # it learns from labels, not from its pupils
        imitation = [losses.kl_loss(e, own, temperature=temperature, per=kl) for e in exits]
        return (1 - gamma) * cross + gamma * torch.stack(imitation).mean()


SCHEMES: dict[str, Scheme] = {}


def register_scheme(scheme: Scheme) -> None:
    """Registers a scheme for ``TrainingConfig`` and ``lgvit-edge train --scheme``.

    Raises:
        ValueError: its name is taken.
    """
    if scheme.name in SCHEMES:
        raise ValueError(f"there is a training scheme called {scheme.name!r} already")
    SCHEMES[scheme.name] = scheme


for _scheme in (
    Scheme("lgvit", "the paper's", alternates=True, by_depth=True, features=True),
    Scheme("normal", "all losses weighted equally"),
    Scheme("weighted", "losses weighted by depth", by_depth=True),
    Scheme("distillation", "exits imitate the final classifier", predictions=True),
    Scheme("alternating", "every other step without exits", alternates=True),
):
    register_scheme(_scheme)


@dataclass(frozen=True)
class Order:
    """Describes which stages a training runs, one after the other: a name, its help, the stages."""

    name: str
    help: str
    stages: tuple[int, ...]


ORDERS = {
    order.name: order
    for order in (
        Order("joint", "stage 1, everything; then stage 2, the exits: the paper's", (1, 2)),
        Order("frozen", "stage 2 alone: the exits of a backbone that stays as it is", (2,)),
        Order("mixed", "stage 2, stage 1, stage 2 again", (2, 1, 2)),
        Order("whole", "stage 1 alone", (1,)),
    )
}
