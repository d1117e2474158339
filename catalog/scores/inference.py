"""What paired differences over tasks allow to say: t intervals, p-values, sign flips.

A task counts once, whatever the number of its seeds. Percentile bootstraps over 6 to 8 tasks cover 80 to 90 %
in place of 95 %, and are not used for verdicts (`tests/unit/test_inference.py` simulates both).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Up to so many tasks all signs are enumerated, 65,536 of them; above they are drawn.
_ENUMERATED = 16
_DRAWS = 20_000
# Sums of the same numbers in another order differ by this share of the sum of their sizes.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class MeanTest:
    """The mean of differences over tasks and what is known of it.

    `low` and `high` are the ends of the 95 % t interval with n − 1 degrees of freedom, `inner_low` and
    `inner_high` of the 90 % one, by which two one-sided tests judge equality at 5 %. `p` is the two-sided
    p-value of the t test, None if all differences are zero.
    """

    mean: float
    low: float
    high: float
    inner_low: float
    inner_high: float
    p: float | None


def mean_test(differences: Sequence[float]) -> MeanTest:
    """The test of the mean of at least two differences, one a task, against zero.

    Raises:
        ValueError: for fewer than two differences.

    Student (1908); the 90 % interval is that of Schuirmann's two one-sided tests (1987).
    """
    from scipy.stats import t

    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n < 2:
        raise ValueError("A test of a mean requires at least two differences.")
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(n))
    wide, narrow = (float(t.ppf(level, n - 1)) * error for level in (0.975, 0.95))
    if not values.any():
        p = None
    elif error <= _ROUNDING * float(np.abs(values).max()):
        p = 0.0
    else:
        p = float(2 * t.sf(abs(mean) / error, n - 1))
    ends = mean - wide, mean + wide, mean - narrow, mean + narrow
    return MeanTest(mean, *ends, p)


def sign_flip_p(differences: Sequence[float] | Floats, *, seed: int = 0) -> float:
    """The two-sided p-value of the sign-flip test of differences with mean zero.

    The share of all assignments of signs whose sum is at least as far from zero; over more than 16 tasks of
    20,000 drawn by `seed`, the observed one counted (Phipson and Smyth 2010). Fisher (1935), section 21.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    n = len(values)
    if not n:
        return 1.0
    # Of a sum and its mirror image one suffices: the first sign stays.
    if n <= _ENUMERATED:
        codes = np.arange(2 ** (n - 1))[:, None]
        signs = 1.0 - 2.0 * ((codes >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_DRAWS, n))
    bound = abs(float(values.sum())) - _ROUNDING * float(np.abs(values).sum())
    hits = int((np.abs(signs @ values) >= bound).sum())
    return hits / len(signs) if n <= _ENUMERATED else (hits + 1) / (_DRAWS + 1)


def left_out_means(differences: Sequence[float]) -> list[float]:
    """The mean of the others for each difference; at least two are required."""
    values = np.asarray(differences, dtype=np.float64)
    rest = (values.sum() - values) / (len(values) - 1)
    return [float(value) for value in rest]
