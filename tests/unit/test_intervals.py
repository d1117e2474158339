"""Intervals over tasks against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from catalog.errors import UsageError
from catalog.scores import paired_bootstrap
from catalog.scores.intervals import Floats

NAN = math.nan


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


def test_the_bootstrap_keeps_pairs_together() -> None:
    first = np.random.default_rng(0).uniform(size=30)
    result = paired_bootstrap(first + 0.25, first)
    assert result == pytest.approx((0.25, 0.25, 0.25)), "every task differs by the same"
    assert paired_bootstrap(first, first) == (0, 0, 0)


def test_the_bootstrap_leaves_out_tasks_without_a_judgement() -> None:
    result = paired_bootstrap(floats(1, NAN, 1), floats(0, 0, NAN))
    assert result == (1, 1, 1)
    with pytest.raises(UsageError, match="No task has scores"):
        paired_bootstrap(floats(NAN), floats(1))


def test_the_bootstrap_gives_the_same_interval_for_the_same_seed() -> None:
    a, b = np.random.default_rng(1).uniform(size=(2, 20))
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(a, b, seed=3)
    assert paired_bootstrap(a, b, seed=3) != paired_bootstrap(a, b, seed=4)
    mirrored = paired_bootstrap(b, a, seed=3)
    assert (mirrored.mean, mirrored.low) == pytest.approx(
        (-paired_bootstrap(a, b, seed=3).mean, -paired_bootstrap(a, b, seed=3).high)
    )


@pytest.mark.parametrize("tasks", [1, 2, 5, 36])
def test_the_bootstrap_is_that_of_the_percentiles_of_means(tasks: int) -> None:
    difference = np.random.default_rng(tasks).normal(size=tasks)
    rows = np.random.default_rng(0).integers(tasks, size=(10_000, tasks))
    ends = np.quantile(difference[rows].mean(axis=1), [0.025, 0.975])
    result = paired_bootstrap(difference, np.zeros(tasks))
    assert result == pytest.approx((difference.mean(), *ends), abs=1e-12)


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        result = paired_bootstrap(rng.normal(0.1, 0.2, size=40), np.zeros(40), draws=500, seed=trial)
        inside += result.low <= 0.1 <= result.high
    assert 0.90 <= inside / 300 <= 0.98
