"""RegMean: the merge that is nearest to every member on the member's inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from catalog.errors import MergeError
from merging.methods.lowrank import Update, concatenate, truncate
from merging.methods.method import MergeMethod, ModuleWork, Parameter

if TYPE_CHECKING:
    from torch import Tensor


def regmean(work: ModuleWork) -> Update:
    """argmin_W sum_i w_i ||(W - Delta W_i) X_i||^2 = (sum w_i Delta W_i G_i)(sum w_i G_i)^-1.

    https://arxiv.org/abs/2212.09849, with G_i = X_i X_i^T; the base cancels. In factors only A
    changes, A_i to A_i G_i (sum G)^-1, so that the result is exact at rank sum r_i. Off-diagonal entries of G
    are multiplied by `shrink` (the paper's alpha). Raises MergeError for activations that are missing or do
    not match.
    """
    import torch

    shrink = work.number("shrink")
    inner = [
        weight * (gram * shrink + gram.diagonal().diag() * (1 - shrink))
        for weight, path in zip(work.weights, work.inputs, strict=True)
        for gram in (_gram(path, work),)
    ]
    total = torch.stack(inner).sum(0)
    lower, failed = torch.linalg.cholesky_ex(total)
    if bool(failed):
        raise MergeError(
            f"The activations of {work.stack.name} do not span its inputs; give more of them or lower shrink."
        )
    rows = [
        torch.cholesky_solve(gram @ work.stack.a[place].T.double(), lower).T
        for gram, place in zip(inner, work.stack.ranges(), strict=True)
    ]
    stack = replace(work.stack, a=torch.cat(rows).float())
    ones = stack.columns([1.0] * len(work.weights))
    return concatenate(stack, ones) if work.rank >= stack.a.shape[0] else truncate(stack, ones, work.rank)


def _gram(path: Path, work: ModuleWork) -> Tensor:
    """G of (in, in) in float64 from a safetensors file: MODULE.gram, or MODULE.inputs of (n, in)."""
    import torch
    from safetensors import SafetensorError, safe_open

    module, width = work.stack.name, work.stack.a.shape[1]
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            name = next(
                (f"{module}.{kind}" for kind in ("gram", "inputs") if f"{module}.{kind}" in names), None
            )
            values = file.get_tensor(name).double() if name else None
    except (SafetensorError, OSError) as error:
        raise MergeError(f"The activations {path.name} cannot be read: {error}.") from error
    if values is None:
        raise MergeError(f"{path.name} contains neither {module}.gram nor {module}.inputs.")
    square = bool(name and name.endswith(".gram"))
    if values.ndim != 2 or values.shape[1] != width or (square and values.shape[0] != width):
        raise MergeError(f"{name} of {path.name} has shape {list(values.shape)}, the module {width} inputs.")
    if not bool(torch.isfinite(values).all()):
        raise MergeError(f"{name} of {path.name} contains NaN or infinity.")
    gram: Tensor = values if square else values.T @ values
    return gram.to(work.stack.a.device)


METHODS = (
    MergeMethod(
        "regmean",
        "The update nearest to each member on its own inputs.",
        "https://arxiv.org/abs/2212.09849",
        regmean,
        (Parameter("shrink", 0.95, "factor on the off-diagonal entries of the inputs' Gram matrices", 0, 1),),
        exact=True,
        data=True,
        weight=1.0,
        cost="grams",
        full_rank=True,
    ),
)
