"""Thresholds with a guarantee: Learn-then-Test (Angelopoulos et al., 2021) on one path of policies.

For every policy of a front, "the chain is wrong where the baseline is right more often than
``risk``" is a hypothesis about images yet to come. It is rejected when so few errors would be
unlikely under it. The loss of an image is 0 or 1, so their number is binomial and its tail is an
exact p-value, smaller than Hoeffding-Bentkus. Policies are tested in an order fixed beforehand, on
other images, from careful to fast; the first that is not rejected ends the test, and so each may be
tested at the full ``delta`` (fixed-sequence testing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lgvit_edge._support.optional import require

_MOST = 1_000_000


def p_value(errors: int, images: int, risk: float) -> float:
    """Probability of at most this many errors where each image errs with probability ``risk``.

    Raises:
        MissingDependency: scipy is not installed.
    """
    return float(require("scipy.special", extra="tune").bdtr(errors, images, risk))


def certified(errors: Sequence[int], images: int, risk: float, delta: float) -> int:
    """How many policies, from the first on, keep to the risk.

    With probability at least 1 - ``delta`` over the draw of the images, all of them do.

    Args:
        errors: of each policy, in an order that was fixed without these images.
        images: how many the errors were counted on.
        risk: share of images that the chain may get wrong and the baseline right.
        delta: how often the answer may be wrong.
    """
    for place, count in enumerate(errors):
        if p_value(count, images, risk) > delta:
            return place
    return len(errors)


def images_needed(share: float, risk: float, delta: float) -> int | None:
    """How many images would certify a policy whose share of errors stays what it is.

    Returns:
        The number, or None where no number up to a million would do.
    """
    if share >= risk:
        return None

    def enough(images: int) -> bool:
        return p_value(math.ceil(share * images), images, risk) <= delta

    high = math.ceil(math.log(delta) / math.log1p(-risk))  # without a single error
    while not enough(high):
        high *= 2
        if high > _MOST:  # the share lies so close to the risk that it is no help to know
            return None
    low = high // 2
    while high - low > 1:  # rounding makes single steps uneven; a number that is enough is found
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
