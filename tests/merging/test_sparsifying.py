"""DARE, DELLA, Breadcrumbs, magnitude: worked by hand, on average over seeds, and what stays."""

from __future__ import annotations

import pytest
import torch

from merging.methods import ModuleWork, find_method
from merging.methods.blocks import entries
from merging.methods.sign_election import magnitude
from merging.methods.sparsifying import breadcrumbs, dare, della
from tests.merging.adapters import dense, gap, product, random_stack, rotate, run, stack_of

ONE = [[1.0, 0.0], [0.0, 1.0]]
FIRST, SECOND = ([[4.0, -1.0], [2.0, 3.0]], ONE), ([[2.0, 5.0], [-6.0, 1.0]], ONE)
RANDOM = ["dare", "dare-ties", "della", "knots-dare-ties", "peft-dare-linear-svd", "peft-dare-ties-svd"]


def test_magnitude_worked_by_hand() -> None:
    # Half of the entries stay: [4 .; . 3] and [. 5; -6 .], each times its weight.
    result = product(run("magnitude", stack_of(FIRST, SECOND), [1, 2], density=0.5))
    torch.testing.assert_close(result, torch.tensor([[4.0, 10.0], [-12.0, 3.0]]).double(), rtol=0, atol=1e-5)


def test_breadcrumbs_worked_by_hand() -> None:
    # A quarter from the top (4, and 6) and a quarter from the bottom (-1, and 1) go.
    result = product(run("breadcrumbs", stack_of(FIRST, SECOND), [1, 1], density=0.5, largest=0.25))
    torch.testing.assert_close(result, torch.tensor([[2.0, 5.0], [2.0, 3.0]]).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["magnitude", "dare", "breadcrumbs"])
def test_with_everything_kept_it_is_the_average(method: str) -> None:
    stack = random_stack([3, 2])
    options = {"density": 1, "largest": 0} if method == "breadcrumbs" else {"density": 1}
    assert gap(run(method, stack, **options), torch.stack(dense(stack)).mean(0)) < 1e-5


@pytest.mark.parametrize("space", ["delta", "knots", "core"])
def test_dare_is_unbiased_over_seeds(space: str) -> None:
    """The mean of n results has 1/n of the variance of one: (1 - p) / p of the squared entries."""
    stack = random_stack([2, 2], 16, 12)
    runs = [product(run("dare", stack, seed=seed, density=0.5, space=space)) for seed in range(200)]
    expected = torch.stack(dense(stack)).mean(0)
    spread = torch.stack([delta.square() for delta in dense(stack)]).sum().sqrt() / 2
    assert float((torch.stack(runs).mean(0) - expected).norm()) < 2 * float(spread) / 200**0.5
    assert float((runs[0] - expected).norm()) > 0.5 * float(spread)


def test_della_is_unbiased_over_seeds_and_keeps_large_entries_more_often() -> None:
    stack = random_stack([4], 40, 30)
    row = find_method("della")
    remaining, mean = torch.zeros(30, 40), torch.zeros(30, 40)
    for seed in range(300):
        work = ModuleWork(stack, (1.0,), 30, ("a",), row.options({"density": 0.5, "window": 0.6}), seed)
        result = entries(work)
        block = result.block(slice(0, 30))
        dropped = della(work, result)(block, slice(0, 30))[0]
        remaining += (dropped != 0) / 300
        mean += dropped / 300
    order = block[0].abs().argsort(1)
    chances = remaining.gather(1, order).mean(0)
    expected = torch.linspace(0.2, 0.8, 40)
    # 30 rows x 300 seeds: a share has a standard deviation of at most 0.0053.
    torch.testing.assert_close(chances, expected, rtol=0, atol=0.025)
    assert float((mean - block[0]).norm() / block[0].norm()) < 3 * (1.5 / 300) ** 0.5


