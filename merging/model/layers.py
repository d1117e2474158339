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
