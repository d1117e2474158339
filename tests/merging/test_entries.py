"""Entries in blocks against whole matrices, thresholds against sorting, and random numbers by position."""

from __future__ import annotations

import pytest
import torch

import merging.methods.blocks as entries_module
from merging.members import Stack
from merging.methods import ModuleWork, find_method
from merging.methods.blocks import Entries, entries, magnitude_thresholds, merge_entries, normal, uniform
from tests.merging.adapters import dense, gap, product, random_stack, rotate


def work_of(stack: Stack, space: str = "delta", rank: int = 50, memory: int = 1 << 29) -> ModuleWork:
    options = find_method("ties").options({"space": space})
    count = len(stack.ranks)
    return ModuleWork(stack, (1.0,) * count, rank, tuple(map(str, range(count))), options, memory=memory)


def whole(result: Entries) -> torch.Tensor:
    return result.block(slice(0, result.rows))


@pytest.mark.parametrize("space", ["delta", "knots", "core"])
def test_every_space_holds_the_updates(space: str) -> None:
    """A sum of entries, lifted, is the sum of the updates: the spaces lose nothing."""
    stack = random_stack([3, 2, 4], 30, 20)
    work = work_of(stack, space)
    merged = merge_entries(work, entries(work), lambda values, rows: values.sum(0))
    assert gap(merged, torch.stack(dense(stack)).sum(0)) < 1e-5


def test_the_common_basis_of_outputs_is_that_of_knots() -> None:
    """|U^T Delta W_i| with U from the dense SVD of [Delta W_1 ... Delta W_N]; a row's sign is free."""
    stack = random_stack([3, 2], 14, 12)
    deltas = dense(stack)
    u = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False).U[:, :5]
    result = whole(entries(work_of(stack, "knots")))
    for n, delta in enumerate(deltas):
        torch.testing.assert_close(result[n].double().abs(), (u.T @ delta).abs(), rtol=1e-4, atol=1e-4)


def test_the_core_is_that_of_core_space() -> None:
    stack = random_stack([3, 2], 14, 12)
    u = torch.linalg.svd(stack.b.double(), full_matrices=False).U
    v = torch.linalg.svd(stack.a.double(), full_matrices=False).Vh
    result = whole(entries(work_of(stack, "core"))).flip(1, 2)
    for n, delta in enumerate(dense(stack)):
        torch.testing.assert_close(result[n].double().abs(), (u.T @ delta @ v.T).abs(), rtol=1e-4, atol=1e-4)


def test_knots_do_not_depend_on_the_gauge_and_cores_on_rotations_neither() -> None:
    stack = random_stack([3, 2], 14, 12)
    for space, orthogonal in (("knots", False), ("core", True)):
        left = whole(entries(work_of(stack, space))).abs()
        right = whole(entries(work_of(rotate(stack, orthogonal=orthogonal), space))).abs()
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("keep", [0.0, 0.003, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("small", [True, False])
def test_thresholds_keep_exactly_the_share(keep: float, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only a sample is sorted; the sample of 300 is small enough to mislead now and then."""
    if not small:
        monkeypatch.setattr(entries_module, "_SMALL", 10)
        monkeypatch.setattr(entries_module, "_SAMPLE", 300)
        monkeypatch.setattr(entries_module, "_BLOCK", 4000)
    for seed in range(8):
        work = work_of(random_stack([3, 2, 1], 37, 23, seed))
        result = entries(work)
        remaining = (whole(result).abs() >= magnitude_thresholds(work, result, keep)).flatten(1).sum(1)
        assert remaining.tolist() == [int(keep * 37 * 23 + 1e-9)] * 3


def test_a_sample_that_misleads_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries_module, "_SMALL", 10)
    monkeypatch.setattr(entries_module, "_sample", lambda work, result, member: torch.full((300,), 1e9))
    work = work_of(random_stack([3], 37, 23))
    result = entries(work)
    assert int((whole(result).abs() >= magnitude_thresholds(work, result, 0.2)).sum()) == int(0.2 * 37 * 23)


def test_sampled_thresholds_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries_module, "_SMALL", 10)
    work = work_of(random_stack([3, 2], 300, 200))
    result = entries(work)
    remaining = (
        (whole(result).abs() >= magnitude_thresholds(work, result, 0.2, exact=False)).float().mean((1, 2))
    )
    torch.testing.assert_close(remaining, torch.full((2,), 0.2), rtol=0, atol=0.005)


def test_many_zeros_keep_all_that_is_not_zero() -> None:
    stack = random_stack([1], 10, 10)
    stack.b[2:] = 0
    work = work_of(stack)
    result = entries(work)
    limit = magnitude_thresholds(work, result, 0.9)
    assert int((whole(result) * (whole(result).abs() >= limit)).count_nonzero()) == 20


@pytest.mark.parametrize("memory", [1 << 29, 1])
def test_blocks_and_budget_do_not_change_the_result(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The subspace is iterated over a matrix in memory, or over one that is made anew for each pass."""
    stack = random_stack([3, 2, 4], 90, 70)
    truth = torch.stack(dense(stack)).clamp(-1, 1).sum(0)
    s = torch.linalg.svdvals(truth)
    monkeypatch.setattr(entries_module, "_EXACT_SIDE", 8)
    monkeypatch.setattr(entries_module, "_BLOCK", 5000)
    work = work_of(stack, rank=6, memory=memory)
    update = merge_entries(work, entries(work), lambda values, rows: values.clamp(-1, 1).sum(0))
    loss = float((truth - product(update)).norm())
    assert loss <= 1.01 * float(s[6:].norm())
    assert update.discarded == pytest.approx(loss**2, rel=1e-3)
    assert update.energy == pytest.approx(float(truth.square().sum()), rel=1e-5)


def test_random_numbers_belong_to_the_entry_and_not_to_the_block() -> None:
    at_once = uniform([5, 6], slice(0, 9), 7)
    parts = torch.cat([uniform([5, 6], slice(0, 2), 7), uniform([5, 6], slice(2, 9), 7)], 1)
    assert torch.equal(at_once, parts)
    assert torch.equal(at_once[1:], uniform([6], slice(0, 9), 7))


def test_random_numbers_are_uniform_and_keys_and_neighbours_independent() -> None:
    keys = [3, 4, 3 + (1 << 40)]
    numbers = uniform(keys, slice(0, 400), 500)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    counts = torch.histc(numbers, 50, 0, 1) / numbers.numel()
    # 600,000 numbers: a share of 1/50 has a standard deviation of 0.00018.
    torch.testing.assert_close(counts, torch.full((50,), 0.02), rtol=0, atol=0.001)
    correlations = torch.corrcoef(numbers.flatten(1))
    assert float((correlations - torch.eye(3)).abs().max()) < 0.01
    for shifted in (numbers.roll(1, 2), numbers.roll(1, 1)):
        assert abs(float(torch.corrcoef(torch.stack([numbers.flatten(), shifted.flatten()]))[0, 1])) < 0.01


def mixed(x: int) -> int:
    for _ in range(2):
        x = ((x ^ x >> 16) * 0x45D9F3B) % 2**32
    return x ^ x >> 16


def test_random_numbers_are_these_on_every_machine() -> None:
    """The definition in whole numbers of Python."""
    key = (77 << 32) + 4_000_000_000
    expected = [mixed(mixed((5 * 7 + j) ^ 4_000_000_000) ^ 77) >> 8 for j in range(7)]
    assert (uniform([key], slice(5, 6), 7) * 2**24).long().flatten().tolist() == expected
    assert torch.equal(normal(9, 3, 4), normal(9, 3, 4))
