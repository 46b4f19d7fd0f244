"""Training schemes: the paper's own and its rivals (paper Tables 4 and 6).

A scheme decides how the losses of exits and final classifier are combined. Stage 1 trains the whole
model that way, stage 2 the heads alone. Listing schemes needs no torch, because ``--help`` does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    ) -> Tensor:
        """Returns one loss, a scalar, from the logits of all classifiers, each ``[B, C]``.

        ``blocks`` are those of the M exits, then L. If ``joint``, the final classifier learns too,
        else the exits alone. ``gamma`` is the share of the imitation loss, in schemes that have
        one; ``temperature`` and ``kl`` as in ``losses.kd_loss``.
        """
        import torch
        from torch.nn import functional

        from lgvit_edge.training import losses

        learning = [*exits, final] if joint else exits
        *crosses, last = (functional.cross_entropy(logits, labels) for logits in learning)
        weights = list(blocks[: len(learning)]) if self.by_depth else [1] * len(learning)
        cross = losses.weighted_exits(crosses, last, weights)
        if not self.predictions:
            return cross
        teacher = final.detach()  # it learns from labels, not from its pupils
        imitation = [losses.kl_loss(e, teacher, temperature=temperature, per=kl) for e in exits]
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
