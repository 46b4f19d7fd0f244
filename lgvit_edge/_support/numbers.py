"""Reads numbers that a caller gave: text, booleans and NaN are none."""

from __future__ import annotations

import math
from numbers import Integral, Real

from lgvit_edge.errors import UsageError


def real(value: object) -> float:
    """Return a number as a float, and NaN, which is in no range, for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    return float(value)


def positive(name: str, value: object) -> float:
    """Return a finite number above 0 as a float.

    Raises:
        UsageError: it is none; names what it was given for.
    """
    if not 0 < real(value) < math.inf:
        raise UsageError(f"{name} must be a positive number, found {value!r}")
    return real(value)


def whole(name: str, value: object) -> int:
    """Return a whole number of at least 1; NumPy's will do.

    Raises:
        UsageError: it is none; names what it was given for.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, found {value!r}")
    return int(value)
