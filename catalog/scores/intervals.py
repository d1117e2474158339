"""Differences of scores over tasks, with their confidence intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UsageError

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean over tasks and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(first: Floats, second: Floats, *, draws: int = 10_000, seed: int = 0) -> Interval:
    """The mean difference first - second over tasks, with the ends of its 95 % percentile interval.

    Both have shape (tasks,); tasks are drawn with replacement, pairs stay together, and tasks where either is
    NaN are left out. Efron and Tibshirani (1993), section 13.3. Raises UsageError if no task is left.
    """
    from scipy.stats import bootstrap

    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        raise UsageError("No task has scores for both rankings; give at least one.")
    low = high = mean = float(difference.mean())
    if len(difference) > 1:
        rng = np.random.default_rng(seed)
        result = bootstrap((difference,), np.mean, n_resamples=draws, method="percentile", rng=rng)
        low, high = map(float, result.confidence_interval)
    return Interval(mean, low, high)
