"""TIES: trim, elect a sign for each entry, average the members that agree with it.

https://arxiv.org/abs/2306.01708. The functions take members' entries of (N, ...)
and work on blocks of rows, whole factors, or cores alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from catalog.errors import UsageError
from merging.methods.averaging import separate
from merging.methods.blocks import (
    SPACE,
    THRESHOLDS,
    Entries,
    entries,
    magnitude_thresholds,
    merge_entries,
    shrink,
    whole_thresholds,
)
from merging.methods.lowrank import Update
from merging.methods.method import MergeMethod, ModuleWork, Parameter

if TYPE_CHECKING:
    from torch import Tensor

_PAPER = "https://arxiv.org/abs/2306.01708"
_PEFT = "https://huggingface.co/docs/peft/developer_guides/model_merging"
DENSITY = Parameter("density", 0.2, "share of each member's entries that stay", 0, 1)
SCALE = Parameter("scale", 1.0, "factor on the merged update (lambda of the paper)")
ELECTION = Parameter(
    "election", "total", "the sign of the sum, or of the number of members", choices=("total", "frequency")
)

TRIM = Parameter(
    "trim",
    "module",
    "the entries among which the largest stay: of each module, or of the whole update as in the paper",
    choices=("module", "vector"),
)

Sparsifier = Callable[["Tensor", slice], "Tensor"]
"""(N, b, columns) and the range of rows to the same block without the entries that are dropped."""
Sparsify = Callable[[ModuleWork, Entries], Sparsifier]
Combine = Callable[[ModuleWork, "Tensor", "Tensor"], "Tensor"]
"""Weights of (N,) and sparse values of (N, ...) to the merged (...)."""

entry_method = partial(MergeMethod, weight=1.0, cost="entries")
factor_method = partial(MergeMethod, gauge="dependent", weight=1.0, truncates=False, equal_ranks=True)


def elect_signs(values: Tensor, election: str = "total") -> Tensor:
    """The sign of each entry over members on dimension 0, +1 or -1; a tie is positive, as in PEFT."""
    votes = values if election == "total" else values.sign()
    return (votes.sum(0) >= 0).to(values.dtype).mul_(2).sub_(1)


def agreeing_mean(values: Tensor, weights: Tensor, sign: Tensor) -> Tensor:
    """sum w_i v_i / sum |w_i| over members whose w_i v_i has the elected sign; 0 if none has.

    `values` are w_i v_i of (N, ...), `weights` |w_i| of (N,).
    """
    total = agreeing_sum(values, weights.new_ones(len(weights)), sign)
    share = agreeing_sum(values.sign(), weights, sign).mul_(sign)
    # If no member agrees both are zero.
    return total / share.add_((share == 0).to(share.dtype))


def agreeing_sum(values: Tensor, weights: Tensor, sign: Tensor) -> Tensor:
    """sum w_i v_i over members whose v_i has the elected sign, (...) from (N, ...).

    By v + sign |v|, which is 2 v where v agrees and 0 elsewhere: masks of torch would take far longer.
    """
    flat = values.flatten(1)
    total: Tensor = (
        (weights @ flat.abs()).reshape(sign.shape).mul_(sign).add_((weights @ flat).reshape(sign.shape))
    )
    return total.div_(2)


def peft_disjoint_mean(work: ModuleWork, weights: Tensor, values: Tensor) -> Tensor:
    """PEFT's merge: signs elected without weights, weighted entries divided by the number that agree."""
    sign = elect_signs(values, str(work.options["election"]))
    agree = agreeing_sum(values.sign(), weights.new_ones(len(weights)), sign).mul_(sign)
    return agreeing_sum(values, weights, sign) / agree.clamp(min=1)


def elect_and_mean(work: ModuleWork, weights: Tensor, values: Tensor) -> Tensor:
    """Steps 2 and 3 of TIES for trimmed entries, times `scale`."""
    weighted = values * weights.reshape(-1, *(1,) * (values.ndim - 1))
    sign = elect_signs(weighted, str(work.options["election"]))
    return agreeing_mean(weighted, weights.abs(), sign) * work.number("scale")


def entrywise(sparsify: Sparsify, combine: Combine) -> Callable[[ModuleWork], Update]:
    """A method: sparsify each member's entries in the space of the parameter, then combine the members."""

    def run(work: ModuleWork) -> Update:
        blocks = entries(work)
        drop, weights = sparsify(work, blocks), blocks.left.new_tensor(work.weights)
        return merge_entries(work, blocks, lambda values, rows: combine(work, weights, drop(values, rows)))

    return run


