"""Metrics of rankings against cases worked by hand, scikit-learn, and all orders of equal scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import UsageError
from tools.published.ranking import Floats, best_at, mean_at, ndcg, recall_at

Metric = Callable[[Floats, Floats, int], float]
METRICS = (ndcg, mean_at, recall_at, best_at)
NAN = math.nan


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


@st.composite
def rankings(draw: st.DrawFn, most: int = 12) -> tuple[Floats, Floats, int]:
    """Scores with ties, gains with a positive one among them, and a k that may exceed their number."""
    size = draw(st.integers(2, most))
    scores = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    gains = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size).filter(any))
    return floats(*scores), floats(*gains) / 5, draw(st.integers(1, size + 2))


def test_ndcg_worked_by_hand() -> None:
    # In the order of the scores the gains are 0.1, 0.3, 0.0: DCG@2 = 0.1 / 1 + 0.3 / log2(3).
    # The ideal is 0.3, 0.1: 0.3 / 1 + 0.1 / log2(3).
    result = ndcg(floats(2, 9, 1, 5), floats(0.0, 0.1, 0.0, 0.3), 2)
    assert result == pytest.approx((0.1 + 0.3 / math.log2(3)) / (0.3 + 0.1 / math.log2(3)), rel=1e-12)
    # Both first places are shared by 0.1 and 0.3: each counts with the mean of 1 and 1 / log2(3).
    shared = ndcg(floats(2, 9, 1, 9), floats(0.0, 0.1, 0.0, 0.3), 2)
    assert shared == pytest.approx(0.4 * (1 + 1 / math.log2(3)) / 2 / (0.3 + 0.1 / math.log2(3)), rel=1e-12)


@given(rankings())
def test_ndcg_is_that_of_scikit_learn(case: tuple[Floats, Floats, int]) -> None:
    from sklearn.metrics import ndcg_score

    scores, gains, k = case
    assert ndcg(scores, gains, k) == pytest.approx(ndcg_score(gains[None], scores[None], k=k), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@given(case=rankings(most=6))
def test_equal_scores_count_as_all_their_orders_do_on_average(
    metric: Metric, case: tuple[Floats, Floats, int]
) -> None:
    scores, gains, k = case
    # The place in an order decides between equal scores, and only there.
    orders = [
        metric(scores * 100 - np.argsort(order), gains, k) for order in permutations(range(len(scores)))
    ]
    assert metric(scores, gains, k) == pytest.approx(np.mean(orders), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@given(case=rankings(), seed=st.integers(0, 99))
def test_rows_in_another_order_change_nothing(
    metric: Metric, case: tuple[Floats, Floats, int], seed: int
) -> None:
    scores, gains, k = case
    order = np.random.default_rng(seed).permutation(len(scores))
    assert metric(scores[order], gains[order], k) == pytest.approx(metric(scores, gains, k), abs=1e-12)


@given(rankings())
def test_the_gains_themselves_are_the_best_ranking(case: tuple[Floats, Floats, int]) -> None:
    scores, gains, k = case
    assert ndcg(gains, gains, k) == pytest.approx(1)
    for metric in METRICS:
        assert metric(scores, gains, k) <= metric(gains, gains, k) + 1e-12


@pytest.mark.parametrize("metric", METRICS)
def test_adapters_that_nobody_judged_are_not_in_the_list(metric: Metric) -> None:
    judged = metric(floats(3, 2, 1), floats(0.2, 0.5, 0.1), 2)
    assert metric(floats(9, 3, 2, 1), floats(NAN, 0.2, 0.5, 0.1), 2) == judged


@pytest.mark.parametrize("metric", METRICS)
def test_adapters_without_a_score_stand_last(metric: Metric) -> None:
    assert metric(floats(1, 2, NAN), floats(0.2, 0.5, 0.9), 2) == metric(
        floats(1, 2, -5), floats(0.2, 0.5, 0.9), 2
    )


def test_means_recall_and_best_worked_by_hand() -> None:
    scores, values = floats(4, 3, 2, 1), floats(0.5, 0.9, 0.2, 0.9)
    assert mean_at(scores, values, 2) == pytest.approx(0.7)
    assert mean_at(scores, values, 9) == pytest.approx(0.625)
    assert recall_at(scores, values, 2) == 0.5, "the two best are the second and the fourth"
    assert recall_at(scores, values, 1) == 0
    assert best_at(scores, values, 1) == 0.5
    assert best_at(scores, values, 2) == 0.9


def test_no_gain_tells_no_rankings_apart() -> None:
    assert math.isnan(ndcg(floats(2, 1), floats(0, 0), 1))


@pytest.mark.parametrize(
    ("scores", "values", "k", "message"),
    [
        (floats(1, 2), floats(1), 1, "differ in number"),
        (floats(1), floats(1), 0, "at least 1, not 0"),
        (floats(1), floats(NAN), 1, "No adapter was judged"),
    ],
)
@pytest.mark.parametrize("metric", METRICS)
def test_nonsense_is_refused(metric: Metric, scores: Floats, values: Floats, k: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        metric(scores, values, k)


def test_a_negative_gain_is_refused() -> None:
    with pytest.raises(UsageError, match="negative"):
        ndcg(floats(1, 2), floats(-0.1, 1), 1)