def test_the_chances_of_della_are_those_of_the_published_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """p - eps / 2 + eps * (rank - 1) / (n - 1), by the rank of the magnitude; 1 / p for what stays."""
    stack = stack_of(([[1.0, -2.0, 3.0, -4.0, 5.0]], [[1.0], [10.0]]))
    chances = [0.56, 0.63, 0.7, 0.77, 0.84]
    row = find_method("della")
    work = ModuleWork(stack, (1.0,), 2, ("a",), row.options({"density": 0.7, "window": 0.28}))
    result = entries(work)
    block = result.block(slice(0, 2))
    for samples in (0.0, 0.65, 0.8, 0.9):
        same = torch.full((1, 2, 5), samples)
        monkeypatch.setattr("merging.methods.sparsifying.keep_chances", lambda *_, same=same: same)
        remaining = della(work, result)(block.clone(), slice(0, 2))
        scale = torch.tensor([1 / p if samples < p else 0.0 for p in chances])
        torch.testing.assert_close(remaining, block * scale)
    default = ModuleWork(stack, (1.0,), 2, ("a",), row.options({}))
    monkeypatch.setattr("merging.methods.sparsifying.keep_chances", lambda *_: torch.zeros(1, 2, 5))
    least = block / della(default, result)(block.clone(), slice(0, 2))
    torch.testing.assert_close(least[0, 0], torch.linspace(0.63, 0.77, 5))


def test_della_of_density_one_keeps_everything() -> None:
    stack = random_stack([3, 2])
    assert gap(run("della", stack, density=1, scale=1), product(run("ties", stack, density=1))) < 1e-6


@pytest.mark.parametrize("method", RANDOM)
def test_a_seed_decides_and_nothing_else(method: str) -> None:
    stack = random_stack([3, 2], 16, 12)
    item, again, other = (product(run(method, stack, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(item, again)
    assert float((item - other).norm()) > 0.05 * float(item.norm())
    budget = product(run(method, stack, seed=1, memory=1))
    assert torch.equal(item, budget)


@pytest.mark.parametrize("method", RANDOM)
def test_a_member_keeps_its_mask_wherever_it_stands(method: str) -> None:
    stack = random_stack([3, 2, 4], 16, 12)
    first, second, third = stack.ranges()
    turned = stack_of(*[(stack.a[p], stack.b[:, p]) for p in (third, first, second)])
    left = run(method, stack, [1, 2, 3], names=["a", "b", "c"])
    right = run(method, turned, [3, 1, 2], names=["c", "a", "b"])
    assert gap(left, product(right)) < 1e-4
    same = run(method, rotate(stack, orthogonal=False), [1, 2, 3], names=["a", "b", "c"])
    assert gap(same, product(left)) < 1e-2


def test_members_have_masks_of_their_own() -> None:
    item = random_stack([4], 40, 40)
    stack = stack_of((item.a, item.b), (item.a, item.b))
    work = ModuleWork(stack, (1.0, 1.0), 4, ("a", "b"), find_method("dare").options({}))
    result = entries(work)
    remaining = dare(work, result)(result.block(slice(0, 40)), slice(0, 40)) != 0
    assert 0.2 < float((remaining[0] & remaining[1]).float().mean()) < 0.3


def test_what_stays_are_whole_shares() -> None:
    stack = random_stack([3, 5], 30, 20)
    rows = slice(0, 20)
    for method, sparsify, share in [("magnitude", magnitude, 0.5), ("breadcrumbs", breadcrumbs, 0.9)]:
        work = ModuleWork(stack, (1.0, 1.0), 4, ("a", "b"), find_method(method).options({}))
        result = entries(work)
        block = result.block(rows)
        remaining = sparsify(work, result)(block, rows)
        assert (remaining != 0).flatten(1).sum(1).tolist() == [share * 600] * 2
        if method == "breadcrumbs":
            gone = block.abs().masked_fill(remaining != 0, 0).flatten(1).sort(descending=True).values
            left = remaining.abs().flatten(1)
            assert (gone[:, :6] > left.max(1).values[:, None]).all()
            assert (gone[:, 6] < torch.where(left > 0, left, 9e9).min(1).values).all()


def test_dare_on_factors_apart_is_unbiased_for_neither_reason_nor_the_sum() -> None:
    """PEFT's dare_linear has the mean of PEFT's linear, cross terms included."""
    stack = random_stack([3, 3], 16, 12)
    runs = [product(run("peft-dare-linear", stack, seed=seed)) for seed in range(300)]
    mean = torch.stack(runs).mean(0)
    linear, exact = product(run("peft-linear", stack)), product(run("sum", stack))
    spread = torch.stack([r - linear for r in runs]).square().mean(0).sum().sqrt() / 300**0.5
    assert float((mean - linear).norm()) < 2 * float(spread)
    assert float((mean - exact).norm()) > 5 * float(spread)
