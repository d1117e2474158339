"""Members as stacked factors, module by module: Delta W = B A for all of them together.

For member i with scaling s_i the rows sign(s_i) sqrt|s_i| A_i are stacked vertically and the columns
sqrt|s_i| B_i horizontally, so that the sum of all updates is B A, and member i is a range of rows and
columns. The sign is in A, as in PEFT's functions. One module of every member is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from catalog.adapters import LoraModule
from catalog.errors import MergeError
from merging.members.member import MergeMember, Scratch, read_module

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shape:
    """A module of the union of all members: `ranks` and `scalings` have one entry a member, 0 if it lacks the
    module.
    """

    name: str
    kind: str
    in_features: int
    out_features: int
    ranks: tuple[int, ...]
    scalings: tuple[float, ...]

    def ranges(self) -> tuple[slice, ...]:
        """Rows of A and columns of B of each member in the stack."""
        return _ranges(self.ranks)

    @property
    def total(self) -> int:
        """Sum of the ranks."""
        return sum(self.ranks)

    @property
    def largest(self) -> int:
        """The largest rank of a member."""
        return max(self.ranks)

    @property
    def limit(self) -> int:
        """The largest rank that the sum of the updates can have."""
        return min(self.total, self.in_features, self.out_features)


@dataclass(frozen=True, slots=True)
class Stack:
    """Stacked factors of one module in float32: `a` of (R, in), `b` of (out, R), R the sum of `ranks`.

    For an embedding in is the vocabulary, out the width. `ranks` is 0 for a member without the module, and so
    is its entry of `scalings`.
    """

    name: str
    a: Tensor
    b: Tensor
    ranks: tuple[int, ...]
    scalings: tuple[float, ...]

    def ranges(self) -> tuple[slice, ...]:
        """Rows of `a` and columns of `b` of each member."""
        return _ranges(self.ranks)

    def columns(self, values: Sequence[float]) -> Tensor:
        """One value per member, repeated for each of its ranks: float64 of (R,) on the factors' device."""
        import torch

        by_column = [value for value, rank in zip(values, self.ranks, strict=True) for _ in range(rank)]
        return torch.tensor(by_column, dtype=torch.float64, device=self.a.device)


def shapes(members: Sequence[MergeMember]) -> tuple[Shape, ...]:
    """Every module of any member, sorted by layer and name."""
    tables = [member.modules for member in members]
    union: dict[str, LoraModule] = {}
    for table in tables:
        for name, module in table.items():
            union.setdefault(name, module)
    order = sorted(union.values(), key=lambda m: (-1 if m.layer is None else m.layer, m.name))
    return tuple(
        Shape(
            m.name,
            m.kind,
            m.in_features,
            m.out_features,
            tuple(table[m.name].rank if m.name in table else 0 for table in tables),
            tuple(table[m.name].scaling if m.name in table else 0.0 for table in tables),
        )
        for m in order
    )


def iterate_stacks(members: Sequence[MergeMember], device: str = "cpu") -> Iterator[Stack]:
    """The stack of every module in the order of `shapes`; raises the errors of `read_stack`."""
    for shape in shapes(members):
        yield read_stack(shape, members, device)


def read_stack(shape: Shape, members: Sequence[MergeMember], device: str = "cpu") -> Stack:
    """The stack of one module, read from the members' files.

    Raises WeightsError and, for values that are not finite, MergeError.
    """
    import torch

    a = torch.empty(shape.total, shape.in_features, device=device)
    b = torch.empty(shape.out_features, shape.total, device=device)
    _fill(shape, members, shape.scalings, a, b, Scratch())
    if not (_finite(a) and _finite(b)):
        refuse_infinite(shape, members)
    return Stack(shape.name, a, b, shape.ranks, shape.scalings)


