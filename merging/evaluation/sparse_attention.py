"""Attention over a tree of tokens without most of the pairs that its mask leaves out.

A token sees its ancestors alone, so that a block of rows needs the keys that they share and its own. On a
processor the attention of a tree is computed block by block; what a row sees, and so the result, is the same
but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Rows of a block: fewer leave out more pairs, and are more calls.
_ROWS = 64
# The share of the pairs above which leaving out the others does not pay.
_MOST = 0.75


class SparseAttention(TorchFunctionMode):
    """Inside the block torch's attention with `mask` leaves out keys that no row of a block sees.

    `visible` is (n, n), whether a row's token sees a column's; `mask` is the same as (n, n) addends, of which
    models get a view. Attention with another mask, such as one to which a model added distances, is computed
    as it is, and so is all attention elsewhere than on a CPU.
    """

    def __init__(self, visible: NDArray[np.bool_], mask: Tensor) -> None:
        super().__init__()
        self._mask = mask
        self._blocks = _blocks(visible, mask) if mask.device.type == "cpu" else []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function's result; for attention with the mask, block by block."""
        if func is functional.scaled_dot_product_attention and self._blocks:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        attend: Callable[..., Tensor] = functional.scaled_dot_product_attention
        if attn_mask is None or not self._is_own(attn_mask) or query.shape[-2] != key.shape[-2]:
            return attend(query, key, value, attn_mask, *rest, **options)
        parts = [
            attend(
                query[..., rows, :],
                _columns_of(key, columns),
                _columns_of(value, columns),
                mask,
                *rest,
                **options,
            )
            for rows, columns, mask in self._blocks
        ]
        return torch.cat(parts, dim=-2)

    def _is_own(self, mask: Tensor) -> bool:
        """Whether a mask is a view of all rows and columns of this one."""
        own = self._mask
        return (
            mask.shape[-2:] == own.shape
            and mask.stride()[-2:] == own.stride()
            and mask.data_ptr() == own.data_ptr()
            and all(
                size == 1 or not step for size, step in zip(mask.shape[:-2], mask.stride()[:-2], strict=True)
            )
        )


def _columns_of(values: Tensor, columns: slice | Tensor) -> Tensor:
    """The keys or values of some columns."""
    return values[..., columns, :] if isinstance(columns, slice) else values.index_select(-2, columns)


def _blocks(visible: NDArray[np.bool_], mask: Tensor) -> list[tuple[slice, slice | Tensor, Tensor]]:
    """Rows, the columns that one of them sees, and their mask; nothing if all pairs cost about as much.

    Columns that follow each other are a slice where this saves memory: gradients keep the values of a block,
    which are a part of all values then, and else a copy.
    """
    size = len(visible)
    blocks = [slice(start, min(start + _ROWS, size)) for start in range(0, size, _ROWS)]
    seen = [np.flatnonzero(visible[rows].any(axis=0)) for rows in blocks]
    pairs = sum((rows.stop - rows.start) * len(row) for rows, row in zip(blocks, seen, strict=True))
    if pairs > _MOST * size * size:
        return []
    neighbours = [int(row[-1] - row[0]) + 1 == len(row) for row in seen]
    sliced = sum(len(row) for row, whole in zip(seen, neighbours, strict=True) if whole) > size
    return [
        (
            rows,
            slice(int(row[0]), int(row[-1]) + 1) if sliced and whole else torch.from_numpy(row),
            mask[rows][:, row][None, None],
        )
        for rows, row, whole in zip(blocks, seen, neighbours, strict=True)
    ]
