"""Drop entries, rescale what stays, then sum or elect signs: magnitude, DARE, DELLA, Breadcrumbs.

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
from merging.methods.method import MergeMethod, Parameter, Work
from merging.methods.noise import uniform
from merging.methods.sign_election import (
    DELTA_SPACE,
    ELECTION,
    KNOTS_SPACE,
    SCALE,
    elect_and_mean,
    peft_disjoint_mean,
    peft_factors,
    trimmed,
)

if TYPE_CHECKING:
    from torch import Tensor

_DARE = "https://arxiv.org/abs/2311.03099"
_PEFT = "https://huggingface.co/docs/peft/developer_guides/model_merging"
Sparsifier = Callable[["Tensor", slice], "Tensor"]


def magnitude(work: Work, found: Entries) -> Sparsifier:
    """Each member keeps its `density` largest entries."""
    exact = work.options.get("thresholds") != "sampled"
    limits = magnitude_thresholds(work, found, work.number("density"), exact)
    return lambda values, rows: shrink(values, limits)


def dare(work: Work, found: Entries) -> Sparsifier:
    """Each entry stays with chance p = `density` and is divided by p, so that its mean does not change."""
    density = work.number("density")
    return lambda values, rows: _thinned(values, keep_chances(work, found, rows), density)


def della(work: Work, found: Entries) -> Sparsifier:
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
    ladder = torch.linspace(low, high, found.columns, device=found.left.device)

    def drop(values: Tensor, rows: slice) -> Tensor:
        order = values.abs().argsort(dim=2, stable=True)
        chance = torch.empty_like(values).scatter_(2, order, ladder.expand_as(values))
        return _thinned(values, keep_chances(work, found, rows), chance)

    return drop


def breadcrumbs(work: Work, found: Entries) -> Sparsifier:
    """Each member loses its `largest` largest entries and its smallest, so that `density` of them stay."""
    exact = work.options["thresholds"] == "exact"
    largest = min(work.number("largest"), 1 - work.number("density"))
    outliers = magnitude_thresholds(work, found, largest, exact)
    limits = magnitude_thresholds(work, found, work.number("density") + largest, exact)
    return lambda values, rows: shrink(values, limits) - shrink(values, outliers)


def summed(sparsify: Callable[[Work, Entries], Sparsifier]) -> Callable[[Work], Update]:
    """A method: sparsify, then scale * sum_i w_i v_i."""

    def run(work: Work) -> Update:
        found = entries(work)
        drop = sparsify(work, found)
        weights = found.left.new_tensor(work.weights) * work.number("scale")
        return merge_entries(work, found, lambda values, rows: _weighted(weights, drop(values, rows)))

    return run


def elected_mean(sparsify: Callable[[Work, Entries], Sparsifier]) -> Callable[[Work], Update]:
    """A method: sparsify, then elect signs and average those that agree, as TIES does."""

    def run(work: Work) -> Update:
        found = entries(work)
        drop = sparsify(work, found)
        return merge_entries(work, found, lambda values, rows: elect_and_mean(work, drop(values, rows)))

    return run


def peft_svd(sparsify: Callable[[Work, Entries], Sparsifier], elect: bool) -> Callable[[Work], Update]:
    """PEFT's *_svd types: sparsify the updates, then its sum or its election, then truncate."""

    def run(work: Work) -> Update:
        found = entries(work)
        drop = sparsify(work, found)
        weights = found.left.new_tensor(work.weights)

        def merge(values: Tensor, rows: slice) -> Tensor:
            kept = drop(values, rows)
            if elect:
                return peft_disjoint_mean(kept, weights, str(work.options["election"]))
            return _weighted(weights, kept)

        return merge_entries(work, found, merge)

    return run


