"""Sums of updates: exact, truncated, and the separate sums of factors that are often taken for one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from merging.members import Stack
from merging.methods.lowrank import Update, concatenate, truncate
from merging.methods.method import MergeMethod, ModuleWork

if TYPE_CHECKING:
    from torch import Tensor

_PEFT = "https://huggingface.co/docs/peft/developer_guides/model_merging"


def sum_updates(work: ModuleWork) -> Update:
    """sum_i w_i Delta W_i: the stacked factors themselves, or the best approximation of a lower rank."""
    d = work.stack.columns(work.weights)
    if work.rank >= work.stack.a.shape[0]:
        return concatenate(work.stack, d)
    return truncate(work.stack, d, work.rank)


def concatenation(work: ModuleWork) -> Update:
    """[B_1 ... B_N] [w_1 A_1; ...; w_N A_N], the sum itself at rank sum r_i."""
    return concatenate(work.stack, work.stack.columns(work.weights))


def sum_and_truncate(work: ModuleWork) -> Update:
    """The best rank-r approximation of sum_i w_i Delta W_i, by Eckart-Young-Mirsky."""
    return truncate(work.stack, work.stack.columns(work.weights), work.rank)


def separate_sum(work: ModuleWork) -> Update:
    """(sum w_i B_i)(sum w_i A_i), scalings folded in as sqrt|s|: cross terms and squared weights."""
    a, b = separate(work.stack)
    weights = a.new_tensor(_present(work))
    return Update(_sum(weights, a), _sum(weights, b), None, 0.0)


def peft_linear(work: ModuleWork) -> Update:
    """(sum sqrt|w s| B_i)(sum sign(w s) sqrt|w s| A_i), as PEFT's combination type linear does."""
    a, b = separate(work.stack)
    weights = a.new_tensor(_present(work))
    roots = weights.abs().sqrt()
    return Update(_sum(roots * weights.sign(), a), _sum(roots, b), None, 0.0)


def separate(stack: Stack) -> tuple[Tensor, Tensor]:
    """Factors of the members that have the module, of equal rank r: (n, r, in) and (n, out, r)."""
    import torch

    ranges = [place for place in stack.ranges() if place.start < place.stop]
    return torch.stack([stack.a[p] for p in ranges]), torch.stack([stack.b[:, p] for p in ranges])


def _present(work: ModuleWork) -> list[float]:
    return [w for w, rank in zip(work.weights, work.stack.ranks, strict=True) if rank]


def _sum(weights: Tensor, values: Tensor) -> Tensor:
    import torch

    total: Tensor = torch.tensordot(weights, values, 1)
    return total


_whole_sum = partial(MergeMethod, exact=True, weight=1.0, full_rank=True)
_separate = partial(MergeMethod, gauge="dependent", equal_ranks=True, truncates=False)

METHODS = (
    MergeMethod(
        "average",
        "The mean of the updates, weights divided by their sum.",
        "https://arxiv.org/abs/2203.05482",
        sum_updates,
        exact=True,
        normalised=True,
        full_rank=True,
    ),
    _whole_sum(
        "sum",
        "The weighted sum of the updates (task arithmetic).",
        "https://arxiv.org/abs/2212.04089",
        sum_updates,
    ),
    _whole_sum(
        "concatenation",
        "The weighted sum, factors side by side; the ranks add up.",
        "https://arxiv.org/abs/2410.13025",
        concatenation,
        truncates=False,
    ),
    MergeMethod(
        "svd",
        "The best approximation of the weighted sum at one rank.",
        "https://doi.org/10.1007/BF02288367",
        sum_and_truncate,
        exact=True,
    ),
    _separate(
        "separate-average",
        "A and B averaged apart (LoraHub); no mean of the updates.",
        "https://arxiv.org/abs/2307.13269",
        separate_sum,
    ),
    _separate(
        "peft-linear",
        "A and B summed apart by weights, as PEFT's linear.",
        _PEFT,
        peft_linear,
        weight=1.0,
    ),
    _whole_sum(
        "peft-cat",
        "The weighted sum by concatenation, as PEFT's cat.",
        _PEFT,
        concatenation,
        truncates=False,
    ),
    MergeMethod(
        "peft-svd",
        "The weighted sum at the largest rank, as PEFT's svd.",
        _PEFT,
        sum_and_truncate,
        exact=True,
        weight=1.0,
    ),
)
