"""Gram matrices against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.members import Stack
from merging.methods.lowrank import (
    apply,
    concatenate,
    coordinates,
    core_truncation,
    grams,
    pair_products,
    precise_truncation,
    truncate,
    truncate_dense,
    truncation,
)
from tests.merging.adapters import dense, gap, product, random_stack, rotate, stack_of

RANKS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def best(matrix: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def whole(stack: Stack, weights: list[float]) -> Tensor:
    return torch.stack([w * delta for w, delta in zip(weights, dense(stack), strict=True)]).sum(0)


def test_a_truncation_worked_by_hand() -> None:
    # 3 e1 e1^T and 4 e2 e2^T: the larger stays, the energy of the other, 9 of 25, goes.
    stack = stack_of(([[3.0, 0.0]], [[1.0], [0.0]]), ([[0.0, 2.0]], [[0.0], [2.0]]))
    result = truncate(stack, stack.columns([1, 1]), 1)
    assert torch.allclose(product(result), torch.tensor([[0.0, 0.0], [0.0, 4.0]]).double())
    assert (result.energy, result.discarded) == (pytest.approx(25), pytest.approx(9))


@settings(deadline=None, max_examples=60)
@given(RANKS, st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([(14, 10), (9, 30), (40, 40)]))
def test_truncation_is_the_best_one(ranks: list[int], rank: int, seed: int, sides: tuple[int, int]) -> None:
    stack = random_stack(ranks, *sides, seed=seed)
    weights = [(-1) ** n * (1 + n / 3) for n in range(len(ranks))]
    matrix = whole(stack, weights)
    result = truncate(stack, stack.columns(weights), rank)
    loss = float((matrix - best(matrix, rank)).norm())
    assert float((matrix - product(result)).norm()) <= loss + 2e-6 * float(matrix.norm())
    assert result.discarded == pytest.approx(loss**2, abs=1e-5 * float(matrix.norm()) ** 2)
    assert result.energy == pytest.approx(float(matrix.square().sum()), rel=1e-5)
    assert result.a.shape[0] <= rank


@pytest.mark.parametrize("copies", [2, 7])
def test_dependent_factors_do_no_harm(copies: int) -> None:
    item = random_stack([4], 30, 20)
    stack = stack_of(*[(item.a, item.b)] * copies)
    result = truncate(stack, stack.columns([1 / copies] * copies), 4)
    assert gap(result, dense(item)[0]) < 1e-6
    assert result.a.shape[0] == 4
    more = truncate(stack, stack.columns([1 / copies] * copies), 4 * copies)
    assert more.a.shape[0] == 4


def test_float32_grams_decline_what_they_cannot_tell() -> None:
    item = random_stack([4], 30, 20)
    copies = stack_of(*[(item.a, item.b)] * 2)
    assert truncation(grams(copies, precise=False), copies.columns([1, 1]), 4) is None
    steep = stack_of((item.a, item.b * torch.logspace(0, -6, 4)))
    assert truncation(grams(steep, precise=False), steep.columns([1]), 3) is None
    assert gap(truncate(steep, steep.columns([1]), 3), best(dense(steep)[0], 3)) < 1e-6
    plain = random_stack([4, 4], 30, 20)
    assert truncation(grams(plain, precise=False), plain.columns([1, 1]), 3) is not None


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12, 1e25])
def test_squares_outside_float32_are_no_loss(size: float) -> None:
    item = random_stack([4, 3], 30, 20)
    scaled = stack_of((item.a[:4], item.b[:, :4] * size), (item.a[4:], item.b[:, 4:] * size))
    result, expected = truncate(scaled, scaled.columns([1, 1]), 3), truncate(item, item.columns([1, 1]), 3)
    assert torch.allclose(product(result) / size, product(expected), atol=1e-4)
    assert result.energy is not None
    assert expected.energy is not None
    assert result.energy / size**2 == pytest.approx(expected.energy, rel=1e-5)


def test_nearly_equal_members_keep_their_difference() -> None:
    """Two runs from one initialisation: A differs by a thousandth, and their difference is wanted."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(4, 60, generator=generator)
    b = torch.randn(50, 4, generator=generator)
    near = a + 1e-3 * torch.randn(4, 60, generator=generator)
    stack = stack_of((a, b), (near, b))
    result = truncate(stack, stack.columns([1, -1]), 4)
    assert gap(result, whole(stack, [1.0, -1.0])) < 1e-5


