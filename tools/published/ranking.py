"""How good a ranking is, judged by what its members turned out to be worth.

Every function takes the ranker's `scores` and the judged `values` of the same adapters, both of shape (N,).
An adapter that nobody judged (NaN among the values) is taken out of the list before anything is counted, as
in condensed lists (Sakai, SIGIR 2007); one without a score (NaN) stands behind all others. Adapters with the
same score share their places: each counts with the mean of the places' weights, which is what a random order
among them would give on average (McSherry and Najork, ECIR 2008). So no result depends on the order of rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from catalog.errors import UsageError

Floats = NDArray[np.float64]


def ndcg(scores: Floats, gains: Floats, k: int) -> float:
    """nDCG@k with linear gains: sum of gain_i / log2(1 + place_i) over the first k places, over the ideal.

    The ideal order is that of all judged adapters. Gains must not be negative. NaN where no adapter gains
    anything: such a task cannot tell rankings apart. Järvelin and Kekäläinen, TOIS 20 (2002), section 2.2,
    with the discount of Burges et al. (ICML 2005).
    """
    scores, gains = _select_judged(scores, gains, k)
    if gains.min() < 0:
        raise UsageError("A gain is negative; give gains of zero or more.")
    discounts = 1 / np.log2(np.arange(2, min(k, len(gains)) + 2))
    ideal = float(np.sort(gains)[::-1][: len(discounts)] @ discounts)
    return float(_share_weights(scores, discounts) @ gains) / ideal if ideal > 0 else float("nan")


def mean_at(scores: Floats, values: Floats, k: int) -> float:
    """The mean value of the first k; of all where there are fewer than k."""
    scores, values = _select_judged(scores, values, k)
    places = min(k, len(values))
    return float(_share_weights(scores, np.full(places, 1 / places)) @ values)


def recall_at(scores: Floats, values: Floats, k: int) -> float:
    """The share of the k most valuable adapters among the first k.

    All that are worth as much as the k-th count as among the most valuable.
    """
    scores, values = _select_judged(scores, values, k)
    places = min(k, len(values))
    relevant = values >= np.sort(values)[::-1][places - 1]
    return float(_share_weights(scores, np.full(places, 1 / places)) @ relevant)


def best_at(scores: Floats, values: Floats, k: int) -> float:
    """The largest value among the first k, expected over the orders of adapters with the same score.

    With t places left for a group of g adapters of one score, the largest of t drawn from it exceeds its
    j-th smallest value with probability 1 - C(j, t) / C(g, t).
    """
    scores, values = _select_judged(scores, values, k)
    places = min(k, len(values))
    cut = np.sort(scores)[::-1][places - 1]
    sure = values[scores > cut]
    floor = float(sure.max()) if len(sure) else -np.inf
    group = np.maximum(np.sort(values[scores == cut]), floor)
    left, size = places - len(sure), len(group)
    # chance[j]: all drawn values are among the j + 1 smallest, C(j + 1, left) / C(size, left).
    top = np.arange(1, size + 1, dtype=np.float64)
    chance = np.ones(size)
    for step in range(left):
        chance *= np.maximum(top - step, 0) / (size - step)
    return float(np.diff(chance, prepend=0.0) @ group)


def _select_judged(scores: Floats, values: Floats, k: int) -> tuple[Floats, Floats]:
    """Scores and values of the judged adapters; a missing score is minus infinity."""
    scores, values = np.asarray(scores, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if scores.shape != values.shape or scores.ndim != 1:
        raise UsageError("Scores and values differ in number; give one of each an adapter.")
    if k < 1:
        raise UsageError(f"A ranking is judged by its first adapters, at least 1, not {k}.")
    judged = ~np.isnan(values)
    if not judged.any():
        raise UsageError("No adapter was judged on this task; leave the task out.")
    return np.where(np.isnan(scores), -np.inf, scores)[judged], values[judged]


def _share_weights(scores: Floats, weights: Floats) -> Floats:
    """The weight of each adapter's place, (N,): places from the first on, equal scores share theirs."""
    places = np.zeros(len(scores))
    places[: len(weights)] = weights
    _, group = np.unique(-scores, return_inverse=True)
    sizes = np.bincount(group)
    ends = np.cumsum(sizes)
    totals = np.concatenate([[0.0], np.cumsum(places)])
    shares: Floats = (totals[ends] - totals[ends - sizes]) / sizes
    return shares[group]
