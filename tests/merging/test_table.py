"""What every row of the table of methods promises: identities, gauge, and members that lack something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.members import Stack
from merging.methods import METHODS
from merging.static import merged_updates, plan
from tests.merging.adapters import (
    ALL,
    adapter,
    deltas,
    dense,
    distance,
    gap,
    merge,
    product,
    random_stack,
    rotate,
    run,
    stack_of,
)

ROWS = [name for name, row in METHODS.items() if not row.data]
# Rows that are the weighted sum itself, by whatever factors.
SUMS = [name for name in ROWS if METHODS[name].exact and METHODS[name].cost == "bytes"]
NAMES = ("one", "two", "three")


def stack_for(method: str, seed: int = 0) -> Stack:
    """Three members of mixed ranks, of equal ones where the method wants these."""
    return random_stack([3, 3, 3] if METHODS[method].equal_ranks else [3, 2, 4], 20, 15, seed)


def pairs(stack: Stack) -> list[tuple[Tensor, Tensor]]:
    return [(stack.a[place], stack.b[:, place]) for place in stack.ranges()]


@pytest.mark.parametrize("method", ROWS)
def test_the_order_of_members_does_not_matter(method: str) -> None:
    stack = stack_for(method)
    first, second, third = pairs(stack)
    left = run(method, stack, [1.0, 2.0, 0.5], rank=8, names=NAMES)
    turned = stack_of(third, first, second)
    right = run(method, turned, [0.5, 1.0, 2.0], rank=8, names=("three", "one", "two"))
    assert gap(right, product(left)) < 1e-4


@pytest.mark.parametrize("method", ROWS)
def test_the_gauge_is_the_one_that_the_row_states(method: str) -> None:
    """Whether the result stays when factors change and updates do not: by rotations, and by anything else."""
    stack, row = stack_for(method), METHODS[method]
    left = run(method, stack, rank=4, names=NAMES)
    for orthogonal, kinds in ((True, ("invariant", "rotations")), (False, ("invariant",))):
        right = run(method, rotate(stack, orthogonal=orthogonal), rank=4, names=NAMES)
        if row.gauge in kinds:
            assert gap(right, product(left)) < 1e-3
    if row.gauge == "dependent":
        assert gap(run(method, rotate(stack, orthogonal=False), rank=4, names=NAMES), product(left)) > 1e-2


@pytest.mark.parametrize("method", SUMS)
def test_copies_of_one_member_average_to_it(method: str) -> None:
    item = random_stack([3], 20, 15)
    copies = stack_of(*pairs(item) * 3)
    assert gap(run(method, copies, [0.2, 0.5, 0.3], rank=9), dense(item)[0]) < 1e-5


@pytest.mark.parametrize("method", ROWS)
def test_a_weight_of_one_and_others_of_zero_is_the_member_alone(method: str, tmp_path: Path) -> None:
    folders = [adapter(tmp_path / name, seed=n, rank=3) for n, name in enumerate(NAMES)]
    alone = merge(folders[:1], method, tmp_path / "alone", weights=[1.0], seed=2)
    first = merge(folders, method, tmp_path / "first", weights=[1.0, 0.0, 0.0], seed=2)
    left, right = (deltas(report.folder) for report in (alone, first))
    assert all(torch.equal(left[name], right[name]) for name in left)
    if method in SUMS:
        assert distance(left, deltas(folders[0])) < 1e-5


@pytest.mark.parametrize("method", ROWS)
def test_a_member_of_zeros_does_no_harm(method: str) -> None:
    """B = 0, as before training: the result is finite, and the sum is that of the others."""
    first, second, third = pairs(stack_for(method))
    result = run(method, stack_of(first, (second[0], torch.zeros_like(second[1])), third), [1.0, 1.0, 1.0])
    assert torch.isfinite(result.a).all()
    assert torch.isfinite(result.b).all()
    if method in SUMS and not METHODS[method].normalised:
        expected = product(run(method, stack_of(first, third), [1.0, 1.0]))
        assert gap(result, expected) < 1e-5


@pytest.mark.parametrize("method", [name for name in ROWS if not METHODS[name].normalised])
def test_a_member_of_zeros_is_as_if_it_were_absent(method: str) -> None:
    """Under equal weights of the others; A and B apart see its A, and a mean by 1 / N divides by all."""
    (first, second, third), apart = pairs(stack_for(method)), METHODS[method].equal_ranks
    for count in (1, 2):
        other_items = (first, second)[:count]
        names = ("one", "two")[:count]
        alone = run(method, stack_of(*other_items), [1.0, 0.7][:count], rank=3, names=names)
        zero = (third[0], torch.zeros_like(third[1]))
        with_zero = run(
            method, stack_of(*other_items, zero), [*[1.0, 0.7][:count], 1.0], rank=3, names=(*names, "three")
        )
        assert (gap(with_zero, product(alone)) < 1e-6) is not apart


# Methods whose result for equal members at full density is the weighted sum, else their weighted mean.
ADDING = {"sum", "concatenation", "svd", "peft-cat", "peft-svd", "magnitude", "dare", "breadcrumbs"}
ADDING |= {"peft-magnitude-prune-svd", "peft-dare-linear-svd"}
MEANS = {
    "average",
    "ties",
    "knots-ties",
    "core-ties",
    "dare-ties",
    "knots-dare-ties",
    "della",
    "tsv-m",
    "regmean",
}
MEANS |= {"peft-ties-svd", "peft-dare-ties-svd"}
# (sum w)^2, and PEFT's (sum sqrt w)^2, times the update; means of factors for the elections of A and B.
SQUARES = {"separate-average", "peft-linear", "peft-magnitude-prune", "peft-dare-linear"}
FACTORS = {"peft-ties", "peft-dare-ties"}
OTHERS = {"iso-c", "iso-cts", "lora-lego"}


@pytest.mark.parametrize("method", ROWS)
def test_the_default_weight_is_what_the_row_says(method: str) -> None:
    """Four equal members, everything kept, no factor on the result: by how much it is each of them."""
    row = METHODS[method]
    item = random_stack([3], 20, 15)
    copies = stack_of(*pairs(item) * 4)
    complete = {"density": 1, "scale": 1, "largest": 0, "rescale": False}
    options = {p.name: complete[p.name] for p in row.parameters if p.name in complete}
    result = product(run(method, copies, rank=3, **options))
    update = dense(item)[0]
    times = float((result * update).sum() / update.square().sum())
    sums, means = (1.0, 1.0) if row.weight == "mean" else (4.0, 1.0)
    expected = sums if method in ADDING else means if method in MEANS else None
    if method in SQUARES:
        expected = 1.0 if row.weight == "mean" else 16.0
    if method in FACTORS:
        expected = 1.0
    if expected is None:
        # lora-lego gives the mean unit of a cluster, the isotropic ones the sum with equal singular values.
        assert method in OTHERS
        s = torch.linalg.svdvals(update)[:3]
        requested = 4 * s.mean() if method != "lora-lego" else s
        torch.testing.assert_close(
            torch.linalg.svdvals(result)[:3], requested.expand(3), rtol=1e-4, atol=1e-4
        )
    else:
        assert times == pytest.approx(expected, rel=1e-4)
        assert float((result - expected * update).norm() / update.norm()) < 1e-4 * expected


def test_every_sum_says_whether_it_is_one_of_weights() -> None:
    """No summary speaks of the sum of a row whose default weight is 1/N, or of any other that is weighted."""
    for row in METHODS.values():
        words = row.summary.lower()
        assert "sum" not in words or "weight" in words, row.name


@pytest.mark.parametrize("method", ROWS)
def test_zeros_alone_merge_to_zero(method: str) -> None:
    result = [(a, torch.zeros_like(b)) for a, b in pairs(stack_for(method))]
    actual = run(method, stack_of(*result))
    assert float(product(actual).abs().max()) == 0.0


@pytest.mark.parametrize("method", ROWS)
def test_modules_that_some_members_lack_are_merged_from_the_others(method: str, tmp_path: Path) -> None:
    """What one member alone has is what that member alone gives, except that averages divide by all."""
    folders = [
        adapter(tmp_path / "one", seed=1, modules=ALL[:1]),
        adapter(tmp_path / "two", seed=2, modules=ALL[:2]),
        adapter(tmp_path / "three", seed=3, modules=ALL[1:]),
    ]
    result = {shape.name: update for shape, update in merged_updates(plan(folders, method, seed=1))}
    assert set(result) == set(ALL)
    assert all(
        torch.isfinite(update.a).all() and torch.isfinite(update.b).all() for update in result.values()
    )
    if not METHODS[method].normalised:
        weight = plan(folders, method).weights[2]
        planned = plan(folders[2:], method, seed=1, weights=[weight])
        alone = {shape.name: update for shape, update in merged_updates(planned)}
        lone = "model.layers.1.self_attn.q_proj"
        assert gap(result[lone], product(alone[lone])) < 1e-5
