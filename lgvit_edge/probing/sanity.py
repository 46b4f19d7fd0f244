"""Sanity checks of relevance maps: do they depend on what the model has learnt?

Adebayo et al. 2018, "Sanity Checks for Saliency Maps": a map that stays the same when weights are
replaced by random ones shows the image, not the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn

from lgvit_edge.model.lgvit import LGViT
from lgvit_edge.model.randomised import randomised
from lgvit_edge.probing.ranks import rank_correlation
from lgvit_edge.probing.relevance import relevance
from lgvit_edge.probing.ways import logits_at, way_to


def cascade(model: LGViT, exit: int, seed: int = 0) -> Iterator[tuple[str, LGViT]]:
    """Replaces the weights on the way to an exit by random ones, from the classifier backwards.

    Yields what was replaced last (``head``, ``block 12`` to ``block 1``, ``embedding``), and one
    copy of the model, in which all before it are replaced too. ``model`` stays as it is.

    Raises:
        UsageError: there is no such exit.
    """
    way = way_to(model, exit)
    noise, broken = random_twin(model, seed), copy.deepcopy(model)
    for name in ("head", *(f"block {n}" for n in range(way.last_block, 0, -1)), "embedding"):
        _part(broken, exit, name).load_state_dict(_part(noise, exit, name).state_dict())
        yield name, broken


def random_twin(model: LGViT, seed: int = 0) -> LGViT:
    """Returns a model of the same shape with random weights, the same ones on every device."""
    device = next(model.parameters()).device
    return randomised(copy.deepcopy(model).cpu(), seed).to(device)


def _part(model: LGViT, exit: int, name: str) -> nn.Module:
    """Returns what ``cascade`` calls by this name."""
    if name == "head":
        return model.heads[exit - 1] if exit <= len(model.heads) else model.backbone.final
    kind, _, number = name.partition(" ")
    return model.backbone.blocks[int(number) - 1] if kind == "block" else model.backbone.embedding


def randomisation(
    model: LGViT, images: Tensor, *, exit: int, method: str = "gradient", seed: int = 0
) -> dict[str, Tensor]:
    """Returns how alike maps are to the model's as its weights become random ones, step by step.

    Of each step of ``cascade`` the rank correlations with the maps of the model itself, ``[B]``,
    for the classes that the exit answers. Arguments and errors are those of ``relevance``.
    """
    own = relevance(model, images, exit=exit, method=method)
    classes = logits_at(model, images, exit).argmax(-1)
    return {
        name: rank_correlation(
            own, relevance(broken, images, exit=exit, classes=classes, method=method)
        )
        for name, broken in cascade(model, exit, seed)
    }
