"""Random numbers by position: the same value for the same entry, for all blocks and devices.

A counter-based generator as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011,
https://doi.org/10.1145/2063384.2063405), with a 32-bit integer mixer in place of their ciphers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_MASK = 0xFFFFFFFF
# An odd constant below 2^31, so that products of 32-bit numbers stay within 63 bits.
_FACTOR = 0x45D9F3B


def uniform(keys: Sequence[int], rows: slice, columns: int, device: str | None = None) -> Tensor:
    """Numbers in [0, 1) for a range of rows of each key's matrix: float32 of (keys, rows, columns).

    A key has 62 bits; entry (i, j) of a key depends on the key and on i * columns + j, modulo 2^32.
    """
    import torch

    counter = torch.arange(rows.start * columns, rows.stop * columns, dtype=torch.int64, device=device)
    keyed = torch.tensor([[key & _MASK, key >> 32] for key in keys], dtype=torch.int64, device=device)
    mixed = (counter & _MASK) ^ keyed[:, :1]
    _mix(mixed)
    mixed ^= keyed[:, 1:]
    _mix(mixed)
    numbers = (mixed >> 8).to(torch.float32) * 2.0**-24
    return numbers.reshape(len(keys), rows.stop - rows.start, columns)


def normal(key: int, rows: int, columns: int, device: str | None = None) -> Tensor:
    """Standard normal numbers of (rows, columns) in float32 by a generator seeded with the key."""
    import torch

    generator = torch.Generator().manual_seed(key)
    return torch.randn(rows, columns, generator=generator).to(device)


def _mix(x: Tensor) -> None:
    """Spread every bit over all 32, in place."""
    for _ in range(2):
        x ^= x >> 16
        x *= _FACTOR
        x &= _MASK
    x ^= x >> 16