def factorwise(
    sparsify: Callable[[ModuleWork, str, Tensor], Tensor], combine: Combine
) -> Callable[[ModuleWork], Update]:
    """A method of PEFT: A and B apart, sparsified without scalings, then weighted by their roots."""

    def run(work: ModuleWork) -> Update:
        parts = zip("ab", peft_factors(work), strict=True)
        a, b = (combine(work, weights, sparsify(work, side, values)) for side, (values, weights) in parts)
        return Update(a, b, None, 0.0)

    return run


def magnitude(work: ModuleWork, blocks: Entries) -> Sparsifier:
    """Each member keeps its `density` largest entries, of the module or (`limits`) of all modules."""
    if work.limits:
        limits = blocks.left.new_tensor([work.limits[name] for name in work.names])[:, None, None]
    else:
        exact = work.options.get("thresholds") != "sampled"
        limits = magnitude_thresholds(work, blocks, work.number("density"), exact)
    return lambda values, rows: shrink(values, limits)


def whole_limits(works: Callable[[], Iterator[ModuleWork]]) -> Mapping[str, float]:
    """For trimming of whole vectors, the magnitude at which each member is trimmed; else empty.

    Raises UsageError if such magnitudes are to be sampled: they are always exact.
    """
    first = next(works(), None)
    if first is None or first.options["trim"] == "module":
        return {}
    if first.options["thresholds"] == "sampled":
        raise UsageError("trim=vector requires exact magnitudes; leave out thresholds=sampled.")
    return whole_thresholds(works, first.number("density"))


def peft_factors(work: ModuleWork) -> list[tuple[Tensor, Tensor]]:
    """A and B of all members without scalings, (N, r, in) and (N, out, r), each with PEFT's weights for it.

    These are sign(w s) sqrt|w s| for A and sqrt|w s| for B.
    """
    import torch

    a, b = separate(work.stack)
    scalings = a.new_tensor(work.stack.scalings)
    signed = torch.where(scalings == 0, 1, scalings.sign() * scalings.abs().sqrt())[:, None, None]
    products = a.new_tensor(work.weights) * scalings
    side = products.abs().sqrt()
    sign = (products >= 0).to(a.dtype) * 2 - 1
    return [(a / signed, side * sign), (b / signed.abs(), side)]


def trim_factor(work: ModuleWork, _side: str, values: Tensor) -> Tensor:
    """A whole factor of every member with its `density` largest entries."""
    return trim(values, work.number("density"))


def trim(values: Tensor, density: float) -> Tensor:
    """The int(density * n) largest entries of each member of (N, ...), the others 0."""
    flat = values.flatten(1)
    count = int(density * flat.shape[1] + 1e-9)
    largest = flat.abs().topk(count, dim=1).indices
    return flat.new_zeros(flat.shape).scatter(1, largest, flat.gather(1, largest)).reshape(values.shape)


KNOTS_SPACE = Parameter("space", "knots", "a common basis of the outputs", choices=("knots",))
CORE_SPACE = Parameter("space", "core", "a common basis of both sides", choices=("core",))
DELTA_SPACE = Parameter("space", "delta", "the updates themselves", choices=("delta",))
_WHOLE = Parameter("density", 1.0, "share of each member's entries that stay", 0, 1)

_TIES = entrywise(magnitude, elect_and_mean)

METHODS = (
    entry_method(
        "ties",
        "The mean of large entries that agree in sign (TIES).",
        _PAPER,
        _TIES,
        (DENSITY, SCALE, ELECTION, SPACE, THRESHOLDS, TRIM),
        survey=whole_limits,
    ),
    entry_method(
        "knots-ties",
        "TIES in a common basis of the outputs (KnOTS).",
        "https://arxiv.org/abs/2410.19735",
        _TIES,
        (_WHOLE, SCALE, ELECTION, KNOTS_SPACE, THRESHOLDS),
    ),
    entry_method(
        "core-ties",
        "TIES on the R x R cores of the members (Core Space).",
        "https://arxiv.org/abs/2509.17786",
        _TIES,
        (DENSITY, SCALE, ELECTION, CORE_SPACE, THRESHOLDS),
        gauge="rotations",
    ),
    factor_method(
        "peft-ties",
        "TIES on A and B apart, as PEFT's ties.",
        _PEFT,
        factorwise(trim_factor, peft_disjoint_mean),
        (Parameter("density", 0.2, "share of each factor's entries that stay", 0, 1), ELECTION),
    ),
    entry_method(
        "peft-ties-svd",
        "TIES of the updates, truncated, as PEFT's ties_svd.",
        _PEFT,
        entrywise(magnitude, peft_disjoint_mean),
        (DENSITY, ELECTION, DELTA_SPACE),
    ),
)
