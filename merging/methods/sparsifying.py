"""Drop entries, rescale the others, then sum or elect signs: magnitude, DARE, DELLA, Breadcrumbs.

A sparsifier is a function of a block of the members' entries; it is followed by a sum or by TIES' election.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from merging.methods.blocks import (
    SPACE,
    THRESHOLDS,
    Entries,
    entries,
    keep_chances,
    magnitude_thresholds,
    merge_entries,
    shrink,
)
from merging.methods.lowrank import Update
from merging.methods.method import MergeMethod, ModuleWork, Parameter
from merging.methods.noise import uniform
from merging.methods.sign_election import (
    DELTA_SPACE,
    ELECTION,
    KNOTS_SPACE,
    SCALE,
    elect_and_mean,
    peft_disjoint_mean,
    peft_factors,
    trim,
)

if TYPE_CHECKING:
    from torch import Tensor

_DARE = "https://arxiv.org/abs/2311.03099"
_PEFT = "https://huggingface.co/docs/peft/developer_guides/model_merging"
Sparsifier = Callable[["Tensor", slice], "Tensor"]


def magnitude(work: ModuleWork, blocks: Entries) -> Sparsifier:
    """Each member keeps its `density` largest entries."""
    exact = work.options.get("thresholds") != "sampled"
    limits = magnitude_thresholds(work, blocks, work.number("density"), exact)
    return lambda values, rows: shrink(values, limits)


def dare(work: ModuleWork, blocks: Entries) -> Sparsifier:
    """Each entry is kept with probability p = `density` and divided by p, so that its mean does not
    change."""
    density = work.number("density")
    return lambda values, rows: _thin(values, keep_chances(work, blocks, rows), density)


def della(work: ModuleWork, blocks: Entries) -> Sparsifier:
    """As DARE, the chance rising with the rank of the magnitude within the row.

    From p - epsilon / 2 for the smallest entry to p + epsilon / 2 for the largest, with p = `density` and
    epsilon = `window`, each entry divided by its own chance (https://arxiv.org/abs/2406.11617). With p = 1
    every entry stays, as in the authors' code.
    """
    import torch

    density, window = work.number("density"), work.number("window")
    if density == 1:
        return lambda values, rows: values
    low, high = max(density - window / 2, 1e-3), min(density + window / 2, 1.0)
    ladder = torch.linspace(low, high, blocks.columns, device=blocks.left.device)

    def drop(values: Tensor, rows: slice) -> Tensor:
        order = values.abs().argsort(dim=2, stable=True)
        chance = torch.empty_like(values).scatter_(2, order, ladder.expand_as(values))
        return _thin(values, keep_chances(work, blocks, rows), chance)

    return drop


def breadcrumbs(work: ModuleWork, blocks: Entries) -> Sparsifier:
    """Each member loses its `largest` largest entries and its smallest, so that `density` of them stay."""
    exact = work.options["thresholds"] == "exact"
    largest = min(work.number("largest"), 1 - work.number("density"))
    outliers = magnitude_thresholds(work, blocks, largest, exact)
    limits = magnitude_thresholds(work, blocks, work.number("density") + largest, exact)
    return lambda values, rows: shrink(values, limits) - shrink(values, outliers)


def sum_sparse(sparsify: Callable[[ModuleWork, Entries], Sparsifier]) -> Callable[[ModuleWork], Update]:
    """A method: sparsify, then scale * sum_i w_i v_i."""

    def run(work: ModuleWork) -> Update:
        blocks = entries(work)
        drop = sparsify(work, blocks)
        weights = blocks.left.new_tensor(work.weights) * work.number("scale")
        return merge_entries(work, blocks, lambda values, rows: _weigh(weights, drop(values, rows)))

    return run


def elect_and_average(
    sparsify: Callable[[ModuleWork, Entries], Sparsifier],
) -> Callable[[ModuleWork], Update]:
    """A method: sparsify, then elect signs and average those that agree, as TIES does."""

    def run(work: ModuleWork) -> Update:
        blocks = entries(work)
        drop = sparsify(work, blocks)
        return merge_entries(work, blocks, lambda values, rows: elect_and_mean(work, drop(values, rows)))

    return run


def peft_svd(
    sparsify: Callable[[ModuleWork, Entries], Sparsifier], elect: bool
) -> Callable[[ModuleWork], Update]:
    """PEFT's *_svd types: sparsify the updates, then its sum or its election, then truncate."""

    def run(work: ModuleWork) -> Update:
        blocks = entries(work)
        drop = sparsify(work, blocks)
        weights = blocks.left.new_tensor(work.weights)

        def merge(values: Tensor, rows: slice) -> Tensor:
            sparse = drop(values, rows)
            if elect:
                return peft_disjoint_mean(sparse, weights, str(work.options["election"]))
            return _weigh(weights, sparse)

        return merge_entries(work, blocks, merge)

    return run


def peft_apart(random: bool, elect: bool) -> Callable[[ModuleWork], Update]:
    """PEFT's types on A and B apart: prune by magnitude or at random, then its sum or its election."""

    def run(work: ModuleWork) -> Update:
        merged = []
        for side, (values, weights) in zip("ab", peft_factors(work), strict=True):
            density = work.number("density")
            sparse = _drop_entries(work, values, side, density) if random else trim(values, density)
            election = str(work.options.get("election"))
            merged.append(peft_disjoint_mean(sparse, weights, election) if elect else _weigh(weights, sparse))
        return Update(merged[0], merged[1], None, 0.0)

    return run


def _drop_entries(work: ModuleWork, values: Tensor, side: str, density: float) -> Tensor:
    """DARE on whole factors of (N, rows, columns)."""
    keys = [work.key(side, name) for name in work.names]
    chances = uniform(keys, slice(0, values.shape[1]), values.shape[2], str(values.device))
    return _thin(values, chances, density)


def _thin(values: Tensor, chances: Tensor, keep: float | Tensor) -> Tensor:
    """v / p where the chance is below p, else 0; a sign is a cheaper mask than a comparison."""
    sparse: Tensor = chances.neg_().add_(keep).sign_().clamp_(min=0).div_(keep).mul_(values)
    return sparse


def _weigh(weights: Tensor, values: Tensor) -> Tensor:
    import torch

    total: Tensor = torch.tensordot(weights, values, 1)
    return total


_SHARE = "share of each member's entries that stay"
_HALF = Parameter("density", 0.5, _SHARE, 0, 1)
_CHANCE = Parameter("density", 0.5, "chance of each entry to stay (1 - p of the paper)", 1e-3, 1)
_DELLA = Parameter("density", 0.7, "mean chance of an entry to stay", 1e-3, 1)
_WINDOW = Parameter("window", 0.14, "from the smallest chance in a row to the largest (epsilon)", 0, 1)
_CRUMBS = Parameter("density", 0.9, _SHARE, 0, 1)
_LARGEST = Parameter("largest", 0.01, "share of the largest entries that are dropped (gamma)", 0, 1)
_KNOTS = replace(_CHANCE, default=0.2)

METHODS = (
    MergeMethod(
        "magnitude",
        "The weighted sum of the updates' largest entries.",
        _PEFT,
        sum_sparse(magnitude),
        (_HALF, SCALE, SPACE, THRESHOLDS),
        cost="entries",
    ),
    MergeMethod(
        "dare",
        "The weighted sum of random entries, rescaled (DARE).",
        _DARE,
        sum_sparse(dare),
        (_CHANCE, SCALE, SPACE),
        cost="entries",
    ),
    MergeMethod(
        "dare-ties",
        "Random entries, rescaled, then TIES' signs and mean.",
        _DARE,
        elect_and_average(dare),
        (_CHANCE, SCALE, ELECTION, SPACE),
        weight=1.0,
        cost="entries",
    ),
    MergeMethod(
        "knots-dare-ties",
        "DARE-TIES in a common basis of the outputs (KnOTS).",
        "https://arxiv.org/abs/2410.19735",
        elect_and_average(dare),
        (_KNOTS, replace(SCALE, default=0.4), ELECTION, KNOTS_SPACE),
        weight=1.0,
        cost="entries",
    ),
    MergeMethod(
        "della",
        "Random entries, large ones more often, then TIES.",
        "https://arxiv.org/abs/2406.11617",
        elect_and_average(della),
        (_DELLA, _WINDOW, replace(SCALE, default=1.1), ELECTION, SPACE),
        weight=1.0,
        cost="entries",
        revision=2,
    ),
    MergeMethod(
        "breadcrumbs",
        "The weighted sum without largest and smallest entries.",
        "https://arxiv.org/abs/2312.06795",
        sum_sparse(breadcrumbs),
        (_CRUMBS, _LARGEST, SCALE, SPACE, THRESHOLDS),
        cost="entries",
    ),
    MergeMethod(
        "peft-magnitude-prune",
        "Large entries of A and B apart, as magnitude_prune.",
        _PEFT,
        peft_apart(random=False, elect=False),
        (_HALF,),
        gauge="dependent",
        weight=1.0,
        truncates=False,
        equal_ranks=True,
    ),
    MergeMethod(
        "peft-dare-linear",
        "DARE on A and B apart, as PEFT's dare_linear.",
        _PEFT,
        peft_apart(random=True, elect=False),
        (_CHANCE,),
        gauge="dependent",
        weight=1.0,
        truncates=False,
        equal_ranks=True,
    ),
    MergeMethod(
        "peft-dare-ties",
        "DARE, then TIES on A and B apart, as PEFT's dare_ties.",
        _PEFT,
        peft_apart(random=True, elect=True),
        (_CHANCE, ELECTION),
        gauge="dependent",
        weight=1.0,
        truncates=False,
        equal_ranks=True,
    ),
    MergeMethod(
        "peft-magnitude-prune-svd",
        "Large entries, truncated, as magnitude_prune_svd.",
        _PEFT,
        peft_svd(magnitude, elect=False),
        (_HALF, DELTA_SPACE),
        weight=1.0,
        cost="entries",
    ),
    MergeMethod(
        "peft-dare-linear-svd",
        "DARE on the updates, truncated, as dare_linear_svd.",
        _PEFT,
        peft_svd(dare, elect=False),
        (_CHANCE, DELTA_SPACE),
        weight=1.0,
        cost="entries",
    ),
    MergeMethod(
        "peft-dare-ties-svd",
        "DARE-TIES of the updates, truncated, as dare_ties_svd.",
        _PEFT,
        peft_svd(dare, elect=True),
        (_CHANCE, ELECTION, DELTA_SPACE),
        weight=1.0,
        cost="entries",
    ),
)
