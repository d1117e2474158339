"""TIES: worked by hand, against a dense reference, and against PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from catalog.errors import UsageError
from merging.methods import METHODS
from merging.methods.blocks import entries, whole_thresholds
from merging.methods.sign_election import elect_signs, trim
from tests.merging.adapters import (
    ALL,
    Q,
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
    work,
)

# Updates of rank 2, as B = I and A = the matrix itself.
ONE = [[1.0, 0.0], [0.0, 1.0]]
FIRST, SECOND = ([[4.0, -1.0], [2.0, 3.0]], ONE), ([[2.0, 5.0], [-6.0, 1.0]], ONE)


def dense_ties(deltas: list[Tensor], weights: list[float], density: float) -> Tensor:
    """Algorithm 1 of the paper on dense matrices in float64, weights on the trimmed entries."""
    total = torch.zeros_like(deltas[0])
    remaining = []
    for delta in deltas:
        count = int(density * delta.numel())
        limit = delta.abs().flatten().sort(descending=True).values[count - 1]
        remaining.append(torch.where(delta.abs() >= limit, delta, 0))
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            terms = [(w * float(k[i, j]), abs(w)) for w, k in zip(weights, remaining, strict=True)]
            positive = sum(t for t, _ in terms) >= 0
            agreeing = [(t, w) for t, w in terms if (t > 0 if positive else t < 0)]
            if agreeing:
                total[i, j] = sum(t for t, _ in agreeing) / sum(w for _, w in agreeing)
    return total


def test_a_case_worked_by_hand() -> None:
    # Density 1/2 leaves [4 .; . 3] and [. 5; -6 .]: nobody disagrees, each entry is its only member's.
    result = product(run("ties", stack_of(FIRST, SECOND), density=0.5))
    torch.testing.assert_close(result, torch.tensor([[4.0, 5.0], [-6.0, 3.0]]).double(), rtol=0, atol=1e-5)
    # All entries: 4 and 2 average to 3; -1 loses to 5; 2 loses to -6; 3 and 1 average to 2. Doubled.
    result = product(run("ties", stack_of(FIRST, SECOND), density=1, scale=2))
    torch.testing.assert_close(result, torch.tensor([[6.0, 10.0], [-12.0, 4.0]]).double(), rtol=0, atol=1e-5)
    # Weights 3 and 1: (12 + 2) / 4, and -3 against 5 still loses, 6 against -6 is a tie and positive.
    result = product(run("ties", stack_of(FIRST, SECOND), [3, 1], density=1))
    torch.testing.assert_close(result, torch.tensor([[3.5, 5.0], [2.0, 2.5]]).double(), rtol=0, atol=1e-5)


def test_trimming_over_the_whole_vector_is_the_paper(tmp_path: Path) -> None:
    """One limit a member for all its modules, against a dense reference in float64; not one a module."""
    folders = [
        adapter(tmp_path / f"m{n}", seed=n, rank=3 + n, modules=ALL[: 4 - n], ranks={Q: 2}) for n in range(3)
    ]
    document = [deltas(folder) for folder in folders]
    # Modules of unequal size, so that a share of each is no share of all.
    expected, remaining = {}, []
    for values in document:
        vector = torch.cat([delta.abs().flatten() for delta in values.values()]).sort(descending=True).values
        limit = vector[int(0.2 * len(vector)) - 1] * (1 - 1e-6)
        remaining.append(
            {name: torch.where(delta.abs() >= limit, delta, 0) for name, delta in values.items()}
        )
    for name in ALL:
        target = [values[name] for values in remaining if name in values]
        expected[name] = dense_ties(target, [1.0] * len(target), 1.0)
    for memory in (1, 1 << 29):
        options = {"trim": "vector", "density": 0.2}
        merge(folders, "ties", tmp_path / f"o{memory}", parameters=options, rank=20, memory=memory)
        assert distance(deltas(tmp_path / f"o{memory}"), expected) < 1e-6
    merge(folders, "ties", tmp_path / "by-module", parameters={"density": 0.2}, rank=20)
    assert distance(deltas(tmp_path / "by-module"), expected) > 0.1


@pytest.mark.parametrize("density", [0.0, 1e-6, 0.2, 0.5, 0.999, 1.0])
def test_the_limit_of_all_modules_is_exact(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by halves of bits in blocks of a few rows, it is the very number that sorting gives."""
    monkeypatch.setattr("merging.methods.blocks._BLOCK", 500)
    result = [work("ties", random_stack([3, 2], 30, 20, seed=seed)) for seed in (1, 2)]
    result[1].stack.b[:, :3] *= 1e-4
    # The same blocks, because a product of other rows may be rounded otherwise.
    spaces = [entries(item) for item in result]
    values = [
        torch.cat([space.block(rows).abs() for rows in space.ranges(2)], 1).flatten(1) for space in spaces
    ]
    actual = whole_thresholds(lambda: iter(result), density)
    for n, name in enumerate(("0", "1")):
        every = torch.cat([block[n] for block in values])
        count = int(density * len(every) + 1e-9)
        if 0 < count < len(every):
            assert actual[name] == float(every.sort(descending=True).values[count - 1])
            assert int((every >= actual[name]).sum()) == count
        else:
            assert actual[name] == (0.0 if count else float("inf"))


