"""Sums and averages: worked by hand, and against the dense sum."""

from __future__ import annotations

import pytest
import torch

from merging.methods import METHODS, averaging
from tests.merging.adapters import dense, gap, product, random_stack, rotate, run, stack_of

EXACT = [row.name for row in averaging.METHODS if row.exact]
# Delta W_1 = [[1, 2], [0, 0]] and Delta W_2 = [[0, 0], [3, 4]].
FIRST, SECOND = ([[1.0, 2.0]], [[1.0], [0.0]]), ([[3.0, 4.0]], [[0.0], [1.0]])


@pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [
        ("average", None, [[0.5, 1.0], [1.5, 2.0]]),
        ("average", [3.0, 1.0], [[0.75, 1.5], [0.75, 1.0]]),
        ("sum", None, [[1.0, 2.0], [3.0, 4.0]]),
        ("sum", [2.0, -1.0], [[2.0, 4.0], [-3.0, -4.0]]),
        ("concatenation", [2.0, -1.0], [[2.0, 4.0], [-3.0, -4.0]]),
        ("svd", [2.0, -1.0], [[2.0, 4.0], [-3.0, -4.0]]),
        ("peft-cat", [2.0, -1.0], [[2.0, 4.0], [-3.0, -4.0]]),
        ("peft-svd", None, [[1.0, 2.0], [3.0, 4.0]]),
        # ([1 2] + [3 4]) / 2 below ([1 0] + [0 1]) / 2: every entry of B A is mixed.
        ("separate-average", None, [[1.0, 1.5], [1.0, 1.5]]),
        # A = [1 2] + [3 4], B = [1 1]: the cross terms are as large as the sum.
        ("peft-linear", None, [[4.0, 6.0], [4.0, 6.0]]),
        # w = (4, -1): A = 2 [1 2] - [3 4] = [-1 0], B = [2 1].
        ("peft-linear", [4.0, -1.0], [[-2.0, 0.0], [-1.0, 0.0]]),
    ],
)
def test_cases_worked_by_hand(method: str, weights: list[float] | None, expected: list[list[float]]) -> None:
    result = product(run(method, stack_of(FIRST, SECOND), weights))
    torch.testing.assert_close(result, torch.tensor(expected).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", EXACT)
def test_exact_methods_are_the_dense_sum_at_any_mix_of_ranks(method: str) -> None:
    stack = random_stack([3, 1, 5])
    weights = [0.7, -0.4, 1.3]
    arguments = [w / sum(weights) for w in weights] if METHODS[method].normalised else weights
    expected = torch.stack([w * d for w, d in zip(arguments, dense(stack), strict=True)]).sum(0)
    assert gap(run(method, stack, weights), expected) < 1e-6
    assert gap(run(method, rotate(stack, orthogonal=False), weights), expected) < 1e-4


@pytest.mark.parametrize("method", ["average", "svd"])
def test_copies_of_one_average_to_it(method: str) -> None:
    item = random_stack([3])
    assert gap(run(method, stack_of(*[(item.a, item.b)] * 5)), dense(item)[0]) < 1e-6


@pytest.mark.parametrize("method", ["separate-average", "peft-linear"])
def test_separate_sums_depend_on_the_gauge_and_this_is_said(method: str) -> None:
    stack = random_stack([3, 3])
    left, right = run(method, stack), run(method, rotate(stack))
    assert gap(left, product(right)) > 0.1
    assert METHODS[method].gauge == "dependent"


def test_cross_terms_are_what_separate_sums_have_too_much() -> None:
    """(B_1 + B_2)(A_1 + A_2) - B_1 A_1 - B_2 A_2 = B_1 A_2 + B_2 A_1."""
    stack = random_stack([4, 4], 30, 20)
    excess = product(run("peft-linear", stack)) - product(run("sum", stack))
    first, second = stack.ranges()
    cross = stack.b[:, first].double() @ stack.a[second].double()
    cross += stack.b[:, second].double() @ stack.a[first].double()
    torch.testing.assert_close(excess, cross, rtol=1e-5, atol=1e-5)
    assert float(cross.norm()) > 0.5 * float(product(run("sum", stack)).norm())


def test_a_lower_rank_is_the_best_approximation_of_the_same_sum() -> None:
    stack = random_stack([3, 4])
    assert gap(run("average", stack, rank=2), product(run("svd", stack, rank=2))) < 1e-6
    assert run("average", stack, rank=2).a.shape[0] == 2


def test_the_order_of_members_does_not_matter() -> None:
    stack = random_stack([3, 4, 2])
    first, second, third = stack.ranges()
    pairs = [(stack.a[place], stack.b[:, place]) for place in (third, first, second)]
    for method in EXACT:
        left, right = run(method, stack, [0.5, 2, -1], 4), run(method, stack_of(*pairs), [-1, 0.5, 2], 4)
        assert gap(left, product(right)) < 1e-5
