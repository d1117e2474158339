"""Drop entries, rescale the others, then sum or elect signs: magnitude, DARE, DELLA, Breadcrumbs.

A sparsifier is a function of a block of the members' entries; it is followed by a sum or by TIES' election.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from merging.methods.blocks import (
    SPACE,
    THRESHOLDS,
    Entries,
    keep_chances,
    magnitude_thresholds,
    shrink,
    uniform,
)
from merging.methods.method import ModuleWork, Parameter
from merging.methods.sign_election import (
    DELTA_SPACE,
    ELECTION,
    KNOTS_SPACE,
    SCALE,
    Sparsifier,
    elect_and_mean,
    entry_method,
    entrywise,
    factor_method,
    factorwise,
    magnitude,
    peft_disjoint_mean,
    trim_factor,
)

if TYPE_CHECKING:
    from torch import Tensor

_DARE = "https://arxiv.org/abs/2311.03099"
_PEFT = "https://huggingface.co/docs/peft/developer_guides/model_merging"


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


def _drop_entries(work: ModuleWork, side: str, values: Tensor) -> Tensor:
    """DARE on whole factors of (N, rows, columns)."""
    keys = [work.key(side, name) for name in work.names]
    chances = uniform(keys, slice(0, values.shape[1]), values.shape[2], str(values.device))
    return _thin(values, chances, work.number("density"))


def _thin(values: Tensor, chances: Tensor, keep: float | Tensor) -> Tensor:
    """v / p where the chance is below p, else 0; a sign is a cheaper mask than a comparison."""
    sparse: Tensor = chances.neg_().add_(keep).sign_().clamp_(min=0).div_(keep).mul_(values)
    return sparse


def weighted_sum(work: ModuleWork, weights: Tensor, values: Tensor) -> Tensor:
    """scale * sum_i w_i v_i; PEFT's types have no scale."""
    import torch

    total: Tensor = torch.tensordot(weights * float(work.options.get("scale", 1.0)), values, 1)
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
    entry_method(
        "magnitude",
        "The weighted sum of the updates' largest entries.",
        _PEFT,
        entrywise(magnitude, weighted_sum),
        (_HALF, SCALE, SPACE, THRESHOLDS),
        weight="mean",
    ),
    entry_method(
        "dare",
        "The weighted sum of random entries, rescaled (DARE).",
        _DARE,
        entrywise(dare, weighted_sum),
        (_CHANCE, SCALE, SPACE),
        weight="mean",
    ),
    entry_method(
        "dare-ties",
        "Random entries, rescaled, then TIES' signs and mean.",
        _DARE,
        entrywise(dare, elect_and_mean),
        (_CHANCE, SCALE, ELECTION, SPACE),
    ),
    entry_method(
        "knots-dare-ties",
        "DARE-TIES in a common basis of the outputs (KnOTS).",
        "https://arxiv.org/abs/2410.19735",
        entrywise(dare, elect_and_mean),
        (_KNOTS, replace(SCALE, default=0.4), ELECTION, KNOTS_SPACE),
    ),
    entry_method(
        "della",
        "Random entries, large ones more often, then TIES.",
        "https://arxiv.org/abs/2406.11617",
        entrywise(della, elect_and_mean),
        (_DELLA, _WINDOW, replace(SCALE, default=1.1), ELECTION, SPACE),
        revision=2,
    ),
    entry_method(
        "breadcrumbs",
        "The weighted sum without largest and smallest entries.",
        "https://arxiv.org/abs/2312.06795",
        entrywise(breadcrumbs, weighted_sum),
        (_CRUMBS, _LARGEST, SCALE, SPACE, THRESHOLDS),
        weight="mean",
    ),
    factor_method(
        "peft-magnitude-prune",
        "Large entries of A and B apart, as magnitude_prune.",
        _PEFT,
        factorwise(trim_factor, weighted_sum),
        (_HALF,),
    ),
    factor_method(
        "peft-dare-linear",
        "DARE on A and B apart, as PEFT's dare_linear.",
        _PEFT,
        factorwise(_drop_entries, weighted_sum),
        (_CHANCE,),
    ),
    factor_method(
        "peft-dare-ties",
        "DARE, then TIES on A and B apart, as PEFT's dare_ties.",
        _PEFT,
        factorwise(_drop_entries, peft_disjoint_mean),
        (_CHANCE, ELECTION),
    ),
    entry_method(
        "peft-magnitude-prune-svd",
        "Large entries, truncated, as magnitude_prune_svd.",
        _PEFT,
        entrywise(magnitude, weighted_sum),
        (_HALF, DELTA_SPACE),
    ),
    entry_method(
        "peft-dare-linear-svd",
        "DARE on the updates, truncated, as dare_linear_svd.",
        _PEFT,
        entrywise(dare, weighted_sum),
        (_CHANCE, DELTA_SPACE),
    ),
    entry_method(
        "peft-dare-ties-svd",
        "DARE-TIES of the updates, truncated, as dare_ties_svd.",
        _PEFT,
        entrywise(dare, peft_disjoint_mean),
        (_CHANCE, ELECTION, DELTA_SPACE),
    ),
)
