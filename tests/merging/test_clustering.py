"""LoRA-LEGO: worked by hand, permutations, concatenation, both reweightings, any mix of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import UsageError
from merging.members import Stack
from merging.methods import Update, grams
from merging.methods.clustering import centroid_energy, clusters, singular_units
from tests.merging.adapters import (
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


def shuffle_members(stack: Stack, seed: int) -> Stack:
    """Members and their ranks in another order."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for place in stack.ranges():
        order = torch.randperm(place.stop - place.start, generator=generator)
        pairs.append((stack.a[place][order], stack.b[:, place][:, order]))
    return stack_of(*[pairs[n] for n in torch.randperm(len(pairs), generator=generator)])


def test_a_case_worked_by_hand() -> None:
    # Units (1,0|2,0), (0,1|0,1) and (0,3|0,3): the latter two have one direction and form a cluster.
    stack = stack_of(([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]]), ([[0.0, 3.0]], [[0.0], [3.0]]))
    # Its mean (0,2|0,2) gives 4; the mean largest entry is 2 as well, so the first reweighting is 1.
    result = product(run("lora-lego", stack, rank=2, rescale=False))
    torch.testing.assert_close(result, torch.tensor([[2.0, 0.0], [0.0, 4.0]]).double())
    # The second: r is the mean rank 3/2, k is 2.
    result = product(run("lora-lego", stack, rank=2))
    torch.testing.assert_close(result, (1.5 / 2) ** 0.5 * torch.tensor([[2.0, 0.0], [0.0, 4.0]]).double())


def test_what_the_centroids_hold_worked_by_hand() -> None:
    # Squared lengths 5, 2 and 18; the latter two have the mean (0,2|0,2), twice 8 of their 20.
    stack = stack_of(([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]]), ([[0.0, 3.0]], [[0.0], [3.0]]))
    assert centroid_energy(work("lora-lego", stack, rank=2)) == (21.0, 25.0)
    assert centroid_energy(work("lora-lego", stack, rank=3)) == (25.0, 25.0)
    # Units of length 0 count for nothing, and neither do the reweightings.
    empty = stack_of(([[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]), ([[0.0, 0.0]], [[0.0], [3.0]]))
    assert centroid_energy(work("lora-lego", empty, rank=2)) == (0.0, 0.0)
    assert centroid_energy(work("lora-lego", stack, rank=2, norm="none", rescale=False)) == (21.0, 25.0)


@pytest.mark.parametrize("units", ["stored", "singular"])
def test_more_clusters_hold_more_until_they_hold_all(units: str) -> None:
    stack = random_stack((3, 2, 4), 6, 5, seed=4)
    shares = [
        held / complete
        for held, complete in (
            centroid_energy(work("lora-lego", stack, rank=k, units=units)) for k in (1, 5, 9)
        )
    ]
    assert 0 < shares[0] < shares[1] < shares[2] == pytest.approx(1)


def test_the_first_reweighting_undoes_the_decay_of_norms() -> None:
    # Units (1,0|1,1) and (0,1|1,1) in one cluster: the mean (.5,.5|1,1) has largest entry 1, as both have.
    stack = stack_of(([[1.0, 0.0]], [[1.0], [1.0]]), ([[0.0, 1.0]], [[1.0], [1.0]]))
    half = torch.full((2, 2), 0.5).double()
    torch.testing.assert_close(product(run("lora-lego", stack, rank=1)), half)
    torch.testing.assert_close(product(run("lora-lego", stack, rank=1, norm="none")), half)
    # In l2 both units have sqrt 3, the mean sqrt 2.5: both sides grow by their ratio.
    torch.testing.assert_close(product(run("lora-lego", stack, rank=1, norm="l2")), half * 3 / 2.5)
    # Opposite b: the mean (.5,.5|0,0) is no update at all, whatever it is multiplied by.
    opposite = stack_of(([[1.0, 0.0]], [[1.0], [1.0]]), ([[0.0, 1.0]], [[-1.0], [-1.0]]))
    assert not product(run("lora-lego", opposite, rank=1)).any()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 10**6))
def test_the_order_of_units_and_members_does_not_matter(ranks: list[int], k: int, seed: int) -> None:
    stack = random_stack(ranks, 30, 20, seed)
    left, right = (run("lora-lego", s, rank=k) for s in (stack, shuffle_members(stack, seed)))
    assert left.a.shape[0] == min(k, sum(ranks))
    assert gap(left, product(right)) < 1e-4


@pytest.mark.parametrize("ranks", [[4], [3, 1, 5], [2, 2]])
def test_with_as_many_clusters_as_units_it_is_the_concatenation(ranks: list[int]) -> None:
    stack = random_stack(ranks)
    expected = torch.stack(dense(stack)).sum(0)
    for k in (sum(ranks), sum(ranks) + 5):
        assert gap(run("lora-lego", stack, rank=k, rescale=False), expected) < 1e-6
    root = (sum(ranks) / len(ranks) / sum(ranks)) ** 0.5
    assert gap(run("lora-lego", stack, rank=sum(ranks)), root * expected) < 1e-6


