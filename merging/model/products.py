"""Products of activations with weights that do not learn, in float32 on a CPU.

torch gives them to MKL, which does not use AVX-512 on processors that are not Intel's: there oneDNN has twice
its speed (EPYC of family 26, one thread: 210 against 100 GFLOP/s), and without AVX-512 it has less (EPYC of
family 25: 59 against 69 in the layers of a small model). Results differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class FixedLinear(nn.Linear):
    """A linear layer that multiplies by `multiply`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """x W^T + b."""
        return multiply(input, self.weight, self.bias)


def quicken_layers(model: nn.Module) -> None:
    """Makes the linear layers of a model on a CPU in float32 multiply by oneDNN, where that is faster."""
    for module in model.modules() if _onednn_pays() else ():
        if type(module) is nn.Linear and _suits(module.weight):
            module.__class__ = FixedLinear


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, as `torch.nn.functional.linear`; for weights that learn it is that function."""
    learns = weight.requires_grad or (bias is not None and bias.requires_grad)
    if learns or not (_suits(x) and _suits(weight) and _onednn_pays()) or torch.is_autocast_enabled("cpu"):
        return functional.linear(x, weight, bias)
    if x.requires_grad and torch.is_grad_enabled():
        product: Callable[..., Tensor] = _Product.apply
        return product(x, weight, bias)
    return _multiply(x, weight, bias)


class _Product(torch.autograd.Function):
    """The product with the gradient of x, which has one itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return multiply(gradient, weight.t()), None, None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The strides of a bias are not looked at.
    bias = None if bias is None else bias.contiguous()
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _suits(values: Tensor) -> bool:
    return values.dtype == torch.float32 and values.device.type == "cpu"


@cache
def _onednn_pays() -> bool:
    """Whether torch has this product of oneDNN, and the processor AVX-512."""
    available: Callable[[], bool] = torch.backends.mkldnn.is_available
    capability: str = torch.backends.cpu.get_cpu_capability()
    return available() and hasattr(torch.ops.mkldnn, "_linear_pointwise") and capability.startswith("AVX512")