def peft_apart(random: bool, elect: bool) -> Callable[[Work], Update]:
    """PEFT's types on A and B apart: prune by magnitude or at random, then its sum or its election."""

    def run(work: Work) -> Update:
        merged = []
        for side, (values, weights) in zip("ab", peft_factors(work), strict=True):
            density = work.number("density")
            kept = _dropped(work, values, side, density) if random else trimmed(values, density)
            election = str(work.options.get("election"))
            merged.append(peft_disjoint_mean(kept, weights, election) if elect else _weighted(weights, kept))
        return Update(merged[0], merged[1], None, 0.0)

    return run


def _dropped(work: Work, values: Tensor, side: str, density: float) -> Tensor:
    """DARE on whole factors of (N, rows, columns)."""
    keys = [work.key(side, name) for name in work.names]
    chances = uniform(keys, slice(0, values.shape[1]), values.shape[2], str(values.device))
    return _thinned(values, chances, density)


def _thinned(values: Tensor, chances: Tensor, keep: float | Tensor) -> Tensor:
    """v / p where the chance is below p, else 0; a sign is a cheaper mask than a comparison."""
    kept: Tensor = chances.neg_().add_(keep).sign_().clamp_(min=0).div_(keep).mul_(values)
    return kept


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
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
        summed(magnitude),
        (_HALF, SCALE, SPACE, THRESHOLDS),
        cost="entries",
    ),
    MergeMethod(
        "dare",
        "The weighted sum of random entries, rescaled so that its mean over seeds is the weighted sum.",
        _DARE,
        summed(dare),
        (_CHANCE, SCALE, SPACE),
        cost="entries",
    ),
    MergeMethod(
        "dare-ties",
        "Random entries, rescaled, then TIES' election of signs and mean.",
        _DARE,
        elected_mean(dare),
        (_CHANCE, SCALE, ELECTION, SPACE),
        weight=1.0,
        cost="entries",
    ),
    MergeMethod(
        "knots-dare-ties",
        "DARE-TIES in a common basis of the outputs (KnOTS).",
        "https://arxiv.org/abs/2410.19735",
        elected_mean(dare),
        (_KNOTS, replace(SCALE, default=0.4), ELECTION, KNOTS_SPACE),
        weight=1.0,
        cost="entries",
    ),
    MergeMethod(
        "della",
        "Random entries, large ones more often, rescaled, then TIES' election of signs and mean.",
        "https://arxiv.org/abs/2406.11617",
        elected_mean(della),
        (_DELLA, _WINDOW, replace(SCALE, default=1.1), ELECTION, SPACE),
        weight=1.0,
        cost="entries",
        revision=2,
    ),
    MergeMethod(
        "breadcrumbs",
        "The weighted sum of the updates without their largest and their smallest entries.",
        "https://arxiv.org/abs/2312.06795",
        summed(breadcrumbs),
        (_CRUMBS, _LARGEST, SCALE, SPACE, THRESHOLDS),
        cost="entries",
    ),
    MergeMethod(
        "peft-magnitude-prune",
        "The largest entries of A and B apart, summed by weights, as PEFT's magnitude_prune.",
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
        "DARE on A and B apart, summed by weights, as PEFT's dare_linear, with a seed.",
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
        "DARE on A and B apart, then PEFT's election of signs, as its dare_ties, with a seed.",
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
        "The weighted sum of the updates' largest entries, truncated, as PEFT's magnitude_prune_svd.",
        _PEFT,
        peft_svd(magnitude, elect=False),
        (_HALF, DELTA_SPACE),
        weight=1.0,
        cost="entries",
    ),
    MergeMethod(
        "peft-dare-linear-svd",
        "DARE on the updates, summed by weights and truncated, as PEFT's dare_linear_svd, with a seed.",
        _PEFT,
        peft_svd(dare, elect=False),
        (_CHANCE, DELTA_SPACE),
        weight=1.0,
        cost="entries",
    ),
    MergeMethod(
        "peft-dare-ties-svd",
        "DARE on the updates, PEFT's election of signs, truncated, as its dare_ties_svd, with a seed.",
        _PEFT,
        peft_svd(dare, elect=True),
        (_CHANCE, ELECTION, DELTA_SPACE),
        weight=1.0,
        cost="entries",
    ),
)