def test_equal_magnitudes_and_zeros_have_a_limit() -> None:
    item = stack_of(([[1.0, -1.0, 1.0, 0.0]], [[1.0], [0.0]]))
    assert whole_thresholds(lambda: iter([work("ties", item)]), 0.25) == {"0": 1.0}
    assert whole_thresholds(lambda: iter([work("ties", item)]), 0.75) == {"0": 0.0}


def test_whole_vectors_are_not_sampled(tmp_path: Path) -> None:
    options = {"trim": "vector", "thresholds": "sampled"}
    with pytest.raises(UsageError, match="leave out thresholds=sampled"):
        merge([adapter(tmp_path / "a")], "ties", tmp_path / "out", parameters=options)
    assert not (tmp_path / "out").exists()


def test_election_by_number_and_by_sum() -> None:
    values = torch.tensor([[5.0], [-1.0], [-2.0]])
    assert elect_signs(values, "total").tolist() == [1]
    assert elect_signs(values, "frequency").tolist() == [-1]
    assert elect_signs(torch.zeros(2, 1)).tolist() == [1]


@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [2.0, -0.5, 1.0]])
def test_ties_is_the_paper_on_the_dense_updates(density: float, weights: list[float]) -> None:
    stack = random_stack([3, 1, 2])
    expected = dense_ties(dense(stack), weights, density)
    assert gap(run("ties", stack, weights, density=density), expected) < 1e-5


@pytest.mark.parametrize("method", ["ties", "knots-ties", "core-ties"])
def test_identities(method: str) -> None:
    stack, item = random_stack([3, 2, 4], seed=4), random_stack([3])
    first, second, third = stack.ranges()
    turned = stack_of(*[(stack.a[p], stack.b[:, p]) for p in (third, first, second)])
    left = run(method, stack, [1, 2, 0.5], density=0.4)
    # The order of members, copies, a single member, and agreeing signs.
    assert gap(left, product(run(method, turned, [0.5, 1, 2], density=0.4))) < 1e-4
    assert gap(run(method, stack_of(*[(item.a, item.b)] * 4), density=1), dense(item)[0]) < 1e-5
    assert gap(run(method, item, density=1), dense(item)[0]) < 1e-5
    scaled = stack_of((item.a, item.b), (item.a, 2 * item.b))
    assert gap(run(method, scaled, density=1), 1.5 * dense(item)[0]) < 1e-5


def test_the_mean_where_all_signs_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.rand(2, 9, generator=generator), torch.rand(7, 2, generator=generator)) for _ in range(3)]
    stack = stack_of(*pairs)
    assert gap(run("ties", stack, density=1), torch.stack(dense(stack)).mean(0)) < 1e-5


def test_the_gauge_matters_exactly_where_the_table_says() -> None:
    stack = random_stack([3, 3], 20, 15)
    for method, orthogonal, same in [
        ("ties", False, True),
        ("knots-ties", False, True),
        ("core-ties", True, True),
        ("core-ties", False, False),
        ("peft-ties", True, False),
    ]:
        left = run(method, stack, density=0.3)
        right = run(method, rotate(stack, orthogonal=orthogonal), density=0.3)
        assert (gap(left, product(right)) < 1e-3) is same, method
        expected = "invariant" if not orthogonal else "rotations"
        if same:
            assert METHODS[method].gauge in ("invariant", expected)
        else:
            assert METHODS[method].gauge != "invariant"


def test_trimming_keeps_so_many_of_each_member() -> None:
    remaining = trim(torch.tensor([[[1.0, -5.0], [3.0, 2.0]], [[9.0, 8.0], [7.0, -10.0]]]), 0.5)
    assert remaining.tolist() == [[[0, -5], [3, 0]], [[9, 0], [0, -10]]]
    assert not trim(torch.ones(2, 3, 3), 0).any()


def test_a_scaling_of_zero_leaves_no_nan() -> None:
    from dataclasses import replace

    stack = random_stack([2, 2])
    stack.a[2:] = 0
    stack.b[:, 2:] = 0
    assert torch.isfinite(product(run("peft-ties", replace(stack, scalings=(1.0, 0.0))))).all()
