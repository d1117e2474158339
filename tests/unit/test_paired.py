"""Paired tests against cases worked by hand and published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import UsageError
from catalog.scores import holm, paired_test, wilson_interval


def bitmaps(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bitmaps with these counts."""
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    return first, second


def test_the_exact_test_worked_by_hand() -> None:
    result = paired_test(*bitmaps(50, 9, 2, 39))
    assert (result.n, result.both, result.neither) == (100, 50, 39)
    assert (result.only_first, result.only_second) == (9, 2)
    # 2 (C(11,0) + C(11,1) + C(11,2)) / 2^11 = 2 * 67 / 2048
    assert result.p == pytest.approx(134 / 2048, rel=1e-12)
    assert result.difference == pytest.approx(0.07)
    # f = 10/102, g = 3/102, d = 7/102, half = 1.96 sqrt((13/102 - (7/102)^2) / 102) = 0.06799
    half = 1.959964 * math.sqrt((13 / 102 - (7 / 102) ** 2) / 102)
    assert (result.low, result.high) == pytest.approx((7 / 102 - half, 7 / 102 + half), abs=1e-6)
    assert (result.low, result.high) == pytest.approx((0.00064, 0.13662), abs=1e-5)


def test_without_discordant_items_nothing_is_shown() -> None:
    result = paired_test(*bitmaps(3, 0, 0, 2))
    assert (result.difference, result.p) == (0.0, 1.0)
    assert -1 < result.low < 0 < result.high < 1
    assert paired_test(*bitmaps(0, 1, 0, 0)).high == 1.0
    with pytest.raises(UsageError, match="same items"):
        paired_test(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


@given(st.tuples(*[st.integers(0, 30)] * 4).filter(any))
def test_the_test_is_symmetric_and_exact(counts: tuple[int, int, int, int]) -> None:
    both, first, second, neither = counts
    result, swapped = paired_test(*bitmaps(*counts)), paired_test(*bitmaps(both, second, first, neither))
    assert (result.low, result.high) == pytest.approx((-swapped.high, -swapped.low))
    tail = sum(math.comb(first + second, k) for k in range(min(first, second) + 1)) / 2 ** (first + second)
    assert result.p == pytest.approx(swapped.p) == pytest.approx(min(1.0, 2 * tail))


def test_the_interval_of_one_share() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20, method 3.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)


def test_holm_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
