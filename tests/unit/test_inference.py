"""Tests of mean differences over tasks: by hand, against scipy, and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from catalog.scores import holm, left_out_means, mean_test, sign_flip_p
from tools.coverage import EFFECTS, TASKS, simulate_coverage, simulate_words


def test_a_t_interval_by_hand() -> None:
    # Mean 2, standard deviation 1, error 1/sqrt(3); t of 2 degrees of freedom is 4.302653 and 2.919986.
    test = mean_test([1.0, 2.0, 3.0])
    assert test.mean == 2.0
    assert (test.low, test.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-6)
    assert (test.inner_low, test.inner_high) == pytest.approx(
        (2 - 2.919986 / 3**0.5, 2 + 2.919986 / 3**0.5), abs=1e-6
    )
    assert test.p == pytest.approx(stats.ttest_1samp([1, 2, 3], 0).pvalue)
    # All three positive: two of eight assignments of signs are as far out.
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8


def test_differences_of_zero_have_no_p_value_and_constant_ones_have_zero() -> None:
    nothing = mean_test([0.0] * 8)
    assert (nothing.low, nothing.high, nothing.p, sign_flip_p([0.0] * 8)) == (0, 0, None, 1)
    constant = mean_test([0.1] * 8)
    assert (constant.low, constant.high) == pytest.approx((0.1, 0.1))
    assert (constant.p, sign_flip_p([0.1] * 8)) == (0.0, 2 / 2**8)
    with pytest.raises(ValueError, match="at least two"):
        mean_test([0.1])


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_are_those_of_every_assignment(seed: int) -> None:
    values = np.round(np.random.default_rng(seed).normal(0.5, 1, size=9), 1)
    signs = itertools.product((-1, 1), repeat=9)
    hits = sum(abs(np.dot(row, values)) >= abs(values.sum()) - 1e-9 for row in signs)
    assert sign_flip_p(values) == hits / 2**9


def test_many_sign_flips_are_drawn_the_same_each_time_and_never_give_zero() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, size=36)
    assert sign_flip_p(values) == sign_flip_p(values)
    expected = stats.ttest_1samp(values, 0).pvalue
    assert sign_flip_p(values) == pytest.approx(expected, abs=0.02)
    assert sign_flip_p([1.0] * 36) == 1 / 20_001


def test_holm_by_hand() -> None:
    # 3 x .01, then 2 x .02, never below the one before; the last stays.
    assert holm([0.02, 0.01, 0.045]) == pytest.approx([0.04, 0.03, 0.045])
    assert holm([0.03, 0.02, 0.9]) == pytest.approx([0.06, 0.06, 0.9])


def test_means_without_each_task() -> None:
    assert left_out_means([1.0, 2.0, 6.0]) == pytest.approx([4.0, 3.5, 1.5])


@pytest.fixture(scope="module")
def coverage() -> dict[tuple[int, str], NDArray[np.float64]]:
    """Percent covered by percentile and t intervals."""
    return {
        (n, effect): np.array(simulate_coverage(n, effect, draws=1000)) for n in TASKS for effect in EFFECTS
    }


def test_t_intervals_cover_normal_effects_and_bootstraps_do_not(
    coverage: dict[tuple[int, str], NDArray[np.float64]],
) -> None:
    for n in TASKS:
        bootstrap, t = coverage[n, "normal"]
        assert t == pytest.approx(95, abs=2.5)
        assert bootstrap < (92 if n < 20 else 97)
    assert coverage[6, "few big"][1] < 91  # Skew costs both, and the bootstrap more.
    assert coverage[6, "few big"][0] < coverage[6, "few big"][1]


def test_false_words_are_rare_and_true_ones_need_tasks() -> None:
    words = {n: simulate_words(n, 0.0, draws=1000) for n in TASKS}
    assert words[6].false_words == 0  # No word below 8 tasks.
    assert all(words[n].false_words < 8 for n in TASKS)
    assert words[36].same > 75 > words[8].same
    assert simulate_words(8, 2.0, draws=1000).better < 20
    assert simulate_words(36, 2.0, draws=1000).better > 55
