"""Members entry by entry, in blocks of rows: for methods that use single entries of the updates.

Such methods have no low-rank form. Their N matrices are never formed in full: a block of rows of all members
is multiplied out, merged and used at once. The matrices are the updates themselves (space `delta`), or the
updates in a common basis of rank R: on the output side (`knots`), or on both sides (`core`).

Random numbers are by position: the same value for the same entry, for all blocks and devices. A counter-based
generator as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011,
https://doi.org/10.1145/2063384.2063405), with a 32-bit integer mixer in place of their ciphers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merging.methods.lowrank import Update, coordinates, truncate_dense
from merging.methods.method import ModuleWork, Parameter

if TYPE_CHECKING:
    from torch import Tensor

SPACE = Parameter(
    "space",
    "delta",
    "where entries are compared: in the updates, or in a common basis of their outputs or of both sides",
    choices=("delta", "knots", "core"),
)
THRESHOLDS = Parameter(
    "thresholds",
    "exact",
    "magnitudes to keep found exactly, or from 262,144 entries (faster; the share is off by 0.1 %)",
    choices=("exact", "sampled"),
)
# Bytes of a block of all members: small enough for a cache, large enough for a matrix product.
_BLOCK = 4 * 1024 * 1024
# Matrices of fewer entries are examined in full, larger ones through a sample.
_SMALL = 1 << 20
_SAMPLE = 1 << 18
_PART = 1 << 14
_SIGMAS = 5
# Half of the bits of a float32.
_HALF = 16
# Up to this length of the shorter side the truncation is exact; beyond, a subspace is iterated.
_EXACT_SIDE = 512
_OVERSAMPLE = 10
_POWERS = 3
_MASK = 0xFFFFFFFF
# An odd constant below 2^31, so that products of 32-bit numbers stay within 63 bits.
_FACTOR = 0x45D9F3B

Merge = Callable[["Tensor", slice], "Tensor"]
"""(N, b, columns) and the range of rows to the merged (b, columns)."""


@dataclass(frozen=True, slots=True)
class Entries:
    """N matrices of (rows, columns) as products left_i right_i; `lift` maps a truncated result back."""

    left: Tensor
    right: Tensor
    places: tuple[slice, ...]
    lift: Callable[[Update], Update]

    @property
    def rows(self) -> int:
        """Rows of each matrix."""
        return self.left.shape[0]

    @property
    def columns(self) -> int:
        """Columns of each matrix."""
        return self.right.shape[1]

    def block(self, rows: slice) -> Tensor:
        """A range of rows of every matrix, (N, b, columns) in float32."""
        import torch

        out = self.right.new_empty(len(self.places), rows.stop - rows.start, self.columns)
        for n, place in enumerate(self.places):
            torch.mm(self.left[rows, place], self.right[place], out=out[n])
        return out

    def ranges(self, matrices: int) -> Iterator[slice]:
        """Ranges of rows for blocks of this number of matrices."""
        step = max(1, _BLOCK // (4 * matrices * self.columns))
        for start in range(0, self.rows, step):
            yield slice(start, min(start + step, self.rows))


def entries(work: ModuleWork) -> Entries:
    """The members' entries in the space that the parameter `space` names.

    knots: SVD [Delta W_1 ... Delta W_N] = U S [V_1 ... V_N], entries of U^T Delta W_i = S V_i
    (https://arxiv.org/abs/2410.19735). core: U from the SVD of [B_1 ... B_N] and V from that of the stacked
    A_i, entries of U^T Delta W_i V (https://arxiv.org/abs/2509.17786), both of the members whose update is
    not 0. All from R x R matrices.
    """
    stack, space = work.stack, str(work.options["space"])
    places = stack.ranges()
    if space == "delta":
        return Entries(stack.b, stack.a, places, lambda update: update)
    grams = work.grams()
    if space == "knots":
        c_b, k_b = coordinates(grams.b)
        turn = _common_outputs(k_b, grams.a, places)
        basis = c_b.T @ turn
        return Entries((turn.T @ k_b).to(stack.a), stack.a, places, lambda u: _lift(u, stack.b, basis, None))
    (c_a, k_a), (c_b, k_b) = (_of_updates(work, gram) for gram in grams)
    return Entries(
        k_b.to(stack.a),
        k_a.T.to(stack.a).contiguous(),
        places,
        lambda u: _lift(u, stack.b, c_b.T, c_a @ stack.a.double()),
    )


def merge_entries(work: ModuleWork, entry_blocks: Entries, merge: Merge) -> Update:
    """The merged matrix, row by row, brought to the rank asked for.

    It is kept in memory if it fits into half of the budget, else computed again for each pass.
    Exact where its shorter side is at most 512; else by subspace iteration with 3 powers and 10 extra
    directions (Halko, Martinsson, Tropp, https://arxiv.org/abs/0909.4061).
    """

    def blocks() -> Iterator[tuple[slice, Tensor]]:
        for rows in entry_blocks.ranges(len(entry_blocks.places)):
            yield rows, merge(entry_blocks.block(rows), rows)

    small = min(entry_blocks.rows, entry_blocks.columns) <= _EXACT_SIDE
    if small or 8 * entry_blocks.rows * entry_blocks.columns <= work.memory:
        dense = entry_blocks.right.new_empty(entry_blocks.rows, entry_blocks.columns)
        for rows, block in blocks():
            dense[rows] = block
        if small:
            return entry_blocks.lift(truncate_dense(dense, work.rank))
        return entry_blocks.lift(_iterate_subspace(work, entry_blocks, lambda: _slices(entry_blocks, dense)))
    return entry_blocks.lift(_iterate_subspace(work, entry_blocks, blocks))


def magnitude_thresholds(work: ModuleWork, blocks: Entries, keep: float, exact: bool = True) -> Tensor:
    """For each matrix the magnitude that int(keep * entries) of its entries reach: float32 of (N, 1, 1).

    Entries of exactly that magnitude are all kept. Exact for large matrices too: a sample gives a narrow
    range, one pass counts what is above it and collects what is in it. `exact` False: the sample alone.
    """
    count = int(keep * blocks.rows * blocks.columns + 1e-9)
    values = [_threshold(work, blocks, n, count, exact) for n in range(len(blocks.places))]
    return blocks.left.new_tensor(values)[:, None, None]


def whole_thresholds(works: Callable[[], Iterator[ModuleWork]], keep: float) -> dict[str, float]:
    """For each member by name the magnitude that int(keep * entries) of its entries in all modules reach.

    Exact, in two passes over the entries and with 1 MiB of counters a member: the bits of a float32 that is
    not negative are ordered as the numbers are, so that the first pass counts by the upper half of the bits
    and the second, where the limit lies, by the lower half.
    """
    import torch

    upper = _bit_counts(works, None)
    total = {name: int(counts.sum()) for name, counts in upper.items()}
    counts_to_keep = {name: int(keep * count + 1e-9) for name, count in total.items()}
    places = {name: _place(counts, counts_to_keep[name]) for name, counts in upper.items()}
    lower = _bit_counts(works, {name: bits for name, (bits, _) in places.items()})
    limits = {}
    for name, (bits, remaining) in places.items():
        if counts_to_keep[name] <= 0:
            limits[name] = float("inf")
        elif counts_to_keep[name] >= total[name]:
            limits[name] = 0.0
        else:
            bits = (bits << _HALF) + _place(lower[name], remaining)[0]
            limits[name] = float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
    return limits


def _bit_counts(
    works: Callable[[], Iterator[ModuleWork]], upper: Mapping[str, int] | None
) -> dict[str, Tensor]:
    """The number of magnitudes of each member with each upper half of bits, or lower half for an `upper`."""
    import torch

    bit_counts: dict[str, Tensor] = {}
    for work in works():
        blocks = entries(work)
        # The blocks of the merge itself, so that products are rounded alike.
        for rows in blocks.ranges(len(blocks.places)):
            for name, values in zip(work.names, blocks.block(rows), strict=True):
                bits = values.abs_().flatten().view(torch.int32)
                if upper is None:
                    bits = bits >> _HALF
                else:
                    bits = bits[bits >> _HALF == upper[name]] & ((1 << _HALF) - 1)
                counts = torch.bincount(bits, minlength=1 << _HALF).cpu()
                bit_counts[name] = counts if name not in bit_counts else bit_counts[name].add_(counts)
    return bit_counts


def _place(counts: Tensor, count: int) -> tuple[int, int]:
    """The bin of the wanted-th largest number, and its place among those of the bin, from 1."""
    above = counts.flip(0).cumsum(0)
    last = min(int((above < count).sum()), len(counts) - 1)
    return len(counts) - 1 - last, count - (int(above[last - 1]) if last else 0)


def shrink(values: Tensor, limits: Tensor) -> Tensor:
    """Entries of (N, ...) that reach their member's limit in magnitude, the others 0.

    In one pass over the block; comparisons and masks of torch take over ten times longer.
    """
    import torch

    below = torch.nextafter(limits, torch.zeros_like(limits)).flatten().tolist()
    parts = [torch.nn.functional.hardshrink(v, limit) for v, limit in zip(values, below, strict=True)]
    return torch.stack(parts)


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


def keep_chances(work: ModuleWork, blocks: Entries, rows: slice) -> Tensor:
    """Uniform numbers in [0, 1) for a block, the same for a member wherever it stands: (N, b, columns)."""
    keys = [work.key("mask", name) for name in work.names]
    return uniform(keys, rows, blocks.columns, str(blocks.left.device))


def _of_updates(work: ModuleWork, gram: Tensor) -> tuple[Tensor, Tensor]:
    """`coordinates` of a Gram matrix of (R, R) for members whose update is not 0; 0 for the others."""
    import torch

    here, ranges = work.updates(), work.stack.ranges()
    if not 0 < len(here) < len(ranges):
        return coordinates(gram)
    columns = torch.cat([torch.arange(ranges[n].start, ranges[n].stop, device=gram.device) for n in here])
    c, k = coordinates(gram[columns][:, columns])
    basis = c.new_zeros(2, len(c), len(gram))
    basis[:, :, columns] = torch.stack([c, k])
    return basis[0], basis[1]


def _common_outputs(k_b: Tensor, gram_a: Tensor, places: tuple[slice, ...]) -> Tensor:
    """Eigenvectors of sum_i U^T Delta W_i Delta W_i^T U in the basis U of B's columns, largest first."""
    import torch

    inner = torch.zeros_like(gram_a)
    for place in places:
        inner[place, place] = gram_a[place, place]
    _, vectors = torch.linalg.eigh(k_b @ inner @ k_b.T)
    turned: Tensor = vectors.flip(1)
    return turned


def _lift(update: Update, b: Tensor, left: Tensor, right: Tensor | None) -> Update:
    """B left b and a right: from the common basis back to the layer."""
    outside = (b.double() @ (left @ update.b.double())).float()
    inside = update.a if right is None else (update.a.double() @ right).float()
    return Update(inside, outside, update.energy, update.discarded)


def _slices(blocks: Entries, dense: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for rows in blocks.ranges(1):
        yield rows, dense[rows]


def _iterate_subspace(
    work: ModuleWork, entry_blocks: Entries, blocks: Callable[[], Iterator[tuple[slice, Tensor]]]
) -> Update:
    """The leading rank-r part of a matrix given in blocks of rows, by subspace iteration."""
    import torch

    width = min(work.rank + _OVERSAMPLE, entry_blocks.rows, entry_blocks.columns)
    basis = normal(work.key("subspace"), entry_blocks.columns, width, str(entry_blocks.left.device))
    for _ in range(_POWERS):
        # W^T W Q in one pass, without W.
        image = torch.zeros_like(basis)
        for _, block in blocks():
            image.addmm_(block.T, block @ basis)
        basis = torch.linalg.qr(image).Q
    parts, energy = [], 0.0
    for _, block in blocks():
        parts.append(block @ basis)
        energy += float(block.square().sum(dtype=torch.float64))
    best = truncate_dense(torch.cat(parts), work.rank)
    energy_kept = (best.energy or 0.0) - best.discarded
    return Update((best.a @ basis.T).contiguous(), best.b, energy, max(0.0, energy - energy_kept))


def _threshold(work: ModuleWork, blocks: Entries, member: int, count: int, exact: bool) -> float:
    import torch

    total = blocks.rows * blocks.columns
    if count <= 0:
        return float("inf")
    if count >= total:
        return 0.0
    if total <= _SMALL:
        return _kth_largest(_magnitudes(blocks, member, slice(0, blocks.rows)), count)
    sample = _sample(work, blocks, member).sort(descending=True).values
    middle = count / total * len(sample)
    if not exact:
        return float(sample[min(round(middle), len(sample) - 1)])
    margin = _SIGMAS * (middle * (1 - count / total)) ** 0.5 + 1
    high = float(sample[int(middle - margin)]) if middle > margin else float("inf")
    low = float(sample[int(middle + margin)]) if middle + margin < len(sample) else 0.0
    above, between = 0, []
    for rows in blocks.ranges(1):
        upper = _magnitudes(blocks, member, rows)
        upper = upper[upper >= low]
        between.append(upper[upper <= high])
        above += len(upper) - len(between[-1])
    inside = torch.cat(between)
    if not above < count <= above + len(inside):
        # The sample was not representative, which happens in one case in a million.
        inside = torch.cat([_magnitudes(blocks, member, rows) for rows in blocks.ranges(1)])
        above = 0
    return _kth_largest(inside, count - above)


def _magnitudes(blocks: Entries, member: int, rows: slice) -> Tensor:
    place = blocks.places[member]
    return (blocks.left[rows, place] @ blocks.right[place]).abs_().flatten()


def _kth_largest(values: Tensor, count: int) -> float:
    import numpy as np
    import torch

    place = len(values) - count
    if values.device.type == "cpu":
        # numpy selects with the processor's vectors, ten times as fast as torch.
        return float(np.partition(values.numpy(), place)[place])
    return float(torch.kthvalue(values, place + 1).values)


def _sample(work: ModuleWork, blocks: Entries, member: int) -> Tensor:
    """Magnitudes of random entries, with repetition."""
    import torch

    key = work.key("sample", work.names[member])
    device = str(blocks.left.device)
    chances = uniform([key], slice(0, 2), _SAMPLE, device)[0]
    row = (chances[0] * blocks.rows).long().clamp(max=blocks.rows - 1)
    column = (chances[1] * blocks.columns).long().clamp(max=blocks.columns - 1)
    place = blocks.places[member]
    left, right = blocks.left[:, place], blocks.right[place].T
    parts = [
        (left[row[start : start + _PART]] * right[column[start : start + _PART]]).sum(1)
        for start in range(0, _SAMPLE, _PART)
    ]
    return torch.cat(parts).abs()
