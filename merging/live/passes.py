"""y = W x + B (s * (A x)) for one linear layer, in the cheapest order of multiplication.

For T tokens, widths in and out and R ranks the update costs 2 T R (in + out) operations as two thin products
("factored") and 2 R in out as a product of the factors that is added to a copy of the weights ("folded"),
after which the layer costs the same as before. Folded is the cheaper one above in out / (in + out) tokens
for each set of scales. Factors are A of (R, in) and the transpose of B, of (R, out).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from merging.model import multiply

Gate = Callable[[str, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The addition to one module: factors `a` of (R, in) and `bt` of (R, out), `scales` of (R,) or (K, R).

    With K sets of scales `groups` has the rows of a batch that use each; `rows` the set of each row.
    """

    name: str
    a: Tensor
    bt: Tensor
    scales: Tensor
    rows: Tensor | None = None
    groups: Sequence[Tensor] = ()

    @property
    def trains(self) -> bool:
        """Whether scales or factors require gradients."""
        return self.scales.requires_grad or self.a.requires_grad or self.bt.requires_grad

    def of_rows(self, x: Tensor) -> Tensor:
        """The scales in the shape for x A^T: (R,), or (batch, 1, ..., R)."""
        if self.rows is None:
            return self.scales
        return self.scales[self.rows].view(x.shape[0], *(1,) * (x.dim() - 2), -1)


def folds(part: Part, tokens: int) -> bool:
    """Whether folding costs fewer operations for this number of tokens, including a backward pass if any."""
    (rank, inside), outside = part.a.shape, part.bt.shape[1]
    if not part.scales.requires_grad:
        return max(1, len(part.groups)) * inside * outside < tokens * (inside + outside)
    if part.rows is not None:
        return False
    thin, weights = tokens * rank * (inside + outside), rank * inside * outside
    return 2 * weights + min(thin, tokens * inside * outside + weights) < 2 * thin


def pass_by_factors(x: Tensor, y: Tensor, part: Part, gate: Gate | None = None) -> Tensor:
    """y + (s * (x A^T)) B^T, in place if no gradient is required; `y` is the layer's own output.

    `gate(name, x, x A^T)` gives an additional factor for each rank, broadcastable to (..., R).
    """
    h = multiply(x.to(part.a.dtype), part.a)
    return _add_to(x, y, h, part, gate)


def pass_by_lookup(ids: Tensor, y: Tensor, part: Part, gate: Gate | None = None) -> Tensor:
    """The same for an embedding: A is (R, vocabulary), and A x is the token's column of it."""
    return _add_to(ids.unsqueeze(-1), y, functional.embedding(ids, part.a.T), part, gate)


def pass_by_sum(
    x: Tensor, weight: Tensor, bias: Tensor | None, part: Part, scratch: Tensor | None = None
) -> Tensor:
    """x (W + B diag(s) A)^T + bias through the summed weights; `scratch` of W's shape saves allocating."""
    if part.rows is None:
        if torch.is_grad_enabled() and (x.requires_grad or part.scales.requires_grad):
            folding: Callable[..., Tensor] = _Folded.apply
            return folding(x, part.scales, weight, bias, part.a, part.bt)
        return multiply(x, sum_weights(weight, part.a, part.bt, part.scales, scratch), bias)
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    for scales, rows in zip(part.scales, part.groups, strict=True):
        if len(rows):
            y[rows] = multiply(x[rows], sum_weights(weight, part.a, part.bt, scales, scratch), bias)
    return y


def sum_weights(weight: Tensor, a: Tensor, bt: Tensor, scales: Tensor, out: Tensor | None = None) -> Tensor:
    """W + B diag(s) A; the narrower factor is the one that is scaled."""
    if a.shape[1] < bt.shape[1]:
        return torch.addmm(weight, bt.T, a * scales[:, None], out=out)
    return torch.addmm(weight, (bt * scales[:, None]).T, a, out=out)


def _add_to(x: Tensor, y: Tensor, h: Tensor, part: Part, gate: Gate | None) -> Tensor:
    tracked = h.requires_grad or y.requires_grad or part.trains
    scales = part.of_rows(x)
    if gate is not None:
        scales = scales * gate(part.name, x, h)
        tracked = tracked or scales.requires_grad
    if (tracked and torch.is_grad_enabled()) or torch.is_autocast_enabled(x.device.type):
        return y + multiply((h * scales).to(h.dtype), part.bt.T).to(y.dtype)
    h.mul_(scales)
    if h.dtype != y.dtype or not y.is_contiguous():
        return y.add_(multiply(h, part.bt.T))
    sums = y.view(-1, y.shape[-1])
    torch.addmm(sums, h.reshape(-1, h.shape[-1]), part.bt, out=sums)
    return y


class _Folded(torch.autograd.Function):
    """The folded layer with gradients of x and of the scales; the summed weights are computed again for them.

    dL/ds_k = sum over tokens of (A x)_k (B^T dL/dy)_k, which is also row k of (B^T G) * A summed, with
    G = dL/dy^T x the gradient of the weights; the cheaper of the two is computed.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scales: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, bt: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, scales, weight, a, bt)
        return multiply(x, sum_weights(weight, a, bt, scales), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scales, weight, a, bt = ctx.saved_tensors
        of_y, of_x, of_scales = gradient.reshape(-1, weight.shape[0]), None, None
        if ctx.needs_input_grad[0]:
            of_x = multiply(of_y, sum_weights(weight, a, bt, scales).t()).view_as(x)
        if ctx.needs_input_grad[1]:
            of_scales = _of_scales(x.reshape(-1, weight.shape[1]), of_y, a, bt)
        return of_x, of_scales, None, None, None, None


def _of_scales(x: Tensor, of_y: Tensor, a: Tensor, bt: Tensor) -> Tensor:
    (rank, inside), outside, tokens = a.shape, bt.shape[1], len(x)
    if inside * outside * (tokens + rank) < tokens * rank * (inside + outside):
        of_weight = multiply(of_y.T, x.detach().T)
        return (multiply(bt, of_weight.T) * a).sum(1)
    return (multiply(x, a) * multiply(of_y, bt)).sum(0)
