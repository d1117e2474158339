"""The layers of a model that adapters can change."""

from __future__ import annotations

from typing import Any

_CONV1D = "transformers.pytorch_utils"


def is_conv1d(module: Any) -> bool:
    """Whether a module is a linear layer of GPT-2: `nx` inputs, `nf` outputs, weights of (in, out)."""
    return any(kind.__name__ == "Conv1D" and kind.__module__ == _CONV1D for kind in type(module).__mro__)


def is_linear(module: Any) -> bool:
    """Whether a module is a linear layer: torch's, or that of GPT-2."""
    from torch import nn

    return isinstance(module, nn.Linear) or is_conv1d(module)


def reads_dt_proj(block: Any) -> bool:
    """Whether a block (Mamba, Falcon-Mamba, Jamba) reads the weights of its `dt_proj` without a call."""
    return type(block).__name__.endswith("MambaMixer") and hasattr(block, "dt_proj")


def is_router(module: Any) -> bool:
    """Whether a linear layer chooses experts and returns more than its output, as in Llama 4 and Phi-MoE."""
    return is_linear(module) and type(module).__name__.endswith("Router")


def unreachable_layers(model: Any) -> frozenset[str]:
    """The names of a model's linear layers that adapters do not reach: `dt_proj` of Mamba, and routers."""
    names = set()
    for name, module in model.named_modules():
        if reads_dt_proj(module):
            names.add(f"{name}.dt_proj")
        elif is_router(module):
            names.add(name)
    return frozenset(names)