def test_zero_members_give_a_zero_update_of_rank_one() -> None:
    stack = stack_of((torch.zeros(2, 5), torch.ones(4, 2)))
    result = truncate(stack, stack.columns([1]), 2)
    assert result.a.shape == (1, 5)
    assert not product(result).any()
    assert (result.energy, result.discarded) == (0.0, 0.0)


@settings(deadline=None, max_examples=40)
@given(RANKS, st.integers(0, 10**6))
def test_products_norms_and_sums_are_those_of_the_dense_updates(ranks: list[int], seed: int) -> None:
    stack = random_stack(ranks, seed=seed)
    deltas = torch.stack(dense(stack)).flatten(1)
    torch.testing.assert_close(
        pair_products(grams(stack), stack.ranks),
        deltas @ deltas.T,
        rtol=1e-9,
        atol=1e-9 * float(deltas.norm()) ** 2,
    )
    weights = [0.5 - n for n in range(len(ranks))]
    expected = whole(stack, weights)
    assert precise_truncation(grams(stack), stack.columns(weights), 1).energy == pytest.approx(
        float(expected.square().sum()), rel=1e-9
    )
    assert gap(concatenate(stack, stack.columns(weights)), expected) < 1e-6


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_gauge_of_the_members_does_not_matter(orthogonal: bool) -> None:
    stack = random_stack([3, 5, 2], 40, 30)
    other = rotate(stack, seed=5, orthogonal=orthogonal)
    weights = [1.0, -2.0, 0.5]
    left, right = (truncate(s, s.columns(weights), 4) for s in (stack, other))
    assert gap(left, product(right)) < 1e-5
    torch.testing.assert_close(
        pair_products(grams(stack), stack.ranks),
        pair_products(grams(other), other.ranks),
        rtol=1e-5,
        atol=1e-2,
    )


def test_cached_grams_serve_every_weight_vector() -> None:
    stack = random_stack([3, 4, 5], 40, 30)
    result = grams(stack)
    for weights in ([1.0, 0.0, 0.0], [0.2, 0.3, -0.5]):
        update = apply(stack, precise_truncation(result, stack.columns(weights), 4))
        matrix = whole(stack, weights)
        assert float((matrix - product(update)).norm()) == pytest.approx(
            float((matrix - best(matrix, 4)).norm()), abs=1e-5
        )


def test_coordinates_are_orthonormal_and_complete() -> None:
    stack = random_stack([3, 4], 9, 20)
    c, k = coordinates(grams(stack).a)
    basis = c @ stack.a.double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(7).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(k.T @ basis, stack.a.double(), rtol=0, atol=1e-10)


def test_a_core_is_truncated_in_its_bases() -> None:
    stack = random_stack([3, 4], 15, 20)
    result = grams(stack)
    (right, k_right), (left, k_left) = coordinates(result.a), coordinates(result.b)
    update = apply(stack, core_truncation(k_left @ k_right.T, left, right, 3))
    matrix = whole(stack, [1.0, 1.0])
    assert gap(update, best(matrix, 3)) < 1e-6


@pytest.mark.parametrize("sides", [(8, 21), (21, 8), (6, 6)])
def test_dense_truncation_on_either_side(sides: tuple[int, int]) -> None:
    matrix = torch.randn(*sides, generator=torch.Generator().manual_seed(1))
    result = truncate_dense(matrix, 3)
    assert gap(result, best(matrix.double(), 3)) < 1e-6
    assert result.discarded == pytest.approx(
        float(torch.linalg.svdvals(matrix.double())[3:].square().sum()), rel=1e-6
    )
