"""Certifies policies by Learn-then-Test (Angelopoulos et al., 2021), along one path of policies.

An error is an image that the chain gets wrong and the baseline right. For each policy of a Pareto
front, the hypothesis is that its error rate on future images exceeds ``risk``. It is rejected when
so few errors would be unlikely. Each image counts 0 or 1, so the number of errors is binomial and
its tail is an exact p-value, smaller than Hoeffding-Bentkus. Policies are tested from careful to
fast, an order fixed on other images. The first that is not rejected ends the test, so each may be
tested at the full ``delta`` (fixed-sequence testing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lgvit_edge._support.optional import require

_MOST_IMAGES = 1_000_000


def p_value(errors: int, images: int, risk: float) -> float:
    """Returns the probability of at most this many errors if each image errs with ``risk``.

    Raises:
        MissingDependency: scipy is not installed.
    """
    return float(require("scipy.special", extra="tune").bdtr(errors, images, risk))


def certified(errors: Sequence[int], images: int, risk: float, delta: float) -> int:
    """Returns how many policies, counted from the first, are certified to stay below the risk.

    All of them do with probability at least 1 - ``delta`` over the draw of the images. The errors
    are those of each policy on these images, in an order that was fixed without them.
    """
    failed = (i for i, count in enumerate(errors) if p_value(count, images, risk) > delta)
    return next(failed, len(errors))


def images_needed(share: float, risk: float, delta: float) -> int | None:
    """Returns how many images would certify a policy with this share of errors.

    The answer is None where even a million would not be enough.
    """
    if share >= risk:
        return None

    def enough(images: int) -> bool:
        return p_value(math.ceil(share * images), images, risk) <= delta

    high = math.ceil(math.log(delta) / math.log1p(-risk))  # enough if there are no errors
    while not enough(high):
        high *= 2
        if high > _MOST_IMAGES:  # the share is so close to the risk that no practical number helps
            return None
    low = high // 2
    while high - low > 1:  # rounding makes steps uneven, but ``high`` is always enough
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
