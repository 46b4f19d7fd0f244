"""Linear CKA, how alike two sets of features of the same images are, from minibatches.

Kornblith et al. (1905.00414) compare what two layers make of n images: features ``X [n, p]`` and
``Y [n, q]`` have the Gram matrices ``X X^T`` and ``Y Y^T``, and CKA is the cosine between these
once they are centred. Nguyen et al. (2010.15327) take the mean of an unbiased estimate of each
product (HSIC_1, Song et al. 2012) over minibatches, so that memory is bounded and few images do not
look alike by chance.

1 says that one is the other turned, mirrored, moved and scaled alike in all directions. 0 says that
they have no more in common than chance gives; estimates may lie a little below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lgvit_edge.errors import UsageError

LEAST = 4  # images of a minibatch: HSIC_1 divides by n - 3
FEW = 100  # images below which stages that have nothing in common can look alike
_ULPS = 4  # that the mean of equal numbers may be off


def centred_gram(features: Tensor) -> Tensor:
    """Returns the U-centred Gram matrix, ``[n, ...]`` of any floats ``-> [n, n] float64``.

    The product of two of them, summed and divided by ``n (n - 3)``, is HSIC_1 (Szekely and Rizzo
    2014). Its diagonal is 0.

    Raises:
        UsageError: n is below ``LEAST``.
    """
    n = len(features)
    if n < LEAST:
        raise UsageError(f"CKA needs minibatches of at least {LEAST} images, found {n}")
    flat = features.reshape(n, -1)
    if flat.dtype != torch.float64:
        flat = flat.float()
    # Moving all features alike changes nothing here, and large means would cost digits.
    centred = flat - flat.mean(dim=0)
    # The mean is rounded; what is left of a feature that is the same for all images is no variance.
    rounding = _ULPS * torch.finfo(flat.dtype).eps * flat.abs().amax(dim=0)
    centred.masked_fill_(centred.abs().amax(dim=0) <= rounding, 0)
    return u_centred((centred @ centred.T).double())


def u_centred(gram: Tensor) -> Tensor:
    """Returns a Gram matrix U-centred, ``[n, n] float64 -> [n, n]``; n is at least ``LEAST``."""
    n = len(gram)
    gram = gram.clone().fill_diagonal_(0)
    rows = gram.sum(dim=1, keepdim=True)
    gram = gram - (rows + rows.T) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return gram.fill_diagonal_(0)


class Cka:
    """CKA between all stages of networks, of which minibatch after minibatch is added.

    Between minibatches it holds two numbers for each pair of stages, however many images there are.
    """

    def __init__(self) -> None:
        self.stages: tuple[Any, ...] = ()  # names, in the order of the first minibatch
        self.images = 0  # added so far
        self.batches = 0  # likewise
        self._sums: Tensor | None = None  # of HSIC_1, weighted by images, [S, S] float64

    def add(self, grams: Mapping[Any, Tensor]) -> None:
        """Adds a minibatch: the ``centred_gram`` of every stage.

        Raises:
            UsageError: the stages are not those of the minibatches before.
        """
        if not self.batches:
            self.stages = tuple(grams)
        if tuple(grams) != self.stages:
            raise UsageError(
                f"expected the same {len(self.stages)} stages in every minibatch, found "
                f"{len(grams)} others: CKA compares what a network computes of every image"
            )
        n = len(next(iter(grams.values())))
        stacked = torch.stack([gram.flatten() for gram in grams.values()])
        hsic = stacked @ stacked.T / (n * (n - 3))
        self._sums = n * hsic + (0 if self._sums is None else self._sums)
        self.images += n
        self.batches += 1

    def matrix(self) -> NDArray[np.float64]:
        """Returns CKA between all stages, ``[S, S]``; NaN where a stage is the same for all images.

        Features that are not finite give NaN too.

        Raises:
            UsageError: nothing was added.
        """
        if self._sums is None:
            raise UsageError(f"CKA needs at least {LEAST} images, found none")
        sums = self._sums.cpu().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.sqrt(np.diag(sums))
            cka: NDArray[np.float64] = sums / np.outer(scale, scale)
        return np.where(np.isfinite(cka), cka, np.nan)
