"""Checks that networks can be the passes of one bundle: the same classes, from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import UsageError
from lgvit_edge.model import LGViT, ModelCosts, model_costs


def check_passes(models: Sequence[LGViT]) -> list[ModelCosts]:
    """Check that models in eval mode can be the passes of one bundle; return what each costs.

    Raises:
        UsageError: there are none, their classes differ, or the MACs do not grow.
    """
    if not models:
        raise UsageError("expected at least one model")
    first, costs = models[0].config, [model_costs(model) for model in models]
    for number in range(2, len(models) + 1):
        before, model = models[number - 2], models[number - 1]
        _check_classes(first, model.config, number)
        macs = [cost.baseline for cost in costs[number - 2 : number]]
        if macs[0] < macs[1]:
            continue
        if macs[0] == macs[1] and _same(before, model):
            raise UsageError(
                f"passes {number - 1} and {number} are the same network at the same size: expected "
                "another network, or another --image-size"
            )
        sizes = [
            f"{n} px, {count / 1e9:.3g} G MACs"
            for n, count in zip(
                (before.config.image_size, model.config.image_size), macs, strict=True
            )
        ]
        raise UsageError(
            f"pass {number - 1} ({sizes[0]}) comes before pass {number} ({sizes[1]}): expected "
            "passes from coarse to fine, each with more MACs than the one before; give them in the "
            "other order"
        )
    return costs


def _check_classes(first: LGViTConfig, other: LGViTConfig, number: int) -> None:
    """Refuse a pass whose logits do not stand for the classes of pass 1."""
    mine, theirs = first.labels, other.labels
    if first.num_classes != other.num_classes:
        raise UsageError(
            f"pass 1 has {first.num_classes} classes, pass {number} has {other.num_classes}: "
            "expected passes trained for the same classes"
        )
    if bool(mine) != bool(theirs):
        named, bare = (1, number) if mine else (number, 1)
        raise UsageError(
            f"pass {named} names its classes, pass {bare} does not, so nothing tells whether they "
            "are the same in the same order; if they are, name those of both: --labels FILE"
        )
    if mine == theirs:
        return
    place = next(i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
    which = "order of classes" if set(mine) == set(theirs) else "classes"
    raise UsageError(
        f"passes 1 and {number} have another {which}: class {place} is {mine[place]!r} in pass 1, "
        f"{theirs[place]!r} in pass {number}; train them on the same folders, or if the names "
        "alone differ, give those of both: --labels FILE"
    )


def _same(one: LGViT, other: LGViT) -> bool:
    if one.config.image_size != other.config.image_size:
        return False
    mine, theirs = one.backbone.state_dict(), other.backbone.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in mine.items()
    )