def sum_dense(shape: Shape, members: Sequence[MergeMember], weights: Sequence[float]) -> Tensor:
    """sum_i w_i Delta W_i of one module as a matrix (out, in) in float32, one member in memory at a time.

    Raises the errors of `read_stack`.
    """
    import torch

    total = torch.zeros(shape.out_features, shape.in_features)
    for member, weight, scaling in zip(members, weights, shape.scalings, strict=True):
        if shape.name not in member.places:
            continue
        if member.folded is not None:
            total.add_(member.folded.update(member, shape.name), alpha=weight)
        else:
            a, b = read_module(member, shape.name)
            total.addmm_(b.to(torch.float32), a.to(torch.float32), alpha=weight * scaling)
    if not _finite(total):
        refuse_infinite(shape, members)
        raise MergeError(f"The sum of the updates of {shape.name} is too large for float32.")
    return total


def join_factors(
    shape: Shape,
    members: Sequence[MergeMember],
    weights: Sequence[float],
    dtype: torch.dtype,
    scratch: Scratch | None = None,
) -> tuple[Tensor, Tensor]:
    """A of (R, in) and B of (out, R) with sum_i w_i Delta W_i = B A, in the data type to be written.

    The same numbers as the stack with sqrt|w| on both sides, rounded once, in a third of the time, without
    float32 copies. With `scratch` the results last until the next call. Raises WeightsError; values that are
    not finite are left to the writer.
    """
    scratch = scratch or Scratch()
    a = scratch.matrix("a", shape.total, shape.in_features, dtype)
    b = scratch.matrix("b", shape.out_features, shape.total, dtype)
    factors = [w * s for w, s in zip(weights, shape.scalings, strict=True)]
    _fill(shape, members, factors, a, b, scratch)
    return a, b


def _fill(
    shape: Shape,
    members: Sequence[MergeMember],
    factors: Sequence[float],
    a: Tensor,
    b: Tensor,
    scratch: Scratch,
) -> None:
    """sign(f) sqrt|f| A_i and sqrt|f| B_i for the factor f of each member, stacked vertically and
    horizontally."""
    import torch

    columns = []
    for n, (member, factor, place) in enumerate(zip(members, factors, shape.ranges(), strict=True)):
        if place.start == place.stop:
            continue
        root = math.sqrt(abs(factor))
        raw_a, raw_b = read_module(member, shape.name, scratch, str(n))
        _scale(raw_a, math.copysign(root, factor), a[place])
        if raw_b.dtype == b.dtype and raw_b.device == b.device:
            columns.append((place, raw_b.mul_(root)))
        else:
            _scale(raw_b, root, b[:, place])
    # Narrow columns are copied faster all at once than member by member.
    if len(columns) == sum(map(bool, shape.ranks)):
        torch.cat([values for _, values in columns], 1, out=b)
    else:
        for place, values in columns:
            b[:, place] = values


def _scale(raw: Tensor, factor: float, out: Tensor) -> None:
    """factor * raw in float32 arithmetic, rounded to the data type of `out` at the end."""
    import torch

    if raw.dtype == out.dtype and raw.device == out.device:
        torch.mul(raw, factor, out=out)
    else:
        torch.mul(raw.to(out.device).to(torch.float32), factor, out=out)


def _ranges(ranks: Sequence[int]) -> tuple[slice, ...]:
    ends = list(accumulate(ranks))
    return tuple(slice(end - rank, end) for end, rank in zip(ends, ranks, strict=True))


def refuse_infinite(shape: Shape, members: Sequence[MergeMember]) -> None:
    """Raises MergeError for the first member whose factors contain NaN or infinity."""
    import torch

    for member, rank in zip(members, shape.ranks, strict=True):
        if rank and not all(_finite(factor.to(torch.float32)) for factor in read_module(member, shape.name)):
            raise MergeError(f"{member.name} cannot be merged: {shape.name} contains NaN or infinity.")


def _finite(values: Tensor) -> bool:
    """Whether every value is finite; the sum decides unless it overflows."""
    import torch

    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())
