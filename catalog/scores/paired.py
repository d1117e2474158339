"""Comparisons of scores on the same items, and intervals of single scores.

All are of binary outcomes: the exact McNemar test, the interval of Bonett and Price for the difference of two
paired proportions, the interval of Wilson for one, and Holm's correction for several tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UsageError

# The normal quantile of a two-sided 95 % interval.
_QUANTILE = 1.959963984540054


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two scores on the same n items: how many both, only one, or neither answered right.

    `difference` is the first score minus the second, with the ends of its 95 % interval; `p` is two-sided.
    """

    n: int
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    low: float
    high: float
    p: float


def paired_test(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> PairedTest:
    """The comparison of two bitmaps (n,) of the same items.

    The p-value is McNemar's, exact: the two-sided binomial test that of the items that one alone answered
    right half are the first's (McNemar, Psychometrika 12 (1947)). The interval is the adjusted Wald interval
    of Bonett and Price, J. Educational and Behavioral Statistics 37 (2012): with b and c such items, f =
    (b + 1) / (n + 2), g = (c + 1) / (n + 2) and d = f - g it is d -+ z sqrt((f + g - d^2) / (n + 2)), cut to
    -1 and 1. Raises UsageError for bitmaps of different lengths.
    """
    from scipy.stats import binomtest

    if first.shape != second.shape or not len(first):
        raise UsageError("A paired test requires the outcomes of two scores on the same items.")
    n, both = len(first), int((first & second).sum())
    only_first, only_second = int(first.sum()) - both, int(second.sum()) - both
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    shares = [(count + 1) / (n + 2) for count in (only_first, only_second)]
    middle = shares[0] - shares[1]
    half = _QUANTILE * math.sqrt((sum(shares) - middle**2) / (n + 2))
    return PairedTest(
        n=n,
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=n - both - discordant,
        difference=(only_first - only_second) / n,
        low=max(middle - half, -1.0),
        high=min(middle + half, 1.0),
        p=p,
    )


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The ends of the 95 % interval of a share of n items (Wilson, J. Am. Stat. Assoc. 22 (1927))."""
    squared = _QUANTILE**2 / n
    middle = (share + squared / 2) / (1 + squared)
    half = _QUANTILE / (1 + squared) * math.sqrt((share * (1 - share) + squared / 4) / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted so that any false finding has the level of one (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min((len(order) - rank) * p_values[at], 1.0))
        adjusted[at] = largest
    return adjusted