@pytest.mark.parametrize("copies", [1, 2, 5])
@pytest.mark.parametrize("units", ["stored", "singular"])
@pytest.mark.parametrize("start", ["farthest"])
def test_copies_of_one_give_it_back(copies: int, units: str, start: str) -> None:
    item = random_stack([4])
    stack = stack_of(*[(item.a, item.b)] * copies)
    assert gap(run("lora-lego", stack, rank=4, units=units, start=start), dense(item)[0]) < 1e-5


def test_only_singular_units_do_not_depend_on_the_gauge() -> None:
    stack = random_stack([4, 3], 30, 20)
    for units, same in (("stored", False), ("singular", True)):
        left = run("lora-lego", stack, rank=4, units=units)
        right = run("lora-lego", rotate(stack, orthogonal=False), rank=4, units=units)
        assert (gap(left, product(right)) < 1e-3) is same


def test_singular_units_are_the_same_updates() -> None:
    stack = stack_of(*[(s.a, s.b) for s in (random_stack([4]), random_stack([6], seed=2))])
    result = singular_units(stack)
    for left, right in zip(dense(result), dense(stack), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    gram = grams(result).a[:4, :4]
    assert float((gram - gram.diagonal().diag()).abs().max()) < 1e-4


def test_the_concatenation_of_a_member_of_weight_zero_is_the_other() -> None:
    stack = random_stack([4, 3])
    result = run("lora-lego", stack, [1.0, -1.0], rank=7, rescale=False)
    assert gap(result, dense(stack)[0] - dense(stack)[1]) < 1e-6


def test_clusters_are_those_of_lloyd_on_the_directions() -> None:
    """Every unit is nearest to its own centroid, measured in the long vectors themselves."""
    stack = random_stack([8, 8, 8], 30, 20)
    directions = torch.cat(
        [stack.a / stack.a.norm(dim=1, keepdim=True), (stack.b / stack.b.norm(dim=0)).T], 1
    ).double()
    labels = clusters(directions @ directions.T, torch.ones(24), 5, 100, None)
    assert sorted(set(labels.tolist())) == [0, 1, 2, 3, 4]
    centroids = torch.stack([directions[labels == c].mean(0) for c in range(5)])
    assert torch.equal(torch.cdist(directions, centroids).argmin(1), labels)


def test_planted_clusters_are_found_and_none_is_empty() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(4, 60, generator=generator)
    points = centres.repeat_interleave(6, 0) + 0.1 * torch.randn(24, 60, generator=generator)
    for key in (None, 1, 2, 3):
        labels = clusters((points @ points.T).double(), torch.ones(24), 4, 50, key)
        assert len(set(labels.tolist())) == 4
    labels = clusters((points @ points.T).double(), torch.ones(24), 4, 50, None)
    assert all(len(set(labels[6 * c : 6 * c + 6].tolist())) == 1 for c in range(4))


def test_duplicates_do_not_leave_a_cluster_empty() -> None:
    points = torch.ones(6, 3).double()
    labels = clusters(points @ points.T, torch.ones(6), 3, 10, None)
    assert len(set(labels.tolist())) == 3


def test_units_of_no_length_are_left_out() -> None:
    stack = random_stack([3, 2])
    stack.b[:, 1] = 0
    assert run("lora-lego", stack, rank=5).a.shape[0] == 4
    stack.b[:] = 0
    nothing = run("lora-lego", stack, rank=2)
    assert isinstance(nothing, Update)
    assert not product(nothing).any()


def test_random_starts_follow_the_seed() -> None:
    stack = random_stack([8, 8], 30, 20)
    item, again, other = (product(run("lora-lego", stack, rank=4, start="random", seed=s)) for s in (1, 1, 2))
    assert torch.equal(item, again)
    assert not torch.equal(item, other)


def test_folders_of_mixed_ranks_and_more_clusters_than_units(tmp_path: Path) -> None:
    folders = [adapter(tmp_path / "a", 1, rank=3), adapter(tmp_path / "b", 2, rank=5)]
    merge(folders, "lora-lego", tmp_path / "out", rank=8, parameters={"rescale": False})
    both = {name: delta + deltas(folders[1])[name] for name, delta in deltas(folders[0]).items()}
    assert distance(deltas(tmp_path / "out"), both) < 1e-6
    assert max(merge(folders, "lora-lego", tmp_path / "k").modules.values(), key=lambda m: m.rank).rank == 5
    with pytest.raises(UsageError, match="9 clusters exceed the number of units"):
        merge(folders, "lora-lego", tmp_path / "more", rank=9)
